"""Models of the states benchmark: fitted once, kept in a folder and read again."""

from __future__ import annotations

import scvi
from _data import CASES, Case, load
from _methods import CACHE, QUIET
from anndata import AnnData

import cplmixvi as cpl

#: Constructor options of the variants; everything else is the default.
VARIANTS: dict[str, dict] = {
    "default": {},
    "one arm": {"n_arms": 1},
    "type prior": {"state_prior": "type"},
    "independent state": {"state_given_category": False},
    "batch given": {},
    "across": {"augment": "across=stim+thin"},
    "not looked for": {},
    "1 dimension": {"n_state": 1},
    "3 dimensions": {"n_state": 3},
    "4 dimensions": {"n_state": 4},
    "beta 0.5": {"beta": 0.5},
    "beta 2": {"beta": 2.0},
    "8 categories": {"n_categories": 8},
}

#: What a variant tells :meth:`setup_anndata`; such a variant is for the data sets that have the column.
SETUP: dict[str, dict] = {"batch given": {"batch_key": "batch"}}

#: Arguments of :meth:`train`: without the search for a condition.
TRAINING: dict[str, dict] = {"not looked for": {"find_condition": False}}

#: Data sets of the variants that are not for all of them.
ONLY: dict[str, tuple[str, ...]] = {
    "batch given": ("paul",),
    "across": ("kang",),
    "not looked for": ("kang",),
    "8 categories": ("paul",),
}


#: No sets for the benchmark of types: mixtures of the RNA of three cell lines, whose truth is continuous, and 700 cells
#: with scores of the cell cycle, of which only 765 genes are there.
MORE = {
    "rnamix": Case("rnamix", "scmix_rna"),
    "pbmc68k": Case("pbmc68k", "pbmc68k", labels="bulk_labels", likelihood="normal"),
}


def cells(name: str) -> tuple[AnnData, int, str]:
    """Cells with 1,000 highly variable genes, the number of types and the likelihood."""
    if name in CASES:
        adata, _, n_types = load(name)
        return adata, n_types, CASES[name].likelihood
    case = MORE[name]
    adata = cpl.datasets.load(case.dataset)
    adata = adata[:, cpl.pp.select_genes(adata, min(case.n_genes, adata.n_vars), likelihood=case.likelihood)].copy()
    adata.obs["cell_type"] = adata.obs[case.labels].astype(str)
    return adata, adata.obs["cell_type"].nunique(), case.likelihood


def fitted(name: str, variant: str, seed: int) -> tuple[AnnData, cpl.CplMixVI]:
    """Cells and a trained model of them, which is read where it is kept."""
    adata, n_types, likelihood = cells(name)
    folder = CACHE / "models" / f"{name}-{variant.replace(' ', '_')}-{seed}"
    cpl.CplMixVI.setup_anndata(adata, **SETUP.get(variant, {}))
    if (folder / "model.json").exists():
        return adata, cpl.CplMixVI.load(str(folder), adata=adata)
    scvi.settings.seed = seed
    model = cpl.CplMixVI(adata, **{"n_categories": n_types, "likelihood": likelihood} | VARIANTS[variant])
    model.train(**QUIET, **TRAINING.get(variant, {}))
    model.save(str(folder), overwrite=True)
    return adata, model
