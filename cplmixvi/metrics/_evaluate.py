"""All scores at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cplmixvi.metrics import _calibration, _information, _matching
from cplmixvi.metrics._labels import contingency, encode, reference_mask, take
from cplmixvi.metrics._numbers import numbers


def correct_cells(y_true, y_pred, *, ignore: Sequence = ()) -> np.ndarray:
    """Whether the category of each cell is the one matched to its type.

    Categories are matched to types one to one by :func:`match_categories`; the mean of the result is :func:`accuracy`.

    Parameters
    ----------
    y_true
        Reference cell types, ``(n_obs,)``.
    y_pred
        Predicted categories, ``(n_obs,)``.
    ignore
        Reference labels that mean "unknown".

    Returns
    -------
    numpy.ndarray
        Bool, one entry per cell with a reference label, in the order of the cells; cells without one are left out.
        False for cells without a predicted label.

    Raises
    ------
    ValueError
        If the lengths differ, labels are not one-dimensional, or no cell has a reference label.

    Examples
    --------
    >>> correct_cells(["a", "a", "b", None], [0, 1, 1, 1])
    array([ True, False,  True])
    """
    matched = _matching.match_categories(y_true, y_pred, ignore=ignore)
    mask = reference_mask(y_true, ignore)
    true_codes, types = encode(take(y_true, mask))
    pred_codes, categories = encode(take(y_pred, mask))
    position = {type_: i for i, type_ in enumerate(types)}
    # One entry more for code -1, a cell without a predicted label: never correct.
    as_type = np.array([position.get(matched.get(category), -1) for category in categories] + [-1])
    return as_type[pred_codes] == true_codes


def evaluate(
    y_true,
    y_pred,
    proba=None,
    confidence=None,
    *,
    categories: Sequence | None = None,
    below: int = 50,
    ignore: Sequence = (),
) -> dict[str, float]:
    """Score predicted categories against reference cell types with all scores of this module that apply.

    Parameters
    ----------
    y_true
        Reference cell types, ``(n_obs,)``.
    y_pred
        Predicted categories, ``(n_obs,)``.
    proba
        Probabilities, ``(n_obs, n_categories)``, also sparse; adds ``brier``.
    confidence
        Probability claimed for the predicted category, ``(n_obs,)``; adds ``expected_calibration_error``. Default: the
        largest probability of each cell if ``proba`` is given.
    categories
        Names of the columns of ``proba``. Default: those of a DataFrame, otherwise their positions.
    below
        Types with fewer cells than this are rare.
    ignore
        Reference labels that mean "unknown".

    Returns
    -------
    dict
        ``n_obs``, ``n_types`` and ``n_categories`` (all counted over cells with a reference label), ``accuracy``,
        ``balanced_accuracy``, ``rare_recall``, ``purity``, ``nmi``, ``ami``, ``ari``, and the scores added by ``proba``
        and ``confidence``.

    Raises
    ------
    ValueError
        If the labels differ in length, no cell has a reference label, ``proba`` does not fit the cells and categories
        or does not hold probabilities, or a confidence is missing or outside [0, 1].

    Examples
    --------
    >>> scores = evaluate(["a", "a", "b"], [0, 0, 1])
    >>> scores["accuracy"], scores["n_types"]
    (1.0, 2)
    """
    table = contingency(y_true, y_pred, ignore)
    scores: dict[str, float] = {
        "n_obs": int(table.type_sizes.sum()),
        "n_types": len(table.types),
        "n_categories": len(table.categories),
        "accuracy": _matching.accuracy(y_true, y_pred, ignore=ignore),
        "balanced_accuracy": _matching.balanced_accuracy(y_true, y_pred, ignore=ignore),
        "rare_recall": _matching.rare_recall(y_true, y_pred, below=below, ignore=ignore),
        "purity": _matching.purity(y_true, y_pred, ignore=ignore),
        "nmi": _information.nmi(y_true, y_pred, ignore=ignore),
        "ami": _information.ami(y_true, y_pred, ignore=ignore),
        "ari": _information.ari(y_true, y_pred, ignore=ignore),
    }
    if proba is not None:
        scores["brier"] = _calibration.brier(y_true, proba, categories, ignore=ignore)
        if confidence is None:
            confidence = numbers(proba, "proba").max(axis=1)
    if confidence is not None:
        claimed, mask = np.atleast_1d(numbers(confidence, "confidence")), reference_mask(y_true, ignore)
        if len(claimed) != len(mask):
            raise ValueError(f"confidence has {len(claimed)} entries for {len(mask)} cells; give one for each.")
        claimed = claimed[mask]
        correct = correct_cells(y_true, y_pred, ignore=ignore)
        scores["expected_calibration_error"] = _calibration.expected_calibration_error(correct, claimed)
    return scores
