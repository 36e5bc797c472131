"""What tells the categories apart: their marker genes, and an order in which similar ones are neighbours."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cplmixvi import pp
from cplmixvi._constants import DEFAULT_KEY, LARGEST_LOG, ResultKeys
from cplmixvi.tl._annotate import add_entries, read_labels

_METHODS = ("wilcoxon", "t-test", "t-test_overestim_var")

#: Names of scanpy's columns here.
_COLUMNS = {
    "group": "category",
    "rank": "rank",
    "names": "gene",
    "scores": "score",
    "logfoldchanges": "log2_fold_change",
    "pvals": "pvalue",
    "pvals_adj": "pvalue_adjusted",
    "pct_nz_group": "share_in",
    "pct_nz_reference": "share_out",
}


def rank_genes(
    adata: AnnData,
    key: str = DEFAULT_KEY,
    *,
    layer: str | None = None,
    method: str = "wilcoxon",
    n_genes: int | None = None,
) -> pd.DataFrame:
    """Rank genes by how well they distinguish each category from all other cells.

    The test is :func:`scanpy.tl.rank_genes_groups` on log-normalised values; counts are log-normalised in a copy first.
    Unassigned cells are left out, because they may belong to any category. Because the categories were found in the
    same genes, p-values rank genes but are no evidence for a category.

    Parameters
    ----------
    adata
        Annotated cells. Their values are not changed.
    key
        Name of the result.
    layer
        Layer with counts or log values; `None` for ``adata.X``. Values are taken for counts if all of them are whole
        numbers.
    method
        ``"wilcoxon"`` (corrected for ties), ``"t-test"`` or ``"t-test_overestim_var"``.
    n_genes
        Number of top genes to keep per category; all if `None`.

    Returns
    -------
    pandas.DataFrame
        One row per category and gene: ``category``, ``rank`` (from 1), ``gene``, ``score``, ``log2_fold_change``,
        ``pvalue``, ``pvalue_adjusted`` (Benjamini-Hochberg), and ``share_in`` and ``share_out``, the fractions of the
        category's cells and of all other cells in which the gene is not zero.

        Also writes ``uns["rank_genes_" + key]``, in scanpy's format, for ``sc.pl.rank_genes_groups(adata, key=...)``.

    Raises
    ------
    ValueError
        If there is no result under ``key``, fewer than two of its categories have two cells, gene names are not unique,
        an option is not one of those above, or values are negative, not finite, or neither counts nor logarithms.

    Warns
    -----
    UserWarning
        If categories are left out because they have only one cell.
    """
    import scanpy as sc

    if method not in _METHODS:
        raise ValueError(
            f"method={method!r} was given; allowed are {', '.join(map(repr, _METHODS))}; pass one of these."
        )
    _check_n_genes(n_genes)
    pp.check_adata(adata)
    if not adata.var_names.is_unique:
        raise ValueError("adata.var_names has repeated names; call adata.var_names_make_unique() first.")
    keys = ResultKeys(key)
    labels = read_labels(adata, key)
    groups = _large_enough(labels, key)
    cells = _cells_to_test(adata, labels, layer, key)
    # A gene with one value in all cells has no rank: 0 / 0 there, which scanpy makes a score of 0 with a warning.
    with np.errstate(invalid="ignore"):
        sc.tl.rank_genes_groups(
            cells,
            key,
            groups=groups,
            method=method,
            n_genes=n_genes,
            use_raw=False,
            pts=True,
            key_added=keys.ranking,
            **({"tie_correct": True} if method == "wilcoxon" else {}),
        )
    # Where the values came from, which is what scanpy's plots draw.
    cells.uns[keys.ranking]["params"]["layer"] = layer
    ranking = dict(cells.uns[keys.ranking])
    if any("/" in str(name) for name in groups):
        # Columns of a table in a file may not have it in their names.
        for shares in ("pts", "pts_rest"):
            ranking.pop(shares, None)
    adata.uns[keys.ranking] = ranking
    table = sc.get.rank_genes_groups_df(cells, group=None, key=keys.ranking)
    table["rank"] = table.groupby("group", observed=True).cumcount() + 1
    return table[list(_COLUMNS)].rename(columns=_COLUMNS)


def order_categories(
    adata: AnnData, key: str = DEFAULT_KEY, *, basis: str | None = None, layer: str | None = None
) -> list[str]:
    """Order the categories so that those with similar expression are next to each other.

    The order is that of the leaves of a dendrogram: average linkage of the correlation distances between the category
    means, with branches rotated so that neighbours are as similar as possible. The order of the categories elsewhere,
    which is that of the columns of ``obsm[key_proba]``, does not change.

    Parameters
    ----------
    adata
        Annotated cells.
    key
        Name of the result.
    basis
        Entry of ``obsm`` with at least three columns in which to compute the means, such as ``"X_pca"``; `None` for
        the values of the genes.
    layer
        Layer with log values, or with counts, which are log-normalised in a copy; `None` for ``adata.X``. Without
        ``basis`` only.

    Returns
    -------
    list of str
        The categories that have cells.

        Also writes ``uns[key]["order"]`` (the same, as an object array) and ``uns[key]["linkage"]``, float64
        ``(n - 1, 4)``, SciPy's linkage matrix of these ``n`` categories, numbered in the order of
        ``uns[key]["categories"]``.

    Raises
    ------
    ValueError
        If there is no result under ``key``, fewer than two of its categories have cells, ``basis`` is missing, has
        too few columns or is given with a ``layer``, or values are not finite, or neither counts nor logarithms.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import pdist

    if basis is not None and layer is not None:
        raise ValueError(f"basis={basis!r} and layer={layer!r} were given; means are of one of the two: leave one out.")
    labels = read_labels(adata, key)
    values = log_values(adata, layer)[0] if basis is None else _basis(adata, basis)
    means, names = _means(values, labels)
    _check_two(len(names), "with cells", key)
    # A category without any variation has no correlation: neither similar nor opposite.
    distance = np.nan_to_num(pdist(means, "correlation"), nan=1.0).clip(min=0.0)
    tree = linkage(distance, method="average", optimal_ordering=True)
    order = names[leaves_list(tree)]
    add_entries(adata, key, order=order, linkage=tree.astype(np.float64))
    return list(order)


def _check_n_genes(n_genes: int | None) -> None:
    if n_genes is not None and (not pp.is_whole(n_genes) or n_genes < 1):
        raise ValueError(
            f"n_genes={n_genes!r} was given; give a whole number of at least 1, or leave it out for all genes."
        )


def _large_enough(labels: pd.Categorical, key: str) -> list[str]:
    """Categories with at least two cells; a smaller one has no variance."""
    sizes = labels.value_counts()
    groups = [name for name in labels.categories if sizes[name] >= 2]
    _check_two(len(groups), "with two or more cells", key)
    single = [name for name in labels.categories if sizes[name] == 1]
    if single:
        warnings.warn(
            f"Categories {', '.join(single)} of {key!r} have only one cell each here and get no marker genes.",
            UserWarning,
            stacklevel=3,
        )
    return groups


def _check_two(n_categories: int, kind: str, key: str) -> None:
    if n_categories < 2:
        raise ValueError(
            f"The result {key!r} has {n_categories} categories {kind}, at least 2 are needed to compare; "
            "train with more categories, or annotate with a lower min_confidence."
        )


def _cells_to_test(adata: AnnData, labels: pd.Categorical, layer: str | None, key: str) -> AnnData:
    """Assigned cells with log values and categories, apart from ``adata``."""
    values, were_counts = log_values(adata, layer)
    if (values.data < 0).any():
        raise ValueError(
            f"{pp.source_name(layer)} has negative values, as scaled ones are, and no fold change can be computed from "
            "these: name a layer of counts or log values by layer=..., or give adata.raw.to_adata() with the result's "
            "obs and uns."
        )
    known = ~labels.isna()
    obs = pd.DataFrame({key: labels[known].remove_unused_categories()}, index=adata.obs_names[known])
    # Rows are copied even where all are known, because scanpy removes stored zeros in place.
    cells = AnnData(values[known], obs=obs, var=pd.DataFrame(index=adata.var_names))
    # The base of the user's logarithms, for fold changes.
    if not were_counts and "log1p" in adata.uns:
        cells.uns["log1p"] = dict(adata.uns["log1p"])
    return cells


def log_values(adata: AnnData, layer: str | None) -> tuple[sparse.csr_matrix, bool]:
    """Log-normalised values, CSR ``(n_obs, n_vars)``, and whether they were made from counts here.

    Raises
    ------
    ValueError
        If values are not finite, or neither counts nor logarithms: as those, one value would decide over all others.
    """
    values = pp.as_csr(adata, layer)
    where = pp.source_name(layer)
    pp.check_structure(values, where)
    check_finite(values.data, where)
    if (values.data < 0).any():
        return values, False
    if (values.data == np.rint(values.data)).all():
        return pp.log_normalize(values), True
    if values.data.max(initial=0) > LARGEST_LOG:
        raise ValueError(
            f"{where} has values up to {values.data.max():g}, and not all are whole numbers: neither counts nor "
            "logarithms. Name a layer of counts or log values by layer=..., or take logarithms by numpy.log1p or "
            "cplmixvi.pp.log_normalize."
        )
    return values, False


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise ValueError if any of the ``values``, which are called ``where``, is not finite."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"{where} has values that are not finite; replace NaN and infinity, or drop those cells or genes."
        )


def _basis(adata: AnnData, basis: str) -> np.ndarray:
    if not isinstance(basis, str) or basis not in adata.obsm:
        raise ValueError(
            f"basis={basis!r} is not in obsm, which has {', '.join(map(repr, adata.obsm)) or 'none'}; "
            "pass one of these or None."
        )
    values = adata.obsm[basis]
    values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)
    check_finite(values, f"obsm[{basis!r}]")
    if values.shape[1] < 3:
        raise ValueError(
            f"basis={basis!r} has {values.shape[1]} columns; correlations need at least 3; pass another basis or None."
        )
    return values


def _means(values: np.ndarray | sparse.csr_matrix, labels: pd.Categorical) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each category that has cells, ``(n, n_columns)``, and the names of these."""
    sizes = labels.value_counts().reindex(labels.categories).to_numpy()
    rows = np.flatnonzero(~labels.isna())
    codes = labels.codes[rows]
    share = sparse.csr_matrix((1 / sizes[codes], (codes, rows)), shape=(len(sizes), len(labels)))
    means = share @ values
    means = means.toarray() if sparse.issparse(means) else np.asarray(means)
    return means[sizes > 0].astype(np.float64), np.asarray(labels.categories, dtype=object)[sizes > 0]
