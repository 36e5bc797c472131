"""Cells of new batches: types and what is said of known batches stay, and only weights of the new ones learn."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback

import cplmixvi as cpl

QUIET = {"enable_progress_bar": False}
pytestmark = [
    pytest.mark.usefixtures("small_committee"),
    pytest.mark.filterwarnings("ignore:(Probabilities are almost flat|The arms agree):UserWarning"),
]


@pytest.fixture(scope="module")
def cells(make_counts):
    """Cells of two batches, and of a third one far from both that has fewer cells of two types."""
    adata = make_counts(n_obs=900, n_vars=100, n_types=4, n_batches=3, mean_counts=500, batch_scale=1.0)
    adata.obs["dose"] = np.where(np.arange(adata.n_obs) % 3, "low", "high")
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    new = (adata.obs["batch"] == "batch2").to_numpy()
    share = adata.obs["type"].map({"type0": 0.2, "type1": 0.5}).astype(float).fillna(1.0).to_numpy()
    kept = np.random.default_rng(0).random(adata.n_obs) < share
    return adata[~new].copy(), adata[new & kept].copy()


def trained(adata, epochs=1, setup=None, **options):
    cpl.CplMixVI.setup_anndata(adata, **({"batch_key": "batch"} | (setup or {})))
    model = cpl.CplMixVI(adata, **{"n_categories": 4, "n_hidden": 16} | options)
    model.train(max_epochs=epochs, warm_start=epochs > 1, **QUIET)
    return model


@pytest.fixture(scope="module")
def reference(cells):
    scvi.settings.seed = 0
    return trained(cells[0], epochs=40, n_hidden=32)


@pytest.fixture(scope="module")
def query(cells, reference):
    scvi.settings.seed = 0
    model = cpl.CplMixVI.load_query_data(cells[1].copy(), reference)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    model.train(max_epochs=30, **QUIET)
    return model, before


def said(model, adata):
    """What a model says of cells, whatever it draws at random."""
    posterior = model.get_posterior(adata)
    found = [posterior.proba, posterior.labels, posterior.state, posterior.state_variance, posterior.combined]
    return found + ([] if model.novelty_ is None else [model.get_novelty(adata)])


def assert_says_the_same(model, other, adata):
    for first, second in zip(said(model, adata), said(other, adata), strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)
    scvi.settings.seed = 0
    expected = model.get_normalized_expression(adata, n_samples=1)
    scvi.settings.seed = 0
    np.testing.assert_allclose(expected, other.get_normalized_expression(adata, n_samples=1), rtol=1e-5, atol=1e-7)


def test_cells_of_the_reference_are_what_they_were(cells, reference, query):
    assert_says_the_same(reference, query[0], cells[0])


def test_only_weights_of_the_new_batch_learn(reference, query):
    model, before = query
    after = model.module.state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    layers = [f"arms.{i}.{part}.fc_layers.Layer 0.0.weight" for i in (0, 1) for part in ("encoder", "decoder")]
    # The multiplier of the constraint is of the training and not of the cells.
    assert set(changed) == {*layers, "coupling.lam.value"}
    for name in layers:
        column = -1
        assert torch.equal(after[name][:, :column], before[name][:, :column])
        assert not torch.equal(after[name][:, column], before[name][:, column])
        assert torch.equal(before[name][:, column], before[name][:, -3:column].mean(1))
    assert model.module.n_batch == reference.module.n_batch + 1


def test_types_are_found_across_a_strong_shift(cells, reference, query):
    new, model = cells[1], query[0]
    mistaken = new.copy()
    mistaken.obs["batch"] = "batch0"
    as_known = cpl.metrics.ari(new.obs["type"], reference.predict(mistaken))
    found = cpl.metrics.ari(new.obs["type"], model.predict(new))
    assert found > max(as_known, 0.85)
    # One and the same type has one and the same name in both.
    both = np.concatenate([reference.predict(), model.predict(new)])
    assert cpl.metrics.ari(pd.concat([cells[0].obs["type"], new.obs["type"]]), both) > 0.85
    adata = new.copy()
    cpl.tl.annotate(adata, model)
    assert set(adata.obs["cplmixvi"]) <= set(reference.category_names)


def test_a_new_batch_without_an_effect_has_no_new_types(cells):
    """Decoded values that were a fifth too low would be taken for an effect of the batch."""
    adata = cells[0].copy()
    adata.layers["log"] = cpl.pp.log_normalize(adata.X)
    scvi.settings.seed = 0
    model = trained(adata, epochs=40, setup={"layer": "log"}, n_hidden=32, likelihood="normal")
    known = adata[adata.obs["batch"] == "batch0"].copy()
    same = known.copy()
    same.obs["batch"] = "new"
    query = cpl.CplMixVI.load_query_data(same, model)
    query.train(max_epochs=10, **QUIET)
    assert (query.get_novelty() > 0.95).mean() < (model.get_novelty(known) > 0.95).mean() + 0.1
    assert (query.predict() == model.predict(known)).mean() > 0.95


def test_training_makes_the_cells_more_likely(query):
    model, before = query
    assert len(model.history["train_loss"]) == 30
    fitted = -float(model.get_elbo())
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    model.module.load_state_dict(before)
    start = -float(model.get_elbo())
    model.module.load_state_dict(weights)
    # Nats per cell.
    assert fitted < start - 5


def test_it_goes_through_a_file_and_learns_no_more_than_before(cells, reference, query, tmp_path):
    model, _ = query
    reference.save(tmp_path / "reference")
    scvi.settings.seed = 0
    from_file = cpl.CplMixVI.load_query_data(cells[1].copy(), str(tmp_path / "reference"))
    for name, value in from_file.module.state_dict().items():
        assert torch.equal(value, query[1][name]), name
    model.save(tmp_path / "query")
    loaded = cpl.CplMixVI.load(tmp_path / "query", adata=cells[1].copy(), accelerator="cpu")
    assert_says_the_same(model, loaded, cells[1])
    loaded.train(max_epochs=1, **QUIET)
    assert_says_the_same(reference, loaded, cells[0])
    assert_says_the_same(reference, model.without_cells(), cells[0])


def test_a_second_query_keeps_the_first(cells, query):
    model, _ = query
    new = cells[1].copy()
    new.obs["batch"] = np.where(np.arange(new.n_obs) % 2, "batch2", "later")
    second = cpl.CplMixVI.load_query_data(new, model)
    second.train(max_epochs=2, **QUIET)
    for some in cells:
        assert_says_the_same(model, second, some)


def test_the_card_says_what_it_was_fine_tuned_from(cells, reference, query, tmp_path):
    def lines_of(model, title):
        return model.card().split(f"## {title}\n\n")[1].split("\n\n")[0].splitlines()

    model, heading = query[0], "Fine-tuned from a model that was trained on"
    assert lines_of(model, "Trained on")[0].startswith(f"- {len(model.train_indices)} of {len(cells[1])} cells")
    assert lines_of(model, heading) == lines_of(reference, "Trained on")
    assert f"`{reference.training_['input_sha256']}`" in lines_of(model, heading)[-1]
    assert heading not in reference.card()
    model.save(tmp_path / "query")
    new = cells[1].copy()
    new.obs["batch"] = "later"
    second = cpl.CplMixVI.load_query_data(new, str(tmp_path / "query"))
    assert second.card().splitlines()[2] == "Not trained."
    assert lines_of(second, heading) == lines_of(model, "Trained on")
    assert lines_of(second, "That one from a model that was trained on") == lines_of(reference, "Trained on")


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_other_covariates_and_a_reference_of_one_batch(cells, likelihood):
    setup = {"categorical_covariate_keys": ["dose"], "continuous_covariate_keys": ["age"]}
    first, second = (cells[0][cells[0].obs["batch"] == name].copy() for name in ("batch0", "batch1"))
    if likelihood == "normal":
        for some in (first, second):
            some.X = cpl.pp.log_normalize(some.X)
    reference = trained(first, setup=setup, likelihood=likelihood, n_layers=1)
    model = cpl.CplMixVI.load_query_data(second, reference)
    model.train(max_epochs=2, **QUIET)
    assert_says_the_same(reference, model, first)
    second.obs["dose"] = "none"
    with pytest.raises(ValueError, match="obs.'dose'. of the new cells has 'none'"):
        cpl.CplMixVI.load_query_data(second, reference)


@pytest.mark.parametrize("augment", ["across=dose+thin", "neighbours=X_some"])
def test_new_cells_need_no_counterparts(cells, augment, tmp_path):
    adata, new = (some.copy() for some in cells)
    adata.obsm["X_some"] = np.random.default_rng(0).normal(size=(adata.n_obs, 3))
    model = trained(adata, augment=augment)
    new = new[new.obs["dose"] == "low"].copy()
    if augment == "across=dose+thin":
        query = cpl.CplMixVI.load_query_data(new.copy(), model)
        query.train(max_epochs=1, **QUIET)
    del new.obs["dose"]
    query = cpl.CplMixVI.load_query_data(new, model)
    query.train(max_epochs=1, **QUIET)
    query.save(tmp_path / "query")
    again = cpl.CplMixVI.load(tmp_path / "query", new)
    again.train(max_epochs=1, **QUIET)
    # The reference has its own copies still.
    model.train(max_epochs=1, **QUIET)
    del adata.obs["dose"], adata.obsm["X_some"]
    with pytest.raises(ValueError, match="not a column of obs|not in obsm|X_some"):
        model.train(max_epochs=1, **QUIET)


def test_labels_keep_their_names(cells):
    some, new = (adata.copy() for adata in cells)
    some.obs["label"] = np.where(some.obs["type"] == "type2", "mine", "unknown")
    reference = trained(some, setup={"labels_key": "label"})
    model = cpl.CplMixVI.load_query_data(new, reference)
    assert list(model.category_names) == ["mine", "1", "2", "3"]
    model.train(max_epochs=1, **QUIET)
    assert_says_the_same(reference, model, cells[0])


def test_an_interrupted_training_is_resumed(cells, reference, tmp_path):
    class Crash(Callback):
        def on_train_epoch_end(self, trainer, plan):
            if trainer.current_epoch == 2:
                raise RuntimeError("crash")

    def make():
        scvi.settings.seed = 1
        return cpl.CplMixVI.load_query_data(cells[1].copy(), reference)

    whole = make()
    whole.train(max_epochs=4, **QUIET)
    crashed = make()
    with pytest.raises(RuntimeError, match="crash"):
        crashed.train(max_epochs=4, callbacks=[Crash()], checkpoint_dir=tmp_path, checkpoint_every=1, **QUIET)
    resumed = make()
    resumed.train(resume=tmp_path, **QUIET)
    for name, value in resumed.module.state_dict().items():
        assert torch.equal(value, whole.module.state_dict()[name]), name
    assert_says_the_same(reference, resumed, cells[0])


def test_genes_are_put_in_order_where_that_is_wanted(cells, reference):
    other = cells[1][:, ::-1].copy()
    with pytest.raises(ValueError, match="genes in another order; pass inplace_subset_query_vars=True"):
        cpl.CplMixVI.load_query_data(other, reference)
    cpl.CplMixVI.load_query_data(other, reference, inplace_subset_query_vars=True)
    assert list(other.var_names) == list(reference.get_var_names())


def test_genes_of_cells_in_a_file_stay_as_they_are(cells, reference, tmp_path):
    cells[1].write_h5ad(tmp_path / "new.h5ad")
    backed = ad.read_h5ad(tmp_path / "new.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"read from a file.*leave inplace_subset_query_vars out"):
        cpl.CplMixVI.load_query_data(backed, reference, inplace_subset_query_vars=True)


def test_what_cannot_be_learned_is_refused_and_changes_nothing(cells, reference):
    known, new = cells

    def refused(message, adata, model=reference):
        columns, genes = list(adata.obs), list(adata.var_names)
        with pytest.raises(ValueError, match=message):
            cpl.CplMixVI.load_query_data(adata, model, inplace_subset_query_vars=True)
        assert (list(adata.obs), list(adata.var_names)) == (columns, genes)

    fresh = cells[1].copy()
    refused("are known to the reference", known)
    refused("neither a CplMixVI nor a folder", fresh, None)
    refused("genes are missing", fresh[:, 3:].copy())
    numbered = fresh.copy()
    numbered.obs["batch"] = 7
    refused("must all be text, or all be numbers", numbered)
    nameless = fresh.copy()
    del nameless.obs["batch"]
    refused("have no column obs.'batch'", nameless)
    refused("set up without batch_key", fresh, trained(known.copy(), setup={"batch_key": None}))
    cpl.CplMixVI.setup_anndata(known, batch_key="batch")
    refused("was not trained", fresh, cpl.CplMixVI(known, n_categories=4))
    query = cpl.CplMixVI.load_query_data(new.copy(), reference)
    with pytest.raises(ValueError, match="warm_start=True would change"):
        query.train(max_epochs=1, warm_start=True, **QUIET)
    with pytest.raises(ValueError, match="weight_decay=0.1 would change"):
        query.train(max_epochs=1, plan_kwargs={"weight_decay": 0.1}, **QUIET)
    with pytest.raises(ValueError, match="CplMixVI.load_query_data.adata, model."):
        reference.predict(new)
