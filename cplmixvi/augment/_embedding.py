"""Coordinates in which cells are compared: given ones, or principal components of log values."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA

from ._cells import Cells

N_COMPONENTS = 30
#: Above, components are found by iteration instead of from the covariance of all genes.
_MAX_GENES_EXACT = 2_500


def embedding(cells: Cells, use_rep: str | None = None) -> np.ndarray:
    """Coordinates of the training cells.

    Parameters
    ----------
    cells
        Training cells.
    use_rep
        Entry of ``obsm`` with coordinates; `None` for 30 principal components of log values, genes not scaled.

    Returns
    -------
    numpy.ndarray
        ``(n_train, n_dimensions)``, float32.
    """
    if use_rep is not None:
        return np.asarray(cells.adata.obsm[use_rep], dtype=np.float32)[cells.rows]
    values = cells.log_values()
    n_components = max(1, min(N_COMPONENTS, min(values.shape) - 1))
    exact = values.shape[1] <= _MAX_GENES_EXACT
    solver = "covariance_eigh" if exact else "arpack" if sparse.issparse(values) else "randomized"
    return PCA(n_components, svd_solver=solver, random_state=0).fit_transform(values).astype(np.float32)


def check_obsm(adata: AnnData, use_rep: str | None) -> None:
    """Refuse coordinates that are not there or that are not all numbers.

    Raises
    ------
    ValueError
        If ``obsm`` has no such entry, or the entry holds anything else than finite numbers.
    """
    if use_rep is None:
        return
    if use_rep not in adata.obsm:
        raise ValueError(
            f"use_rep={use_rep!r} is not in adata.obsm (there: {', '.join(adata.obsm) or 'nothing'}); name one of "
            "these, or leave it out for principal components of log values."
        )
    given = np.asarray(adata.obsm[use_rep])
    if given.ndim != 2 or not np.issubdtype(given.dtype, np.number) or not np.isfinite(given).all():
        raise ValueError(
            f"adata.obsm[{use_rep!r}] must be finite numbers in two dimensions, cells by coordinates; it has shape "
            f"{given.shape} and type {given.dtype}."
        )
