"""The heat map of reference types against categories."""

import numpy as np
import pandas as pd
import pytest

from cplmixvi import pl

plt = pytest.importorskip("matplotlib.pyplot")


def labels_of(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def image_of(ax):
    return np.asarray(ax.images[0].get_array())


class TestConfusion:
    def test_perfect_labels_give_a_diagonal(self, make_annotated):
        ax = pl.confusion(make_annotated(4), "truth")
        np.testing.assert_array_equal(image_of(ax), np.eye(4))
        assert ax.get_title(loc="left") == "ACC 1.00   NMI 1.00   ARI 1.00"
        assert labels_of(ax.yaxis)[0] == "type d0 (40)"
        assert labels_of(ax.xaxis) == ["6", "4", "2", "0"]

    def test_types_that_are_true_or_false_are_types(self, make_annotated):
        adata = make_annotated()
        adata.obs["flag"] = np.arange(adata.n_obs) % 2 == 0
        assert {text.split(" ")[0] for text in labels_of(pl.confusion(adata, "flag").yaxis)} == {"True", "False"}

    def test_surplus_categories_stand_right_of_a_line(self, make_annotated):
        adata = make_annotated(3, sizes=[30, 20, 10])
        adata.obs["truth"] = adata.obs["truth"].astype(str).replace("type c0", "type a0")
        ax = pl.confusion(adata, "truth")
        assert labels_of(ax.xaxis) == ["0", "2", "4"]
        np.testing.assert_allclose(image_of(ax), [[0.75, 0, 0.25], [0, 1, 0]])
        assert [line.get_xdata()[0] for line in ax.get_lines()] == [1.5]

    def test_surplus_types_stand_below(self, make_annotated):
        adata = make_annotated(3, sizes=[30, 20, 10])
        adata.obs["cplmixvi"] = pd.Categorical(adata.obs["cplmixvi"].astype(str).replace("4", "0"))
        ax = pl.confusion(adata, "truth")
        assert labels_of(ax.yaxis)[-1] == "type c0 (10)"
        np.testing.assert_allclose(image_of(ax), [[1, 0], [0, 1], [1, 0]])

    @pytest.mark.parametrize(("normalize", "first"), [("reference", 0.75), ("category", 1.0), (None, 30)])
    def test_normalize(self, make_annotated, normalize, first):
        adata = make_annotated(3, sizes=[30, 20, 10])
        adata.obs["truth"] = adata.obs["truth"].astype(str).replace("type c0", "type a0")
        assert image_of(pl.confusion(adata, "truth", normalize=normalize))[0, 0] == first

    def test_dendrogram_orders_columns_and_rows_and_draws_the_tree(self, make_annotated):
        adata = make_annotated(3, sizes=[30, 20, 10])
        result = adata.uns["cplmixvi"]
        # Categories "2" and "4" are joined first, then "0".
        result["order"] = np.array(["4", "2", "0"], dtype=object)
        result["linkage"] = np.array([[2.0, 1.0, 0.1, 2.0], [3.0, 0.0, 0.5, 3.0]])
        ax = pl.confusion(adata, "truth", order="dendrogram")
        assert labels_of(ax.xaxis) == ["4", "2", "0"]
        assert labels_of(ax.yaxis) == ["type c0 (10)", "type b0 (20)", "type a0 (30)"]
        np.testing.assert_array_equal(image_of(ax), np.eye(3))
        tree = next(child for child in ax.child_axes if len(child.get_lines()) == 2)
        np.testing.assert_allclose(tree.get_lines()[0].get_xdata(), [0, 0, 1, 1])
        assert tree.get_title(loc="left").startswith("ACC 1.00")

    def test_rows_in_the_order_of_a_taxonomy(self, make_annotated):
        adata = make_annotated(3, sizes=[30, 20, 10])
        adata.obs["cplmixvi"] = pd.Categorical(adata.obs["cplmixvi"].astype(str).replace("2", "0"))
        ax = pl.confusion(adata, "truth", order=["type c0", "type x", "type b0", "type a0"])
        assert labels_of(ax.yaxis) == ["type c0 (10)", "type b0 (20)", "type a0 (30)"]
        assert labels_of(ax.xaxis) == ["4", "0"]
        np.testing.assert_array_equal(image_of(ax), [[1, 0], [0, 1], [0, 1]])
        with pytest.raises(ValueError, match="order lacks type a0"):
            pl.confusion(adata, "truth", order=["type c0", "type b0"])

    def test_long_names_make_the_figure_wider(self, make_annotated):
        adata = make_annotated(3)
        before = pl.confusion(adata, "truth").figure.get_figwidth()
        adata.obs["truth"] = "a type that has a very long name: " + adata.obs["truth"].astype(str)
        assert pl.confusion(adata, "truth").figure.get_figwidth() > before + 0.5

    def test_dendrogram_puts_unassigned_cells_right_of_a_line(self, make_annotated):
        adata = make_annotated(2, sizes=[30, 20])
        adata.obs["cplmixvi"] = adata.obs["cplmixvi"].cat.add_categories("unassigned")
        adata.obs.iloc[:5, adata.obs.columns.get_loc("cplmixvi")] = "unassigned"
        adata.uns["cplmixvi"] |= {"order": np.array(["2", "0"], dtype=object), "linkage": np.array([[0, 1, 0.5, 2.0]])}
        ax = pl.confusion(adata, "truth", order="dendrogram")
        assert labels_of(ax.xaxis) == ["2", "0", "unassigned"]
        assert [line.get_xdata()[0] for line in ax.get_lines()] == [1.5]

    def test_dendrogram_without_an_order(self, make_annotated):
        with pytest.raises(ValueError, match="order_categories"):
            pl.confusion(make_annotated(3), "truth", order="dendrogram")

    def test_cells_without_a_type_are_left_out(self, make_annotated):
        adata = make_annotated(3)
        adata.obs["truth"] = adata.obs["truth"].astype(object)
        adata.obs.iloc[:10, adata.obs.columns.get_loc("truth")] = np.nan
        assert image_of(pl.confusion(adata, "truth")).shape == (2, 2)
        assert image_of(pl.confusion(adata, "truth", ignore=("type b0",))).shape == (1, 1)

    def test_no_cell_with_a_type(self, make_annotated):
        with pytest.raises(ValueError, match="names no type for any cell"):
            pl.confusion(make_annotated(1), "truth", ignore=("type a0",))

    def test_missing_reference_names_the_columns_there(self, make_annotated):
        with pytest.raises(ValueError, match=r"reference_key='cell_type'.*columns there: cplmixvi"):
            pl.confusion(make_annotated(), "cell_type")
