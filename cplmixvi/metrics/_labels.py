"""Two labellings of the same cells, made comparable: the one place that knows about missing labels.

A cell without a reference (NaN, None, or one of ``ignore``) says nothing about a labelling and is left out everywhere.
A cell without a predicted label is counted, and never as correct: otherwise leaving out hard cells would raise a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Contingency:
    """Cells of each type in each category.

    Attributes
    ----------
    counts
        Int array ``(n_types, n_categories)``.
    types
        Labels of rows; only those in use.
    categories
        Labels of columns; only those in use.
    type_sizes
        Cells of each type, ``(n_types,)``: at least the sum of the row, more where cells have no predicted label.
    """

    counts: np.ndarray
    types: list
    categories: list
    type_sizes: np.ndarray


def _natural(label) -> tuple:
    """Sort key: numbers and strings of digits by value, then everything else as text."""
    text = str(label)
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)


def encode(labels) -> tuple[np.ndarray, list]:
    """Codes from 0 (missing: -1) and the used labels, in categorical order where there is one, else natural order."""
    if isinstance(labels, pd.Series):
        labels = labels.array
    if isinstance(labels, pd.Categorical):
        used = labels.remove_unused_categories()
        return np.asarray(used.codes, dtype=np.int64), list(used.categories)
    values = np.asarray(labels, dtype=None if isinstance(labels, np.ndarray) else object)
    if values.ndim != 1:
        raise ValueError(f"labels have shape {values.shape}; one label per cell is needed: pass a 1-D array")
    codes, uniques = pd.factorize(values, use_na_sentinel=True)
    order = sorted(range(len(uniques)), key=lambda i: _natural(uniques[i]))
    rank = np.empty(len(uniques), dtype=np.int64)
    rank[order] = np.arange(len(uniques))
    return np.where(codes < 0, -1, rank[codes] if len(uniques) else -1), [uniques[i] for i in order]


def has_label(values, ignore: Sequence = ()) -> np.ndarray:
    """Which cells have a label that is not to be ignored, ``(n_obs,)``; a single label to ignore may be a string."""
    values = pd.Series(values).reset_index(drop=True)
    if not np.iterable(ignore):
        raise ValueError(f"ignore={ignore!r} must be a label, or a list of labels; leave it out to ignore none.")
    ignore = [ignore] if isinstance(ignore, str) else list(ignore)
    # A copy, because torch takes no mask that pandas has made read-only.
    return (values.notna() & ~values.isin(ignore)).to_numpy(copy=True)


def check_labels(values, name: str) -> None:
    """Raise ValueError unless values are a sequence of labels; ``name`` is what the caller calls them."""
    if isinstance(values, str | bytes | Mapping | Set) or not hasattr(values, "__len__"):
        raise ValueError(
            f"{name} is a {type(values).__name__}; one label per cell is needed: pass a 1-D array or a list"
        )
    if getattr(values, "ndim", 1) != 1:
        raise ValueError(f"{name} has shape {values.shape}; one label per cell is needed: pass a 1-D array")


def reference_mask(y_true, ignore: Sequence = ()) -> np.ndarray:
    """Which cells have a reference label, ``(n_obs,)``.

    Raises
    ------
    ValueError
        When none has, or they are no labels.
    """
    check_labels(y_true, "y_true")
    mask = has_label(y_true, ignore)
    if not mask.any():
        raise ValueError(
            f"{len(mask)} cells given, none has a reference label; at least one is needed: check y_true and ignore"
        )
    return mask


def take(values, mask: np.ndarray):
    """Rows of an array, a Series or a list that a mask names."""
    if isinstance(values, pd.Series):
        return values.array[mask]
    return values[mask] if hasattr(values, "dtype") else np.asarray(values, dtype=object)[mask]


def paired(y_true, y_pred, ignore: Sequence = ()) -> tuple:
    """Both labellings of the cells that have a reference.

    Raises
    ------
    ValueError
        When the lengths differ, or no cell has a reference.
    """
    check_labels(y_true, "y_true")
    check_labels(y_pred, "y_pred")
    if len(y_true) != len(y_pred):
        raise ValueError(
            f"{len(y_true)} reference and {len(y_pred)} predicted labels given; as many of each are needed: pass the "
            f"same cells in the same order"
        )
    mask = reference_mask(y_true, ignore)
    return take(y_true, mask), take(y_pred, mask)


def contingency(y_true, y_pred, ignore: Sequence = ()) -> Contingency:
    """Count the cells of each type in each category."""
    y_true, y_pred = paired(y_true, y_pred, ignore)
    rows, types = encode(y_true)
    columns, categories = encode(y_pred)
    shape = (len(types), len(categories))
    has = columns >= 0
    counts = np.bincount(rows[has] * shape[1] + columns[has], minlength=shape[0] * shape[1]).reshape(shape)
    return Contingency(counts, types, categories, np.bincount(rows, minlength=shape[0]))
