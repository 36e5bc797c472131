"""One function per data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cplmixvi.datasets._fetch import read
from cplmixvi.datasets._images import dsprites, mnist
from cplmixvi.datasets._registry import REGISTRY

if TYPE_CHECKING:
    from anndata import AnnData


def kang2018() -> AnnData:
    """Human PBMC with and without interferon beta: a state to be found, by which types must not split.

    Kang et al. 2018, Nature Biotechnology 36:89 (GSE96583).

    Returns
    -------
    anndata.AnnData
        UMI counts. The prepared file has 13,999 cells x 14,053 genes and 13 types; the public files contain all
        singlets of the second batch, with 35,635 genes and 8 types. ``obs``: ``cell_type``, ``stim`` (CTRL, STIM).

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["kang2018"])


def zeisel2015() -> AnnData:
    """Mouse somatosensory cortex and hippocampus.

    Zeisel et al. 2015, Science 347:1138 (GSE60361).

    Returns
    -------
    anndata.AnnData
        UMI counts, 3,005 cells (4,000 genes in the prepared file, 19,972 from the public source). ``obs``:
        ``cell_type`` (48 including "(none)", which marks 189 cells that the authors left unassigned) and ``cell_class``
        (7).

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["zeisel2015"])


def pbmc4k() -> AnnData:
    """Human PBMC from a 10x demonstration run, 2,000 genes, as distributed with scDCC.

    Returns
    -------
    anndata.AnnData
        UMI counts, 4,271 cells x 2,000 genes without names. ``obs["cell_type"]``: 8 graph clusters "c1" .. "c8", a
        reference of convenience rather than the truth.

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["pbmc4k"])


def worm_neurons() -> AnnData:
    """Neurons of the worm *Caenorhabditis elegans*.

    Cao et al. 2017, Science 357:661, as distributed with scDeepCluster.

    Returns
    -------
    anndata.AnnData
        Very sparse UMI counts, 4,186 cells x 13,488 genes without names. ``obs["cell_type"]``: "c1" .. "c10".

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["worm_neurons"])


def human_kidney() -> AnnData:
    """Human kidney, 2,000 genes, as distributed with scDCC.

    Young et al. 2018, Science 361:594.

    Returns
    -------
    anndata.AnnData
        UMI counts, 5,685 cells x 2,000 genes without names. ``obs["cell_type"]``: 11 types "c0" .. "c10".

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["human_kidney"])


def mouse_bladder() -> AnnData:
    """Mouse bladder from the Mouse Cell Atlas, 2,003 genes, as distributed with scDCC.

    Han et al. 2018, Cell 172:1091.

    Returns
    -------
    anndata.AnnData
        Sparse UMI counts, 2,746 cells x 2,003 genes without names. ``obs["cell_type"]``: 16 types "c1" .. "c16".

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["mouse_bladder"])


def cbmc() -> AnnData:
    """Cord blood mononuclear cells (CITE-seq), RNA only, as distributed with scDCC.

    Stoeckius et al. 2017, Nature Methods 14:865 (GSE100866).

    Returns
    -------
    anndata.AnnData
        UMI counts, 8,617 cells x 2,000 genes without names. ``obs["cell_type"]``: 15 types "c1" .. "c15", which include
        the mouse cells that were mixed in.

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["cbmc"])


def paul2015() -> AnnData:
    """Mouse myeloid progenitors: a continuum that was cut into types.

    Paul et al. 2015, Cell 163:1663 (GSE72857).

    Returns
    -------
    anndata.AnnData
        UMI counts, 2,730 cells x 8,716 genes. ``obs["cell_type"]``: 19 types such as "7MEP"; the prepared file also has
        ``dpt_pseudotime`` and ``batch``.

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["paul2015"])


def tasic2016() -> AnnData:
    """Interneurons of mouse visual cortex, full-length sequencing.

    Tasic et al. 2016, Nature Neuroscience 19:335 (GSE71585).

    Returns
    -------
    anndata.AnnData
        RPKM values, neither counts nor logarithms: apply :func:`cplmixvi.pp.log_normalize` to them and use
        ``likelihood="normal"``. 761 cells; 3,157 genes in the prepared file, all genes from the public source.
        ``obs["cell_type"]``: 23 types.

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["tasic2016"])


def tasic2018() -> AnnData:
    """Neurons of mouse primary visual and anterior lateral motor cortex, the cells of the paper.

    Tasic et al. 2018, Nature 563:72. About 2 GB are downloaded from the Allen Institute.

    Returns
    -------
    anndata.AnnData
        Exon counts (full-length sequencing, not molecules), 22,365 cells x 45,768 genes. ``obs``: ``cell_type`` (115),
        ``subclass``, ``cell_class`` (GABAergic, Glutamatergic) and ``area`` (VISp, ALM).

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["tasic2018"])


def scmix() -> AnnData:
    """Single cells of three human lung cancer cell lines, identified by their genotype.

    Tian et al. 2019, Nature Methods 16:479 (GSE118767).

    Returns
    -------
    anndata.AnnData
        UMI counts, 274 cells x 28,204 genes. ``obs["cell_type"]``: H1975, H2228, HCC827.

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["scmix"])


def scmix_rna() -> AnnData:
    """Pseudo-cells made of RNA from three cell lines, mixed in known proportions: a continuous ground truth.

    Tian et al. 2019, Nature Methods 16:479 (GSE118767).

    Returns
    -------
    anndata.AnnData
        UMI counts, 340 pseudo-cells x 14,804 genes. ``obs``: ``cell_type`` (7 mixtures), ``H2228_prop``,
        ``H1975_prop``, ``HCC827_prop`` (fractions) and ``mRNA_amount`` (pg).

    Raises
    ------
    FileNotFoundError
        If the data set is neither prepared in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.
    ValueError
        If the prepared file does not have the expected shape.
    """
    return read(REGISTRY["scmix_rna"])


def pbmc68k() -> AnnData:
    """700 human PBMC that ship with scanpy: real data without a download.

    Zheng et al. 2017, Nature Communications 8:14049. Use ``likelihood="normal"``.

    Returns
    -------
    anndata.AnnData
        Log-normalised values (CSR float32), 700 cells x 765 genes. ``obs``: ``bulk_labels`` (10 types), ``phase``,
        ``S_score``, ``G2M_score``.
    """
    import scanpy as sc
    from anndata import AnnData
    from scipy import sparse

    packaged = sc.datasets.pbmc68k_reduced()
    # Its X is scaled to unit variance per gene; what a likelihood can be put on is kept in .raw.
    values = packaged.raw[:, packaged.var_names].X
    adata = AnnData(
        sparse.csr_matrix(values, dtype="float32"),
        obs=packaged.obs[["bulk_labels", "phase", "S_score", "G2M_score"]].copy(),
        var=packaged.var[[]].copy(),
    )
    adata.uns["source"] = "Zheng et al. 2017, subset packaged with scanpy (pbmc68k_reduced)"
    adata.uns["X_is"] = "log-normalised"
    return adata


_LOADERS = {
    loader.__name__: loader
    for loader in (
        kang2018,
        zeisel2015,
        pbmc4k,
        worm_neurons,
        human_kidney,
        mouse_bladder,
        cbmc,
        paul2015,
        tasic2016,
        tasic2018,
        scmix,
        scmix_rna,
        pbmc68k,
        mnist,
        dsprites,
    )
}


def available() -> list[str]:
    """List the data sets that :func:`load` knows.

    Returns
    -------
    list of str
        Names, sorted.

    Examples
    --------
    >>> "pbmc68k" in available()
    True
    """
    return sorted(_LOADERS)


def load(name: str) -> AnnData:
    """Load a data set by name.

    Parameters
    ----------
    name
        One of :func:`available`.

    Returns
    -------
    anndata.AnnData
        See the function of that name.

    Raises
    ------
    ValueError
        If there is no such data set.
    FileNotFoundError
        If its files are neither in the folder ``CPLMIXVI_DATA_DIR`` nor available for download.

    Examples
    --------
    >>> load("pbmc68k").shape
    (700, 765)
    """
    if name not in _LOADERS:
        raise ValueError(f"data set {name!r} given, known are {', '.join(available())}: choose one of them")
    return _LOADERS[name]()
