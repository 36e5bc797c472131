"""New cells: a type that was left out is far from all categories, and known types are as near as the training cells."""

import numpy as np
import pytest
import scvi
from sklearn.metrics import roc_auc_score

import cplmixvi as cpl
from cplmixvi.model import _novelty

pytestmark = pytest.mark.usefixtures("small_committee")


@pytest.fixture(scope="module")
def left_out(make_counts):
    """Cells of four types in a random order, a model of half of the cells of three, and which cells are what."""
    adata = make_counts(n_obs=600, n_vars=40, n_types=4)
    new = (adata.obs["type"] == adata.obs["type"].cat.categories[-1]).to_numpy()
    half = np.random.default_rng(0).random(adata.n_obs) < 0.5
    scvi.settings.seed = 0
    train = adata[~new & half].copy()
    cpl.CplMixVI.setup_anndata(train, layer="counts", batch_key="batch")
    model = cpl.CplMixVI(train, n_categories=3, n_hidden=16)
    model.train(max_epochs=30, enable_progress_bar=False)
    return adata, model, new, ~new & ~half


def test_a_type_that_was_left_out_is_new(left_out):
    adata, model, new, known = left_out
    novelty = model.get_novelty(adata)
    assert novelty.shape == (adata.n_obs,)
    assert roc_auc_score(new[new | known], novelty[new | known]) > 0.95
    # What the value means on cells that were not trained on.
    assert (novelty[known] > 0.95).mean() < 0.1
    assert (novelty[known] > 0.5).mean() < 0.65
    assert (novelty[new] > 0.95).mean() > 0.95


def test_neither_order_nor_minibatches_matter(left_out, monkeypatch):
    adata, model, new, known = left_out
    expected = model.get_novelty(adata)
    other = adata[::-1, ::-1].copy()
    np.testing.assert_allclose(model.get_novelty(other, batch_size=7)[::-1], expected, atol=2e-2)
    # Many cells are compared with each other in parts.
    monkeypatch.setattr(_novelty, "MAX_CELLS", 150)
    assert roc_auc_score(new[new | known], model.get_novelty(adata)[new | known]) > 0.95


def test_cells_on_their_own_and_few_of_a_known_type_are_not_called_new(left_out):
    adata, model, new, known = left_out
    alone = {
        name: np.array([model.get_novelty(adata, indices=[row])[0] for row in np.flatnonzero(some)[:40]])
        for name, some in (("new", new), ("known", known))
    }
    assert (alone["known"] > 0.95).mean() < 0.1
    assert alone["new"].mean() > 0.9
    # Three cells of one type among many of the others, whose mean with these would be like no type.
    types = adata.obs["type"].astype(str).to_numpy()
    for name in sorted(set(types[known])):
        rows = np.flatnonzero(known & (types != name))
        few = np.flatnonzero(known & (types == name))[:3]
        assert (model.get_novelty(adata, indices=[*few, *rows])[:3] < 0.95).sum() >= 2


def test_it_is_saved_with_the_model(left_out, tmp_path):
    adata, model, *_ = left_out
    model.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata=False, accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_novelty(adata), model.get_novelty(adata))


def test_a_model_that_has_not_looked_says_so(make_counts):
    adata = make_counts()
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False, warm_start=False)
    # Nothing, and what an earlier version kept.
    for kept in (model.novelty_, {"means": [], "precisions": [], "distances": np.zeros(3)}):
        model.novelty_ = kept
        with pytest.raises(ValueError, match="warm start, and with this version"):
            model.get_novelty()
