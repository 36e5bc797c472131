"""``cplmixvi annotate --backed``: cells that stay in their file, of which a part is in memory at any time."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np

from cplmixvi.cli import _files
from cplmixvi.cli._errors import InputError, check_chosen

if TYPE_CHECKING:
    from pathlib import Path

    import h5py
    from anndata import AnnData

#: Cells that highly variable genes are found in, at most.
MAX_GENE_CELLS = 20_000


def check(source: Path, output: Path, layer: str | None) -> None:
    """Raise InputError unless the files and the values are such that they can be read and written in parts."""
    for name, path in (("IN", source), ("OUT", output)):
        if path.suffix != ".h5ad":
            raise InputError(
                f"--backed reads and writes .h5ad files, and {name} is {str(path)!r}; name one, or leave --backed out."
            )
    if layer is not None:
        raise InputError(
            f"--backed reads X, and --layer {layer!r} is given; write a file that has these values in X, or leave one "
            "of the two options out."
        )


def check_augmenter(augmenter) -> None:
    """Raise InputError if an augmenter needs all cells in memory."""
    if augmenter.needs_cells:
        raise InputError("--augment: copies that are other cells need all cells in memory; leave --backed out.")


def read(path: Path) -> AnnData:
    """Read ``obs``, ``obsm``, ``var`` and ``uns``, and zeros for X if there is one."""
    import h5py
    from anndata import AnnData
    from anndata.io import read_elem
    from scipy import sparse

    with _files.readable(path), h5py.File(path, "r") as file:
        parts = {name: read_elem(file[name]) for name in ("obs", "var", "obsm", "uns") if name in file}
        shape = (len(parts["obs"]), len(parts["var"]))
        return AnnData(sparse.csr_matrix(shape, dtype=np.float32) if "X" in file else None, **parts)


def select(path: Path, adata: AnnData, scratch: Path, n_top: int, likelihood: str, batch_key: str | None) -> AnnData:
    """Copy the genes to fit, in parts, to a file of their own, which is quicker to read besides.

    Parameters
    ----------
    path
        The file.
    adata
        What :func:`read` gave.
    scratch
        File to write.
    n_top, likelihood, batch_key
        See :func:`cplmixvi.cli._annotate.select`. Genes are selected by at most 20,000 cells, drawn at random.

    Returns
    -------
    AnnData
        Backed by ``scratch``.
    """
    import anndata
    import h5py
    from anndata import AnnData
    from anndata.io import sparse_dataset, write_elem
    from scipy import sparse

    from cplmixvi import pp
    from cplmixvi.pp._values import iter_blocks

    with _files.readable(path, ValueError), h5py.File(path, "r") as file:
        values = _values(file)
        pp.check_values(values, likelihood, where="X", obs_names=adata.obs_names, var_names=adata.var_names)
        genes = np.ones(adata.n_vars, dtype=bool)
        if 0 < n_top < adata.n_vars:
            rows = np.random.default_rng(0).permutation(adata.n_obs)[:MAX_GENE_CELLS]
            some = AnnData(values[np.sort(rows)], obs=adata.obs.iloc[np.sort(rows)], var=adata.var)
            genes = pp.select_genes(some, n_top, likelihood=likelihood, batch_key=batch_key)
        obs = adata.obs[[] if batch_key is None else [batch_key]]
        with _files.writable(scratch), _files.all_strings():
            AnnData(obs=obs, var=adata.var.loc[genes, []]).write_h5ad(scratch)
        with h5py.File(scratch, "r+") as target:
            is_empty = np.zeros(adata.n_obs, dtype=bool)
            for row, _, block in iter_blocks(values):
                # Sparse in any case: selected genes of most cells are mostly zero, and few bytes are quick to read.
                chosen = sparse.csr_matrix(block[:, np.flatnonzero(genes)], dtype=np.float32)
                is_empty[row : row + chosen.shape[0]] = np.asarray((chosen != 0).sum(axis=1)).ravel() == 0
                with _files.writable(scratch):
                    if row == 0:
                        write_elem(target, "X", chosen)
                    else:
                        sparse_dataset(target["X"]).append(chosen)
    check_chosen(adata, np.flatnonzero(is_empty), genes, likelihood)
    return anndata.read_h5ad(scratch, backed="r")


def _values(file: h5py.File):
    """X of a file, which can be cut into rows."""
    from anndata.io import sparse_dataset

    if hasattr(file["X"], "shape"):
        return file["X"]
    values = sparse_dataset(file["X"])
    if values.format != "csr":
        raise InputError("--backed reads rows, and X of IN is stored by columns; write it as CSR, or leave it out.")
    return values


def write(source: Path, annotated: AnnData, output: Path) -> None:
    """Write a copy of ``source`` with the ``obs``, ``obsm`` and ``uns`` of ``annotated``."""
    import h5py
    from anndata.io import write_elem

    shutil.copyfile(source, output)
    with _files.all_strings(), h5py.File(output, "r+") as file:
        write_elem(file, "obs", annotated.obs)
        write_elem(file, "obsm", dict(annotated.obsm))
        write_elem(file, "uns", dict(annotated.uns))
