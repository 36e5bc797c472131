"""Marker genes and the order of categories: the planted ones are found, and values stay as they are."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import cplmixvi as cpl

COLUMNS = [
    "category",
    "rank",
    "gene",
    "score",
    "log2_fold_change",
    "pvalue",
    "pvalue_adjusted",
    "share_in",
    "share_out",
]


def as_result(adata, labels):
    """Mark ``labels`` as a result, as ``tl.annotate`` leaves it."""
    labels = pd.Series(labels, index=adata.obs_names)
    names = sorted(set(labels.dropna()) - {"unassigned"}, key=int)
    extra = ["unassigned"] if (labels == "unassigned").any() else []
    adata.obs["cplmixvi"] = pd.Categorical(labels, categories=names + extra)
    adata.uns["cplmixvi"] = {"origin": "cplmixvi", "categories": np.array(names, dtype=object)}
    return adata


@pytest.fixture
def planted():
    """Four types of 30 cells; gene i marks type i, and types 0 and 2, and types 1 and 3, share twelve genes."""
    rng = np.random.default_rng(0)
    types = np.repeat(np.arange(4), 30)
    rate = np.full((120, 40), 1.0)
    rate[np.arange(120), types] = 12.0
    rate[types % 2 == 0, 10:22] = 5.0
    rate[types % 2 == 1, 25:37] = 5.0
    counts = rng.poisson(rate).astype(np.float32)
    adata = anndata.AnnData(sparse.csr_matrix(counts))
    adata.var_names = [f"gene{i}" for i in range(40)]
    return as_result(adata, types.astype(str))


class TestRankGenes:
    @pytest.mark.parametrize("method", ["wilcoxon", "t-test"])
    def test_planted_markers_come_first(self, planted, method):
        table = cpl.tl.rank_genes(planted, method=method)
        assert list(table.columns) == COLUMNS
        assert len(table) == 4 * 40
        best = table[table["rank"] == 1]
        assert dict(zip(best["category"], best["gene"], strict=True)) == {str(i): f"gene{i}" for i in range(4)}
        assert (best["pvalue_adjusted"] < 1e-6).all()
        assert (best["log2_fold_change"] > 1.5).all()

    def test_a_gene_with_one_value_is_no_marker_and_warns_of_nothing(self, planted):
        planted.X[:, 5] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            table = cpl.tl.rank_genes(planted)
        assert (table.loc[table["gene"] == planted.var_names[5], "score"] == 0).all()

    def test_shares_are_those_of_the_cells(self, planted):
        row = cpl.tl.rank_genes(planted).query("category == '2' and gene == 'gene2'").iloc[0]
        nonzero = planted.X[:, 2].toarray().ravel() > 0
        inside = (planted.obs["cplmixvi"] == "2").to_numpy()
        assert row["share_in"] == pytest.approx(nonzero[inside].mean())
        assert row["share_out"] == pytest.approx(nonzero[~inside].mean())

    def test_counts_are_log_normalised_apart_from_the_users_values(self, planted):
        planted.X.data[0] = 0
        data, pointers = planted.X.data.copy(), planted.X.indptr.copy()
        of_counts = cpl.tl.rank_genes(planted)
        np.testing.assert_array_equal(planted.X.data, data)
        np.testing.assert_array_equal(planted.X.indptr, pointers)
        planted.layers["log"] = cpl.pp.log_normalize(planted.X)
        stored = planted.layers["log"].nnz
        of_logs = cpl.tl.rank_genes(planted, layer="log")
        assert planted.layers["log"].nnz == stored
        pd.testing.assert_frame_equal(of_counts, of_logs)
        assert planted.uns["rank_genes_cplmixvi"]["params"]["layer"] == "log"

    def test_fold_changes_know_the_base_of_the_users_logarithms(self, planted):
        natural, binary = planted.copy(), planted.copy()
        sc.pp.log1p(natural)
        sc.pp.log1p(binary, base=2)
        folds = [cpl.tl.rank_genes(a, method="t-test").set_index(["category", "gene"]) for a in (natural, binary)]
        first, second = (fold["log2_fold_change"].sort_index() for fold in folds)
        np.testing.assert_allclose(first, second, atol=1e-3)

    def test_scanpy_reads_what_is_written_and_so_do_files(self, planted, tmp_path):
        table = cpl.tl.rank_genes(planted, n_genes=5)
        assert len(table) == 20
        sc.pl.rank_genes_groups(planted, n_genes=3, key="rank_genes_cplmixvi", show=False)
        frame = sc.get.rank_genes_groups_df(planted, "1", key="rank_genes_cplmixvi")
        assert list(frame["names"]) == list(table.loc[table["category"] == "1", "gene"])
        planted.write_h5ad(tmp_path / "out.h5ad")
        read = anndata.read_h5ad(tmp_path / "out.h5ad")
        assert read.uns["rank_genes_cplmixvi"]["names"]["0"][0] == "gene0"

    def test_a_category_of_one_cell_is_left_out_with_a_warning(self, planted):
        labels = planted.obs["cplmixvi"].astype(object).to_numpy().copy()
        labels[0] = "4"
        as_result(planted, labels)
        with pytest.warns(UserWarning, match="Categories 4 of 'cplmixvi'"):
            table = cpl.tl.rank_genes(planted)
        assert list(table["category"].unique()) == ["0", "1", "2", "3"]

    def test_unassigned_cells_are_no_group_and_no_background(self, planted):
        without = cpl.tl.rank_genes(planted[planted.obs["cplmixvi"] != "3"].copy())
        labels = planted.obs["cplmixvi"].astype(object).replace("3", "unassigned")
        as_result(planted, labels)
        table = cpl.tl.rank_genes(planted)
        assert set(table["category"]) == {"0", "1", "2"}
        # Scaling to a median total knows the other cells; which genes are zero where does not.
        shares = [t.set_index(["category", "gene"])["share_out"].sort_index() for t in (table, without)]
        np.testing.assert_allclose(shares[0].drop("3", errors="ignore"), shares[1].loc[["0", "1", "2"]])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "magic"}, "method='magic'.*'wilcoxon'"),
            ({"n_genes": 0}, "n_genes=0"),
            ({"n_genes": 2.5}, "n_genes=2.5 was given; give a whole number"),
            ({"n_genes": True}, "n_genes=True"),
            ({"layer": "no"}, "layer 'no'"),
            ({"key": "leiden"}, "key='leiden' names no result"),
        ],
    )
    def test_bad_options(self, planted, options, message):
        with pytest.raises(ValueError, match=message):
            cpl.tl.rank_genes(planted, **options)

    def test_one_category_cannot_be_compared(self, planted):
        as_result(planted, ["0"] * 119 + ["1"])
        with pytest.raises(ValueError, match="1 categories with two or more cells, at least 2"):
            cpl.tl.rank_genes(planted)


class TestOrderCategories:
    @pytest.mark.parametrize("basis", [None, "X_pca"])
    def test_similar_types_are_neighbours(self, planted, basis):
        if basis:
            planted.obsm[basis] = cpl.baselines.principal_components(cpl.pp.log_normalize(planted.X), 4)
        order = cpl.tl.order_categories(planted, basis=basis)
        assert sorted(order) == ["0", "1", "2", "3"]
        for a, b in (("0", "2"), ("1", "3")):
            assert abs(order.index(a) - order.index(b)) == 1
        result = planted.uns["cplmixvi"]
        assert list(result["order"]) == order
        assert result["order"].dtype == object
        assert result["linkage"].shape == (3, 4)
        assert result["linkage"].dtype == np.float64
        assert {frozenset(row[:2].astype(int)) for row in result["linkage"][:2]} == {
            frozenset((0, 2)),
            frozenset((1, 3)),
        }
        assert list(result["categories"]) == ["0", "1", "2", "3"]
        assert list(planted.obs["cplmixvi"].cat.categories) == ["0", "1", "2", "3"]

    @pytest.mark.filterwarnings("ignore:Trying to modify attribute")
    def test_order_of_a_part_is_that_of_the_part(self, planted):
        before = dict(planted.uns["cplmixvi"])
        part = planted[:60]
        assert part.is_view
        cpl.tl.order_categories(part)
        assert "order" in part.uns["cplmixvi"]
        assert planted.uns["cplmixvi"].keys() == before.keys()

    def test_order_survives_files(self, planted, tmp_path):
        order = cpl.tl.order_categories(planted)
        planted.write_h5ad(tmp_path / "out.h5ad")
        assert list(anndata.read_h5ad(tmp_path / "out.h5ad").uns["cplmixvi"]["order"]) == order

    def test_categories_without_cells_are_left_out(self, planted):
        labels = planted.obs["cplmixvi"].astype(object).replace("1", "unassigned")
        as_result(planted, labels)
        planted.uns["cplmixvi"]["categories"] = np.array(["0", "1", "2", "3"], dtype=object)
        assert sorted(cpl.tl.order_categories(planted)) == ["0", "2", "3"]
        assert planted.uns["cplmixvi"]["linkage"].shape == (2, 4)

    def test_two_categories_and_no_variation(self, planted):
        as_result(planted, ["0"] * 60 + ["1"] * 60)
        planted.X = np.zeros((120, 40), dtype=np.float32)
        assert sorted(cpl.tl.order_categories(planted)) == ["0", "1"]
        # Neither similar (0) nor opposite (2).
        assert planted.uns["cplmixvi"]["linkage"][0, 2] == 1

    def test_what_cannot_be_ordered(self, planted):
        with pytest.raises(ValueError, match="basis='X_pca' is not in obsm"):
            cpl.tl.order_categories(planted, basis="X_pca")
        with pytest.raises(ValueError, match="is not in obsm"):
            cpl.tl.order_categories(planted, basis=["X_pca"])
        planted.obsm["X_two"] = np.zeros((120, 2))
        with pytest.raises(ValueError, match="2 columns; correlations need at least 3"):
            cpl.tl.order_categories(planted, basis="X_two")
        planted.obsm["X_three"] = np.full((120, 3), np.nan)
        with pytest.raises(ValueError, match=r"obsm\['X_three'\] has values that are not finite"):
            cpl.tl.order_categories(planted, basis="X_three")
        with pytest.raises(ValueError, match="basis='X_three' and layer='logs'.*leave one out"):
            cpl.tl.order_categories(planted, basis="X_three", layer="logs")
        with pytest.raises(ValueError, match="key='leiden' names no result"):
            cpl.tl.order_categories(planted, "leiden")
        as_result(planted, ["0"] * 120)
        with pytest.raises(ValueError, match="1 categories with cells, at least 2"):
            cpl.tl.order_categories(planted)

    def test_values_of_a_layer(self, planted):
        planted.layers["counts"] = planted.X.copy()
        planted.X = planted.X * 0
        order = cpl.tl.order_categories(planted, layer="counts")
        assert set(order[:2]) in ({"0", "2"}, {"1", "3"})


@pytest.mark.parametrize("function", ["rank_genes", "order_categories", "state_genes"])
def test_one_value_does_not_make_logarithms_of_counts(planted, function):
    planted.obsm["X_cplmixvi"] = np.random.default_rng(0).normal(size=(120, 2))
    planted.X = planted.X.toarray() * 10
    planted.X[3, 5] = np.nan
    with pytest.raises(ValueError, match=r"adata\.X has values that are not finite"):
        getattr(cpl.tl, function)(planted)
    planted.X[3, 5] = 2.5
    with pytest.raises(ValueError, match=r"values up to \d+, and not all are whole.*neither counts nor logarithms"):
        getattr(cpl.tl, function)(planted)


def test_scaled_values_have_no_fold_changes(make_counts):
    adata = make_counts()
    adata.obs["cplmixvi"] = pd.Categorical(adata.obs["type"].astype(str))
    adata.uns["cplmixvi"] = {
        "origin": "cplmixvi",
        "categories": np.array(sorted(adata.obs["type"].astype(str).unique())),
    }
    adata.layers["logs"] = cpl.pp.log_normalize(adata.X)
    adata.X = adata.layers["logs"].toarray() - adata.layers["logs"].toarray().mean(0)
    with pytest.raises(ValueError, match="X has negative values.*layer="):
        cpl.tl.rank_genes(adata, n_genes=3)
    assert np.isfinite(cpl.tl.rank_genes(adata, n_genes=3, layer="logs")["log2_fold_change"]).all()


def test_names_with_a_slash_can_be_written(make_annotated):
    adata = make_annotated(3)
    adata.X = np.random.default_rng(0).poisson(3.0, adata.shape).astype(np.float32)
    names = ["L2/3 IT", "b", "c"]
    adata.obs["cplmixvi"] = adata.obs["cplmixvi"].cat.rename_categories(names)
    adata.uns["cplmixvi"]["categories"] = np.array(names, dtype=object)
    table = cpl.tl.rank_genes(adata)
    assert set(table["category"]) == set(names)
    ranking = adata.uns["rank_genes_cplmixvi"]
    assert "pts" not in ranking
    assert "L2/3 IT" in ranking["names"].dtype.names
