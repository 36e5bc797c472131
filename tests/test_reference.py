"""Categories beside reference labels."""

import anndata
import numpy as np
import pandas as pd
import pytest

import cplmixvi as cpl

REFERENCE = ["B"] * 6 + ["T"] * 6 + ["NK"] * 2 + [None] + ["unknown"]
CATEGORY = ["0"] * 5 + ["1"] + ["1"] * 3 + ["2"] * 3 + ["2"] * 2 + ["0"] + ["3"]


@pytest.fixture
def adata():
    obs = pd.DataFrame({"cell_type": REFERENCE, "cplmixvi": pd.Categorical(CATEGORY)}, index=map(str, range(16)))
    return anndata.AnnData(np.zeros((16, 1), dtype=np.float32), obs=obs)


def test_comparison_matches_one_to_one_and_counts(adata):
    result = cpl.tl.compare_to_reference(adata, "cell_type", ignore=("unknown",))
    assert dict(result.types["category"]) == {"B": "0", "T": "1", "NK": "2"}
    assert result.types.loc["B", "recall"] == pytest.approx(5 / 6)
    assert result.types.loc["B", "precision"] == pytest.approx(1)
    assert result.types.loc["T", "precision"] == pytest.approx(3 / 4)
    assert result.types.loc["NK", "precision"] == pytest.approx(2 / 5)
    assert result.scores["accuracy"] == pytest.approx(10 / 14)
    assert result.confusion.to_numpy().sum() == 14


def test_names_are_those_of_the_majority_and_of_no_one_below_the_purity(adata):
    table = cpl.tl.map_to_reference(adata, "cell_type", ignore=("unknown",))
    assert list(table["name"]) == ["B", "T", "T", "unassigned"]
    assert table.loc["2", "purity"] == pytest.approx(3 / 5)
    assert table.loc["0", "n_cells"] == 6
    assert table.loc["0", "n_labelled"] == 5
    named = adata.obs["cplmixvi_cell_type"]
    assert list(named[:5]) == ["B"] * 5
    assert named.iloc[15] == "unassigned"
    strict = cpl.tl.map_to_reference(adata, "cell_type", min_purity=0.7, ignore=("unknown",), key_added="strict")
    assert list(strict["name"]) == ["B", "T", "unassigned", "unassigned"]
    assert set(adata.obs["strict"]) == {"B", "T", "unassigned"}


def test_numbered_types_keep_their_names_where_some_are_missing(adata):
    """A column of 1, 2, 3 and missing values is one of floats to pandas."""
    adata.obs["cluster"] = adata.obs["cell_type"].map({"B": 1, "T": 2, "NK": 3, "unknown": 4})
    table = cpl.tl.map_to_reference(adata, "cluster", ignore=(4,))
    assert list(table["name"]) == ["1", "2", "2", "unassigned"]
    by_name = cpl.tl.compare_to_reference(adata, "cell_type", ignore=("unknown",))
    by_number = cpl.tl.compare_to_reference(adata, "cluster", ignore=(4,))
    assert by_number.scores == by_name.scores
    assert list(by_number.types.index) == [1, 2, 3]


def test_missing_columns_and_impossible_purities_are_refused(adata):
    with pytest.raises(ValueError, match="reference_key='type' is not a column"):
        cpl.tl.compare_to_reference(adata, "type")
    with pytest.raises(ValueError, match="key='leiden' is not a column"):
        cpl.tl.map_to_reference(adata, "cell_type", "leiden")
    with pytest.raises(ValueError, match="choose another column"):
        cpl.tl.map_to_reference(adata, "cell_type", key_added="cplmixvi")
    with pytest.raises(ValueError, match="min_purity=2"):
        cpl.tl.map_to_reference(adata, "cell_type", min_purity=2)


@pytest.fixture(params=["category", "object"])
def uncertain(adata, request):
    """Two of the B cells and all of category 2 are unassigned."""
    labels = adata.obs["cplmixvi"].astype(object).replace("2", "unassigned")
    labels.iloc[:2] = "unassigned"
    adata.obs["cplmixvi"] = labels.astype(request.param)
    return adata


def test_unassigned_cells_are_never_correct_and_match_no_type(uncertain):
    result = cpl.tl.compare_to_reference(uncertain, "cell_type", ignore=("unknown",))
    assert dict(result.types["category"].fillna("")) == {"B": "0", "T": "1", "NK": ""}
    assert dict(result.types["n_cells"]) == {"B": 6, "T": 6, "NK": 2}
    assert result.types.loc["B", "recall"] == pytest.approx(3 / 6)
    assert result.types.loc["T", "recall"] == pytest.approx(3 / 6)
    assert result.types.loc["B", "precision"] == pytest.approx(1)
    assert result.scores["accuracy"] == pytest.approx(6 / 14)
    assert result.scores["n_categories"] == 2
    assert list(result.confusion.columns) == ["0", "1"]


def test_unassigned_cells_keep_that_name(uncertain):
    # Most of the unassigned cells are of one type, which must not become their name.
    table = cpl.tl.map_to_reference(uncertain, "cell_type", ignore=("unknown",))
    assert dict(table["name"]) == {"0": "B", "1": "T", "3": "unassigned", "unassigned": "unassigned"}
    assert table.loc["unassigned", "n_cells"] == 7
    named = uncertain.obs["cplmixvi_cell_type"]
    assert (named[uncertain.obs["cplmixvi"] == "unassigned"] == "unassigned").all()
    assert (named[uncertain.obs["cplmixvi"] == "0"] == "B").all()


@pytest.mark.parametrize("name", ["cplmixvi_confidence", "cplmixvi_condition", 5])
def test_names_do_not_replace_what_belongs_to_the_result(adata, name):
    with pytest.raises(ValueError, match="choose another column"):
        cpl.tl.map_to_reference(adata, "cell_type", key_added=name)
    assert name not in adata.obs
    adata.obs["confidence"] = adata.obs["cell_type"]
    with pytest.raises(ValueError, match="choose another column"):
        cpl.tl.map_to_reference(adata, "confidence")


def test_names_do_not_replace_what_is_no_name(make_counts):
    adata = make_counts()
    adata.obs["found"] = adata.obs["type"].astype(str).to_numpy()
    # The third has the vocabulary of names, but is the user's own.
    adata.obs["found_type"], adata.obs["by_hand"] = "a note", np.roll(adata.obs["type"].astype(str), 1)
    for column, problem in (
        ("batch", "has values such"),
        ("found_type", "has values such"),
        ("by_hand", "was not written"),
    ):
        before = adata.obs[column].copy()
        with pytest.raises(ValueError, match=f"exists and {problem}"):
            cpl.tl.map_to_reference(adata, "type", "found", key_added=column)
        assert (adata.obs[column] == before).all()
        for overwrite in (True, False):
            # What was written once may be written again.
            cpl.tl.map_to_reference(adata, "type", "found", key_added=column, overwrite=overwrite)
        assert (adata.obs[column].astype(str) == adata.obs["type"].astype(str)).all()


def test_files_keep_which_columns_are_names_and_names_that_were_changed_by_hand_stay(adata, tmp_path):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype("category")
    for name in ("strict", "names"):
        cpl.tl.map_to_reference(adata, "cell_type", key_added=name)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    cpl.tl.map_to_reference(read, "cell_type", min_purity=0.9, key_added="strict")
    assert set(read.obs["strict"]) != set(adata.obs["strict"])
    read.obs["names"] = read.obs["names"].cat.rename_categories({"B": "B cell"})
    with pytest.raises(ValueError, match="has values such as 'B cell'"):
        cpl.tl.map_to_reference(read, "cell_type", key_added="names")
