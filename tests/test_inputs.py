"""Bad and unusual input: a clear error, or it works; never half of each."""

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import scvi

import cplmixvi as cpl

pytestmark = pytest.mark.usefixtures("small_committee")


def fit(adata, *, layer=None, epochs=1, train=None, **options):
    cpl.CplMixVI.setup_anndata(adata, layer=layer)
    model = cpl.CplMixVI(adata, **({"n_categories": 3, "n_hidden": 8} | options))
    model.train(max_epochs=epochs, enable_progress_bar=False, **(train or {}))
    return model


def with_value(adata, value, cell=3, gene=5):
    adata = adata.copy()
    dense = adata.X.toarray().astype(np.float32)
    dense[cell, gene] = value
    adata.X = sp.csr_matrix(dense)
    return adata


@pytest.mark.parametrize(
    ("value", "message"), [(-1, "negative"), (0.5, "fraction"), (np.nan, "not finite"), (np.inf, "not finite")]
)
def test_values_that_are_not_counts_are_refused(make_counts, value, message):
    adata = with_value(make_counts(), value)
    with pytest.raises(ValueError, match=message) as error:
        fit(adata)
    assert "\n" not in str(error.value)
    assert adata.obs_names[3] in str(error.value)


def test_nan_is_refused_on_log_values_and_large_values_on_probabilities(make_counts):
    with pytest.raises(ValueError, match="not finite"):
        fit(with_value(make_counts(), np.nan), likelihood="normal")
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        fit(make_counts(), likelihood="bernoulli")


def test_wrong_names_say_what_there_is(make_counts):
    adata = make_counts()
    with pytest.raises(ValueError, match=r"layer 'raw' given.*counts"):
        cpl.CplMixVI.setup_anndata(adata, layer="raw")
    with pytest.raises(ValueError, match=r"no column 'donor'.*'batch'"):
        cpl.CplMixVI.setup_anndata(adata, batch_key="donor")


def test_an_empty_cell_is_named_and_an_empty_gene_is_kept(make_counts):
    adata = make_counts()
    dense = adata.X.toarray()
    dense[7] = 0
    adata.X = sp.csr_matrix(dense)
    with pytest.raises(ValueError, match=f"{adata.obs_names[7]}.*drop them"):
        fit(adata)
    gene = make_counts()
    dense = gene.X.toarray()
    dense[:, 4] = 0
    gene.X = sp.csr_matrix(dense)
    model = fit(gene, epochs=3)
    assert np.isfinite(model.get_elbo())
    assert np.isfinite(model.get_normalized_expression().to_numpy()).all()


FORMATS = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "dense": lambda x: x.toarray(),
    "fortran": lambda x: np.asfortranarray(x.toarray()),
    "int64": lambda x: x.astype(np.int64),
    "uint16 dense": lambda x: x.toarray().astype(np.uint16),
    "float64": lambda x: x.astype(np.float64),
}


def fitted_in(convert, make_counts):
    """Probabilities of cells whose counts come in another format."""
    adata = make_counts()
    adata.X = convert(adata.X)
    scvi.settings.seed = 0
    return fit(adata, epochs=2).predict(soft=True).to_numpy()


@pytest.fixture(scope="module")
def in_csr(make_counts):
    return fitted_in(sp.csr_matrix, make_counts)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_result(make_counts, in_csr, name):
    np.testing.assert_allclose(fitted_in(FORMATS[name], make_counts), in_csr, atol=1e-5)


@pytest.mark.parametrize("dense", [False, True])
def test_backed_files_train_and_annotate(make_counts, tmp_path, dense):
    adata = make_counts()
    del adata.layers["counts"]
    if dense:
        adata.X = adata.X.toarray()
    adata.write_h5ad(tmp_path / "in.h5ad")
    backed = anndata.read_h5ad(tmp_path / "in.h5ad", backed="r")
    model = fit(backed, epochs=2)
    memory = adata.copy()
    assert list(model.predict()) == list(model.predict(memory))
    permuted = adata[:, ::-1].copy()
    permuted.write_h5ad(tmp_path / "permuted.h5ad")
    again = anndata.read_h5ad(tmp_path / "permuted.h5ad", backed="r")
    assert list(model.predict(again)) == list(model.predict())


def test_permuted_genes_give_the_same_answer_and_missing_ones_an_error(make_counts):
    adata = make_counts()
    model = fit(adata, epochs=5)
    expected = model.predict(soft=True)
    permuted = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    np.testing.assert_allclose(model.predict(permuted, soft=True), expected, atol=1e-5)
    np.testing.assert_allclose(model.get_state(permuted), model.get_state(), atol=1e-5)
    assert list(model.get_normalized_expression(permuted).columns) == list(adata.var_names)
    with pytest.raises(ValueError, match=r"2 of the model's 60 genes are missing.*same genes"):
        model.predict(adata[:, 2:].copy())
    renamed = adata.copy()
    renamed.var_names = [f"other{i}" for i in range(adata.n_vars)]
    with pytest.raises(ValueError, match="60 of the model's 60 genes are missing"):
        model.predict(renamed)


def test_a_model_without_cells_takes_parts_and_copies_of_cells_that_it_has_seen(make_counts, tmp_path):
    adata = make_counts()
    fit(adata, epochs=2).save(tmp_path / "model")
    model = cpl.CplMixVI.load(tmp_path / "model", adata=False)
    expected = list(model.predict(adata))
    for cells, kept in ((adata[::2], slice(None, None, 2)), (adata.copy(), slice(None)), (adata[:, ::-1], slice(None))):
        assert list(model.predict(cells)) == expected[kept]
        assert list(model.predict(adata)) == expected


def test_new_cells_are_checked_like_training_cells(make_counts):
    model = fit(make_counts())
    with pytest.raises(ValueError, match="negative"):
        model.predict(with_value(make_counts(seed=1), -3))


def test_a_trained_model_looks_at_one_cell_but_does_not_learn_from_one(make_counts):
    adata = make_counts()
    model = fit(adata, epochs=3)
    assert model.predict(adata[:1].copy())[0] == model.predict()[0]
    with pytest.raises(ValueError, match="at least 2 cells"):
        fit(adata[:1].copy(), n_categories=1)


@pytest.mark.parametrize("given", [0, -2, 2.5, 121, True])
def test_impossible_numbers_of_categories_are_refused(make_counts, given):
    with pytest.raises(ValueError, match="n_categories="):
        fit(make_counts(), n_categories=given)


@pytest.mark.parametrize("option", ["n_state", "n_arms"])
@pytest.mark.parametrize("given", [0, -1, 1.5])
def test_impossible_sizes_are_refused(make_counts, option, given):
    with pytest.raises(ValueError, match=f"{option}="):
        fit(make_counts(), **{option: given})


@pytest.mark.parametrize("n_obs", [33, 65])
def test_a_last_batch_of_one_cell_trains(make_counts, n_obs):
    adata = make_counts(n_obs=n_obs)
    model = fit(adata, train={"batch_size": 32, "train_size": 1.0})
    assert len(model.train_indices) == n_obs
    assert model.predict(batch_size=32).shape == (n_obs,)


@pytest.mark.parametrize("n_obs", [2, 3])
def test_a_handful_of_cells_trains(make_counts, n_obs):
    adata = make_counts(n_obs=30)[:n_obs].copy()
    assert fit(adata, n_categories=2).predict().shape == (n_obs,)


def test_batches_of_one_are_refused(make_counts):
    with pytest.raises(ValueError, match="batch_size=1"):
        fit(make_counts(), train={"batch_size": 1})


def test_one_gene_trains(make_counts):
    adata = make_counts()[:, :1].copy()
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    assert fit(adata).predict().shape == (adata.n_obs,)


def test_a_batch_with_one_cell_trains(make_counts):
    adata = make_counts()
    adata.obs["lone"] = ["only"] + ["rest"] * (adata.n_obs - 1)
    cpl.CplMixVI.setup_anndata(adata, batch_key="lone")
    model = cpl.CplMixVI(adata, n_categories=2, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False)
    assert model.predict().shape == (120,)


def test_repeated_gene_names_are_refused(make_counts):
    adata = make_counts()
    adata.var_names = ["same"] * adata.n_vars
    with pytest.raises(ValueError, match="var_names_make_unique"):
        cpl.CplMixVI.setup_anndata(adata)


def test_nothing_of_the_user_is_changed_by_an_error(make_counts):
    adata = with_value(make_counts(), -1)
    before = adata.copy()
    with pytest.raises(ValueError, match="negative"):
        fit(adata)
    assert (adata.X != before.X).nnz == 0
    assert set(before.layers) == set(adata.layers)


def test_columns_without_a_value_are_refused(make_counts):
    adata = make_counts()
    adata.obs["site"] = ["a", None] * 60
    adata.obs["age"] = [1.0, np.nan] * 60
    adata.obs["text"] = "x"
    for options, message in (
        ({"batch_key": "site"}, "obs.'site'. has no value for 60 of 120 cells"),
        ({"categorical_covariate_keys": ["site"]}, "obs.'site'. has no value"),
        ({"continuous_covariate_keys": ["age"]}, "obs.'age'. has no value"),
        ({"size_factor_key": "text"}, "numbers are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            cpl.CplMixVI.setup_anndata(adata, **options)


@pytest.mark.parametrize("setup", [{"batch_key": "day"}, {"categorical_covariate_keys": ["day"]}])
def test_text_and_numbers_in_one_column_are_refused(make_counts, setup):
    adata = make_counts()
    adata.obs["day"] = np.array([1, "1"] * (adata.n_obs // 2), dtype=object)
    with pytest.raises(ValueError, match=r"obs.'day'. has both text and numbers.*astype\(str\)"):
        cpl.CplMixVI.setup_anndata(adata, **setup)


def test_new_cells_of_an_unknown_batch_are_refused(make_counts):
    adata = make_counts()
    adata.obs["site"] = ["a", "b", "c"] * 40
    cpl.CplMixVI.setup_anndata(adata, batch_key="batch", categorical_covariate_keys=["site"])
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False, warm_start=False)
    some = adata[adata.obs["site"] == "b"].copy()
    assert list(model.predict(some)) == list(model.predict()[1::3])
    for key in ("batch", "site"):
        for spoil, message in (
            (lambda obs, key=key: obs.__setitem__(key, "new"), f"obs.'{key}'. of the new cells has 'new', and the"),
            (lambda obs, key=key: obs.__setitem__(key, [None] + ["a"] * 39), "missing values"),
            (lambda obs, key=key: obs.__delitem__(key), "have no column"),
        ):
            other = some.copy()
            spoil(other.obs)
            with pytest.raises(ValueError, match=message):
                model.predict(other)


def test_a_damaged_sparse_matrix_is_refused(make_counts):
    """SciPy would read memory that is not the matrix's."""
    model = fit(make_counts(), train={"warm_start": False})
    for damage in (lambda x: x.indices.__setitem__(0, 10**6), lambda x: x.indptr.__setitem__(5, 10**6)):
        adata = make_counts()
        damage(adata.X)
        with pytest.raises(ValueError, match="damaged sparse matrix"):
            fit(adata)
        permuted = make_counts()
        permuted.var_names = permuted.var_names[::-1]
        damage(permuted.X)
        with pytest.raises(ValueError, match="damaged sparse matrix"):
            model.predict(permuted)
