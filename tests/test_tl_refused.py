"""What functions on annotated cells are given by mistake is refused in words, and nothing is written."""

import numpy as np
import pytest

import cplmixvi as cpl

pytestmark = [
    pytest.mark.usefixtures("small_committee"),
    pytest.mark.filterwarnings("ignore:(Probabilities are almost flat|The arms agree):UserWarning"),
]


@pytest.fixture(scope="module")
def annotated(make_counts):
    adata = make_counts(n_obs=150)
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=16)
    model.train(max_epochs=2, enable_progress_bar=False, warm_start=False)
    cpl.tl.annotate(adata, model)
    return adata, model


def with_text(adata):
    adata = adata.copy()
    adata.obsm["X_text"] = np.full((adata.n_obs, 2), "a")
    return adata


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, m: cpl.tl.annotate(m, a), "model is a AnnData"),
        (lambda a, m: cpl.tl.annotate(a.X, m), "adata is a"),
        (lambda a, m: cpl.tl.annotate(a, None), "model is a NoneType"),
        (lambda a, m: cpl.tl.annotate(a, m, "groups"), "key_added='groups' would give entries of the result names"),
        (lambda a, m: cpl.tl.select_categories(a, m, "neighbors"), "key_added='neighbors' would"),
        (lambda a, m: cpl.tl.annotate(a, m, "cplmixvi_names"), "key_added='cplmixvi_names' is what"),
        (lambda a, m: cpl.tl.annotate(a, m, values_of=a.X), "an AnnData is needed"),
        (lambda a, m: cpl.tl.annotate(a, m, min_confidence="0.5"), "min_confidence='0.5'"),
        (lambda a, m: cpl.tl.select_categories(m, a), "adata is a CplMixVI"),
        (lambda a, m: cpl.tl.traverse(m, a), "model is a AnnData"),
        (lambda a, m: cpl.tl.traverse(a, m, moved="1"), "moved='1'"),
        (lambda a, m: cpl.tl.traverse(a, m, library_size="median"), "library_size='median'"),
        (lambda a, m: cpl.tl.traverse(a, m, quantiles=0.9), "quantiles=0.9"),
        (lambda a, m: cpl.tl.traverse(a, m, quantiles=("0", "1")), "quantiles="),
        (lambda a, m: cpl.tl.traverse(a, m, 10**6), "categories='1000000' names no category"),
        (lambda a, m: cpl.tl.traverse(a, m, markers="CD3D"), "markers is a str; give a table"),
        (lambda a, m: cpl.tl.traverse(a, m, markers={"0": "gene1"}), "markers.'0'. is a str; give a list"),
        (lambda a, m: cpl.tl.traverse(a, m, gene_sets=["gene1"]), "gene_sets is a list; give a mapping"),
        (lambda a, m: cpl.tl.traverse(a, m, gene_sets={"mine": 3}), "gene_sets.'mine'. is a int"),
        (lambda a, m: cpl.tl.traverse(a, m, seed="x"), "seed='x'"),
        (lambda a, m: cpl.tl.stability(m, a), "model is a AnnData"),
        (lambda a, m: cpl.tl.stability(a, m, subsample="0.8"), "subsample='0.8'"),
        (lambda a, m: cpl.tl.rank_genes(a.X), "adata is a"),
        (lambda a, m: cpl.tl.state_genes(a, ["cplmixvi"]), "key is a list, and the name"),
        (lambda a, m: cpl.tl.state_genes(a, m), "key is a CplMixVI, and the name"),
        (lambda a, m: cpl.tl.compare_states(m), "adata is a CplMixVI"),
        (lambda a, m: cpl.tl.compare_to_reference(a, ["type"]), "is not a column of obs"),
        (lambda a, m: cpl.tl.compare_to_reference(a, "type", ignore=None), "ignore=None"),
        (lambda a, m: cpl.tl.map_to_reference(a, "type", min_purity="high"), "min_purity='high'"),
        (lambda a, m: cpl.tl.state_genes(a, layer=["counts"]), "layer .'counts'. given"),
        (lambda a, m: cpl.CplMixVI.setup_anndata(a.copy(), layer=["counts"]), "layer .'counts'. given"),
        (lambda a, m: cpl.CplMixVI.setup_anndata(a.copy(), batch_key=["batch"]), "no column .'batch'."),
        (lambda a, m: cpl.CplMixVI.setup_anndata(a.copy(), categorical_covariate_keys=3), "3 was given where names"),
        (lambda a, m: cpl.tl.read_selection(a.X), "adata is a"),
        (lambda a, m: cpl.tl.read_selection(a, ["cplmixvi"]), "run cplmixvi.tl.select_categories"),
        (lambda a, m: m.get_state(arm="x"), "arm='x' does not exist"),
        (lambda a, m: m.get_state(arm=True), "arm=True does not exist"),
        (lambda a, m: m.decode_state("x", "0"), "state is a str that is no array of numbers"),
        (lambda a, m: m.decode_state([[1, 2], [3]], "0"), "state is a list that is no array"),
        (lambda a, m: m.decode_state(np.zeros(2), "0"), "state has shape .2,.; .n_states, 2. is needed"),
        (lambda a, m: m.decode_state(np.zeros((1, 2)), ["0"]), "category=.'0'. is not the name"),
        (lambda a, m: m.decode_state(np.zeros((1, 2)), "0", library_size="x"), "library_size='x'"),
        (lambda a, m: cpl.pl.states(m), "adata is a CplMixVI"),
        (lambda a, m: cpl.pl.states(a, basis=["X_cplmixvi"]), "basis=.'X_cplmixvi'. was given but"),
        (lambda a, m: cpl.pl.states(with_text(a), basis="X_text"), "holds <U1 of shape .150, 2.; numbers in columns"),
        (lambda a, m: cpl.pl.states(a, color=["type"]), "color=.'type'. needs the column"),
        (lambda a, m: cpl.pl.states(a, dims="01"), "dims='01'"),
        (lambda a, m: cpl.pl.states(a, dims=1), "dims=1 "),
        (lambda a, m: cpl.pl.state(a, dims=(True, False)), "dims=.True, False. "),
        (lambda a, m: cpl.pl.states(a, ax="left"), "ax is a str; give Axes"),
        (lambda a, m: cpl.pl.state(a, categories=3), "categories=3"),
        (lambda a, m: cpl.pl.state_histograms(a, dim="0"), "dim='0' was given; dimensions of the state are 0, 1;"),
        (lambda a, m: cpl.pl.state_genes(a, n_genes="6"), "n_genes='6'"),
        (lambda a, m: cpl.pl.traversal(a, n_genes=0), "n_genes=0"),
        (lambda a, m: cpl.pl.confusion(a, ["type"]), "reference_key=.'type'. needs the column"),
        (lambda a, m: cpl.pl.confusion(a, "type", order=3), "order=3"),
        (lambda a, m: cpl.pl.consensus(a, ["cplmixvi"]), "cplmixvi.tl.annotate"),
    ],
)
def test_mistakes_are_named(annotated, call, message):
    adata, model = annotated
    before = list(adata.obs), {key: list(value) for key, value in adata.uns.items() if hasattr(value, "keys")}
    with pytest.raises(ValueError, match=message):
        call(adata, model)
    assert before == (list(adata.obs), {k: list(v) for k, v in adata.uns.items() if hasattr(v, "keys")})


@pytest.mark.parametrize("draw", [cpl.pl.consensus, cpl.pl.state, cpl.tl.rank_genes, cpl.tl.order_categories])
def test_names_that_were_changed_in_place_are_not_taken_for_no_cells(annotated, draw):
    adata = annotated[0].copy()
    adata.obs["cplmixvi"] = adata.obs["cplmixvi"].cat.rename_categories({adata.obs["cplmixvi"].cat.categories[0]: "B"})
    with pytest.raises(ValueError, match="label 'B'.* keep changed names in another column"):
        draw(adata)


def test_a_single_label_or_category_need_not_be_in_a_list(annotated):
    adata, _ = annotated
    one = cpl.tl.compare_to_reference(adata, "type", ignore="type0")
    same = cpl.tl.compare_to_reference(adata, "type", ignore=["type0"])
    np.testing.assert_array_equal(one.confusion.to_numpy(), same.confusion.to_numpy())
    assert "type0" not in one.confusion.index
