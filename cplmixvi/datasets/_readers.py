"""Readers of the published files: local paths in, AnnData out; nothing is downloaded here.

Every reader returns ``X`` as CSR float32 of shape ``(n_obs, n_vars)`` and reference types in ``obs["cell_type"]``.
A file that does not have the published layout raises a ValueError that says what was missing.
"""

from __future__ import annotations

import gzip
import tarfile
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

Path_ = str | Path

_KANG_SAMPLES = (("GSM2560248_2.1.mtx.gz", "ctrl"), ("GSM2560249_2.2.mtx.gz", "stim"))
_ZEISEL_META = {"tissue": "tissue", "sex": "sex", "age": "age", "level1class": "cell_class", "level2class": "cell_type"}
# Neurons of Tasic et al. 2018 that the paper leaves out, and types whose cells of both areas it takes together.
_TASIC_DROPPED = ("Low Quality", "CR Lhx5", "Meis2 Adamts19")
_TASIC_JOINED = {"L6b VISp Col8a1 Rprm": "L6b Col8a1 Rprm", "L6 CT ALM Nxph2 Sla": "L6 CT Nxph2 Sla"}
# Names of the clusters 1..19 of Paul et al. 2015, as used since in the literature.
_PAUL_TYPES = ("Ery",) * 6 + (
    *("MEP", "Mk", "GMP", "GMP", "DC", "Baso", "Baso", "Mo", "Mo", "Neu", "Neu", "Eos", "Lymph"),
)


def _anndata(X, obs: pd.DataFrame, var_names: Iterable[str]) -> AnnData:
    from anndata import AnnData
    from anndata.utils import make_index_unique

    cells = make_index_unique(pd.Index(obs.index.astype(str), name=None))
    genes = make_index_unique(pd.Index([str(name) for name in var_names], dtype=object))
    return AnnData(sparse.csr_matrix(X, dtype=np.float32), obs=obs.set_index(cells), var=pd.DataFrame(index=genes))


def _need(names: Iterable[str], available: Iterable[str], path: Path_) -> None:
    missing = sorted(set(names) - set(available))
    if missing:
        raise ValueError(
            f"{Path(path).name} lacks {', '.join(missing)}: it is not the published file; delete it and load again"
        )


def _read_named_csv(path: Path_, **options) -> pd.DataFrame:
    """A table whose first column holds the row names, whether or not the header has a cell for it."""
    table = pd.read_csv(path, **options)
    return table if not isinstance(table.index, pd.RangeIndex) else table.set_index(table.columns[0])


def read_kang2018(raw: Path_, genes: Path_, cells: Path_) -> AnnData:
    """Kang et al. 2018, second batch, from the files of GEO series GSE96583.

    Doublets and cells without a published type are left out.

    Parameters
    ----------
    raw
        ``GSE96583_RAW.tar``, with one Matrix Market file of genes x cells for control and one for stimulated cells.
    genes
        ``GSE96583_batch2.genes.tsv.gz``: Ensembl identifier and symbol, no header.
    cells
        ``GSE96583_batch2.total.tsne.df.tsv.gz``: one row per cell, control first, with ``stim``, ``ind``, ``cell``
        and ``multiplets``.

    Returns
    -------
    AnnData of UMI counts, ``obs`` with ``cell_type``, ``stim`` (CTRL or STIM) and ``donor``.
    """
    from scipy.io import mmread

    obs = _read_named_csv(cells, sep="\t")
    _need(["stim", "ind", "cell", "multiplets"], obs.columns, cells)
    with tarfile.open(raw) as archive:
        _need([file for file, _ in _KANG_SAMPLES], archive.getnames(), raw)
        blocks = []
        for file, _ in _KANG_SAMPLES:
            with archive.extractfile(file) as packed, gzip.open(packed) as text, warnings.catch_warnings():
                # Whether this is an array or a matrix is about to change: it becomes a matrix either way.
                warnings.simplefilter("ignore", DeprecationWarning)
                blocks.append(sparse.csr_matrix(mmread(text).T, dtype=np.float32))

    # The table has no key that the matrices share (barcodes repeat between samples): position is the key, and the
    # condition of every row proves it.
    condition = np.repeat([name for _, name in _KANG_SAMPLES], [block.shape[0] for block in blocks])
    if len(obs) != len(condition) or (obs["stim"].to_numpy() != condition).any():
        raise ValueError(
            f"{Path(cells).name} has {len(obs)} cells that do not line up with the {len(condition)} cells of "
            f"{Path(raw).name}: delete both and load again"
        )
    keep = (obs["multiplets"].eq("singlet") & obs["cell"].notna()).to_numpy()
    obs = pd.DataFrame(
        {
            "cell_type": obs["cell"].astype(str).astype("category"),
            "stim": obs["stim"].str.upper().astype("category"),
            "donor": obs["ind"].astype(str).astype("category"),
        }
    )[keep]
    obs["cell_type"] = obs["cell_type"].cat.remove_unused_categories()
    names = pd.read_csv(genes, sep="\t", header=None)
    adata = _anndata(sparse.vstack(blocks, format="csr")[keep], obs, names.iloc[:, -1])
    adata.var["gene_id"] = names.iloc[:, 0].astype(str).to_numpy()
    return adata


def read_zeisel2015(table: Path_) -> AnnData:
    """Zeisel et al. 2015, from the laboratory's ``expression_mRNA_17-Aug-2014.txt``.

    The file opens with rows that describe the cells, their names in the second column; after an empty row follows
    one row per gene: symbol, gene cluster, counts.

    Parameters
    ----------
    table
        Path of the file.

    Returns
    -------
    AnnData of UMI counts, ``obs`` with ``cell_type`` (level 2, with "(none)"), ``cell_class`` (level 1), ``tissue``,
    ``sex`` and ``age``.
    """
    meta: dict[str, list[str]] = {}
    n_rows = 0
    with open(table, encoding="utf-8") as lines:
        for line in lines:
            fields = line.rstrip("\r\n").split("\t")
            if fields[0] or n_rows > 30:
                break
            n_rows += 1
            if len(fields) > 2 and fields[1]:
                meta[fields[1]] = fields[2:]
    _need(["cell_id", *_ZEISEL_META], meta, table)
    obs = pd.DataFrame({new: meta[old] for old, new in _ZEISEL_META.items()}, index=meta["cell_id"])
    for column in ("cell_type", "cell_class", "tissue"):
        obs[column] = obs[column].astype("category")
    n_obs = len(obs)
    dtypes = {0: str} | dict.fromkeys(range(1, n_obs + 2), np.float32)
    # A gene may be called NaN: names are text, and counts are never missing.
    counts = pd.read_csv(
        table, sep="\t", header=None, skiprows=n_rows, skip_blank_lines=False, dtype=dtypes, keep_default_na=False
    )
    return _anndata(sparse.csr_matrix(counts.iloc[:, 2:].to_numpy().T), obs, counts[0])


def read_paul2015(path: Path_) -> AnnData:
    """Paul et al. 2015, from the HDF5 file that scanpy's loader uses too; all genes are kept.

    Parameters
    ----------
    path
        ``paul15.h5``, with genes x cells in ``data.debatched`` and cluster numbers 1 to 19 in ``cluster.id``.

    Returns
    -------
    AnnData of UMI counts, ``obs["cell_type"]`` such as "7MEP".
    """
    import h5py

    with h5py.File(path, "r") as file:
        _need(["data.debatched", "data.debatched_rownames", "data.debatched_colnames", "cluster.id"], file, path)
        counts = file["data.debatched"][()]
        # Synonyms are joined by ";" in the file: the first is the symbol.
        genes = [name.split(";")[0] for name in file["data.debatched_rownames"][()].astype(str)]
        cells = file["data.debatched_colnames"][()].astype(str)
        clusters = file["cluster.id"][()].ravel().astype(int)
    types = pd.Categorical([f"{number}{_PAUL_TYPES[number - 1]}" for number in clusters])
    return _anndata(counts.T, pd.DataFrame({"cell_type": types}, index=cells), genes)


def read_labelled_h5(path: Path_) -> AnnData:
    """An HDF5 file with counts ``X`` (cells x genes) and integer labels ``Y``, as in scDCC and scDeepCluster.

    Parameters
    ----------
    path
        Path of the file.

    Returns
    -------
    AnnData of UMI counts, ``obs["cell_type"]`` such as "c1"; the file names neither cells nor genes.
    """
    import h5py

    with h5py.File(path, "r") as file:
        _need(["X", "Y"], file, path)
        counts = file["X"][()]
        labels = np.asarray(file["Y"][()]).ravel().astype(int)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical([f"c{label}" for label in labels])},
        index=[f"cell{i}" for i in range(len(labels))],
    )
    return _anndata(counts, obs, [f"g{j}" for j in range(counts.shape[1])])


def read_tasic2016(values: Path_, clusters: Path_) -> AnnData:
    """The interneurons of Tasic et al. 2016, from the files of GEO series GSE71585.

    Parameters
    ----------
    values
        ``GSE71585_RefSeq_RPKM.csv.gz``: genes x cells.
    clusters
        ``GSE71585_Clustering_Results.csv.gz``, with ``sample_title``, ``broad_type`` and ``primary_type``.

    Returns
    -------
    AnnData of RPKM values (not counts, not logarithms) of the cells whose broad type is "GABA-ergic Neuron";
    ``obs["cell_type"]`` such as "Vip_Mybpc1".
    """
    table = pd.read_csv(clusters)
    _need(["sample_title", "broad_type", "primary_type"], table.columns, clusters)
    rpkm = _read_named_csv(values)
    table = table[table["broad_type"] == "GABA-ergic Neuron"].set_index("sample_title")
    _need(table.index, rpkm.columns, values)
    types = table["primary_type"].str.replace(" ", "_").astype("category")
    obs = pd.DataFrame({"cell_type": types}, index=table.index)
    return _anndata(rpkm[table.index].to_numpy(np.float32).T, obs, rpkm.index)


def read_tasic2018(visp: Path_, alm: Path_) -> AnnData:
    """The neurons of Tasic et al. 2018, from the Allen Institute's archives of both areas.

    Parameters
    ----------
    visp, alm
        Zip files with ``*exon-matrix.csv`` (genes x cells), ``*genes-rows.csv`` (``gene_symbol``, ``gene_entrez_id``)
        and ``*samples-columns.csv`` (``sample_name``, ``class``, ``subclass``, ``cluster``).

    Returns
    -------
    AnnData of exon counts of the cells of class "GABAergic" and "Glutamatergic", without the clusters that the paper
    leaves out; ``obs``: ``cell_type``, ``subclass``, ``cell_class``, ``area``.
    """
    parts = [_read_tasic_area(path, area) for path, area in ((visp, "VISp"), (alm, "ALM"))]
    (first, obs, genes), (second, more, others) = parts
    if list(genes) != list(others):
        raise ValueError(f"{Path(alm).name} has other genes than {Path(visp).name}: delete both and load again")
    obs = pd.concat([obs, more])
    return _anndata(sparse.vstack([first, second]), obs.astype("category"), genes)


def _read_tasic_area(path: Path_, area: str) -> tuple[sparse.csr_matrix, pd.DataFrame, pd.Series]:
    """Counts ``(n_cells, n_genes)``, ``obs`` and gene symbols of the neurons in one archive."""
    with zipfile.ZipFile(path) as archive:
        member = {}
        for ending in ("exon-matrix.csv", "genes-rows.csv", "samples-columns.csv"):
            found = [name for name in archive.namelist() if name.endswith(ending)]
            _need([ending], [ending] if len(found) == 1 else [], path)
            member[ending] = found[0]
        with archive.open(member["genes-rows.csv"]) as file:
            genes = pd.read_csv(file, keep_default_na=False)
        with archive.open(member["samples-columns.csv"]) as file:
            cells = pd.read_csv(file, keep_default_na=False)
        _need(["gene_symbol", "gene_entrez_id"], genes.columns, path)
        _need(["sample_name", "class", "subclass", "cluster"], cells.columns, path)
        neuron = cells["class"].isin(["GABAergic", "Glutamatergic"]) & ~cells["cluster"].isin(_TASIC_DROPPED)
        cells = cells[neuron].set_index("sample_name")
        blocks, rows = [], []
        with archive.open(member["exon-matrix.csv"]) as file:
            # The whole table would take several GB: a block of genes after the other.
            for block in pd.read_csv(file, index_col=0, chunksize=2_000):
                _need(cells.index, block.columns, path)
                rows.extend(block.index)
                blocks.append(sparse.csr_matrix(block[cells.index].to_numpy(np.float32)))
    symbols = genes.set_index("gene_entrez_id")["gene_symbol"]
    _need([str(row) for row in rows], symbols.index.astype(str), path)
    types = cells["cluster"].replace(_TASIC_JOINED)
    obs = pd.DataFrame({"cell_type": types, "subclass": cells["subclass"], "cell_class": cells["class"], "area": area})
    return sparse.vstack(blocks).T.tocsr(), obs, symbols[rows]


def _read_mixology(counts: Path_, metadata: Path_) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Counts as cells x genes and the metadata of the same cells."""
    values = _read_named_csv(counts).T
    obs = _read_named_csv(metadata)
    _need(values.index, obs.index, metadata)
    return values, obs.loc[values.index]


def read_scmix(counts: Path_, metadata: Path_) -> AnnData:
    """Single cells of three cell lines from the ``sc_mixology`` repository (GEO series GSE118767).

    Parameters
    ----------
    counts
        ``sc_celseq2.count.csv.gz``: genes x cells.
    metadata
        ``sc_celseq2.metadata.csv.gz``, one row per cell, with ``cell_line_demuxlet``.

    Returns
    -------
    AnnData of UMI counts, ``obs["cell_type"]`` the line told by genotype.
    """
    values, obs = _read_mixology(counts, metadata)
    _need(["cell_line_demuxlet"], obs.columns, metadata)
    types = obs["cell_line_demuxlet"].astype("category")
    return _anndata(values.to_numpy(), pd.DataFrame({"cell_type": types}, index=obs.index), values.columns)


def read_scmix_rna(counts: Path_, metadata: Path_) -> AnnData:
    """Pseudo-cells of mixed RNA from the ``sc_mixology`` repository (GEO series GSE118767).

    Parameters
    ----------
    counts
        ``RNAmix_celseq2.count.csv.gz``: genes x cells.
    metadata
        ``RNAmix_celseq2.metadata.csv.gz``, with the proportion of each line and ``mRNA_amount`` (pg).

    Returns
    -------
    AnnData of UMI counts, ``obs`` with ``cell_type`` such as "H2228:0.68|H1975:0.16|HCC827:0.16", the proportions
    and ``mRNA_amount``.
    """
    values, obs = _read_mixology(counts, metadata)
    proportions = ["H2228_prop", "H1975_prop", "HCC827_prop"]
    _need([*proportions, "mRNA_amount"], obs.columns, metadata)
    obs = obs[[*proportions, "mRNA_amount"]].astype(float)
    types = ["|".join(f"{name.split('_')[0]}:{row[name]}" for name in proportions) for _, row in obs.iterrows()]
    obs.insert(0, "cell_type", pd.Categorical(types))
    return _anndata(values.to_numpy(), obs, values.columns)
