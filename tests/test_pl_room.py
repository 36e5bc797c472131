"""Figures are whole and can be read: nothing is cut off, lies on something else or fades into its background."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from cplmixvi import pl

plt = pytest.importorskip("matplotlib.pyplot")

LONG = "CD4-positive, alpha-beta memory T cell"


@pytest.fixture
def make_ranked(make_annotated):
    """A factory of annotated cells with results on states and stability."""

    def make(n_categories, genes=("gene0", "gene1"), **options):
        adata = make_annotated(n_categories, **options)
        result = adata.uns["cplmixvi"]
        names = result["categories"]
        result["state_genes"] = {
            "category": np.repeat(names, len(genes)),
            "dimension": np.ones(len(names) * len(genes), dtype=int),
            "rank": np.tile(np.arange(len(genes)) + 1, len(names)),
            "gene": np.tile(np.array(genes, dtype=object), len(names)),
            "correlation": np.tile(np.linspace(0.9, 0.1, len(genes)), len(names)),
            "pvalue_adjusted": np.zeros(len(names) * len(genes)),
        }
        result["state_tests"] = {
            "dimension": np.array([1]),
            "location_effect": np.array([0.5]),
            "spread_effect": np.array([0.25]),
        }
        result["stability_by_category"] = np.linspace(0.2, 1, n_categories)
        return adata

    return make


def rename(adata, name):
    adata.obs["cplmixvi"] = adata.obs["cplmixvi"].cat.rename_categories({"0": name})
    result = adata.uns["cplmixvi"]
    result["categories"] = np.array(adata.obs["cplmixvi"].cat.categories, dtype=object)
    genes = result["state_genes"]
    genes["category"] = np.where(genes["category"] == "0", name, genes["category"])
    return adata


@pytest.mark.parametrize("name", ["0", LONG])
@pytest.mark.parametrize("n_categories", [1, 2])
@pytest.mark.parametrize("draw", [pl.state_genes, pl.state_histograms, pl.stability])
def test_nothing_is_cut_off(make_ranked, draw, n_categories, name):
    figure = draw(rename(make_ranked(n_categories), name)).figure
    figure.canvas.draw()
    drawn, whole = figure.get_tightbbox().extents, figure.bbox_inches.extents
    assert (drawn[:2] >= whole[:2] - 0.01).all()
    assert (drawn[2:] <= whole[2:] + 0.01).all()


@pytest.mark.parametrize("draw", [pl.state_histograms, lambda adata: pl.confusion(adata, "truth"), pl.consensus])
def test_names_of_many_categories_do_not_lie_on_each_other(make_ranked, draw):
    ax = draw(make_ranked(115, sizes=[12] * 115))
    ax.figure.canvas.draw()
    for axis in (ax.xaxis, ax.yaxis):
        boxes = [text.get_window_extent() for text in axis.get_ticklabels() if text.get_text()]
        assert len(boxes) > 4
        assert not any(first.overlaps(second) for first, second in zip(boxes, boxes[1:], strict=False))


@pytest.mark.parametrize("cmap", [None, "viridis", "Greys", "magma", "RdBu_r"])
@pytest.mark.parametrize("draw", [pl.consensus, lambda adata, **options: pl.confusion(adata, "truth", **options)])
def test_numbers_can_be_read_on_any_colour(make_annotated, draw, cmap):
    adata = make_annotated(6)
    adata.obs["truth"] = np.random.default_rng(0).choice(["a", "b", "c"], adata.n_obs)
    ax = draw(adata, cmap=cmap, annotate=True)
    image = ax.images[0]
    assert len(ax.texts) > 8

    def light(colour):
        red, green, blue = (x / 12.92 if x <= 0.04 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for text in ax.texts:
        column, row = text.get_position()
        low, high = sorted((light(image.to_rgba(image.get_array()[row, column])), light(text.get_color())))
        # What is asked of large text on the web.
        assert (high + 0.05) / (low + 0.05) > 3


def test_unassigned_cells_are_grey_in_the_legend_too_where_scanpy_has_colours(make_annotated):
    adata = make_annotated(2)
    adata.obs["named"] = pd.Categorical(["unassigned"] * 10 + ["B cells"] * (adata.n_obs - 10))
    adata.uns["named_colors"] = ["#ff0000", "#0000ff"]
    ax = pl.states(adata, color="named")
    colours = [to_hex(handle.get_color()) for handle in ax.get_legend().legend_handles]
    assert colours == ["#ff0000", to_hex((0.85, 0.85, 0.85))]
    drawn = {to_hex(colour) for points in ax.collections for colour in points.get_facecolor()}
    assert drawn == set(colours)


def test_of_genes_with_one_name_the_best_is_drawn(make_ranked):
    ax = pl.state_genes(make_ranked(2, genes=("twin", "other", "twin")))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["twin", "other"]
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), [[0.9, 0.5]] * 2)


def test_a_state_of_one_dimension_has_no_second_histogram(make_ranked):
    adata = make_ranked(2)
    adata.obsm["X_cplmixvi"][:, 1] = 0
    assert pl.state_histograms(adata, dim=0) is not None
    with pytest.raises(ValueError, match="dim=1 was given; dimensions of the state are 0;"):
        pl.state_histograms(adata, dim=1)


def test_sparse_embeddings_are_drawn(make_annotated):
    from scipy import sparse

    adata = make_annotated(2)
    adata.obsm["X_other"] = sparse.csr_matrix(adata.obsm["X_cplmixvi"])
    dense, found = (
        np.concatenate([points.get_offsets() for points in pl.states(adata, basis=basis).collections])
        for basis in ("X_cplmixvi", "X_other")
    )
    np.testing.assert_array_equal(found, dense)
