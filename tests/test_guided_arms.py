"""Arms that follow a guide: what they learn of it, which cells shape it, and when it is fitted."""

import pytest
import scvi
import torch

import cplmixvi as cpl
from cplmixvi.train import _guide
from cplmixvi.train._views import fit_views

pytestmark = pytest.mark.usefixtures("small_committee")


@pytest.fixture(scope="module")
def cells(make_counts):
    adata = make_counts(n_obs=400, n_vars=80, n_types=4)
    return adata, torch.from_numpy(cpl.pp.log_normalize(adata.X).toarray())


def test_arms_learn_the_consensus_and_keep_it(cells):
    adata, _ = cells
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    model = cpl.CplMixVI(adata, n_categories=4, n_hidden=32)
    model.train(max_epochs=100, enable_progress_bar=False)
    assert cpl.metrics.ari(adata.obs["type"], model.predict()) > 0.85
    assert model.get_consensus().mean > 0.9
    divergence = model.history["guide_divergence_train"].to_numpy().ravel()
    # Paths fitted to the guide: the arms follow it from their first step on.
    assert (divergence < 0.1).all()
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


def test_cells_of_a_batch_beyond_those_that_were_read_are_guided_too(cells):
    adata, _ = cells
    adata = adata.copy()
    # A batch that the first cells do not reach; without shuffling they are those that are read.
    adata.obs["late"] = ["b" if i >= 390 else "a" for i in range(400)]
    cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="late")
    model = cpl.CplMixVI(adata, n_categories=4, n_hidden=8)
    loader = model._make_data_loader(adata, batch_size=100, shuffle=False)
    guide = _guide.fit_guide(model.module, loader, max_cells=200)
    x = model.module.encoder_input(torch.from_numpy(adata.layers["counts"].toarray()).float())
    posterior = guide(x, torch.tensor([0] * 390 + [1] * 10))
    assert torch.allclose(posterior.sum(1), torch.ones(400), atol=1e-4)
    assert cpl.metrics.ari(adata.obs["type"], posterior.argmax(1)) > 0.9
