"""Views of the data, their consensus, and the arms that follow it."""

import numpy as np
import pytest
import scvi
import torch

import cplmixvi as cpl
from cplmixvi.train import _guide
from cplmixvi.train._views import Projection, fit_views


@pytest.fixture(scope="module")
def cells(make_counts):
    adata = make_counts(n_obs=400, n_vars=80, n_types=4)
    return adata, torch.from_numpy(cpl.pp.log_normalize(adata.X).toarray())


def fit(x, k=4, **options):
    return fit_views(x, k, **({"dimensions": (4, 8), "n_starts": 4, "n_moves": 4} | options))


def test_views_find_the_types_and_agree_on_their_names(cells):
    adata, x = cells
    guide = fit(x)
    posterior = guide(x)
    assert posterior.shape == (400, 4)
    assert torch.allclose(posterior.sum(1), torch.ones(400), atol=1e-4)
    assert cpl.metrics.ari(adata.obs["type"], posterior.argmax(1)) > 0.9
    by_view = guide.by_view(x)
    # Two scalings, two numbers of dimensions, each with its own answer and the exchanged one.
    assert len(by_view) == 8
    for labels in by_view.argmax(-1):
        assert (labels == posterior.argmax(1)).float().mean() > 0.8


def test_the_consensus_is_a_function_of_the_cell(cells):
    _, x = cells
    guide = fit(x)
    order = torch.randperm(len(x))
    assert torch.allclose(guide(x)[order], guide(x[order]), atol=1e-5)
    assert torch.allclose(guide(x[:1]), guide(x)[:1], atol=1e-5)


def test_scaling_runs_from_a_genes_own_deviation_to_the_usual_one(cells):
    _, x = cells
    batch = torch.zeros(len(x), dtype=torch.long)
    own, usual = (Projection(x, batch, 5, scaling, 0).scale for scaling in (0.0, 1.0))
    assert torch.allclose(own, x.std(0, unbiased=False).clamp_min(1e-6), rtol=1e-4)
    assert usual.std() < own.std()
    between = Projection(x, batch, 5, 0.5, 0).scale
    assert torch.allclose(between, (own * usual).sqrt(), rtol=1e-4)


def test_batches_are_centred(cells):
    _, x = cells
    batch = torch.arange(len(x)) % 2
    shifted = x + 3.0 * batch[:, None]
    plain, corrected = Projection(x, batch, 5, 0.0, 0), Projection(shifted, batch, 5, 0.0, 0)
    assert torch.allclose(plain.mean[1] + 3.0, corrected.mean[1], atol=1e-4)
    gap = corrected(shifted, batch)[batch == 1].mean(0) - corrected(shifted, batch)[batch == 0].mean(0)
    assert gap.abs().max() < 1e-3


def test_an_empty_gene_and_few_cells_are_no_trouble(cells):
    _, x = cells
    x = x.clone()
    x[:, 3] = 0
    assert fit(x)(x).isfinite().all()
    assert fit(x[:12], k=2)(x[:12]).isfinite().all()
    assert fit(x[:2], k=1)(x[:2]).isfinite().all()


def test_arms_learn_the_consensus_and_keep_it(cells):
    adata, _ = cells
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    model = cpl.CplMixVI(adata, n_categories=4, n_hidden=32)
    model.train(max_epochs=100, enable_progress_bar=False)
    assert cpl.metrics.ari(adata.obs["type"], model.predict()) > 0.85
    assert model.get_consensus().mean > 0.9
    divergence = model.history["guide_divergence_train"].to_numpy().ravel()
    assert divergence[-1] < 0.1
    assert divergence[-1] < divergence[0]
    assert not model.module.guided


def test_the_guide_is_for_the_first_training_only_unless_asked_for(cells, monkeypatch):
    adata, _ = cells
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    calls = []
    monkeypatch.setattr(_guide, "fit_views", lambda *args, **kwargs: calls.append(1) or fit_views(*args, **kwargs))
    model = cpl.CplMixVI(adata, n_categories=4, n_hidden=8)
    for warm_start, fits in ((False, 0), (None, 0), (True, 1)):
        model.train(max_epochs=1, enable_progress_bar=False, warm_start=warm_start)
        assert len(calls) == fits
    fresh = cpl.CplMixVI(adata, n_categories=4, n_hidden=8)
    fresh.train(max_epochs=1, enable_progress_bar=False)
    assert len(calls) == 2


def test_a_condition_given_as_batch_does_not_split_types(make_counts):
    adata = make_counts(n_obs=400, n_vars=80, n_types=3, n_batches=2, batch_scale=1.0)
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=32)
    model.train(max_epochs=60, enable_progress_bar=False)
    labels = model.predict()
    assert cpl.metrics.ari(adata.obs["type"], labels) > 0.8
    assert cpl.metrics.nmi(adata.obs["batch"], labels) < 0.1


def test_held_out_cells_do_not_shape_the_guide(cells, monkeypatch):
    seen = {}

    def spy(values, *args, **kwargs):
        seen["n"] = len(values)
        return fit_views(values, *args, **kwargs)

    monkeypatch.setattr(_guide, "fit_views", spy)
    adata, _ = cells
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    model = cpl.CplMixVI(adata, n_categories=4, n_hidden=8)
    model.train(max_epochs=1, train_size=0.8, enable_progress_bar=False)
    assert seen["n"] == len(model.train_indices) == 320


def test_few_cells_per_batch_mean_use_the_overall_one():
    x = torch.arange(8.0).reshape(4, 2)
    projection = Projection(x, torch.tensor([0, 0, 2, 2]), 1, 0.0, 0)
    assert torch.allclose(projection.mean[1], x.mean(0))
    assert np.isfinite(projection(x, torch.tensor([1, 0, 2, 2])).numpy()).all()
