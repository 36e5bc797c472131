"""Where a cell is in its cycle, and whether a state knows it; read after all fitting."""

from __future__ import annotations

import numpy as np
import scanpy as sc
from anndata import AnnData
from scipy.stats import spearmanr

import cplmixvi as cpl

#: Genes of DNA replication and of mitosis, by human symbol and Ensembl identifier (scmix has the latter).
S_GENES = {
    "PCNA": "ENSG00000132646",
    "MCM2": "ENSG00000073111",
    "MCM3": "ENSG00000112118",
    "MCM4": "ENSG00000104738",
    "MCM5": "ENSG00000100297",
    "MCM6": "ENSG00000076003",
    "TYMS": "ENSG00000176890",
    "RRM2": "ENSG00000171848",
    "GINS2": "ENSG00000131153",
    "CDC6": "ENSG00000094804",
    "CDC45": "ENSG00000093009",
    "TK1": "ENSG00000167900",
}
G2M_GENES = {
    "MKI67": "ENSG00000148773",
    "TOP2A": "ENSG00000131747",
    "CDK1": "ENSG00000170312",
    "CCNB1": "ENSG00000134057",
    "CCNB2": "ENSG00000157456",
    "BIRC5": "ENSG00000089685",
    "UBE2C": "ENSG00000175063",
    "CDC20": "ENSG00000117399",
    "AURKA": "ENSG00000087586",
    "PLK1": "ENSG00000166851",
    "CENPF": "ENSG00000117724",
    "TPX2": "ENSG00000088325",
    "NUSAP1": "ENSG00000137804",
    "HMGB2": "ENSG00000164104",
}
MIN_CELLS = 10

#: Data sets with cycling cells; that of scanpy brings scores of its own, and genes too few to make others.
DATASETS = {"paul": "paul2015", "scmix": "scmix", "pbmc68k": None}


def cycle(name: str, adata: AnnData) -> np.ndarray:
    """S and G2M scores of all cells, ``(n_cells, 2)``, from all genes of the data set, not those of the model only."""
    if DATASETS[name] is None:
        return adata.obs[["S_score", "G2M_score"]].to_numpy(dtype=float)
    cells = cpl.datasets.load(DATASETS[name])[adata.obs_names].copy()
    cells.X = cpl.pp.log_normalize(cells.X)
    by_name = {str(gene).upper(): gene for gene in cells.var_names}
    s, g2m = (
        [by_name[key] for pair in genes.items() for key in pair if key in by_name] for genes in (S_GENES, G2M_GENES)
    )
    sc.tl.score_genes_cell_cycle(cells, s_genes=s, g2m_genes=g2m)
    return cells.obs[["S_score", "G2M_score"]].to_numpy(dtype=float)


def cycle_scores(name: str, adata: AnnData, found: np.ndarray, state: np.ndarray) -> dict[str, float]:
    """|Spearman| of a category's best dimension with each score, mean over cells, in cycling cells and in all.

    A cell is cycling if one of its scores is above 0. ``cycle_chance`` is what the best dimension reaches when the
    scores are permuted within categories: with few cells that is not little.
    """
    scores = cycle(name, adata)
    cycling = (scores > 0).any(1)
    rng = np.random.default_rng(0)

    def best(within: np.ndarray, column: int, *, shuffled: bool = False) -> float:
        values, sizes = [], []
        for category in np.unique(found):
            cells = np.flatnonzero((found == category) & within)
            if len(cells) < MIN_CELLS:
                continue
            factor = scores[rng.permutation(cells) if shuffled else cells, column]
            values.append(np.nanmax([abs(spearmanr(state[cells, j], factor)[0]) for j in range(state.shape[1])]))
            sizes.append(len(cells))
        return float(np.average(values, weights=sizes)) if sizes else np.nan

    everywhere = np.ones(len(scores), dtype=bool)
    return {
        "cycle_cells": float(cycling.mean()),
        "s_rho": best(cycling, 0),
        "g2m_rho": best(cycling, 1),
        "s_rho_all": best(everywhere, 0),
        "g2m_rho_all": best(everywhere, 1),
        "cycle_chance": float(np.mean([best(cycling, column, shuffled=True) for column in (0, 1) for _ in range(20)])),
    }
