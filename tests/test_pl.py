"""Figures: right numbers in the right places, Axes returned, nothing global changed, clear errors."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cplmixvi as cpl
from cplmixvi import pl

plt = pytest.importorskip("matplotlib.pyplot")


def labels_of(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def image_of(ax):
    return np.asarray(ax.images[0].get_array())


def test_a_backend_that_is_loaded_by_the_first_figure_stays_interactive(make_annotated, monkeypatch):
    import matplotlib

    was, subplots = matplotlib.is_interactive(), plt.subplots

    def loading(*args, **kwargs):
        # What the backend of notebooks does when its first figure is made.
        matplotlib.interactive(True)
        return subplots(*args, **kwargs)

    monkeypatch.setattr(plt, "subplots", loading)
    try:
        pl.consensus(make_annotated(3))
        assert matplotlib.is_interactive()
    finally:
        matplotlib.interactive(was)


class TestConsensus:
    def test_largest_category_comes_first_with_its_own_consensus(self, make_annotated):
        ax = pl.consensus(make_annotated(3))
        assert labels_of(ax.yaxis) == ["4", "2", "0"]
        np.testing.assert_allclose(np.diag(image_of(ax)), [0.9 - 1 / 3, 0.9 - 0.5 / 3, 0.9], rtol=1e-6)

    def test_bars_give_cells_and_consensus(self, make_annotated):
        ax = pl.consensus(make_annotated(3), order="name")
        cells, shares = ax.child_axes[0], ax.child_axes[1]
        assert [bar.get_height() for bar in cells.patches] == [10, 20, 30]
        np.testing.assert_allclose([bar.get_width() for bar in shares.patches], [0.9, 0.9 - 0.5 / 3, 0.9 - 1 / 3])

    def test_name_keeps_the_stored_order(self, make_annotated):
        assert labels_of(pl.consensus(make_annotated(3), order="name").xaxis) == ["0", "2", "4"]

    def test_similarity_puts_confused_categories_side_by_side(self, make_annotated):
        adata = make_annotated(4)
        adata.uns["cplmixvi"]["consensus"][[0, 3], [3, 0]] = 0.6
        labels = labels_of(pl.consensus(adata, order="similarity").xaxis)
        assert abs(labels.index("0") - labels.index("6")) == 1

    def test_dendrogram_is_the_order_that_was_written(self, make_annotated):
        adata = make_annotated(4)
        # Category "0" has no cell that is certain, and is in no dendrogram.
        adata.uns["cplmixvi"]["order"] = np.array(["4", "2", "6"], dtype=object)
        ax = pl.consensus(adata, order="dendrogram")
        assert labels_of(ax.xaxis) == ["4", "2", "6", "0"]
        assert [bar.get_height() for bar in ax.child_axes[0].patches] == [30, 20, 40, 10]

    def test_dendrogram_without_an_order(self, make_annotated):
        with pytest.raises(ValueError, match=r"order='dendrogram'.*tl\.order_categories"):
            pl.consensus(make_annotated(), order="dendrogram")

    def test_draws_into_the_axes_given(self, make_annotated):
        _, ax = plt.subplots()
        assert pl.consensus(make_annotated(), ax=ax) is ax
        assert len(plt.get_fignums()) == 1

    def test_labels_are_thinned_where_they_cannot_be_read(self, make_annotated):
        labels = labels_of(pl.consensus(make_annotated(80)).xaxis)
        assert 20 <= len(labels) <= 60

    @pytest.mark.parametrize(("n_categories", "written"), [(3, True), (40, False)])
    def test_values_are_written_only_where_there_is_room(self, make_annotated, n_categories, written):
        assert bool(pl.consensus(make_annotated(n_categories)).texts) is written

    def test_category_without_consensus_does_not_spoil_the_mean(self, make_annotated):
        adata = make_annotated(2)
        adata.uns["cplmixvi"]["consensus_by_category"] = np.array([np.nan, 0.5])
        assert pl.consensus(adata).child_axes[1].get_title() == "mean 0.50"

    def test_one_category(self, make_annotated):
        assert image_of(pl.consensus(make_annotated(1))).shape == (1, 1)

    def test_one_arm_has_no_consensus(self, make_annotated):
        with pytest.raises(ValueError, match=r"one arm.*n_arms=2"):
            pl.consensus(make_annotated(n_arms=1))

    def test_unknown_order(self, make_annotated):
        with pytest.raises(ValueError, match=r"order='age'.*'size'"):
            pl.consensus(make_annotated(), order="age")


class TestMissingResult:
    def test_message_names_the_results_that_are_there(self, make_annotated):
        with pytest.raises(ValueError, match=r"key='cplmixvi'.*results found under: other.*tl\.annotate"):
            pl.consensus(make_annotated(key="other"))

    def test_entry_of_another_origin(self, make_annotated):
        adata = make_annotated()
        adata.uns["leiden"] = {"params": {}}
        with pytest.raises(ValueError, match="not written by cplmixvi"):
            pl.consensus(adata, "leiden")

    def test_message_is_one_line(self):
        with pytest.raises(ValueError, match="holds no result") as caught:
            pl.training(ad.AnnData(np.zeros((2, 2))))
        assert "\n" not in str(caught.value)


class TestTraining:
    def test_one_panel_per_metric_that_was_recorded(self, make_annotated):
        axes = pl.training(make_annotated())
        assert [ax.get_title(loc="left").split()[0] for ax in axes] == ["negative", "type"]

    def test_both_splits_with_their_values(self, make_annotated):
        ax = pl.training(make_annotated(), metrics="elbo")
        train, validation = ax.get_lines()
        np.testing.assert_allclose(train.get_ydata(), 100.0 / np.arange(1, 6))
        np.testing.assert_allclose(validation.get_ydata(), 110.0 / np.arange(1, 6))

    def test_epochs_without_a_value_are_skipped(self, make_annotated):
        adata = make_annotated()
        adata.uns["cplmixvi"]["history"]["elbo_validation"][[0, 2]] = np.nan
        validation = pl.training(adata, metrics="elbo").get_lines()[1]
        np.testing.assert_array_equal(validation.get_xdata(), [2, 4, 5])

    def test_reads_the_history_of_a_model(self):
        class Trained:
            history = {"elbo_train": pd.DataFrame({"elbo_train": [3.0, 2.0]})}

        np.testing.assert_array_equal(pl.training(Trained()).get_lines()[0].get_ydata(), [3.0, 2.0])

    def test_untrained_model(self):
        class Untrained:
            history = None

        with pytest.raises(ValueError, match=r"Untrained was given.*model\.train"):
            pl.training(Untrained())

    def test_unknown_metric_names_those_recorded(self, make_annotated):
        with pytest.raises(ValueError, match=r"'loss' cannot be drawn; recorded are elbo, entropy"):
            pl.training(make_annotated(), metrics=["elbo", "loss"])

    def test_axes_must_be_as_many_as_metrics(self, make_annotated):
        _, axes = plt.subplots(1, 3)
        with pytest.raises(ValueError, match="3 Axes for 2 metrics"):
            pl.training(make_annotated(), ax=axes)
        assert pl.training(make_annotated(), metrics=["elbo", "entropy"], ax=axes[:2])[0] is axes[0]


class TestStates:
    def test_draws_every_cell_once(self, make_annotated):
        adata = make_annotated(3)
        ax = pl.states(adata)
        drawn = np.concatenate([points.get_offsets() for points in ax.collections])
        np.testing.assert_array_equal(np.unique(drawn, axis=0), np.unique(adata.obsm["X_cplmixvi"], axis=0))
        assert len(drawn) == adata.n_obs

    def test_short_names_on_the_cells_long_ones_in_a_legend(self, make_annotated):
        adata = make_annotated(3)
        assert [text.get_text() for text in pl.states(adata).texts] == ["0", "2", "4"]
        legend = pl.states(adata, color="truth").get_legend()
        assert [text.get_text() for text in legend.get_texts()] == ["type a0", "type b0", "type c0"]

    def test_numbers_get_a_colour_bar(self, make_annotated):
        ax = pl.states(make_annotated(), color="cplmixvi_confidence")
        assert [other.get_ylabel() for other in ax.figure.axes if other is not ax] == ["cplmixvi_confidence"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"basis": "X_umap"}, r"basis='X_umap'.*there are: X_cplmixvi"),
            ({"dims": (0, 2)}, r"dims=\(0, 2\).*2 columns"),
            ({"color": "no"}, "color='no'"),
        ],
    )
    def test_what_is_missing(self, make_annotated, options, message):
        with pytest.raises(ValueError, match=message):
            pl.states(make_annotated(), **options)


class TestStability:
    @staticmethod
    def with_stability(adata, values):
        adata.uns["cplmixvi"]["stability_by_category"] = np.array(values, dtype=np.float32)
        return adata

    def test_most_stable_category_comes_first_with_its_cells(self, make_annotated):
        ax = pl.stability(self.with_stability(make_annotated(3), [0.5, 0.25, 1.0]))
        assert labels_of(ax.yaxis) == ["4 (30)", "0 (10)", "2 (20)"]
        assert [bar.get_width() for bar in ax.patches] == [1.0, 0.5, 0.25]
        assert ax.yaxis_inverted()
        assert ax.get_title(loc="left") == "mean 0.58"

    def test_of_equals_the_larger_comes_first(self, make_annotated):
        ax = pl.stability(self.with_stability(make_annotated(3), [1.0, 0.0, 1.0]))
        assert labels_of(ax.yaxis) == ["4 (30)", "0 (10)", "2 (20)"]

    def test_category_of_unassigned_cells_only_comes_last_and_counts_for_nothing(self, make_annotated):
        adata = self.with_stability(make_annotated(3), [np.nan, 0.0, 1.0])
        labels = adata.obs["cplmixvi"].astype(object).replace("0", "unassigned")
        adata.obs["cplmixvi"] = pd.Categorical(labels, categories=["2", "4", "unassigned"])
        ax = pl.stability(adata)
        assert labels_of(ax.yaxis) == ["4 (30)", "2 (20)", "0 (0)"]
        assert np.isnan(ax.patches[-1].get_width())
        assert ax.get_title(loc="left") == "mean 0.50"

    def test_other_key_and_given_axes(self, make_annotated):
        adata = make_annotated(2, key="types")
        adata.uns["types"]["stability_by_category"] = np.array([0.5, 0.75], dtype=np.float32)
        _, ax = plt.subplots()
        assert pl.stability(adata, "types", ax=ax) is ax
        assert len(plt.get_fignums()) == 1

    def test_labels_are_thinned_where_they_cannot_be_read(self, make_annotated):
        ax = pl.stability(self.with_stability(make_annotated(100), np.linspace(0, 1, 100)))
        assert 20 <= len(labels_of(ax.yaxis)) <= 65

    def test_missing_stability(self, make_annotated):
        with pytest.raises(ValueError, match=r"key='cplmixvi'.*is missing.*tl\.stability\(adata, model"):
            pl.stability(make_annotated())


class TestSelectCategories:
    @staticmethod
    def with_selection(adata, tried=(2, 3, 4, 8), score=(0.3, 0.5, 0.625, 0.25), n_stable=(1.0, 2.0, 4.0, 3.0)):
        tried, score = np.array(tried), np.array(score)
        columns = {"n_categories": tried, "score": score, "agreement": score + 1 / tried, "n_stable": n_stable}
        adata.uns.setdefault("cplmixvi", {})["selection"] = {name: np.array(x) for name, x in columns.items()}
        return adata

    def test_curves_have_the_values_and_the_best_is_marked(self, make_annotated):
        ax = pl.select_categories(self.with_selection(make_annotated()))
        agreement, score, chosen = ax.get_lines()
        np.testing.assert_array_equal(score.get_xdata(), [2, 3, 4, 8])
        np.testing.assert_array_equal(score.get_ydata(), [0.3, 0.5, 0.625, 0.25])
        np.testing.assert_allclose(agreement.get_ydata(), [0.8, 0.5 + 1 / 3, 0.875, 0.375])
        assert set(chosen.get_xdata()) == {4}
        assert ax.get_title(loc="left") == "4 categories"
        assert [text.get_text().split(":")[0] for text in ax.get_legend().get_texts()] == ["agreement", "score"]

    def test_stable_categories_stand_below_the_line_of_all(self, make_annotated):
        ax = pl.select_categories(self.with_selection(make_annotated()))
        everything, stable, chosen = ax.child_axes[0].get_lines()
        np.testing.assert_allclose(everything.get_xdata(), everything.get_ydata())
        np.testing.assert_array_equal(stable.get_ydata(), [1, 2, 4, 3])
        assert set(chosen.get_xdata()) == {4}
        assert ax.child_axes[0].get_xlabel() == "number of categories"

    def test_axis_is_logarithmic_and_shows_the_numbers_that_were_tried(self, make_annotated):
        ax = pl.select_categories(self.with_selection(make_annotated()))
        assert ax.get_xscale() == "log"
        assert labels_of(ax.child_axes[0].xaxis) == ["2", "3", "4", "8"]

    def test_labels_are_thinned_but_the_best_number_keeps_its_own(self, make_annotated):
        tried = np.arange(2, 102)
        score = 0.9 - np.abs(tried - 89) / 200
        ax = pl.select_categories(self.with_selection(make_annotated(), tried, score, tried / 2))
        labels = labels_of(ax.child_axes[0].xaxis)
        assert "89" in labels
        assert {"88", "90"}.isdisjoint(labels)
        assert 8 <= len(labels) <= 20
        ax.figure.canvas.draw()
        boxes = [text.get_window_extent() for text in ax.child_axes[0].get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in zip(boxes[:-1], boxes[1:], strict=True))
        ticks = {*ax.xaxis.get_minorticklocs(), *ax.xaxis.get_majorticklocs()}
        assert ticks == set(tried)

    def test_nothing_is_cut_off(self, make_annotated):
        ax = pl.select_categories(self.with_selection(make_annotated()))
        ax.figure.canvas.draw()
        label = ax.child_axes[0].xaxis.label.get_window_extent()
        assert label.y0 >= 0
        assert ax.title.get_window_extent().y1 <= ax.figure.bbox.height
        # Nor has it shrunk to nothing while room was made.
        assert ax.get_window_extent().height > 0.4 * ax.figure.bbox.height

    def test_scores_below_zero_and_no_stable_category(self, make_annotated):
        ax = pl.select_categories(self.with_selection(make_annotated(), (2, 3), (-0.1, -0.05), (0.0, 0.0)))
        assert ax.get_ylim()[0] < -0.1
        assert ax.child_axes[0].get_ylim()[1] >= 1
        assert ax.get_title(loc="left") == "3 categories"

    def test_one_number_without_an_annotation_in_given_axes(self):
        _, ax = plt.subplots()
        adata = self.with_selection(ad.AnnData(np.zeros((2, 2))), (7,), (0.6,), (6.5,))
        assert pl.select_categories(adata, ax=ax) is ax
        assert labels_of(ax.child_axes[0].xaxis) == ["7"]
        assert len(plt.get_fignums()) == 1

    def test_missing_selection(self, make_annotated):
        for key in ("cplmixvi", "other"):
            with pytest.raises(ValueError, match=rf"key='{key}'.*\['selection'\] is missing.*tl\.select_categories"):
                pl.select_categories(make_annotated(), key)

    def test_other_figures_need_an_annotation(self):
        adata = self.with_selection(ad.AnnData(np.zeros((2, 2))))
        with pytest.raises(ValueError, match=r"selection of the number of categories only; .*tl\.annotate"):
            pl.consensus(adata)


def test_unassigned_cells_break_no_figure(make_annotated):
    adata = make_annotated(3)
    labels = adata.obs["cplmixvi"].astype(object)
    labels.iloc[:15] = "unassigned"
    adata.obs["cplmixvi"] = pd.Categorical(labels, categories=["2", "4", "unassigned"])
    assert [bar.get_height() for bar in pl.consensus(adata, order="name").child_axes[0].patches] == [0, 15, 30]
    assert labels_of(pl.confusion(adata, "truth").xaxis) == ["4", "2", "unassigned"]
    assert [text.get_text() for text in pl.states(adata).get_legend().get_texts()] == ["2", "4", "unassigned"]


@pytest.mark.parametrize("last", ["unassigned", "zeta"])
def test_unassigned_and_missing_cells_are_grey_and_types_keep_their_colours(make_annotated, last):
    adata = make_annotated(3)
    before = np.unique(pl.states(adata).collections[1].get_facecolor(), axis=0)
    labels = adata.obs["cplmixvi"].astype(object).replace("4", "zeta")
    labels.iloc[:5], labels.iloc[5:10] = np.nan, "unassigned"
    labels = labels.replace("0", np.nan)
    adata.obs["cplmixvi"] = pd.Categorical(labels, categories=["2", *sorted({"unassigned", "zeta"} - {last}), last])
    ax = pl.states(adata)
    grey, coloured = ax.collections
    assert (len(grey.get_offsets()), len(coloured.get_offsets())) == (10, 50)
    np.testing.assert_allclose(np.unique(grey.get_facecolor(), axis=0), [[0.85, 0.85, 0.85, 1.0]])
    colours = np.unique(coloured.get_facecolor(), axis=0)
    assert {tuple(colour) for colour in colours} <= {tuple(colour) for colour in before}
    assert len(colours) == 2
    legend = ax.get_legend()
    of = {text.get_text(): handle.get_color() for text, handle in zip(legend.texts, legend.legend_handles, strict=True)}
    assert tuple(of.pop("unassigned")) == (0.85, 0.85, 0.85)
    np.testing.assert_allclose(sorted(of.values(), key=tuple), sorted(colours[:, :3], key=tuple))


def test_unassigned_cells_are_no_match_for_a_type(make_annotated):
    adata = make_annotated(3)
    # Matched to them, the second type would be found in full.
    labels = adata.obs["cplmixvi"].astype(object).replace({"2": "unassigned"})
    labels.iloc[:5] = "unassigned"
    adata.obs["cplmixvi"] = pd.Categorical(labels)
    ax = pl.confusion(adata, "truth")
    scores = cpl.tl.compare_to_reference(adata, "truth").scores
    assert scores["accuracy"] == pytest.approx(35 / 60)
    assert ax.get_title(loc="left") == f"ACC 0.58   NMI {scores['nmi']:.2f}   ARI {scores['ari']:.2f}"
    assert labels_of(ax.xaxis) == ["4", "0", "unassigned"]
    np.testing.assert_allclose(image_of(ax), [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]])
    assert [line.get_xdata()[0] for line in ax.get_lines()] == [1.5]


def draw_all(adata):
    adata = TestSelectCategories.with_selection(TestStability.with_stability(adata, [1, 1, 1]))
    pl.consensus(adata), pl.training(adata), pl.confusion(adata, "truth"), pl.states(adata), pl.stability(adata)
    pl.select_categories(adata)


def test_nothing_global_changes(make_annotated):
    before = dict(plt.rcParams)
    draw_all(make_annotated())
    assert dict(plt.rcParams) == before


def test_nothing_is_shown(make_annotated, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    draw_all(make_annotated())
