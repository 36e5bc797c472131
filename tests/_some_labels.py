"""Cells of which some have a label, and models of them: for the tests of labels."""

import numpy as np
import scvi

import cplmixvi as cpl

#: The labels that some cells of the first types get.
NAMES = {"type0": "B cell", "type1": "T/NK"}


def some_labels(adata, share=0.1, names=NAMES, unlabeled="unknown"):
    """Labels of a share of the cells of some types, at least one of each, ``(n_cells,)``."""
    labels = np.full(adata.n_obs, unlabeled, dtype=object)
    for type_, name in names.items():
        cells = np.flatnonzero(adata.obs["type"] == type_)
        chosen = np.random.default_rng(0).permutation(cells)[: max(1, round(share * len(cells)))]
        labels[chosen] = [name] * len(chosen)
    return labels


def fit(adata, key, *, n_categories=3, epochs=1, setup=None, train=None, **options):
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata, layer="counts", labels_key=key, **(setup or {}))
    model = cpl.CplMixVI(adata, n_categories, **({"n_hidden": 32} | options))
    model.train(max_epochs=epochs, enable_progress_bar=False, **(train or {}))
    return model


def cells_with_some_labels(make_counts):
    """Types that clustering splits differently: small, close to each other, beside a large one with strong states."""
    sizes = {"type_sizes": [40, 40, 60, 80, 180], "n_markers": 8, "marker_fold": 2.2, "state_scale": 1.0}
    adata = make_counts(400, 100, 5, seed=5, n_batches=1, mean_counts=1500, **sizes)
    adata.obs["some"] = some_labels(adata)
    return adata
