"""Models of the states benchmark: fitted once, kept in a folder and read again."""

from __future__ import annotations

import scvi
from _data import CASES, N_GENES, Case, load
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
}

#: What a variant tells :meth:`setup_anndata`; such a variant is for the data sets that have the column.
SETUP: dict[str, dict] = {"batch given": {"batch_key": "batch"}}


#: Cells whose truth is continuous: mixtures of the RNA of three cell lines. No set for the benchmark of types.
RNAMIX = Case("rnamix", "scmix_rna")


def cells(name: str) -> tuple[AnnData, int, str]:
    """Cells with 1,000 highly variable genes, the number of types and the likelihood."""
    if name in CASES:
        adata, _, n_types = load(name)
        return adata, n_types, CASES[name].likelihood
    adata = cpl.datasets.load(RNAMIX.dataset)
    adata = adata[:, cpl.pp.select_genes(adata, N_GENES)].copy()
    return adata, adata.obs[RNAMIX.labels].nunique(), RNAMIX.likelihood


def fitted(name: str, variant: str, seed: int) -> tuple[AnnData, cpl.CplMixVI]:
    """Cells and a trained model of them, which is read where it is kept."""
    adata, n_types, likelihood = cells(name)
    folder = CACHE / "models" / f"{name}-{variant.replace(' ', '_')}-{seed}"
    cpl.CplMixVI.setup_anndata(adata, **SETUP.get(variant, {}))
    if (folder / "model.json").exists():
        return adata, cpl.CplMixVI.load(str(folder), adata=adata)
    scvi.settings.seed = seed
    model = cpl.CplMixVI(adata, n_categories=n_types, likelihood=likelihood, **VARIANTS[variant])
    model.train(**QUIET)
    model.save(str(folder), overwrite=True)
    return adata, model
