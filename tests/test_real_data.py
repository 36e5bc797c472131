"""Real cells end to end; needs the prepared data sets."""

import json

import anndata
import numpy as np
import pytest
import scanpy as sc
import scvi

import cplmixvi as cpl
from cplmixvi.cli import main

pytestmark = pytest.mark.usefixtures("data_dir", "small_committee")


def annotated(adata, n_categories, *, max_epochs=None, likelihood="nb", **options):
    adata = adata[:, cpl.pp.select_genes(adata, 500, likelihood=likelihood)].copy()
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=n_categories, likelihood=likelihood, **options)
    model.train(max_epochs=max_epochs, enable_progress_bar=False)
    cpl.tl.annotate(adata, model)
    return adata, model


def test_cell_lines_known_by_genotype_are_found():
    adata, model = annotated(cpl.datasets.scmix(), 3, max_epochs=100)
    assert cpl.metrics.accuracy(adata.obs["cell_type"], adata.obs["cplmixvi"]) > 0.97
    assert model.get_consensus().mean > 0.95
    assert model.report().sound


def test_neuron_types_on_log_values_are_found_better_than_by_chance_and_all_are_used():
    adata = cpl.datasets.tasic2016()
    adata.X = cpl.pp.log_normalize(adata.X)
    adata, model = annotated(adata, 23, max_epochs=60, likelihood="normal")
    assert cpl.metrics.ari(adata.obs["cell_type"], adata.obs["cplmixvi"]) > 0.35
    assert model.report().n_used >= 20


def test_stimulation_does_not_make_types_of_its_own():
    adata = cpl.datasets.kang2018()
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)[:1500]].copy()
    adata, _ = annotated(adata, 8, max_epochs=40)
    within = [
        cpl.metrics.nmi(cells.obs["stim"], cells.obs["cplmixvi"])
        for _, cells in ((name, adata[adata.obs["cell_type"] == name]) for name in adata.obs["cell_type"].unique())
        if cells.n_obs > 100
    ]
    assert np.mean(within) < 0.1
    assert cpl.metrics.nmi(adata.obs["cell_type"], adata.obs["cplmixvi"]) > 0.6


def test_command_line_annotates_real_cells_for_scanpy(data_dir, tmp_path, capsys):
    out = tmp_path / "out.h5ad"
    arguments = ["annotate", str(data_dir / "scmix_sc_celseq2.h5ad"), str(out)]
    arguments += ["--n-categories", "3", "--hvg", "300", "--max-epochs", "30", "--seed", "0", "--quiet"]
    assert main(arguments) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["cells"] == 274
    assert line["categories_used"] == 3
    adata = anndata.read_h5ad(out)
    assert adata.shape == (274, 28_204)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.tl.rank_genes_groups(adata, "cplmixvi", method="t-test")
    sc.pp.neighbors(adata, use_rep="X_cplmixvi", n_neighbors=10)
    assert cpl.tl.compare_to_reference(adata, "cell_type").scores["accuracy"] > 0.95
