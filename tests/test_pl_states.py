"""Figures of states: right numbers in the right places, clear errors."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import cplmixvi as cpl
from cplmixvi import pl

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(scope="module")
def walked(fitted_states):
    adata, model = fitted_states
    adata = adata.copy()
    adata.obs["depth"] = np.asarray(adata.X.sum(1)).ravel()
    cpl.tl.annotate(adata, model)
    result = cpl.tl.traverse(adata, model, gene_sets={"mine": list(adata.var_names[:7])})
    cpl.tl.state_genes(adata)
    cpl.tl.compare_states(adata)
    return adata, result


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


class TestState:
    def test_each_panel_has_the_cells_of_its_type_in_colour(self, walked):
        adata, _ = walked
        axes = pl.state(adata, color="batch")
        assert [ax.get_title(loc="left") for ax in axes] == ["0", "1", "2"]
        for ax, name in zip(axes, "012", strict=True):
            others, own = (np.asarray(points.get_offsets()) for points in ax.collections)
            member = (adata.obs["cplmixvi"] == name).to_numpy()
            assert (len(others), len(own)) == ((~member).sum(), member.sum())
            np.testing.assert_allclose(np.sort(own[:, 0]), np.sort(adata.obsm["X_cplmixvi"][member, 0]))
        assert [text.get_text() for text in axes[0].figure.legends[0].get_texts()] == ["batch0", "batch1"]

    def test_numbers_get_a_bar_and_types_can_be_chosen(self, walked):
        axes = pl.state(walked[0], color="depth", categories=["2"])
        assert len(axes) == 1
        assert axes[0].figure.axes[-1].get_ylabel() == "depth"

    def test_histograms_have_the_same_area_for_all_types(self, walked):
        adata, _ = walked
        ax = pl.state_histograms(adata, categories=["1", "0"])
        assert ticks(ax.yaxis)[0].startswith("1 (")
        areas = [row - np.asarray(line.get_ydata()) for row, line in enumerate(ax.lines)]
        assert areas[0].sum() == pytest.approx(areas[1].sum(), rel=0.05)
        assert ax.get_title(loc="left").startswith("effect on location")

    def test_values_of_a_column_share_the_area_of_their_type(self, walked):
        adata, _ = walked
        ax = pl.state_histograms(adata, color="batch", categories=["0"])
        first, second = (0 - np.asarray(line.get_ydata()).sum() for line in ax.lines)
        batch = adata.obs["batch"][adata.obs["cplmixvi"] == "0"]
        assert first / (first + second) == pytest.approx((batch == "batch0").mean(), abs=0.02)

    @pytest.mark.parametrize(
        ("draw", "options", "message"),
        [
            (pl.state, {"categories": ["B"]}, "categories of 'cplmixvi' are 0, 1, 2"),
            (pl.state, {"color": "no"}, "color='no'"),
            (pl.state, {"dims": (0, 5)}, "dims="),
            (pl.state_histograms, {"dim": 4}, "dim=4 was given; dimensions of the state are 0, 1;"),
            (pl.traversal, {"path": "9"}, "path='9'"),
            (pl.traversal, {"gene_sets": ["no"]}, "gene_sets='no'"),
            (pl.traversal, {"gene_sets": "no"}, "gene_sets='no'"),
            (pl.traversal, {"gene_sets": []}, "no gene sets"),
            (pl.state_histograms, {"color": "depth"}, "values; a column with 1 to 12"),
            (pl.state_genes, {"dim": 2}, "dim=2"),
        ],
    )
    def test_what_is_not_there(self, walked, draw, options, message):
        with pytest.raises(ValueError, match=message):
            draw(walked[0], **options)


def test_colours_are_those_that_scanpy_has_drawn(walked):
    adata = walked[0].copy()
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    adata.uns["batch_colors"] = ["#ff0000", "#0000ff"]
    legends = (
        pl.state(adata, color="batch")[0].figure.legends[0],
        pl.state_histograms(adata, color="batch").get_legend(),
    )
    for legend in legends:
        assert {to_hex(handle.get_color()) for handle in legend.legend_handles} == {"#ff0000", "#0000ff"}
    drawn = {
        to_hex(colour) for points in pl.states(adata, color="batch").collections for colour in points.get_facecolor()
    }
    assert {"#ff0000", "#0000ff"} <= drawn
    # Of other values than there are now.
    adata.uns["batch_colors"] = ["#ff0000"]
    assert pl.states(adata, color="batch") is not None


def test_a_single_dimension_has_no_second(walked):
    adata = walked[0].copy()
    adata.obsm["X_cplmixvi"][:, 1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = pl.state(adata)
    assert axes[0].figure.get_supylabel() == ""
    assert pl.states(adata).get_ylabel() == ""


@pytest.mark.parametrize("draw", [pl.state, pl.state_histograms])
def test_cells_that_are_all_unassigned(walked, draw):
    adata = walked[0].copy()
    adata.obs["cplmixvi"] = pd.Categorical(["unassigned"] * adata.n_obs)
    with pytest.raises(ValueError, match="lower min_confidence"):
        draw(adata)


class TestTraversal:
    def test_panels_show_the_change_in_standard_deviations(self, walked):
        adata, result = walked
        axes = pl.traversal(adata, gene_sets=["mine"], path="1")
        assert axes.shape == (3, 1)
        genes = ticks(axes[0, 0].xaxis)
        assert set(genes) == set(adata.var_names[:7])
        image = np.asarray(axes[1, 0].images[0].get_array())
        table = result.by_gene().query("category == '1' and path == '1'").set_index("gene").loc[genes]
        np.testing.assert_allclose(image[-1] - image[0], table["effect"] * table["direction"], atol=1e-4)

    def test_a_gene_that_comes_back_to_where_it_was_is_drawn(self, walked):
        adata = walked[0].copy()
        entry = adata.uns["cplmixvi"]["traversals"]
        hump = 5 - np.abs(np.arange(11) - 5.0)
        entry["expression"][0, 0, :, 0] = hump
        entry["effect"][0, 0, 0] = 0
        ax = pl.traversal(adata, gene_sets=["mine"], path="1", categories=["0"]).flat[0]
        column = np.asarray(ax.images[0].get_array())[:, ticks(ax.xaxis).index(adata.var_names[0])]
        np.testing.assert_allclose(column, (hump - 5) / entry["deviation"][0], rtol=1e-5)

    def test_results_that_come_from_zarr_are_drawn(self, walked, tmp_path):
        walked[0].write_zarr(tmp_path / "cells.zarr")
        adata = anndata.read_zarr(tmp_path / "cells.zarr")
        expected, found = (pl.traversal(cells, gene_sets=["mine"]) for cells in (walked[0], adata))
        assert ticks(expected[0, 0].xaxis) == ticks(found[0, 0].xaxis)

    def test_markers_are_those_of_the_type(self, walked):
        adata, result = walked
        axes = pl.traversal(adata, gene_sets=["markers"], categories=["0", "2"], n_genes=5, standardize=False)
        members = result.members[result.members["gene_set"] == "markers"]
        for ax, name in zip(axes[:, 0], "02", strict=True):
            assert set(ticks(ax.xaxis)) <= set(members.loc[members["category"] == name, "gene"])

    def test_without_a_traversal_it_says_what_to_run(self, walked):
        adata = walked[0].copy()
        del adata.uns["cplmixvi"]["traversals"]
        del adata.uns["cplmixvi"]["state_genes"]
        with pytest.raises(ValueError, match="tl.traverse"):
            pl.traversal(adata)
        with pytest.raises(ValueError, match="tl.state_genes"):
            pl.state_genes(adata)


class TestStateGenes:
    def test_entries_are_the_correlations(self, walked):
        adata, _ = walked
        ax = pl.state_genes(adata, dim=1, n_genes=3)
        entry = adata.uns["cplmixvi"]["state_genes"]
        values = np.asarray(ax.images[0].get_array())
        genes, names = ticks(ax.xaxis), ticks(ax.yaxis)
        i = int(np.flatnonzero((entry["category"] == "1") & (entry["dimension"] == 2) & (entry["rank"] == 1))[0])
        assert values[names.index("1"), genes.index(entry["gene"][i])] == pytest.approx(entry["correlation"][i])


@pytest.mark.parametrize("n_values", [14, 60])
def test_a_legend_of_many_values_is_whole_and_takes_no_room_from_the_panels(walked, n_values):
    adata = walked[0].copy()
    names = [f"CD4-positive, alpha-beta T cell, kind {i}" for i in range(n_values)]
    adata.obs["kind"] = pd.Categorical([names[i % n_values] for i in range(adata.n_obs)], categories=names)
    axes = pl.state(adata, color="kind")
    figure = axes[0].figure
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    legend, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert len(figure.legends[0].get_texts()) == n_values
    # The ends of the names are what tells them apart.
    assert len({text.get_text() for text in figure.legends[0].get_texts()}) == n_values
    assert whole.x0 <= legend.x0
    assert legend.x1 <= whole.x1
    assert whole.y0 <= legend.y0
    assert legend.y1 <= whole.y1
    width = axes[0].get_window_extent().width / figure.dpi
    plain = pl.state(adata)[0]
    plain.figure.canvas.draw()
    assert width > 0.7 * plain.get_window_extent().width / plain.figure.dpi


def test_cells_without_a_number_are_grey_and_not_left_out(walked):
    adata = walked[0].copy()
    adata.obs["some"] = np.where(np.arange(adata.n_obs) % 2, np.nan, 1.0 * np.arange(adata.n_obs))
    assert sum(len(points.get_offsets()) for points in pl.states(adata, color="some").collections) == adata.n_obs
    own = [ax.collections[1].get_facecolor() for ax in pl.state(adata, color="some")]
    assert sum(np.isclose(colours[:, :3], 0.8).all(1).sum() for colours in own) == adata.n_obs // 2
    adata.obs["none"] = np.nan
    for draw in (pl.states, pl.state):
        with pytest.raises(ValueError, match="color='none' has no number for any cell"):
            draw(adata, color="none")
