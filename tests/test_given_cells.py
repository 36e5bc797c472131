"""Cells that a trained model is given: as they are now, all of them or none, and never the model's own by accident."""

import gc
import warnings
import weakref

import numpy as np
import pytest
import scanpy as sc

import cplmixvi as cpl

pytestmark = [
    pytest.mark.usefixtures("small_committee"),
    pytest.mark.filterwarnings("ignore:(Probabilities are almost flat|The arms agree):UserWarning"),
]


def cells(make_counts):
    adata = make_counts(n_obs=150)
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    adata.obs["depth"] = np.asarray(adata.X.sum(1)).ravel()
    return adata


def trained(adata, **setup):
    cpl.CplMixVI.setup_anndata(adata, **setup)
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=16)
    model.train(max_epochs=2, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def original(make_counts):
    return cells(make_counts)


@pytest.fixture(scope="module")
def fitted(original):
    return trained(original.copy(), batch_key="batch", continuous_covariate_keys=["age"], size_factor_key="depth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.obs.drop(columns="age", inplace=True), "no column 'age'"),
        (lambda a: a.obs.__setitem__("age", "old"), "numbers are needed"),
        (lambda a: a.obs.__setitem__("age", np.where(np.arange(a.n_obs) == 3, np.nan, 0.5)), "no value for 1 of"),
        (lambda a: a.obs.__setitem__("depth", -1.0), "not positive"),
        (lambda a: a.obs.drop(columns="depth", inplace=True), "no column 'depth'"),
    ],
)
def test_columns_of_new_cells_are_checked_as_those_of_training_cells(original, fitted, change, message):
    new = original.copy()
    change(new)
    with pytest.raises(ValueError, match=message):
        cpl.tl.annotate(new, fitted)
    assert "cplmixvi" not in new.obs


def test_values_are_named_by_their_gene(original, fitted):
    new = original.copy()
    new.X = new.X.astype(np.float32) * 0.5
    with pytest.raises(ValueError, match="fraction.*'gene"):
        fitted.predict(new)


def test_columns_may_change_between_two_calls(original, fitted):
    new = original.copy()
    fitted.predict(new)
    new.obs["batch"] = new.obs["batch"].cat.rename_categories({"batch0": "batch1", "batch1": "batch0"})
    new.obs["age"] = 1 - new.obs["age"]
    again, fresh = fitted.predict(new, soft=True), fitted.predict(new.copy(), soft=True)
    np.testing.assert_array_equal(again, fresh)
    assert np.abs(again.to_numpy() - fitted.predict(original.copy(), soft=True).to_numpy()).max() > 0


def test_other_cells_of_the_user_stay_set_up_as_they_were(original, fitted):
    new = original.copy()
    fitted.predict(new)
    cpl.CplMixVI.setup_anndata(new)
    fitted.predict(new)
    assert cpl.CplMixVI(new, n_categories=2).summary_stats.n_batch == 1


def test_a_model_without_cells_stays_without(original, fitted, tmp_path):
    fitted.save(tmp_path / "model")
    model = cpl.CplMixVI.load(tmp_path / "model", adata=False)
    expected = fitted.predict(original.copy(), soft=True)
    for new in (original.copy(), original[:20].copy(), original[:, ::-1].copy()):
        for _ in range(2):
            np.testing.assert_allclose(model.predict(new, soft=True), expected.iloc[: new.n_obs], atol=1e-5)
        assert model.adata is None
        assert model.adata_manager is None
    with pytest.raises(ValueError, match="no cells of its own"):
        model.predict()
    with pytest.raises(ValueError, match="no AnnData to save"):
        model.save(tmp_path / "other", save_anndata=True)
    assert np.isfinite(model.get_elbo(original.copy()))
    cpl.tl.annotate(new, model)
    cpl.tl.traverse(new, model, n_steps=3)


def test_no_cells_are_held_but_those_last_given(original, fitted, tmp_path):
    fitted.save(tmp_path / "model")
    for model in (fitted, cpl.CplMixVI.load(tmp_path / "model", adata=False)):
        held = []
        for is_reversed in (False, True, False):
            new = original[:, ::-1].copy() if is_reversed else original.copy()
            model.predict(new)
            held.append(weakref.ref(new))
            aligned = model._validate_anndata(new)
            held.append(weakref.ref(aligned))
            del new, aligned
        model.predict(original.copy())
        gc.collect()
        assert [ref() for ref in held] == [None] * 6


def test_few_cells_are_no_reason_to_warn(original, fitted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(fitted.predict(original[:1].copy())) == 1


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([True, False, True], "a mask of 3 cells, and there are 150"),
        *((rows, "must be row numbers of one or more cells") for rows in (np.zeros(150, dtype=bool), [[1, 2]], 3)),
        ([500], "has row 500, and there are 150"),
        ([-151], "has row -151"),
    ],
)
def test_rows_that_are_not_there_are_refused(fitted, indices, message):
    for getter in (fitted.predict, fitted.get_state, fitted.get_novelty, fitted.get_elbo):
        with pytest.raises(ValueError, match=message):
            getter(indices=indices)


def test_rows_by_mask_by_number_and_from_the_end(fitted):
    everyone = fitted.predict()
    mask = np.arange(150) % 7 == 0
    np.testing.assert_array_equal(fitted.predict(indices=mask), everyone[mask])
    np.testing.assert_array_equal(fitted.predict(indices=[-1, 0]), everyone[[-1, 0]])


@pytest.mark.parametrize("batch_size", [0, 2.5, True])
def test_impossible_minibatches_are_refused(fitted, batch_size):
    with pytest.raises(ValueError, match="batch_size.*whole number"):
        fitted.predict(batch_size=batch_size)


def test_numbers_of_numpy_are_numbers(make_counts):
    adata = make_counts()
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=np.int64(3), n_hidden=np.int32(8))
    model.train(max_epochs=np.int64(1), batch_size=np.int64(32), enable_progress_bar=False)
    assert len(model.predict(batch_size=np.int64(7))) == adata.n_obs
    table = model.select_n_categories([2, 3], seed=np.int64(3)).table
    assert table.equals(model.select_n_categories([2, 3], seed=3).table)


class TestOwnCellsThatChange:
    @pytest.fixture
    def own(self, make_counts):
        adata = cells(make_counts)
        return adata, trained(adata, batch_key="batch")

    def test_normalised_values_are_refused(self, own):
        adata, model = own
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
        for use in (model.predict, model.report, lambda: cpl.tl.annotate(adata, model)):
            with pytest.raises(ValueError, match=r"have changed.*setup_anndata\(layer="):
                use()

    def test_other_counts_are_refused_where_results_are_written(self, own):
        adata, model = own
        adata.X = adata.X * 2
        with pytest.raises(ValueError, match="have changed since it was trained"):
            cpl.tl.annotate(adata, model)
        assert "cplmixvi" not in adata.obs

    def test_genes_in_another_order_are_put_back(self, own):
        adata, model = own
        expected = model.predict(soft=True)
        names = list(model.get_var_names())
        adata._inplace_subset_var(np.random.default_rng(0).permutation(adata.n_vars))
        assert list(adata.var_names) != names
        np.testing.assert_allclose(model.predict(soft=True), expected, atol=1e-5)
        np.testing.assert_allclose(model.predict(adata, soft=True), expected, atol=1e-5)
        assert list(model.get_var_names()) == names

    def test_genes_that_are_gone_are_named(self, own, make_counts, tmp_path):
        adata, model = own
        whole = adata.copy()
        adata._inplace_subset_var(np.arange(40))
        with pytest.raises(ValueError, match="20 of the model's 60 genes are missing"):
            model.predict()
        # What is saved is the model, whatever became of its cells.
        model.save(tmp_path / "model")
        assert len(cpl.CplMixVI.load(tmp_path / "model", adata=False).predict(whole)) == whole.n_obs

    def test_other_batches_are_refused(self, own):
        adata, model = own
        adata.obs["batch"] = adata.obs["batch"].to_numpy()[::-1].copy()
        with pytest.raises(ValueError, match=r"obs\['batch'\] of the model's own cells has changed"):
            model.predict()
