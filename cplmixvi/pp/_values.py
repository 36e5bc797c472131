"""Matrices of any kind, read without making a large sparse one dense."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

# Entries (dense) or stored entries (sparse) looked at in one go.
CHUNK_ENTRIES = 2**22


def layer_names(adata: AnnData) -> list[str]:
    """Names of the layers, sorted.

    Newer versions of anndata list ``X`` among the layers under the name `None`; it is left out.

    Parameters
    ----------
    adata
        Annotated data.

    Returns
    -------
    list of str
        The names; empty if there are no layers.

    Examples
    --------
    >>> layer_names(adata)
    []
    """
    return sorted(name for name in adata.layers if name is not None)


def matrices(adata: AnnData) -> Iterator[tuple[str, Any]]:
    """Iterate over ``X`` and the layers, each exactly once.

    Parameters
    ----------
    adata
        Annotated data, in memory or backed.

    Yields
    ------
    tuple
        Name, ``"X"`` or that of the layer, and the matrix ``(n_obs, n_vars)`` as it is stored; ``X`` comes first and
        may be `None`, layers follow in sorted order.

    Examples
    --------
    >>> [name for name, _ in matrices(adata)]
    ['X']
    """
    yield "X", adata.X
    for name in layer_names(adata):
        yield name, adata.layers[name]


def get_matrix(adata: AnnData, layer: str | None):
    """``X`` or a layer, untouched: dense, sparse or a backed dataset of shape ``(n_obs, n_vars)``.

    Raises
    ------
    ValueError
        When there is no such layer, or no ``X``.
    """
    if layer is None:
        if adata.X is None:
            raise ValueError(f"adata.X is None; layers are {layer_names(adata)}: name one of them, or set adata.X")
        return adata.X
    if not isinstance(layer, str) or layer not in adata.layers:
        raise ValueError(
            f"layer {layer!r} given, adata has {layer_names(adata) or 'none'}: name one of them, or None for adata.X"
        )
    return adata.layers[layer]


def as_values(X, where: str = "X"):
    """Matrix of numbers as it is, and anything else, such as a table or a list of lists, as an array.

    Raises
    ------
    ValueError
        When it has no rows and columns; ``where`` is what the caller calls it.
    """
    if not isinstance(getattr(X, "dtype", None), np.dtype):
        if hasattr(X, "obs_names"):
            raise ValueError(f"{where} is an AnnData; its values are needed: pass adata.X or a layer")
        try:
            X = np.asarray(X)
        except ValueError:
            # Of rows that differ in length.
            raise ValueError(f"{where} is a {type(X).__name__} that is no matrix; {_NEEDED}") from None
    if len(X.shape) != 2 or np.dtype(X.dtype).kind in "SUVMm":
        raise ValueError(f"{where} holds {X.dtype} of shape {tuple(X.shape)}; {_NEEDED}")
    return X


_NEEDED = "real numbers of cells and genes (n_obs, n_vars) are needed: pass a dense or sparse matrix"


def _compression(X) -> str | None:
    """'csr' or 'csc' for sparse matrices, sparse arrays and backed sparse datasets; None for dense values."""
    if sparse.issparse(X):
        return X.format
    # anndata's backed CSRDataset and CSCDataset are no scipy objects but say how they are stored.
    kind = getattr(X, "format", None)
    return kind if kind in {"csr", "csc"} else None


def iter_blocks(X, *, entries: int | None = None) -> Iterator[tuple[int, int, Any]]:
    """Cut a matrix along the axis that is cheap to cut.

    Parameters
    ----------
    X
        Dense or sparse, in memory or backed, ``(n_obs, n_vars)``.
    entries
        Entries per block, about. Default: 4 million.

    Yields
    ------
    First row, first column and the block: an ndarray, or a scipy sparse matrix or array.
    """
    kind = _compression(X)
    if sparse.issparse(X) and kind not in {"csr", "csc"}:
        X, kind = X.tocsr(), "csr"
    axis = 1 if kind == "csc" else 0
    n_major = X.shape[axis]
    # A backed sparse dataset does not tell cheaply how much it stores: cut it as if it were dense.
    stored = X.nnz if sparse.issparse(X) else X.shape[0] * X.shape[1]
    step = max(1, int((entries or CHUNK_ENTRIES) * n_major / max(stored, 1)))
    for start in range(0, n_major, step):
        block = X[:, start : start + step] if axis else X[start : start + step]
        if hasattr(block, "compute"):
            block = block.compute()
        if not sparse.issparse(block):
            block = np.asarray(block)
        yield (0, start, block) if axis else (start, 0, block)


def as_csr(adata: AnnData, layer: str | None = None, *, dtype=np.float32) -> sparse.csr_matrix:
    """``X`` or a layer as a CSR matrix in memory, whatever its original format.

    Parameters
    ----------
    adata
        Annotated data, in memory or backed.
    layer
        Name of a layer; None for ``adata.X``.
    dtype
        Type of the values.

    Returns
    -------
    scipy.sparse.csr_matrix
        ``(n_obs, n_vars)``, with sorted indices. It shares memory with ``adata`` if the matrix there already has the
        requested form.

    Raises
    ------
    ValueError
        If there is no such layer.

    Examples
    --------
    >>> as_csr(adata).dtype
    dtype('float32')
    """
    return to_csr(get_matrix(adata, layer), dtype=dtype)


def to_csr(X, *, dtype=np.float32) -> sparse.csr_matrix:
    """Convert a matrix to CSR in memory; :func:`as_csr` does the same for a matrix of an AnnData.

    Dense matrices are read in blocks.

    Parameters
    ----------
    X
        Values, ``(n_obs, n_vars)``: dense or sparse, in memory or backed.
    dtype
        Type of the values.

    Returns
    -------
    scipy.sparse.csr_matrix
        ``(n_obs, n_vars)``, with sorted indices. It shares memory with ``X`` if that already has the requested form.

    Examples
    --------
    >>> to_csr(np.eye(3)).nnz
    3
    """
    X = as_values(X)
    if _compression(X) is not None and not sparse.issparse(X):
        X = X.to_memory()
    if sparse.issparse(X):
        result = sparse.csr_matrix(X, dtype=dtype)
    else:
        result = sparse.vstack([sparse.csr_matrix(block, dtype=dtype) for _, _, block in iter_blocks(X)], format="csr")
    if not result.has_sorted_indices:
        result = result.sorted_indices()
    return result


def library_size(X) -> np.ndarray:
    """Sum of the values of each cell; molecules per cell if the values are counts.

    Parameters
    ----------
    X
        Values, ``(n_obs, n_vars)``: dense or sparse, in memory or backed. They are read in blocks.

    Returns
    -------
    numpy.ndarray
        Totals, float64, ``(n_obs,)``.

    Examples
    --------
    >>> library_size(np.array([[1, 2], [0, 4]]))
    array([3., 4.])
    """
    X = as_values(X)
    totals = np.zeros(X.shape[0])
    for row, _, block in iter_blocks(X):
        totals[row : row + block.shape[0]] += np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
    return totals


def log_normalize(X, target: float | None = None):
    """Scale counts to the same total in every cell and take ``log(1 + x)``.

    Parameters
    ----------
    X
        Counts, ``(n_obs, n_vars)``, dense or sparse; not modified.
    target
        Total per cell after scaling. Default: median total of the cells with any counts.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_matrix
        Float32 values in natural-log units, ``(n_obs, n_vars)``: CSR for sparse input, an array for dense input. Cells
        without counts remain zero.

    Raises
    ------
    ValueError
        If ``target`` is no positive number, or there are no values.
    """
    X = as_values(X)
    if target is not None and not (isinstance(target, Real) and 0 < target < np.inf):
        raise ValueError(f"target={target!r} given, a positive total is needed: leave it out for the median")
    is_sparse = _compression(X) is not None
    values = to_csr(X, dtype=np.float32) if is_sparse else np.asarray(X, dtype=np.float32)
    totals = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
    filled = totals > 0
    if target is None:
        target = float(np.median(totals[filled])) if filled.any() else 1.0
    scale = np.divide(target, totals, out=np.zeros_like(totals), where=filled).astype(np.float32)
    if not is_sparse:
        return np.log1p(values * scale[:, None])
    data = np.log1p(values.data * np.repeat(scale, np.diff(values.indptr)))
    return sparse.csr_matrix((data, values.indices.copy(), values.indptr.copy()), shape=values.shape)
