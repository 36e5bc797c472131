"""Data sets of the benchmarks: the same cells and genes for every method."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from anndata import AnnData

import cplmixvi as cpl

N_GENES = 1_000


@dataclass(frozen=True)
class Case:
    """A data set with the labels it is scored against."""

    name: str
    dataset: str
    labels: str = "cell_type"
    likelihood: str = "nb"
    ignore: tuple[str, ...] = ()
    n_genes: int = N_GENES


CASES = {
    case.name: case
    for case in (
        Case("kang", "kang2018"),
        Case("zeisel48", "zeisel2015", ignore=("(none)",)),
        Case("zeisel7", "zeisel2015", labels="cell_class"),
        Case("pbmc4k", "pbmc4k"),
        Case("worm", "worm_neurons"),
        Case("paul", "paul2015"),
        Case("tasic2016", "tasic2016", likelihood="normal"),
        # The paper's own cells and number of genes; a download of about 2 GB.
        Case("tasic2018", "tasic2018", likelihood="normal", n_genes=5_000),
        Case("scmix", "scmix"),
        # Had no part in any choice: first scored when the recipe was settled.
        Case("kidney", "human_kidney"),
        Case("bladder", "mouse_bladder"),
        Case("cbmc", "cbmc"),
        # The markers of rare types are not among the most variable genes.
        Case("simulated115", "simulated115", labels="type", n_genes=5_000),
    )
}


def simulated115() -> AnnData:
    """22,365 cells, 5,000 genes and 115 types sized 16 to 1,404: the shape of the paper's data, simulated."""
    sizes = cpl.datasets.imbalanced_sizes(22_365, 115, smallest=16, largest=1_404)
    return cpl.datasets.simulate(n_vars=5_000, type_sizes=sizes, n_types=115, n_obs=22_365, mean_counts=5_000, seed=0)


@cache
def load(name: str) -> tuple[AnnData, np.ndarray, int]:
    """Cells with the highly variable genes of the case, their labels and the number of types."""
    case = CASES[name]
    adata = simulated115() if case.dataset == "simulated115" else cpl.datasets.load(case.dataset)
    if case.likelihood == "normal":
        adata.X = cpl.pp.log_normalize(adata.X)
    adata = adata[:, cpl.pp.select_genes(adata, case.n_genes, likelihood=case.likelihood)].copy()
    adata = adata[np.asarray((adata.X != 0).sum(1)).ravel() > 0].copy()
    adata.uns["benchmark"] = name
    truth = adata.obs[case.labels].astype(str).to_numpy()
    return adata, truth, len(set(truth) - set(case.ignore))


def log_values(adata: AnnData, likelihood: str) -> np.ndarray:
    """Dense log-normalised values, what PCA baselines read."""
    values = cpl.pp.log_normalize(adata.X) if likelihood in ("nb", "zinb", "poisson") else adata.X
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values)
