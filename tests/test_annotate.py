"""Write-back: what is written, where, and what other tools make of it."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scvi

import cplmixvi as cpl

pytestmark = pytest.mark.usefixtures("small_committee")


@pytest.fixture(scope="module")
def fitted(make_counts):
    adata = make_counts(n_obs=180, n_types=3)
    scvi.settings.seed = 1
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    # More categories than types, so that some stay unused.
    model = cpl.CplMixVI(adata, n_categories=8, n_hidden=32)
    model.train(max_epochs=60, enable_progress_bar=False)
    return adata, model


@pytest.fixture
def annotated(fitted):
    adata, model = fitted
    adata = adata.copy()
    cpl.CplMixVI.setup_anndata(fitted[0], layer="counts")
    cpl.tl.annotate(adata, model)
    return adata


def test_everything_is_where_the_design_says(annotated, fitted):
    _, model = fitted
    labels = annotated.obs["cplmixvi"]
    assert isinstance(labels.dtype, pd.CategoricalDtype)
    assert all(isinstance(name, str) for name in labels.cat.categories)
    assert set(labels) == set(labels.cat.categories), "unused categories break scanpy"
    assert list(labels) == list(model.predict())
    assert list(labels.cat.categories) == sorted(labels.cat.categories, key=int)
    for name in ("cplmixvi_confidence", "cplmixvi_agreement"):
        assert annotated.obs[name].dtype == np.float32
        assert annotated.obs[name].between(0, 1).all()
    state, proba = annotated.obsm["X_cplmixvi"], annotated.obsm["cplmixvi_proba"]
    assert state.shape == (180, 2)
    assert proba.shape == (180, labels.cat.categories.size)
    for array in (state, proba):
        assert type(array) is np.ndarray
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert np.isfinite(array).all()
    assert (proba.sum(1) <= 1 + 1e-5).all()
    np.testing.assert_allclose(state, model.get_state(), atol=1e-6)
    uns = annotated.uns["cplmixvi"]
    assert list(uns["categories"]) == list(labels.cat.categories)
    assert (uns["categories"][proba.argmax(1)] == labels.to_numpy()).all()
    assert len(uns["pruned"]) + len(uns["categories"]) == uns["n_categories"] == 8
    assert uns["consensus"].shape == (len(uns["categories"]),) * 2
    np.testing.assert_allclose(np.diag(uns["consensus"]), uns["consensus_by_category"])
    assert uns["params"]["n_categories"] == 8
    assert uns["params"]["likelihood"] == "nb"
    assert uns["params"]["n_hidden"] == 32
    assert len(uns["history"]["elbo_train"]) == 60
    assert uns["seed"] == 1
    assert uns["input_sha256"] == cpl.pp.input_hash(annotated.layers["counts"], annotated.var_names)
    assert {"cplmixvi", "torch", "scvi-tools"} <= set(uns["versions"])


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_results_survive_files(annotated, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    getattr(annotated, f"write_{suffix}")(path)
    read = getattr(anndata, f"read_{suffix}")(path)
    assert list(read.obs["cplmixvi"]) == list(annotated.obs["cplmixvi"])
    np.testing.assert_array_equal(read.obsm["X_cplmixvi"], annotated.obsm["X_cplmixvi"])
    np.testing.assert_array_equal(read.uns["cplmixvi"]["consensus"], annotated.uns["cplmixvi"]["consensus"])
    for name in ("params", "versions"):
        assert dict(read.uns["cplmixvi"][name]) == annotated.uns["cplmixvi"][name]
    for name in ("seed", "input_sha256"):
        assert read.uns["cplmixvi"][name] == annotated.uns["cplmixvi"][name]


def test_scanpy_works_on_the_result(annotated):
    sc.pp.normalize_total(annotated)
    sc.pp.log1p(annotated)
    large = annotated.obs["cplmixvi"].value_counts() > 2
    subset = annotated[annotated.obs["cplmixvi"].map(large).astype(bool)].copy()
    sc.tl.rank_genes_groups(subset, "cplmixvi", method="t-test")
    assert subset.uns["rank_genes_groups"]["names"].dtype.names == tuple(subset.obs["cplmixvi"].cat.categories)
    sc.pl.dotplot(subset, list(subset.var_names[:3]), groupby="cplmixvi", show=False)
    sc.pp.neighbors(annotated, use_rep="X_cplmixvi", n_neighbors=10)
    sc.pl.embedding(annotated, "X_cplmixvi", color="cplmixvi", show=False)


def test_cells_with_more_genes_in_another_order_are_matched_by_name(fitted):
    adata, model = fitted
    wider = anndata.concat([adata, make_extra(adata)], axis=1)
    wider = wider[:, np.random.default_rng(0).permutation(wider.n_vars)].copy()
    wider.layers["counts"] = wider.X.copy()
    before = set(wider.uns) | set(wider.obs)
    cpl.tl.annotate(wider, model)
    assert list(wider.obs["cplmixvi"]) == list(model.predict())
    added = (set(wider.uns) | set(wider.obs)) - before
    assert added == {"cplmixvi", "cplmixvi_confidence", "cplmixvi_agreement"}


def make_extra(adata):
    extra = adata[:, :5].copy()
    extra.var_names = [f"extra{i}" for i in range(5)]
    return extra


def test_one_state_gets_a_second_column_and_one_arm_no_consensus(fitted):
    adata = fitted[0].copy()
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    model = cpl.CplMixVI(adata, n_categories=2, n_state=1, n_arms=1, n_hidden=8)
    model.train(max_epochs=2, enable_progress_bar=False)
    cpl.tl.annotate(adata, model, key_added="single")
    assert adata.obsm["X_single"].shape == (180, 2)
    assert (adata.obsm["X_single"][:, 1] == 0).all()
    assert adata.obs["single_agreement"].isna().all()
    assert "consensus" not in adata.uns["single"]


def test_foreign_keys_are_kept_and_own_ones_replaced(annotated, fitted):
    adata, model = fitted
    cpl.tl.annotate(annotated, model)
    taken = adata.copy()
    taken.obs["cplmixvi"] = "mine"
    with pytest.raises(ValueError, match=r"obs\['cplmixvi'\] exist already"):
        cpl.tl.annotate(taken, model)
    assert (taken.obs["cplmixvi"] == "mine").all()
    assert "X_cplmixvi" not in taken.obsm
    cpl.tl.annotate(taken, model, key_added="other")
    cpl.tl.annotate(taken, model, overwrite=True)
    assert list(taken.obs["cplmixvi"]) == list(taken.obs["other"])


@pytest.mark.parametrize("key", ["", "a b", "a/b", "1st", "cell_type", None])
def test_names_that_other_tools_refuse_are_refused(fitted, key):
    adata, model = fitted
    with pytest.raises(ValueError, match="key_added"):
        cpl.tl.annotate(adata, model, key_added=key)


def test_uncertain_cells_are_unassigned(annotated, fitted, tmp_path):
    _, model = fitted
    certain = annotated.copy()
    assert certain.uns["cplmixvi"]["n_unassigned"] == 0
    assert "min_confidence" not in certain.uns["cplmixvi"]["params"]
    confidence = certain.obs["cplmixvi_confidence"].to_numpy()
    cut = float(np.quantile(confidence, 0.3))
    below = confidence < np.float32(cut)
    assert 0 < below.sum() < len(below)

    cpl.tl.annotate(annotated, model, min_confidence=cut)
    labels = annotated.obs["cplmixvi"]
    assert ((labels == "unassigned") == below).all()
    assert (labels[~below].astype(str) == certain.obs["cplmixvi"][~below].astype(str)).all()
    assert labels.cat.categories[-1] == "unassigned"
    assert set(labels) == set(labels.cat.categories), "unused categories break scanpy"
    uns = annotated.uns["cplmixvi"]
    assert list(uns["categories"]) == list(certain.uns["cplmixvi"]["categories"])
    assert uns["n_unassigned"] == below.sum()
    assert uns["params"]["min_confidence"] == cut
    np.testing.assert_array_equal(annotated.obsm["cplmixvi_proba"], certain.obsm["cplmixvi_proba"])
    np.testing.assert_array_equal(uns["consensus"], certain.uns["cplmixvi"]["consensus"])
    annotated.write_h5ad(tmp_path / "out.h5ad")
    assert list(anndata.read_h5ad(tmp_path / "out.h5ad").obs["cplmixvi"]) == list(labels)


def test_a_category_that_loses_all_cells_keeps_its_column_only(annotated, fitted):
    sure = annotated.obs.groupby("cplmixvi", observed=True)["cplmixvi_confidence"].max().sort_values()
    cpl.tl.annotate(annotated, fitted[1], min_confidence=float(sure.iloc[:2].mean()))
    assert sure.index[0] not in annotated.obs["cplmixvi"].cat.categories
    assert sure.index[0] in annotated.uns["cplmixvi"]["categories"]
    assert annotated.obsm["cplmixvi_proba"].shape[1] == len(sure)


@pytest.mark.parametrize("min_confidence", [-0.1, 1.1, float("nan")])
def test_impossible_confidences_are_refused_before_anything_is_written(fitted, min_confidence):
    adata = fitted[0].copy()
    with pytest.raises(ValueError, match=r"min_confidence=.*outside \[0, 1\]"):
        cpl.tl.annotate(adata, fitted[1], min_confidence=min_confidence)
    assert "cplmixvi" not in adata.obs


def test_what_was_made_from_an_older_result_is_dropped(annotated, fitted):
    cpl.tl.order_categories(annotated)
    annotated.uns["rank_genes_cplmixvi"] = {}
    annotated.uns["cplmixvi_colors"] = ["red"]
    annotated.obs["cplmixvi_stability"] = 0.0
    cpl.tl.annotate(annotated, fitted[1])
    assert "order" not in annotated.uns["cplmixvi"]
    assert not {"rank_genes_cplmixvi", "cplmixvi_colors"} & set(annotated.uns)
    assert "cplmixvi_stability" in annotated.obs, "no result says that this column is ours"


class TestLargestProbabilities:
    @pytest.mark.parametrize("top_k", [1, 3, 100])
    def test_they_are_those_of_all(self, fitted, top_k):
        adata, model = fitted
        everything, largest = model.get_posterior(batch_size=50), model.get_posterior(batch_size=50, top_k=top_k)
        kept = largest.proba.toarray()
        assert (np.diff(largest.proba.indptr) == min(top_k, 8)).all()
        np.testing.assert_allclose(kept[kept > 0], everything.proba[kept > 0], rtol=1e-6)
        best = np.sort(everything.proba, axis=1)[:, ::-1][:, :top_k]
        np.testing.assert_allclose(np.sort(kept, axis=1)[:, ::-1][:, :top_k], best, rtol=1e-6)
        for posterior in (everything, largest):
            np.testing.assert_array_equal(posterior.category, everything.proba.argmax(1))
            np.testing.assert_allclose(posterior.confidence, everything.proba.max(1))
        np.testing.assert_allclose(largest.combined, everything.combined)

    def test_they_are_written_as_a_sparse_matrix_and_everything_else_as_before(self, fitted, annotated, tmp_path):
        adata, model = fitted
        some = adata.copy()
        cpl.CplMixVI.setup_anndata(adata, layer="counts")
        cpl.tl.annotate(some, model, top_k=2)
        some.write_h5ad(tmp_path / "some.h5ad")
        some = anndata.read_h5ad(tmp_path / "some.h5ad")
        proba = some.obsm["cplmixvi_proba"]
        assert proba.format == "csr"
        assert proba.dtype == np.float32
        assert proba.shape == annotated.obsm["cplmixvi_proba"].shape
        kept = proba.toarray()
        np.testing.assert_allclose(kept[kept > 0], annotated.obsm["cplmixvi_proba"][kept > 0], rtol=1e-6)
        pd.testing.assert_frame_equal(
            some.obs.filter(like="cplmixvi"), annotated.obs.filter(like="cplmixvi"), check_categorical=False
        )

    @pytest.mark.parametrize("top_k", [0, -1, 1.5, True])
    def test_none_or_a_part_of_one_cannot_be_written(self, fitted, top_k):
        adata, model = fitted
        some = adata.copy()
        with pytest.raises(ValueError, match=r"top_k=.*at least 1"):
            cpl.tl.annotate(some, model, top_k=top_k)
        assert "cplmixvi" not in some.obs


def test_values_may_be_elsewhere_but_of_the_same_cells(fitted, annotated):
    adata, model = fitted
    empty = anndata.AnnData(obs=adata.obs[["batch"]].copy())
    cpl.tl.annotate(empty, model, values_of=adata)
    for name in ("cplmixvi", "cplmixvi_confidence"):
        assert list(empty.obs[name]) == list(annotated.obs[name])
    with pytest.raises(ValueError, match="values_of has other cells"):
        cpl.tl.annotate(adata[::-1].copy(), model, values_of=adata)


def test_a_column_of_the_users_is_not_taken_for_a_condition_of_ours(annotated, fitted):
    _, model = fitted
    assert not annotated.uns["cplmixvi"]["has_condition"]
    annotated.obs["cplmixvi_condition"] = "mine"
    with pytest.raises(ValueError, match=r"obs\['cplmixvi_condition'\] exist already"):
        cpl.tl.annotate(annotated, model)
    assert (annotated.obs["cplmixvi_condition"] == "mine").all()
    cpl.tl.annotate(annotated, model, overwrite=True)
    assert annotated.uns["cplmixvi"]["n_categories"] == 8
