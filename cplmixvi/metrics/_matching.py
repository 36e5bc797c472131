"""Scores that need to know which category stands for which type.

Matching is one-to-one (Hungarian): a category can stand for one type only, and surplus categories stand for none. So
neither splitting every type nor lumping all types can score well, as either can under purity.

In all functions ``y_true`` and ``y_pred`` are 1-D, one label per cell; missing labels and ``ignore`` are treated as
:mod:`cplmixvi.metrics` says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from cplmixvi.metrics._labels import Contingency, contingency


def _matched(table: Contingency) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the one-to-one matching that holds the most cells."""
    return linear_sum_assignment(table.counts, maximize=True)


def _recall(table: Contingency) -> np.ndarray:
    recall = np.zeros(len(table.types))
    rows, columns = _matched(table)
    recall[rows] = table.counts[rows, columns] / table.type_sizes[rows]
    return recall


def match_categories(y_true, y_pred, *, ignore: Sequence = ()) -> dict:
    """Match categories to types, one to one, so that the most cells agree.

    Parameters
    ----------
    y_true, y_pred
        Reference types and predicted categories, ``(n_obs,)``.
    ignore
        Reference labels that mean "unknown".

    Returns
    -------
    Dictionary from category to type. Categories beyond the number of types are not in it.
    """
    table = contingency(y_true, y_pred, ignore)
    return {table.categories[column]: table.types[row] for row, column in zip(*_matched(table), strict=True)}


def accuracy(y_true, y_pred, *, ignore: Sequence = ()) -> float:
    """Fraction of cells whose category is the one matched to their type (ACC)."""
    table = contingency(y_true, y_pred, ignore)
    return float(table.counts[_matched(table)].sum() / table.type_sizes.sum())


def recall_by_type(y_true, y_pred, *, ignore: Sequence = ()) -> pd.Series:
    """Fraction of each type's cells in the category matched to it, 0 for types without one; indexed by type.

    Examples
    --------
    >>> recall_by_type(["a", "a", "b"], [0, 1, 1]).to_dict()
    {'a': 0.5, 'b': 1.0}
    """
    table = contingency(y_true, y_pred, ignore)
    return pd.Series(_recall(table), index=pd.Index(table.types, name="type"), name="recall")


def balanced_accuracy(y_true, y_pred, *, ignore: Sequence = ()) -> float:
    """Mean over types of :func:`recall_by_type`: a rare type weighs as much as a common one.

    Examples
    --------
    >>> balanced_accuracy(["a", "a", "a", "b"], [0, 0, 0, 0])
    0.5
    """
    return float(_recall(contingency(y_true, y_pred, ignore)).mean())


def rare_recall(y_true, y_pred, *, below: int = 50, ignore: Sequence = ()) -> float:
    """Mean of :func:`recall_by_type` over types with fewer than ``below`` cells; NaN where there are none.

    Examples
    --------
    >>> rare_recall(["a"] * 60 + ["b"], [0] * 60 + [1])
    1.0
    """
    table = contingency(y_true, y_pred, ignore)
    rare = table.type_sizes < below
    return float(_recall(table)[rare].mean()) if rare.any() else float("nan")


def purity(y_true, y_pred, *, ignore: Sequence = ()) -> float:
    """Fraction of cells in the most common type of their category; grows with the number of categories.

    Examples
    --------
    >>> purity(["a", "a", "a", "b"], [0, 0, 0, 0])
    0.75
    """
    table = contingency(y_true, y_pred, ignore)
    return float(table.counts.max(axis=0, initial=0).sum() / table.type_sizes.sum())


def confusion(y_true, y_pred, *, ignore: Sequence = ()) -> pd.DataFrame:
    """Cells of each type (rows) in each category (columns); labels in categorical or natural order."""
    table = contingency(y_true, y_pred, ignore)
    return pd.DataFrame(
        table.counts, index=pd.Index(table.types, name="type"), columns=pd.Index(table.categories, name="category")
    )
