"""Genes of new cells matched to the model's by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from anndata import AnnData

from cplmixvi.pp import check_structure, matrices

logger = logging.getLogger(__name__)


def align_genes(adata: AnnData, var_names: np.ndarray) -> AnnData:
    """Cells with exactly the model's genes in the model's order.

    scvi-tools compares only the number of genes, so that permuted genes would give wrong results in silence.

    Parameters
    ----------
    adata
        New cells. Not modified; returned as it is where its genes already match.
    var_names
        The model's genes, in order.

    Returns
    -------
    AnnData
        ``adata`` itself or a reordered copy.

    Raises
    ------
    ValueError
        If genes are missing, names are not unique, or a sparse matrix is damaged.
    """
    var_names = np.asarray(var_names).astype(str)
    given = adata.var_names.astype(str)
    if len(given) == len(var_names) and np.array_equal(given.to_numpy(), var_names):
        return adata
    positions = given.get_indexer(var_names) if given.is_unique else None
    if positions is None:
        raise ValueError("Gene names of the new cells are not unique; call adata.var_names_make_unique() first.")
    missing = var_names[positions < 0]
    if len(missing):
        raise ValueError(
            f"{len(missing)} of the model's {len(var_names)} genes are missing from the new cells "
            f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}); give cells measured on the same genes."
        )
    if not adata.isbacked:
        for _, matrix in matrices(adata):
            check_structure(matrix, "a matrix of the new cells")
    logger.info("Genes of the new cells are put into the model's order.")
    return adata[:, positions].to_memory() if adata.isbacked else adata[:, positions].copy()


#: How genes that are more or in another order are mended where cells come with a model that is loaded.
_ON_LOADING = "load the model with adata=False as model, then pass adata[:, model.get_var_names()].copy()"


def check_same_genes(adata: AnnData, var_names: Sequence[str], how: str = _ON_LOADING) -> None:
    """Refuse cells whose genes are not the model's, in the model's order.

    Parameters
    ----------
    adata
        Cells that a model is loaded with, and that become its own.
    var_names
        The model's genes, in order.
    how
        What to do where genes are more or in another order.

    Raises
    ------
    ValueError
        If genes are missing, more or in another order.
    """
    given = adata.var_names.astype(str)
    if np.array_equal(given, np.asarray(var_names, dtype=str)):
        return
    missing = sorted(set(var_names) - set(given))
    if missing:
        raise ValueError(
            f"{len(missing)} of the model's {len(var_names)} genes are missing from adata ({', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}); give cells measured on the same genes."
        )
    n_more = len(given) - len(var_names)
    found = f"and {n_more} more" if n_more > 0 else "in another order"
    raise ValueError(f"adata has the model's {len(var_names)} genes {found}; {how}.")
