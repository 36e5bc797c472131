"""What each data set is, where it comes from and what a reader of it may expect."""

from __future__ import annotations

from dataclasses import dataclass

_GEO = "https://ftp.ncbi.nlm.nih.gov/geo/series"
# Commits, not branches: a file behind such an address cannot change.
_SCDCC = "https://github.com/ttgump/scDCC/raw/84f29c345b2b6b0d61131f733fb6180fa0b6e56e/data"
_SCDEEPCLUSTER = "https://github.com/ttgump/scDeepCluster/raw/ae033d7e366e68e68fe8ac5792744aa19cbc20f9"
_ALLEN = "https://celltypes.brain-map.org/api/v2/well_known_file_download"
_MIXOLOGY = "https://github.com/LuyiTian/sc_mixology/raw/19667e111aac52abbfcaa6fff07da2fd05984709/data/csv"


@dataclass(frozen=True)
class DatasetInfo:
    """Description of one data set.

    Attributes
    ----------
    name
        Name of the loader in :mod:`cplmixvi.datasets`.
    file
        Name of the prepared file, which is looked for in the folder ``CPLMIXVI_DATA_DIR`` first.
    shape
        ``(n_obs, n_vars)`` of the prepared file.
    labels
        Columns of ``obs`` with reference cell types, finest first.
    likelihood
        Likelihood of :class:`~cplmixvi.CplMixVI` that suits the values in ``X``.
    reader
        Name of the function in ``_readers`` that converts the public files to an AnnData; they are passed in order.
    urls
        Public addresses of the files.
    public_shape
        Expected ``(n_obs, n_vars)`` of the public files; None for a number that is not known beforehand.
    values
        Content of ``X``: ``"raw counts"``, or ``"RPKM"``, which :func:`cplmixvi.pp.log_normalize` converts to log
        values.
    """

    name: str
    file: str
    shape: tuple[int, int]
    labels: tuple[str, ...]
    likelihood: str
    reader: str
    urls: tuple[str, ...]
    public_shape: tuple[int | None, int | None]
    values: str = "raw counts"


_ALL = (
    DatasetInfo(
        name="kang2018",
        file="kang2018_ifnb_pbmc.h5ad",
        shape=(13_999, 14_053),
        labels=("cell_type",),
        likelihood="nb",
        reader="read_kang2018",
        urls=(
            f"{_GEO}/GSE96nnn/GSE96583/suppl/GSE96583_RAW.tar",
            f"{_GEO}/GSE96nnn/GSE96583/suppl/GSE96583_batch2.genes.tsv.gz",
            f"{_GEO}/GSE96nnn/GSE96583/suppl/GSE96583_batch2.total.tsne.df.tsv.gz",
        ),
        public_shape=(None, 35_635),
    ),
    DatasetInfo(
        name="zeisel2015",
        file="zeisel2015_4000genes.h5ad",
        shape=(3_005, 4_000),
        labels=("cell_type", "cell_class"),
        likelihood="nb",
        reader="read_zeisel2015",
        urls=("https://storage.googleapis.com/linnarsson-lab-www-blobs/blobs/cortex/expression_mRNA_17-Aug-2014.txt",),
        public_shape=(3_005, 19_972),
    ),
    DatasetInfo(
        name="pbmc4k",
        file="pbmc4k_scDCC_top2000.h5ad",
        shape=(4_271, 2_000),
        labels=("cell_type",),
        likelihood="nb",
        reader="read_labelled_h5",
        urls=(f"{_SCDCC}/Small_Datasets/10X_PBMC_top2000.h5",),
        public_shape=(4_271, 2_000),
    ),
    DatasetInfo(
        name="worm_neurons",
        file="worm_neurons_cao2017.h5ad",
        shape=(4_186, 13_488),
        labels=("cell_type",),
        likelihood="nb",
        reader="read_labelled_h5",
        urls=(f"{_SCDEEPCLUSTER}/scRNA-seq%20data/worm_neuron_cell.h5",),
        public_shape=(4_186, 13_488),
    ),
    DatasetInfo(
        name="human_kidney",
        file="human_kidney_scDCC_top2000.h5ad",
        shape=(5_685, 2_000),
        labels=("cell_type",),
        likelihood="nb",
        reader="read_labelled_h5",
        urls=(f"{_SCDCC}/Small_Datasets/human_kidney_counts_top2000.h5",),
        public_shape=(5_685, 2_000),
    ),
    DatasetInfo(
        name="mouse_bladder",
        file="mouse_bladder_scDCC_top2000.h5ad",
        shape=(2_746, 2_003),
        labels=("cell_type",),
        likelihood="nb",
        reader="read_labelled_h5",
        urls=(f"{_SCDCC}/Small_Datasets/mouse_bladder_cell_top2000.h5",),
        public_shape=(2_746, 2_003),
    ),
    DatasetInfo(
        name="cbmc",
        file="cbmc_scDCC_top2000.h5ad",
        shape=(8_617, 2_000),
        labels=("cell_type",),
        likelihood="nb",
        reader="read_labelled_h5",
        urls=(f"{_SCDCC}/CITE_PBMC/CITE_CBMC_counts_top2000.h5",),
        public_shape=(8_617, 2_000),
    ),
    DatasetInfo(
        name="paul2015",
        file="paul2015_myeloid.h5ad",
        shape=(2_730, 8_716),
        labels=("cell_type",),
        likelihood="nb",
        reader="read_paul2015",
        urls=("https://falexwolf.de/data/paul15.h5",),
        public_shape=(2_730, 8_716),
    ),
    DatasetInfo(
        name="tasic2016",
        file="tasic2016_interneurons_3157genes.h5ad",
        shape=(761, 3_157),
        labels=("cell_type",),
        likelihood="normal",
        reader="read_tasic2016",
        urls=(
            f"{_GEO}/GSE71nnn/GSE71585/suppl/GSE71585_RefSeq_RPKM.csv.gz",
            f"{_GEO}/GSE71nnn/GSE71585/suppl/GSE71585_Clustering_Results.csv.gz",
        ),
        public_shape=(761, None),
        values="RPKM",
    ),
    DatasetInfo(
        name="tasic2018",
        file="tasic2018_neurons.h5ad",
        shape=(22_365, 45_768),
        labels=("cell_type", "subclass", "cell_class"),
        likelihood="nb",
        reader="read_tasic2018",
        urls=(f"{_ALLEN}/694413985", f"{_ALLEN}/694413179"),
        public_shape=(22_365, 45_768),
    ),
    DatasetInfo(
        name="scmix",
        file="scmix_sc_celseq2.h5ad",
        shape=(274, 28_204),
        labels=("cell_type",),
        likelihood="nb",
        reader="read_scmix",
        urls=(f"{_MIXOLOGY}/sc_celseq2.count.csv.gz", f"{_MIXOLOGY}/sc_celseq2.metadata.csv.gz"),
        public_shape=(274, 28_204),
    ),
    DatasetInfo(
        name="scmix_rna",
        file="scmix_RNAmix_celseq2.h5ad",
        shape=(340, 14_804),
        labels=("cell_type",),
        likelihood="nb",
        reader="read_scmix_rna",
        urls=(f"{_MIXOLOGY}/RNAmix_celseq2.count.csv.gz", f"{_MIXOLOGY}/RNAmix_celseq2.metadata.csv.gz"),
        public_shape=(340, 14_804),
    ),
)

REGISTRY: dict[str, DatasetInfo] = {info.name: info for info in _ALL}
