"""What a model is given: every kind of matrix is read, and every wrong value is named."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cplmixvi import pp
from cplmixvi.pp import _values

COUNTS = np.random.default_rng(0).poisson(0.7, size=(40, 15)) + np.eye(40, 15, dtype=int)
COUNTS[:, 0] += 1  # no empty cell
KINDS = {
    "dense": lambda x: x.astype(np.float32),
    "integer": lambda x: x.astype(np.int64),
    "csr": lambda x: sparse.csr_matrix(x, dtype=np.float32),
    "csc": lambda x: sparse.csc_matrix(x, dtype=np.float64),
    "coo": lambda x: sparse.coo_matrix(x),
    "csr_array": lambda x: sparse.csr_array(x.astype(np.int32)),
    "csc_array": lambda x: sparse.csc_array(x.astype(np.float32)),
}
kinds = pytest.mark.parametrize("kind", KINDS)
WRONG = [
    (kind, value, likelihood, message)
    for kind in KINDS
    for value, likelihood, message in [
        (-1, "nb", "a negative value"),
        (2, "bernoulli", r"outside \[0, 1\]"),
        (0.5, "poisson", "a fraction"),
        (np.nan, "zinb", "not finite"),
        (np.inf, "normal", "not finite"),
        (np.nan, "bernoulli", "not finite"),
    ]
    if kind not in {"integer", "csr_array"} or value in {-1, 2}  # what integers can hold
]


@pytest.fixture(params=["dense", "csr", "csc"])
def backed(request, tmp_path):
    """An AnnData whose X stays on disk."""

    def write(x):
        path = tmp_path / "backed.h5ad"
        ad.AnnData(KINDS[request.param](x)).write_h5ad(path)
        return ad.read_h5ad(path, backed="r")

    return write


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that a small matrix has many."""
    monkeypatch.setattr(_values, "CHUNK_ENTRIES", 60)


@pytest.fixture
def never_dense(monkeypatch):
    """Fail on any attempt to make a sparse matrix dense."""

    def refuse(self, *args, **kwargs):
        raise AssertionError("a sparse matrix was made dense")

    for kind in (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array):
        for name in ("toarray", "todense"):
            monkeypatch.setattr(kind, name, refuse)


class TestCheckValues:
    @kinds
    def test_counts_of_every_kind_pass(self, kind, small_blocks):
        report = pp.check_values(KINDS[kind](COUNTS), "nb")
        assert (report.n_obs, report.n_vars, report.integral) == (40, 15, True)
        assert (report.minimum, report.maximum) == (0, COUNTS.max())
        assert report.density == pytest.approx((COUNTS > 0).mean())
        assert report.empty_genes.size == 0

    def test_backed_counts_pass(self, backed, small_blocks):
        adata = backed(COUNTS)
        assert pp.check_values(adata.X, "nb").maximum == COUNTS.max()

    def test_backed_values_are_checked(self, backed, small_blocks):
        wrong = COUNTS.astype(float)
        wrong[33, 7] = -2
        with pytest.raises(ValueError, match=r"a negative value \(-2.0 at cell 33, gene 7\)"):
            pp.check_values(backed(wrong).X, "nb")

    def test_sparse_input_is_not_made_dense(self, never_dense):
        for kind in ("csr", "csc", "csr_array", "csc_array"):
            pp.check_values(KINDS[kind](COUNTS), "nb")

    @pytest.mark.parametrize(("kind", "value", "likelihood", "message"), WRONG)
    def test_wrong_values_are_named(self, kind, value, likelihood, message, small_blocks):
        values = (COUNTS > 0).astype(float)
        values[25, 4] = value
        names = {"obs_names": [f"c{i}" for i in range(40)], "var_names": list("abcdefghijklmno")}
        with pytest.raises(ValueError, match=message) as caught:
            pp.check_values(KINDS[kind](values), likelihood, where="layer 'x'", **names)
        text = str(caught.value)
        assert "\n" not in text
        assert "cell 'c25', gene 'e'" in text
        assert "layer 'x'" in text and repr(likelihood) in text

    def test_negative_values_and_fractions_suit_normal(self):
        report = pp.check_values(COUNTS - 0.5, "normal")
        assert report.minimum == -0.5
        assert not report.integral

    def test_raw_counts_under_normal_get_a_warning(self):
        with pytest.warns(UserWarning, match="expects log values"):
            pp.check_values(COUNTS * 100, "normal")

    @kinds
    def test_empty_cells_are_named(self, kind, small_blocks):
        values = COUNTS.copy()
        values[[3, 5, 8, 30]] = 0
        with pytest.raises(ValueError, match=r"4 of 40 cells without any value \(3, 5, 8 and 1 more\).*drop them with"):
            pp.check_values(KINDS[kind](values), "nb")
        assert pp.check_values(KINDS[kind](values), "bernoulli" if values.max() <= 1 else "nb", allow_empty_cells=True)

    def test_stored_zeros_do_not_fill_a_cell(self):
        values = sparse.csr_matrix(COUNTS.astype(float))
        values.data[values.indptr[2] : values.indptr[3]] = 0
        with pytest.raises(ValueError, match=r"1 of 40 cells without any value \(2\)"):
            pp.check_values(values, "nb")

    def test_an_empty_picture_is_fine(self):
        assert pp.check_values(np.zeros((3, 4)), "bernoulli").empty_genes.tolist() == [0, 1, 2, 3]

    @kinds
    def test_empty_genes_are_reported(self, kind, small_blocks):
        values = COUNTS.copy()
        values[:, [2, 14]] = 0
        assert pp.check_values(KINDS[kind](values), "nb").empty_genes.tolist() == [2, 14]

    @pytest.mark.parametrize("shape", [(1, 5), (0, 5), (5, 0)])
    def test_too_small(self, shape):
        with pytest.raises(ValueError, match="at least 2 cells and 1 gene"):
            pp.check_values(np.ones(shape), "nb")

    def test_a_trained_model_may_look_at_one_cell(self):
        assert pp.check_values(COUNTS[:1], "nb", min_cells=1).n_obs == 1
        with pytest.raises(ValueError, match="at least 1 cells"):
            pp.check_values(COUNTS[:0], "nb", min_cells=1)

    def test_text_is_no_value(self):
        with pytest.raises(ValueError, match="real numbers"):
            pp.check_values(np.full((3, 3), "1"), "nb")

    def test_unknown_likelihood(self):
        with pytest.raises(ValueError, match="'gauss' given, known are nb"):
            pp.check_values(COUNTS, "gauss")


class TestNumberOfCategories:
    @pytest.mark.parametrize("n_categories", [1, 40, np.int64(7)])
    def test_possible(self, n_categories):
        pp.check_n_categories(n_categories, 40)

    @pytest.mark.parametrize("n_categories", [0, -1, 41, 2.5, True, "3"])
    def test_impossible(self, n_categories):
        with pytest.raises(ValueError, match="from 1 to 40 is needed"):
            pp.check_n_categories(n_categories, 40)


class TestSetup:
    @pytest.fixture
    def adata(self, make_counts):
        return make_counts(10, 30)

    def test_what_is_there_passes(self, adata):
        pp.check_setup(adata, layer="counts", obs_keys=["type", "batch"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"layer": "raw"}, r"layer 'raw' given, adata has \['counts'\]"),
            ({"obs_keys": ["type", "donor"]}, "obs has no column 'donor'; it has 'type', 'batch'"),
        ],
    )
    def test_what_is_not_is_named(self, adata, options, message):
        with pytest.raises(ValueError, match=message):
            pp.check_setup(adata, **options)

    def test_repeated_and_missing_genes(self, adata):
        with pytest.raises(ValueError, match="0 genes"):
            pp.check_setup(adata[:, :0].copy())
        adata.var_names = ["gene"] * 30
        with pytest.raises(ValueError, match="repeated names"):
            pp.check_setup(adata)


class TestMatrices:
    @kinds
    def test_library_size(self, kind):
        np.testing.assert_allclose(pp.library_size(KINDS[kind](COUNTS)), COUNTS.sum(axis=1))

    @kinds
    def test_as_csr(self, kind, small_blocks):
        adata = ad.AnnData(np.ones(COUNTS.shape), layers={"counts": KINDS["csr" if kind == "coo" else kind](COUNTS)})
        result = pp.as_csr(adata, "counts")
        assert isinstance(result, sparse.csr_matrix)
        assert result.dtype == np.float32
        assert result.has_sorted_indices
        np.testing.assert_array_equal(result.toarray(), COUNTS)

    def test_as_csr_of_backed(self, backed, small_blocks):
        np.testing.assert_array_equal(pp.as_csr(backed(COUNTS)).toarray(), COUNTS)

    def test_as_csr_does_not_copy_what_it_need_not(self):
        adata = ad.AnnData(KINDS["csr"](COUNTS))
        assert np.shares_memory(pp.as_csr(adata).data, adata.X.data)

    def test_unknown_layer(self):
        with pytest.raises(ValueError, match="'raw' given, adata has none"):
            pp.as_csr(ad.AnnData(KINDS["csr"](COUNTS)), "raw")

    @kinds
    def test_log_normalize(self, kind):
        given = KINDS[kind](COUNTS)
        totals = COUNTS.sum(axis=1, keepdims=True)
        result = pp.log_normalize(given)
        assert sparse.issparse(result) == sparse.issparse(given)
        dense = result.toarray() if sparse.issparse(result) else result
        np.testing.assert_allclose(dense, np.log1p(COUNTS / totals * np.median(totals)), rtol=1e-5)
        np.testing.assert_array_equal(given.toarray() if sparse.issparse(given) else given, COUNTS)

    def test_log_normalize_to_a_target_with_an_empty_cell(self):
        counts = COUNTS.copy()
        counts[4] = 0
        dense = pp.log_normalize(sparse.csr_matrix(counts), target=1e4).toarray()
        assert (dense[4] == 0).all()
        np.testing.assert_allclose(np.expm1(np.delete(dense, 4, axis=0)).sum(axis=1), 1e4, rtol=1e-4)
        with pytest.raises(ValueError, match="positive total"):
            pp.log_normalize(counts, target=0)


class TestSelectGenes:
    @pytest.fixture(scope="class")
    def adata(self, make_counts):
        adata = make_counts(300, 200, n_markers=10, n_state_genes=1, mean_counts=6_000, batch_scale=0.05)
        adata.layers["log"] = pp.log_normalize(adata.X)
        return adata

    @pytest.mark.parametrize(
        ("layer", "likelihood", "batch_key"),
        [("counts", "nb", None), ("counts", "poisson", "batch"), ("log", "normal", None), ("log", "mse", "batch")],
    )
    def test_markers_are_found(self, adata, layer, likelihood, batch_key):
        before = adata.copy()
        mask = pp.select_genes(adata, 40, layer=layer, likelihood=likelihood, batch_key=batch_key)
        assert mask.dtype == bool and mask.shape == (200,) and mask.sum() == 40
        markers = (adata.varm["type_log_fold"] > 0).any(axis=1)
        # Chance is 40 * 30 / 200 = 6 of 30.
        assert (mask & markers).sum() >= 18
        assert (adata.X != before.X).nnz == 0
        assert list(adata.var) == list(before.var) and list(adata.uns) == list(before.uns)

    def test_residual_variance_by_hand(self, adata):
        from cplmixvi.pp._genes import _residual_variance

        counts = adata.X.toarray().astype(float)
        mean = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
        residual = (counts - mean) / np.sqrt(mean + mean**2 / 100)
        expected = np.clip(residual, -np.sqrt(300), np.sqrt(300)).var(axis=0)
        np.testing.assert_allclose(_residual_variance(adata.X), expected, rtol=1e-4)

    def test_genes_that_one_batch_lacks_do_not_win(self, adata):
        odd = adata.copy()
        present = np.ones(adata.shape, dtype=np.float32)
        present[np.ix_((adata.obs["batch"] == "batch0").to_numpy(), np.arange(200) < 10)] = 0
        odd.X = sparse.csr_matrix(adata.X.multiply(present))
        plain = pp.select_genes(odd, 40)[:10].sum()
        within = pp.select_genes(odd, 40, batch_key="batch")[:10].sum()
        assert within < plain

    def test_an_empty_gene_is_not_selected(self, adata):
        empty = adata.copy()
        keep = np.ones(200)
        keep[5] = 0
        empty.X = sparse.csr_matrix(adata.X.multiply(keep))
        assert not pp.select_genes(empty, 199)[5]

    def test_binary_values(self, adata):
        binary = ad.AnnData(sparse.csr_matrix((adata.X > 0).astype(np.float32)))
        chosen = pp.select_genes(binary, 20, likelihood="bernoulli")
        variance = binary.X.toarray().var(axis=0)
        assert variance[chosen].min() >= variance[~chosen].max()

    def test_more_than_there_are(self, adata):
        assert pp.select_genes(adata, 500).all()

    def test_bad_options(self, adata):
        with pytest.raises(ValueError, match="at least 1 gene"):
            pp.select_genes(adata, 0)
        with pytest.raises(ValueError, match="batch_key='donor' given"):
            pp.select_genes(adata, 10, batch_key="donor")


def test_the_hash_is_that_of_values_and_genes(monkeypatch):
    values, genes = sparse.csr_matrix(COUNTS.astype(np.float32)), [f"gene{i}" for i in range(COUNTS.shape[1])]
    digest = pp.input_hash(values, genes)
    dense = values.toarray()
    explicit = sparse.csr_matrix(dense + 1)
    explicit.data -= 1
    before = explicit.nnz
    for same in (dense, dense.astype(np.int64), values.tocsc(), values.tocoo(), sparse.csr_array(values), explicit):
        assert pp.input_hash(same, genes) == digest
    assert explicit.nnz == before
    monkeypatch.setattr("cplmixvi.pp._values.CHUNK_ENTRIES", 100)
    assert pp.input_hash(values, genes) == digest
    other = dense.copy()
    other[3, 4] += 1
    for different in ((other, genes), (dense[::-1], genes), (dense, genes[::-1]), (dense[:, :-1], genes[:-1])):
        assert pp.input_hash(*different) != digest


@pytest.mark.parametrize(("value", "message"), [(np.nan, "not finite"), (-1, "negative"), (0.5, "fraction")])
def test_genes_are_not_chosen_by_values_that_are_none(make_counts, value, message):
    adata = make_counts()
    counts = adata.X.toarray().astype(np.float32)
    counts[5, 7] = value
    adata.X = counts
    with pytest.raises(ValueError, match=f"{message}.*gene|gene.*{message}"):
        pp.select_genes(adata, 5)


@pytest.mark.parametrize("n_top", [2.5, True, "5", 0])
def test_numbers_of_genes_are_whole(make_counts, n_top):
    with pytest.raises(ValueError, match="whole number of at least 1 gene"):
        pp.select_genes(make_counts(), n_top)


NO_MATRIX = ["x", None, 3, [1, 2], [[1, 2], [3]], np.array([["a"]]), np.zeros((2, 2, 2))]


@pytest.mark.parametrize("values", [*NO_MATRIX, ad.AnnData(np.eye(3))], ids=lambda values: type(values).__name__)
@pytest.mark.parametrize(
    "read", [pp.check_values, pp.log_normalize, pp.library_size, pp.to_csr, lambda X: pp.input_hash(X, ["a", "b"])]
)
def test_what_is_no_matrix_is_named(read, values):
    with pytest.raises(ValueError, match=r"X (is a|is an|holds) .* needed: pass"):
        read(values)


def test_tables_and_lists_of_lists_are_matrices():
    for values in (pd.DataFrame(COUNTS), COUNTS.tolist()):
        assert pp.check_values(values).integral
        np.testing.assert_array_equal(pp.to_csr(values).toarray(), COUNTS)
        np.testing.assert_array_equal(pp.log_normalize(values), pp.log_normalize(COUNTS))
        np.testing.assert_array_equal(pp.library_size(values), COUNTS.sum(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: pp.log_normalize(a.X, "x"), "target='x'"),
        (lambda a: pp.log_normalize(a.X, np.inf), "target=inf"),
        (lambda a: pp.input_hash(a.X, None), "var_names is a NoneType of 0 names for 15 genes"),
        (lambda a: pp.input_hash(a.X, ["a"]), "var_names is a list of 1 names for 15 genes"),
        (lambda a: pp.check_values(a.X, min_cells="x"), "min_cells='x'"),
        (lambda a: pp.check_values(a.X, obs_names=["a"]), "obs_names are not 40 names"),
        (lambda a: pp.check_values(a.X, var_names=3), "var_names are not 15 names"),
        (lambda a: pp.select_genes(a.X, 5), "adata is a ndarray"),
        (lambda a: pp.select_genes(a, 5, batch_key=["batch"]), "batch_key=.'batch'. given"),
        (lambda a: pp.select_genes(a, 5, layer=["counts"]), "layer .'counts'. given"),
        (lambda a: pp.as_csr(a, np.array(["counts"])), "layer .* given"),
        (lambda a: pp.check_setup(a, obs_keys=[["batch"]]), "no column .'batch'."),
    ],
)
def test_arguments_that_are_no_names_or_numbers_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(ad.AnnData(COUNTS.astype(np.float32)))
