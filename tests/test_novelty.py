"""New cells: a type that was left out is far from all categories, and known types are as near as the training cells."""

import numpy as np
import pytest
import scvi
from sklearn.metrics import roc_auc_score

import cplmixvi as cpl


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
    # What the value means on cells that were not trained on, whose coordinates vary a little less.
    assert (novelty[known] > 0.95).mean() < 0.1
    assert 0.25 < (novelty[known] > 0.5).mean() < 0.65


def test_genes_are_found_by_name_and_batches_of_cells_do_not_matter(left_out):
    adata, model, *_ = left_out
    expected = model.get_novelty(adata)
    other = adata[::-1, ::-1].copy()
    np.testing.assert_allclose(model.get_novelty(other, batch_size=7)[::-1], expected, atol=2e-2)
    some = [3, 1, 2]
    np.testing.assert_allclose(model.get_novelty(adata, indices=some), expected[some], atol=2e-2)


def test_it_is_saved_with_the_model(left_out, tmp_path):
    adata, model, *_ = left_out
    model.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata=False, accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_novelty(adata), model.get_novelty(adata))


def test_a_model_without_coordinates_says_so(make_counts):
    adata = make_counts()
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False, warm_start=False)
    with pytest.raises(ValueError, match="warm start"):
        model.get_novelty()
