"""All scores at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cplmixvi.metrics import _calibration, _information, _matching
from cplmixvi.metrics._labels import contingency, encode, reference_mask, take


def correct_cells(y_true, y_pred, *, ignore: Sequence = ()) -> np.ndarray:
    """Whether the category of each cell is the one matched to its type, bool; cells without a reference left out."""
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
    """Score a labelling against reference types in every way of this module.

    Parameters
    ----------
    y_true, y_pred
        Reference types and predicted categories, ``(n_obs,)``.
    proba
        Probabilities ``(n_obs, n_categories)``; adds ``brier``.
    confidence
        Probability claimed for the predicted category, ``(n_obs,)``; adds ``expected_calibration_error``. Default: the
        largest probability where ``proba`` is given.
    categories
        Names of the columns of ``proba``. Default: those of a DataFrame, else positions.
    below
        Types with fewer cells are rare.
    ignore
        Reference labels that mean "unknown".

    Returns
    -------
    Dictionary of ``n_obs``, ``n_types``, ``n_categories`` (all over cells with a reference), ``accuracy``,
    ``balanced_accuracy``, ``rare_recall``, ``purity``, ``nmi``, ``ami``, ``ari`` and what the options add.

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
            confidence = np.asarray(proba).max(axis=1)
    if confidence is not None:
        claimed = np.asarray(pd.Series(confidence))[reference_mask(y_true, ignore)]
        correct = correct_cells(y_true, y_pred, ignore=ignore)
        scores["expected_calibration_error"] = _calibration.expected_calibration_error(correct, claimed)
    return scores
