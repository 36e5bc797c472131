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

from cplmixvi import pp
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
    """Match categories to cell types one to one so that as many cells as possible agree.

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
    dict
        From category to type. Surplus categories, and those that have no cell of a type that is left for them, are not
        in it.

    Raises
    ------
    ValueError
        If the lengths differ, labels are not one-dimensional, or no cell has a reference label.
    """
    table = contingency(y_true, y_pred, ignore)
    pairs = zip(*_matched(table), strict=True)
    # The matching is one of all rows or all columns: some pairs may only be what is left over.
    return {table.categories[column]: table.types[row] for row, column in pairs if table.counts[row, column]}


def accuracy(y_true, y_pred, *, ignore: Sequence = ()) -> float:
    r"""Fraction of cells whose category is the one matched to their type (ACC).

    .. math:: \mathrm{ACC} = \frac1n \max_\pi \sum_t n_{t\,\pi(t)}

    with :math:`n_{tk}` cells of type t in category k and :math:`\pi` a one-to-one matching, see
    :func:`match_categories`.

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
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If the lengths differ, labels are not one-dimensional, or no cell has a reference label.

    Examples
    --------
    >>> accuracy(["a", "a", "b", "b"], [0, 1, 2, 2])
    0.75
    """
    table = contingency(y_true, y_pred, ignore)
    return float(table.counts[_matched(table)].sum() / table.type_sizes.sum())


def recall_by_type(y_true, y_pred, *, ignore: Sequence = ()) -> pd.Series:
    """Fraction of each type's cells that are in the category matched to it.

    Categories are matched to types one to one by :func:`match_categories`.

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
    pandas.Series
        In [0, 1], indexed by type, ``(n_types,)``; 0 for types without a matched category.

    Raises
    ------
    ValueError
        If the lengths differ, labels are not one-dimensional, or no cell has a reference label.

    Examples
    --------
    >>> recall_by_type(["a", "a", "b"], [0, 1, 1]).to_dict()
    {'a': 0.5, 'b': 1.0}
    """
    table = contingency(y_true, y_pred, ignore)
    return pd.Series(_recall(table), index=pd.Index(table.types, name="type"), name="recall")


def balanced_accuracy(y_true, y_pred, *, ignore: Sequence = ()) -> float:
    """Mean of :func:`recall_by_type` over types: a rare type weighs as much as a common one.

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
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If the lengths differ, labels are not one-dimensional, or no cell has a reference label.

    Examples
    --------
    >>> balanced_accuracy(["a", "a", "a", "b"], [0, 0, 0, 0])
    0.5
    """
    return float(_recall(contingency(y_true, y_pred, ignore)).mean())


def rare_recall(y_true, y_pred, *, below: int = 50, ignore: Sequence = ()) -> float:
    """Mean of :func:`recall_by_type` over rare types.

    Parameters
    ----------
    y_true
        Reference cell types, ``(n_obs,)``.
    y_pred
        Predicted categories, ``(n_obs,)``.
    below
        Types with fewer cells than this are rare.
    ignore
        Reference labels that mean "unknown".

    Returns
    -------
    float
        In [0, 1]; NaN if there are no rare types.

    Raises
    ------
    ValueError
        If the lengths differ, labels are not one-dimensional, or no cell has a reference label.

    Examples
    --------
    >>> rare_recall(["a"] * 60 + ["b"], [0] * 60 + [1])
    1.0
    """
    if not pp.is_number(below):
        raise ValueError(f"below={below!r} was given; give a number of cells.")
    table = contingency(y_true, y_pred, ignore)
    rare = table.type_sizes < below
    return float(_recall(table)[rare].mean()) if rare.any() else float("nan")


def purity(y_true, y_pred, *, ignore: Sequence = ()) -> float:
    r"""Fraction of cells that belong to the most common type of their category; grows with the number of categories.

    .. math:: \frac1n \sum_k \max_t n_{tk}

    with :math:`n_{tk}` cells of type t in category k. No matching is involved.

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
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If the lengths differ, labels are not one-dimensional, or no cell has a reference label.

    Examples
    --------
    >>> purity(["a", "a", "a", "b"], [0, 0, 0, 0])
    0.75
    """
    table = contingency(y_true, y_pred, ignore)
    return float(table.counts.max(axis=0, initial=0).sum() / table.type_sizes.sum())


def confusion(y_true, y_pred, *, ignore: Sequence = ()) -> pd.DataFrame:
    """Number of cells of each type (rows) in each category (columns).

    Parameters
    ----------
    y_true
        Reference cell types, ``(n_obs,)``.
    y_pred
        Predicted categories, ``(n_obs,)``. Cells without a predicted label are in no column.
    ignore
        Reference labels that mean "unknown".

    Returns
    -------
    pandas.DataFrame
        Integers, ``(n_types, n_categories)``; labels in use only, in categorical order if they have one, otherwise in
        natural order.

    Raises
    ------
    ValueError
        If the lengths differ, labels are not one-dimensional, or no cell has a reference label.

    Examples
    --------
    >>> confusion(["a", "a", "b"], [0, 1, 1])
    category  0  1
    type
    a         1  1
    b         0  1
    """
    table = contingency(y_true, y_pred, ignore)
    return pd.DataFrame(
        table.counts, index=pd.Index(table.types, name="type"), columns=pd.Index(table.categories, name="category")
    )
