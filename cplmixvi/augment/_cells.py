"""What an augmenter may look at before training, and values of cells that it can draw from during it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from cplmixvi import pp


@dataclass(frozen=True)
class Cells:
    """The training cells of a model.

    Attributes
    ----------
    adata
        All cells, for what is known about them besides the values.
    values
        Values as registered, dense or CSR, ``(n_obs, n_genes)``.
    rows
        Rows of the training cells, ``(n_train,)``; copies may come from these only.
    on_counts
        Whether the values are counts.
    group
        Code of each cell's combination of batch and categorical covariates, ``(n_obs,)``. Decoders are given those of
        the cell, so a copy must have the same.
    """

    adata: AnnData
    values: np.ndarray | sparse.csr_matrix
    rows: np.ndarray
    on_counts: bool
    group: np.ndarray

    def log_values(self) -> np.ndarray | sparse.csr_matrix:
        """Log values of the training cells, dense or CSR, ``(n_train, n_genes)``."""
        values = self.values[self.rows]
        return pp.log_normalize(values) if self.on_counts else values


class CellStore:
    """Values of cells on a device, any of which can be read without waiting for the device.

    Sparse values are kept as they are where that takes less memory: every cell's entries, filled up to the length of
    the longest with a gene that is cut off when cells are read.

    Parameters
    ----------
    values
        Dense or CSR, ``(n_obs, n_genes)``.
    device
        Where to keep them.
    """

    def __init__(self, values: np.ndarray | sparse.csr_matrix, device: torch.device | str = "cpu"):
        self.n_genes = values.shape[1]
        self.genes: torch.Tensor | None = None
        if sparse.issparse(values):
            stored = np.diff(values.indptr)
            longest = int(stored.max(initial=1))
            if 2 * longest < self.n_genes:
                inside = np.arange(longest) < stored[:, None]
                genes = np.full(inside.shape, self.n_genes, dtype=np.int32)
                padded = np.zeros(inside.shape, dtype=np.float32)
                genes[inside], padded[inside] = values.indices, values.data
                self.genes = torch.from_numpy(genes).to(device)
                values = padded
            else:
                values = values.toarray()
        self.values = torch.as_tensor(np.asarray(values, dtype=np.float32), device=device)

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Values ``(n, n_genes)`` of the cells in ``rows`` ``(n,)``."""
        if self.genes is None:
            return self.values[rows]
        dense = self.values.new_zeros(len(rows), self.n_genes + 1)
        return dense.scatter_(1, self.genes[rows].long(), self.values[rows])[:, : self.n_genes]


def codes_of(adata: AnnData, keys: Sequence[str]) -> np.ndarray:
    """Code of each cell's combination of values in several columns of ``obs``.

    Parameters
    ----------
    adata
        Annotated data.
    keys
        Columns of ``obs``; may be empty. Values are compared as strings, and a missing value counts as a value.

    Returns
    -------
    numpy.ndarray
        Integers numbered from 0, ``(n_obs,)``; all 0 if there are no columns.

    Examples
    --------
    >>> np.unique(codes_of(adata, ["batch"]))
    array([0, 1])
    """
    columns = [pd.factorize(adata.obs[key].astype(str))[0] for key in keys]
    return combined(*columns) if columns else np.zeros(adata.n_obs, dtype=np.int64)


def combined(*codes: np.ndarray) -> np.ndarray:
    """Combine several codes into one code per combination.

    Parameters
    ----------
    *codes
        At least one array of codes, each ``(n,)``.

    Returns
    -------
    numpy.ndarray
        Integers numbered from 0, ``(n,)``.

    Examples
    --------
    >>> combined(np.array([0, 0, 1]), np.array([0, 1, 1]))
    array([0, 1, 2])
    """
    return np.unique(np.stack(codes), axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)
