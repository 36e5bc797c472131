"""Genes that vary more than their mean explains."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from cplmixvi.pp._checks import COUNT_LIKELIHOODS, check_adata, check_likelihood, check_values, is_whole, source_name
from cplmixvi.pp._values import CHUNK_ENTRIES, as_csr

if TYPE_CHECKING:
    from anndata import AnnData

_THETA = 100.0
_N_BINS = 20


def _residual_variance(counts: sparse.csr_matrix) -> np.ndarray:
    r"""Variance over cells of the Pearson residuals of a negative binomial null model, per gene.

    :math:`\mu_{ng} = n_n p_g`, variance :math:`\mu + \mu^2 / \theta` with :math:`\theta = 100`, residuals clipped at
    :math:`\sqrt{N}` (Lause, Berens & Kobak 2021, Genome Biology 22:258).
    """
    n_obs, n_vars = counts.shape
    columns = counts.tocsc()
    depth = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    share = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel() / max(depth.sum(), 1.0)
    limit = np.float32(np.sqrt(n_obs))
    variance = np.zeros(n_vars)
    # The residual of a zero depends on the cell: dense, but a few genes at a time.
    step = max(1, CHUNK_ENTRIES // n_obs)
    for start in range(0, n_vars, step):
        genes = slice(start, start + step)
        mean = np.outer(depth, share[genes]).astype(np.float32)
        residual = columns[:, genes].toarray() - mean
        mean += mean**2 / np.float32(_THETA)
        residual /= np.sqrt(mean, out=mean) + np.float32(1e-12)
        variance[genes] = np.clip(residual, -limit, limit, out=residual).var(axis=0, dtype=np.float64)
    return variance


def _moments(values: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    mean = np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()
    square = np.asarray(values.multiply(values).mean(axis=0, dtype=np.float64)).ravel()
    return mean, np.maximum(square - mean**2, 0)


def _dispersion_in_bins(values: sparse.csr_matrix) -> np.ndarray:
    """Log variance of each gene, centred and scaled (median, MAD) among genes of a similar mean."""
    mean, variance = _moments(values)
    score = np.full(len(mean), -np.inf)
    varying = np.flatnonzero(variance > 0)
    order = varying[np.argsort(mean[varying], kind="stable")]
    for genes in np.array_split(order, min(_N_BINS, max(1, len(order) // 5))):
        if genes.size:
            log_variance = np.log(variance[genes])
            centre = np.median(log_variance)
            spread = np.median(np.abs(log_variance - centre))
            score[genes] = (log_variance - centre) / max(spread, 1e-6)
    return score


def _score(values: sparse.csr_matrix, likelihood: str) -> np.ndarray:
    if likelihood in COUNT_LIKELIHOODS:
        return _residual_variance(values)
    if likelihood == "bernoulli":
        return _moments(values)[1]
    return _dispersion_in_bins(values)


def select_genes(
    adata: AnnData,
    n_top: int = 2_000,
    *,
    layer: str | None = None,
    likelihood: str = "nb",
    batch_key: str | None = None,
) -> np.ndarray:
    """Select the genes that vary more than their mean explains.

    Counts are scored by the variance of their Pearson residuals, log values by their variance relative to genes with a
    similar mean, and binary values by their variance. ``adata`` is not changed.

    Parameters
    ----------
    adata
        Annotated data, in memory or backed.
    n_top
        Number of genes to keep; all are kept if there are no more than this.
    layer
        Layer with the values that the model will see; None for ``adata.X``.
    likelihood
        Likelihood that the model will use; it determines what kind of values these are.
    batch_key
        Column of ``obs``. Genes are then scored within each batch and ranked by the number of batches in which they are
        among the best ``n_top``; ties are broken by their median rank.

    Returns
    -------
    numpy.ndarray
        Boolean mask, ``(n_vars,)``, with exactly ``min(n_top, n_vars)`` true entries.

    Raises
    ------
    ValueError
        If ``n_top`` is not a whole number of at least 1, a key does not exist, or there are values that the likelihood
        does not allow.

    Examples
    --------
    >>> adata = adata[:, select_genes(adata, 2_000)].copy()  # doctest: +SKIP
    """
    check_adata(adata)
    check_likelihood(likelihood)
    if not is_whole(n_top) or n_top < 1:
        raise ValueError(f"n_top={n_top!r} given, a whole number of at least 1 gene is needed")
    if batch_key is not None and (not isinstance(batch_key, Hashable) or batch_key not in adata.obs):
        raise ValueError(f"batch_key={batch_key!r} given, obs has {sorted(adata.obs)}: name one of them, or None")
    if n_top >= adata.n_vars:
        return np.ones(adata.n_vars, dtype=bool)
    values = as_csr(adata, layer)
    names = {"obs_names": adata.obs_names, "var_names": adata.var_names}
    check_values(values, likelihood, where=source_name(layer), allow_empty_cells=True, min_cells=1, **names)
    groups = [np.arange(adata.n_obs)] if batch_key is None else adata.obs.groupby(batch_key, observed=True).indices
    if batch_key is not None:
        # One cell has no variance.
        groups = [rows for rows in groups.values() if len(rows) > 1] or [np.arange(adata.n_obs)]
    ranks = np.empty((len(groups), adata.n_vars), dtype=np.int64)
    for rank, rows in zip(ranks, groups, strict=True):
        part = values if len(rows) == adata.n_obs else values[rows]
        rank[np.argsort(-_score(part, likelihood), kind="stable")] = np.arange(adata.n_vars)
    best = np.lexsort((np.median(ranks, axis=0), -(ranks < n_top).sum(axis=0)))[:n_top]
    mask = np.zeros(adata.n_vars, dtype=bool)
    mask[best] = True
    return mask
