"""Scores of probabilities: does a confidence of 0.9 mean right nine times in ten?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cplmixvi import pp
from cplmixvi.metrics._labels import encode, reference_mask, take
from cplmixvi.metrics._matching import match_categories
from cplmixvi.metrics._numbers import numbers

#: What single precision may add to a probability by rounding.
_ROUNDING = 1e-6


def check_proba(proba, n_obs: int, categories: Sequence | None = None) -> tuple[np.ndarray, list]:
    """Probabilities as float64 ``(n_obs, n_categories)`` and the names of the columns.

    Raises
    ------
    ValueError
        When the shape does not fit, or a value is no probability.
    """
    values = numbers(proba, "proba")
    if categories is None:
        categories = proba.columns if isinstance(proba, pd.DataFrame) else range(values.shape[-1] if values.ndim else 0)
    if isinstance(categories, str) or not np.iterable(categories):
        raise ValueError(f"categories={categories!r} was given; give a list with the name of each column of proba")
    categories = list(categories)
    if values.shape != (n_obs, len(categories)):
        raise ValueError(
            f"proba has shape {values.shape}, ({n_obs}, {len(categories)}) is needed for these cells and categories: "
            f"pass both for the same model"
        )
    # Float32 rows may exceed one by rounding.
    if not (values >= 0).all() or not (values.sum(axis=1) <= 1 + 1e-3).all():
        raise ValueError(
            "proba has negative or missing values, or a row sum above 1; rows of probabilities are needed: pass "
            "model.predict(soft=True)"
        )
    return values, categories


def expected_calibration_error(correct, confidence, n_bins: int = 15) -> float:
    r"""Gap between confidence and accuracy within bins of equal width, averaged over cells.

    :math:`\sum_b \frac{n_b}{n} |acc_b - conf_b|` (Guo et al. 2017, ICML).

    Parameters
    ----------
    correct
        Whether each cell is correct, ``(n_obs,)``: bool, or 0 and 1.
    confidence
        Probability claimed for each cell, ``(n_obs,)``, in [0, 1].
    n_bins
        Number of bins on (0, 1]. A confidence within a millionth of an edge is on it, and belongs to the bin below.

    Returns
    -------
    float
        In [0, 1]; 0 is perfect.

    Raises
    ------
    ValueError
        If the lengths differ, ``correct`` has other values or missing ones, a confidence is outside [0, 1], or there
        are no cells or no bins.

    Examples
    --------
    >>> expected_calibration_error([True, False], [0.5, 0.5])
    0.0
    """
    correct, confidence = numbers(correct, "correct"), numbers(confidence, "confidence")
    if (
        not pp.is_whole(n_bins)
        or correct.shape != confidence.shape
        or correct.ndim != 1
        or not len(correct)
        or n_bins < 1
    ):
        raise ValueError(
            f"correct has shape {correct.shape}, confidence {confidence.shape}, n_bins={n_bins!r}; two equal lengths "
            f"of at least one cell and one bin are needed: pass one value per cell"
        )
    if not np.isin(correct, (0, 1)).all():
        raise ValueError("correct has values that are missing or not True or False: pass whether each cell is correct")
    if not ((confidence >= 0) & (confidence <= 1 + _ROUNDING)).all():
        raise ValueError("confidence has values that are missing or outside [0, 1]: pass probabilities")
    confidence = np.minimum(confidence, 1.0)
    bins = np.clip(np.ceil((confidence - _ROUNDING) * n_bins).astype(int) - 1, 0, n_bins - 1)
    gap = np.bincount(bins, weights=correct - confidence, minlength=n_bins)
    return float(np.abs(gap).sum() / correct.size)


def brier(y_true, proba, categories: Sequence | None = None, *, ignore: Sequence = ()) -> float:
    r"""Brier score over cell types, after one-to-one matching of categories to types.

    :math:`\frac{1}{n} \sum_n \sum_k (p_{nk} - [k \text{ matched to } y_n])^2`; a type without a matched category is
    treated as having probability 0. Lower is better: 0 is perfect, 2 is the worst.

    Parameters
    ----------
    y_true
        Reference cell types, ``(n_obs,)``; cells without one are left out.
    proba
        Probabilities, ``(n_obs, n_categories)``. Matching uses the most probable category of each cell.
    categories
        Names of the columns. Default: those of a DataFrame, otherwise their positions.
    ignore
        Reference labels that mean "unknown".

    Returns
    -------
    float
        In [0, 2].

    Raises
    ------
    ValueError
        If the shape of ``proba`` does not fit the cells and categories, its rows are not probabilities, or no cell has
        a reference label.

    Examples
    --------
    >>> brier(["a", "b"], np.array([[1.0, 0.0], [0.0, 1.0]]))
    0.0
    """
    mask = reference_mask(y_true, ignore)
    values, names = check_proba(proba, len(mask), categories)
    values, y_true = values[mask], take(y_true, mask)
    best = values.argmax(axis=1)
    matched = match_categories(y_true, best)
    codes, types = encode(y_true)
    column_of = {type_: column for column, type_ in matched.items()}
    target = np.array([column_of.get(type_, -1) for type_ in types])[codes]
    at_target = np.where(target >= 0, values[np.arange(len(values)), target], 0.0)
    # sum_k p_k^2 + 1 - 2 p_target, which is 1 + sum_k p_k^2 for a type that no category stands for.
    return float(((values**2).sum(axis=1) + 1 - 2 * at_target).mean())


def confidence(
    proba, y_true, categories: Sequence | None = None, *, ignore: Sequence = (), floor: float = 1e-12
) -> pd.DataFrame:
    r"""Confidence in each category for the cells of each type, :math:`C_m(k) = E_{x|m} \log p(c = k | x)`, in nats.

    Definition 1 of the paper; types m are rows and categories k are columns. In a good model, every row has one entry
    near 0 and all others are far below.

    Parameters
    ----------
    proba
        Probabilities, ``(n_obs, n_categories)``.
    y_true
        Reference cell types, ``(n_obs,)``; cells without one are left out.
    categories
        Names of the columns. Default: those of a DataFrame, otherwise their positions.
    ignore
        Reference labels that mean "unknown".
    floor
        Smaller probabilities are raised to this value: a single exact zero would make the entry of a whole type minus
        infinity.

    Returns
    -------
    pandas.DataFrame
        Types x categories.

    Raises
    ------
    ValueError
        If the shape of ``proba`` does not fit the cells and categories, its rows are not probabilities, no cell has a
        reference label, or ``floor`` is no probability.

    Examples
    --------
    >>> confidence(np.array([[0.9, 0.1], [0.2, 0.8]]), ["a", "b"]).round(2)
    category     0     1
    type
    a        -0.11 -2.30
    b        -1.61 -0.22
    """
    if not (pp.is_number(floor) and 0 <= floor <= 1):
        raise ValueError(f"floor={floor!r} was given; give a probability, such as 1e-12")
    mask = reference_mask(y_true, ignore)
    values, names = check_proba(proba, len(mask), categories)
    codes, types = encode(take(y_true, mask))
    one_hot = np.equal.outer(np.arange(len(types)), codes).astype(np.float64)
    means = one_hot @ np.log(np.maximum(values[mask], floor)) / one_hot.sum(axis=1, keepdims=True)
    return pd.DataFrame(means, index=pd.Index(types, name="type"), columns=pd.Index(names, name="category"))
