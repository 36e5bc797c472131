"""Categories beside reference labels: how they compare, and names for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from cplmixvi import metrics, pp
from cplmixvi._constants import DEFAULT_KEY, NAMES_KEY, UNASSIGNED, ResultKeys
from cplmixvi.tl._annotate import ORIGIN, is_ours


@dataclass(frozen=True)
class Comparison:
    """Comparison of a result with reference labels.

    Attributes
    ----------
    types
        One row per reference type: ``n_cells``, the ``category`` matched to it one-to-one (`None` if no category
        with cells of the type is left for it), and ``precision``, ``recall`` and ``f1`` of that match.
    confusion
        Number of cells by reference type (rows) and category (columns); cells without a category are in no column.
    scores
        Accuracy of the matching, balanced accuracy, NMI, AMI, ARI, ... (see :func:`cplmixvi.metrics.evaluate`).
    """

    types: pd.DataFrame
    confusion: pd.DataFrame
    scores: dict[str, float]


def compare_to_reference(
    adata: AnnData, reference_key: str, key: str = DEFAULT_KEY, *, ignore: Sequence[str] = ()
) -> Comparison:
    """Compare categories with reference labels. Nothing is written to ``adata``.

    A cell that :func:`annotate` left unassigned counts as a cell of its reference type for which no category is
    correct.

    Parameters
    ----------
    adata
        Annotated cells.
    reference_key
        Column of ``obs`` with reference labels.
    key
        Name of the result.
    ignore
        Reference labels that mean "unknown"; cells with these labels, or without a label, are left out.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If a column is missing or no cell has a reference label.
    """
    reference, categories = _columns(adata, reference_key, key)
    # To the scores a cell without a label is one that no category is right for.
    categories = categories.where(categories != UNASSIGNED)
    confusion = metrics.confusion(reference, categories, ignore=ignore)
    sizes = reference.value_counts()
    matched = metrics.match_categories(reference, categories, ignore=ignore)
    category_of = {name: category for category, name in matched.items()}
    rows = []
    for name, row in confusion.iterrows():
        category = category_of.get(name)
        hits = float(row[category]) if category is not None else 0.0
        precision = hits / max(confusion[category].sum(), 1) if category is not None else 0.0
        # Cells without a category are in no column of the row.
        recall = hits / sizes.loc[name]
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        rows.append((name, int(sizes.loc[name]), category, precision, recall, f1))
    types = pd.DataFrame(rows, columns=[reference_key, "n_cells", "category", "precision", "recall", "f1"])
    scores = metrics.evaluate(reference, categories, ignore=ignore)
    return Comparison(types.set_index(reference_key), confusion, scores)


def map_to_reference(
    adata: AnnData,
    reference_key: str,
    key: str = DEFAULT_KEY,
    *,
    key_added: str | None = None,
    min_purity: float = 0.0,
    ignore: Sequence[str] = (),
    overwrite: bool = False,
) -> pd.DataFrame:
    """Name each category after the most frequent reference type among its labelled cells.

    Several categories may get the same name, so that a type that was split into several categories becomes one type
    again.

    Parameters
    ----------
    adata
        Annotated cells.
    reference_key, key, ignore
        See :func:`compare_to_reference`.
    key_added
        Column of ``obs`` to write the names to; ``f"{key}_{reference_key}"`` by default.
    min_purity
        A category is called ``"unassigned"`` if a smaller fraction of its labelled cells has the name. Categories
        without labelled cells, and cells that :func:`annotate` left unassigned, are also called ``"unassigned"``.
    overwrite
        Replace a column that this function has not written, or that has other values than names of reference types by
        now. A column that it has written is always replaced.

    Returns
    -------
    pandas.DataFrame
        Indexed by category, with columns ``name``, ``purity`` (fraction of the category's labelled cells that have the
        most frequent label), ``n_cells`` and ``n_labelled``.

        Also writes ``obs[key_added]``, and adds its name to ``uns["cplmixvi_names"]["columns"]``.

    Raises
    ------
    ValueError
        If a column is missing, ``key_added`` is a column that is read, part of the result or one of another origin, or
        ``min_purity`` is outside ``[0, 1]``.
    """
    if not (pp.is_number(min_purity) and 0 <= min_purity <= 1):
        raise ValueError(f"min_purity={min_purity!r} is outside [0, 1]; give a share of cells.")
    key_added = key_added or f"{key}_{reference_key}"
    if key_added in (key, reference_key):
        raise ValueError(f"key_added={key_added!r} is what the names are made from; choose another column.")
    keys = ResultKeys(key)
    if not isinstance(key_added, str) or key_added in (keys.confidence, keys.agreement, keys.condition, keys.stability):
        raise ValueError(
            f"key_added={key_added!r} is no free name, or one of the result {key!r}; choose another column."
        )
    reference, categories = _columns(adata, reference_key, key)
    if key_added in adata.obs and not overwrite:
        _check_ours(adata, key_added, {*reference.dropna().astype(str), UNASSIGNED}, reference_key)
    confusion = metrics.confusion(reference, categories, ignore=ignore)
    sizes = categories.value_counts()
    rows = {}
    for category in categories.cat.categories if hasattr(categories, "cat") else sizes.index:
        counts = confusion[category] if category in confusion else pd.Series(dtype=float)
        labelled = int(counts.sum())
        purity = float(counts.max() / labelled) if labelled else np.nan
        is_named = category != UNASSIGNED and labelled and purity >= min_purity
        name = str(counts.idxmax()) if is_named else UNASSIGNED
        rows[category] = (name, purity, int(sizes[category]), labelled)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["name", "purity", "n_cells", "n_labelled"])
    named = categories.astype(object).map(table["name"])
    adata.obs[key_added] = pd.Categorical(named)
    adata.uns[NAMES_KEY] = {
        "origin": ORIGIN,
        "columns": np.array(sorted({*_written(adata), key_added}), dtype=object),
    }
    return table


def _written(adata: AnnData) -> list[str]:
    """Columns that :func:`map_to_reference` has written."""
    entry = adata.uns.get(NAMES_KEY)
    return [str(name) for name in entry.get("columns", ())] if is_ours(entry) else []


def _check_ours(adata: AnnData, column: str, names: set[str], reference_key: str) -> None:
    """Raise ValueError unless a column was written by :func:`map_to_reference` and has only such names."""
    problem = "was not written by map_to_reference" if column not in _written(adata) else ""
    # Names that were changed by hand are worth keeping, too.
    other = set(adata.obs[column].dropna().astype(str)) - names
    if other:
        problem = f"has values such as {min(other)!r}, which are no names of {reference_key!r}"
    if problem:
        raise ValueError(
            f"obs[{column!r}] exists and {problem}; choose another key_added, or overwrite=True to replace it."
        )


def _columns(adata: AnnData, reference_key: str, key: str) -> tuple[pd.Series, pd.Series]:
    pp.check_adata(adata)
    for column, meaning in ((reference_key, "reference_key"), (key, "key")):
        if not isinstance(column, str) or column not in adata.obs:
            raise ValueError(
                f"{meaning}={column!r} is not a column of obs; it has {', '.join(map(repr, adata.obs.columns[:20]))}."
            )
    reference = adata.obs[reference_key]
    # Whole numbers of which some are missing are floats to pandas: type 3 is not called 3.0.
    if pd.api.types.is_float_dtype(reference) and (reference.dropna() % 1 == 0).all():
        reference = reference.astype("Int64")
    return reference, adata.obs[key]
