"""The numbers of categories that were tried, kept with the cells: written where and when, and never by accident."""

import logging

import anndata
import numpy as np
import pandas as pd
import pytest

import cplmixvi as cpl
from cplmixvi.model._selection import SelectionMixin
from cplmixvi.train import Selection

pytestmark = pytest.mark.usefixtures("small_committee")

COLUMNS = {"n_categories", "score", "agreement", "entropy", "ari", "similarity", "n_stable"}


@pytest.fixture(scope="module")
def cells(make_counts):
    return make_counts(n_obs=200, n_vars=60, n_types=3)


@pytest.fixture(scope="module")
def found(cells):
    """A trained model that has found its own number, from the numbers 2 to 4, and its cells."""
    adata = cells.copy()
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    model = cpl.CplMixVI(adata, n_hidden=8)
    model.select_n_categories([2, 3, 4], seed=0)
    model.train(max_epochs=2, enable_progress_bar=False)
    return adata, model


@pytest.fixture(scope="module")
def given(cells):
    """A trained model whose number was given, and its cells."""
    adata = cells.copy()
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    model = cpl.CplMixVI(adata, n_categories=2, n_hidden=8)
    model.train(max_epochs=2, enable_progress_bar=False)
    return adata, model


@pytest.fixture
def no_search(monkeypatch):
    """Fail where a number is searched for."""
    monkeypatch.setattr(SelectionMixin, "select_n_categories", lambda *_, **__: pytest.fail("searched again"))


def assert_holds(entry, selection):
    assert set(entry) == COLUMNS
    assert entry["n_categories"].dtype == np.int64
    np.testing.assert_array_equal(entry["n_categories"], selection.table.index)
    for name in COLUMNS - {"n_categories"}:
        assert entry[name].dtype == np.float64
        np.testing.assert_array_equal(entry[name], selection.table[name])


def test_training_takes_the_number_that_was_found_before(found):
    _, model = found
    assert list(model.selection.table.index) == [2, 3, 4]
    assert model.n_categories == model.module.n_categories == model.selection.n_categories


def test_what_the_model_found_is_written_as_it_is(cells, found, no_search):
    adata = cells.copy()
    selection = cpl.tl.select_categories(adata, found[1])
    assert selection.table.equals(found[1].selection.table)
    assert_holds(adata.uns["cplmixvi"]["selection"], found[1].selection)
    assert set(adata.obs) == set(cells.obs)
    assert set(adata.uns) == {*cells.uns, "cplmixvi"}


def test_annotate_writes_what_the_model_found_and_files_keep_it(found, tmp_path):
    adata, model = found[0].copy(), found[1]
    cpl.tl.annotate(adata, model)
    assert adata.uns["cplmixvi"]["n_categories"] == model.selection.n_categories
    adata.write_h5ad(tmp_path / "out.h5ad")
    adata.write_zarr(tmp_path / "out.zarr")
    for read in (anndata.read_h5ad(tmp_path / "out.h5ad"), anndata.read_zarr(tmp_path / "out.zarr")):
        assert_holds(read.uns["cplmixvi"]["selection"], model.selection)
        again = cpl.tl.read_selection(read)
        assert again.n_categories == model.selection.n_categories
        pd.testing.assert_frame_equal(again.table, model.selection.table, check_like=True)


def test_candidates_or_a_seed_are_looked_at_anew(cells):
    adata = cells.copy()
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    model = cpl.CplMixVI(adata, n_hidden=8)
    first = cpl.tl.select_categories(adata, model, candidates=[3, 2], seed=0)
    assert list(adata.uns["cplmixvi"]["selection"]["n_categories"]) == [2, 3]
    assert cpl.tl.select_categories(adata, model).table.equals(first.table)
    second = cpl.tl.select_categories(adata, model, candidates=[3, 2], seed=1)
    assert not second.table.equals(first.table)
    assert_holds(adata.uns["cplmixvi"]["selection"], second)
    assert not model.is_trained_


def test_an_annotation_keeps_all_that_it_has(given):
    adata, model = given[0].copy(), given[1]
    cpl.tl.annotate(adata, model)
    assert "selection" not in adata.uns["cplmixvi"]
    before = adata.copy()
    # A view, into which only a new entry of uns goes.
    view = adata[:150]
    with pytest.warns(anndata.ImplicitModificationWarning):
        cpl.tl.select_categories(view, FakeModel())
    assert set(view.uns["cplmixvi"]) == {*before.uns["cplmixvi"], "selection"}
    assert "selection" not in adata.uns["cplmixvi"]
    assert view.obs.equals(before.obs.iloc[:150])
    # Such an entry is still an annotation, that a new one replaces.
    cpl.tl.annotate(view, model)
    assert "selection" not in view.uns["cplmixvi"], "the new annotation is of a model to which the number was given"


def test_a_selection_waits_for_its_annotation(given):
    adata, model = given[0].copy(), given[1]
    selection = cpl.tl.select_categories(adata, FakeModel(), "types")
    cpl.tl.annotate(adata, model, "types")
    assert_holds(adata.uns["types"]["selection"], selection)
    assert adata.uns["types"]["n_categories"] == 2


def test_a_selection_is_no_licence_to_replace_what_others_wrote(given):
    adata, model = given[0].copy(), given[1]
    cpl.tl.select_categories(adata, FakeModel())
    adata.obs["cplmixvi"] = "mine"
    with pytest.raises(ValueError, match=r"^obs\['cplmixvi'\] exist already"):
        cpl.tl.annotate(adata, model)
    with pytest.raises(ValueError, match="names no result.*it has none"):
        cpl.tl.rank_genes(adata)
    cpl.tl.annotate(adata, model, overwrite=True)
    assert "selection" in adata.uns["cplmixvi"]


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        ("a b", None, "key_added='a b' is not a valid name"),
        ("leiden", {"params": {}}, r"uns\['leiden'\] exists already and was not written by cplmixvi"),
    ],
)
def test_what_cannot_be_written_is_refused_before_a_search(cells, found, no_search, key, entry, message):
    adata = cells.copy()
    if entry is not None:
        adata.uns[key] = entry
    with pytest.raises(ValueError, match=message):
        cpl.tl.select_categories(adata, found[1], key, seed=1)
    assert adata.uns.get(key) == entry


def test_a_search_is_logged(found, caplog, monkeypatch):
    # What other tests read comes back.
    monkeypatch.setattr(found[1], "selection_", None)
    with caplog.at_level(logging.INFO, logger="cplmixvi"):
        number = found[1].select_n_categories([3, 4], seed=0).n_categories
    assert caplog.messages == [
        "Finding the number of categories of 200 cells.",
        f"Found {number} categories, of 2 numbers tried.",
    ]


class FakeModel(cpl.CplMixVI):
    """A model of which only the selection is asked."""

    selection = None

    def __init__(self):
        columns = {name: [0.5, 0.25] for name in ("score", "agreement", "entropy", "ari", "similarity", "n_stable")}
        self.selection = Selection(pd.DataFrame(columns, index=pd.Index([2, 3], name="n_categories")))
