"""Labels of some cells guide and name the categories; nothing needs them."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from _some_labels import NAMES, cells_with_some_labels, fit, some_labels

import cplmixvi as cpl
from cplmixvi._constants import GUIDE_KEY, KNOWN_KEY
from cplmixvi.model import Report
from cplmixvi.model._labels import as_name, category_names
from cplmixvi.module import CplMixVAE
from cplmixvi.module._losses import label_divergence
from cplmixvi.train import _guide
from cplmixvi.train._labels import LABEL_CELLS, LABEL_WEIGHT, certain, importance, labelled, rare, some_rows
from cplmixvi.train._views import fit_views

pytestmark = pytest.mark.usefixtures("small_committee")


def views(x, k, **options):
    return fit_views(x, k, **({"dimensions": (4, 8), "n_starts": 2, "n_moves": 4} | options))


@pytest.fixture(scope="module")
def hard(make_counts):
    return cells_with_some_labels(make_counts)


@pytest.fixture(scope="module")
def guided(hard):
    return fit(hard, "some", n_categories=5, epochs=80)


@pytest.fixture
def easy(make_counts):
    return make_counts(n_obs=240, n_vars=60, n_types=3)


# -------------------------------------------------------------------------- what labels do


def test_all_cells_labelled_with_and_without_room_for_more(easy):
    # The names are the other way round than any order of the cells' values.
    easy.obs["some"] = easy.obs["type"].map({"type0": "z", "type1": "y", "type2": "x"})
    for n_categories in (3, 5):
        model = fit(easy, "some", n_categories=n_categories, epochs=25)
        assert model.n_labels == 3
        assert (model.predict() == easy.obs["some"]).mean() > 0.95


def test_no_label_is_as_no_labels_key(easy):
    easy.obs["some"] = "unknown"
    with pytest.warns(UserWarning, match=r"No cell has a label: obs\['some'\] is 'unknown'"):
        model = fit(easy, "some", epochs=2)
    assert model.n_labels == 0
    pd.testing.assert_frame_equal(model.predict(soft=True), fit(easy, None, epochs=2).predict(soft=True))
    x = torch.from_numpy(cpl.pp.log_normalize(easy.X).toarray())
    known = torch.full((len(x),), -1)
    plain, nothing = views(x, 3)(x), views(x, 3, known=known)(x)
    assert torch.equal(plain, nothing)
    known[0] = 1
    assert not torch.equal(plain, views(x, 3, known=known)(x))


# ------------------------------------------------------------------------------- the arms


@pytest.mark.parametrize("warm_start", [True, False])
def test_labelled_cells_are_guided_by_their_labels(hard, monkeypatch, warm_start):
    seen = []
    standard = CplMixVAE.loss

    def spy(self, tensors, *args, **kwargs):
        seen.append({key: tensors.get(key) for key in (GUIDE_KEY, KNOWN_KEY, "labels")})
        return standard(self, tensors, *args, **kwargs)

    monkeypatch.setattr(CplMixVAE, "loss", spy)
    model = fit(hard, "some", n_categories=5, train={"warm_start": warm_start})
    assert model.module.n_labels == 2
    n_labelled = 0
    for tensors in seen:
        codes = tensors["labels"].view(-1).long()
        has = codes < 2
        n_labelled += int(has.sum())
        if warm_start:
            assert tensors[KNOWN_KEY] is None
            one_hot = torch.nn.functional.one_hot(codes[has], 5).float()
            assert torch.equal(tensors[GUIDE_KEY][has], one_hot)
            assert ((tensors[GUIDE_KEY][~has] > 0).sum(1) > 1).all()
        else:
            assert tensors[GUIDE_KEY] is None
            assert torch.equal(tensors[KNOWN_KEY], torch.where(has, codes, -1))
    assert n_labelled == 8
    assert ("label_divergence_train" in model.history) is not warm_start


def test_without_a_start_labels_still_name_categories(easy):
    easy.obs["some"] = some_labels(easy, share=0.2)
    model = fit(easy, "some", epochs=60, train={"warm_start": False})
    divergence = model.history["label_divergence_train"].to_numpy().ravel()
    assert divergence[-1] < 0.2 * divergence[0]
    names = model.predict()
    for type_, name in NAMES.items():
        assert (names[easy.obs["type"] == type_] == name).mean() > 0.8
    # So they do when training goes on.
    model.train(max_epochs=1, enable_progress_bar=False)
    assert len(model.history["label_divergence_train"]) == 61


def test_label_divergence_is_the_cross_entropy_of_labelled_cells():
    log_q = torch.log(torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [[0.5, 0.25, 0.25], [0.3, 0.3, 0.4]]]))
    expected = -torch.log(torch.tensor([[0.2, 1.0], [0.25, 1.0]]))
    assert torch.allclose(label_divergence(log_q, torch.tensor([1, -1])), expected)
    assert not label_divergence(log_q, torch.tensor([-1, -1])).any()


# ---------------------------------------------------------------------------------- names


def test_names_everywhere(hard, guided, tmp_path):
    expected = ["B cell", "T/NK", "2", "3", "4"]
    assert guided.label_names == expected[:2]
    assert list(guided.category_names) == expected
    assert set(guided.predict()) == set(expected)
    assert list(guided.predict(soft=True).columns) == expected
    assert list(guided.get_consensus().categories) == expected
    cells = hard.copy()
    cpl.tl.annotate(cells, guided)
    assert list(cells.obs["cplmixvi"].cat.categories) == expected
    assert list(cells.uns["cplmixvi"]["categories"]) == expected
    assert (cells.obs["cplmixvi"].astype(str) == guided.predict()).all()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    weakest = guided.get_consensus().by_category.argmin()
    assert guided.report().weakest[0] == expected[weakest]


def test_report_names_a_label():
    proba = np.eye(2)[[0, 0, 1, 1]] * 0.9 + 0.05
    report = Report.from_posterior(proba, np.array([[0, 1], [0, 1], [1, 1], [1, 1]]), np.array(["mast", "1"]))
    assert report.weakest == ("mast", 0.0)
    assert "category mast" in str(report)


def test_names_are_unique_strings():
    assert list(category_names(3)) == ["0", "1", "2"]
    assert list(category_names(4, ["2", "2_"])) == ["2", "2_", "2__", "3"]
    assert [as_name(value) for value in (3, 3.0, 3.5, np.float32(2), "3", True)] == ["3", "3", "3.5", "2", "3", "True"]


@pytest.mark.parametrize(
    ("column", "unlabeled", "names"),
    [
        ([2, 10, -1, -1], -1, ["2", "10"]),
        ([2.0, 10.0, np.nan, np.nan], "unknown", ["2", "10"]),
        (["b", "a", None, "unknown"], "unknown", ["a", "b"]),
        (["b", "a", "none", "none"], "none", ["a", "b"]),
        (["b", "a", "unassigned", "unassigned"], "unassigned", ["a", "b"]),
        (pd.Categorical(list("ba?b"), categories=["?", "b", "unused", "a"]), "?", ["b", "a"]),
        (pd.Categorical([2, 10, None, 2]), "unknown", ["2", "10"]),
        ([1, "1", "x", "unknown"], "unknown", ["1", "x"]),
        (["unknown", "a", "a", "a"], "a", ["unknown"]),
    ],
)
def test_labels_of_any_kind(easy, column, unlabeled, names):
    values = pd.Series(column).iloc[np.arange(240) % 4].reset_index(drop=True)
    easy.obs["some"] = values.set_axis(easy.obs_names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cpl.CplMixVI.setup_anndata(easy, labels_key="some", unlabeled_category=unlabeled)
    model = cpl.CplMixVI(easy, 4)
    assert model.label_names == names
    assert list(model.category_names)[: len(names)] == names
    codes = easy.obs["_scvi_labels"].to_numpy()
    none = len(names)
    for value, code in zip(values, codes, strict=True):
        expected = names.index(as_name(value)) if not pd.isna(value) and as_name(value) in names else none
        assert code == expected


# ----------------------------------------------------------------------- new cells and saving


def test_saving_keeps_the_names(hard, guided, tmp_path):
    guided.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata=hard.copy())
    assert list(loaded.category_names) == list(guided.category_names)
    pd.testing.assert_frame_equal(loaded.predict(soft=True), guided.predict(soft=True))
    without = cpl.CplMixVI.load(tmp_path / "model", adata=False)
    assert without.n_labels == 2
    new = hard[:50].copy()
    del new.obs["some"], new.obs["_scvi_labels"]
    assert list(without.predict(new)) == list(guided.predict(indices=range(50)))
    assert "some" not in new.obs


@pytest.mark.parametrize("labels", [None, "B cell", "never seen", np.nan])
def test_labels_of_new_cells_play_no_role(hard, guided, labels):
    new = hard[:50].copy()
    del new.obs["some"], new.obs["_scvi_labels"]
    if labels is not None:
        new.obs["some"] = labels
    assert list(guided.predict(new)) == list(guided.predict(indices=range(50)))
    expected = 0 if labels == "B cell" else 2
    assert (new.obs["_scvi_labels"] == expected).all()


def test_refits_of_stability_use_the_labels(easy, monkeypatch):
    easy.obs["some"] = some_labels(easy)
    model = fit(easy, "some", train={"warm_start": False})
    cpl.tl.annotate(easy, model)
    known = []
    monkeypatch.setattr(
        _guide, "fit_views", lambda *args, **kwargs: known.append(kwargs["known"]) or views(*args, **kwargs)
    )
    cpl.tl.stability(easy, model, n_repeats=1, train_kwargs={"max_epochs": 1})
    assert set(known[0].unique().tolist()) == {-1, 0, 1}


# ------------------------------------------------------------------------------ bad input


def test_more_labels_than_categories(easy):
    easy.obs["some"] = easy.obs["type"]
    cpl.CplMixVI.setup_anndata(easy, labels_key="some")
    with pytest.raises(
        ValueError, match=r"n_categories=2 given for 3 labels \('type0', 'type1', 'type2'\).*at least 3"
    ):
        cpl.CplMixVI(easy, 2)
    easy.obs["some"] = [f"label{i % 20}" for i in range(240)]
    cpl.CplMixVI.setup_anndata(easy, labels_key="some")
    # Without labels it would be a twentieth of the cells, which is fewer.
    assert cpl.CplMixVI(easy).n_categories == 20


def test_a_label_that_is_called_unassigned(easy):
    easy.obs["some"] = ["a", "unassigned"] * 120
    with pytest.raises(ValueError, match=r"obs\['some'\] has the label 'unassigned'.*rename it, or pass"):
        cpl.CplMixVI.setup_anndata(easy, labels_key="some")


def test_a_column_that_is_not_there(easy):
    with pytest.raises(ValueError, match="no column 'some'"):
        cpl.CplMixVI.setup_anndata(easy, labels_key="some")


# ------------------------------------------------- which cells are looked at, and what they count


def test_rare_labels_are_among_the_rows_that_are_looked_at():
    known = torch.full((2_000,), -1)
    known[:3], known[3:1_000] = 0, 1
    rows = some_rows(2_000, 100, known, generator=torch.Generator().manual_seed(0))
    assert len(rows.unique()) == len(rows)
    assert {0, 1, 2} <= set(rows.tolist())
    assert (known[rows] == 1).sum() == LABEL_CELLS
    plain = some_rows(2_000, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows[:100], plain)
    assert rare(known, torch.tensor([0, LABEL_CELLS - 2])).sum() == 5
    assert not rare(torch.full((5,), -1)).any()


def test_a_label_counts_for_an_average_type_and_no_cell_for_more_than_ten():
    known = torch.full((100,), -1)
    known[:2], known[2:12], known[12:82] = 0, 1, 2
    counts = importance(known, 4)
    assert counts.mean() == pytest.approx(1)
    relative = counts / counts[-1]
    assert relative[0] == pytest.approx(LABEL_WEIGHT)
    assert relative[2] == pytest.approx(2.5)
    assert relative[12] == pytest.approx(1)
    assert importance(None, 4) is None


def test_certain_and_labelled():
    known = torch.tensor([1, -1])
    log_p = torch.tensor([[0.0, -500.0, 1.0], [0.0, 1.0, 2.0]])
    posterior = torch.softmax(certain(log_p, known), 1)
    assert posterior[0].tolist() == [0, 1, 0]
    assert torch.equal(posterior[1], torch.softmax(log_p[1], 0))
    assert torch.equal(labelled(log_p.softmax(1), known)[0], torch.tensor([0.0, 1.0, 0.0]))
    assert certain(log_p, None) is log_p


def test_the_guide_reads_on_for_rare_labels_and_says_if_there_are_none(easy, monkeypatch):
    seen = {}

    def spy(values, *args, known, **kwargs):
        seen.update(n=len(values), known=known)
        return views(values, *args, known=known, **kwargs)

    monkeypatch.setattr(_guide, "fit_views", spy)
    labels = np.full(240, "unknown", dtype=object)
    labels[:100], labels[230:235] = "often", "seldom"
    easy.obs["some"] = labels
    cpl.CplMixVI.setup_anndata(easy, layer="counts", labels_key="some")
    model = cpl.CplMixVI(easy, 3, n_hidden=8)
    loader = model._make_data_loader(easy, batch_size=60, shuffle=False)
    _guide.fit_guide(model.module, loader, max_cells=60)
    # 60 cells with the frequent label, which are enough of it, and the five.
    assert (seen["known"] == 0).sum() == 60
    assert (seen["known"] == 1).sum() == 5
    assert seen["n"] == len(seen["known"]) == 65
    parts = [np.arange(200), np.arange(200, 240), np.array([], dtype=int)]
    with pytest.warns(UserWarning, match="1 of 2 labels are on no cell that is trained on"):
        model.train(max_epochs=1, enable_progress_bar=False, datasplitter_kwargs={"external_indexing": parts})


@pytest.mark.parametrize("start", ["graph", "images"])
def test_communities_with_labels_have_the_labels_numbers(start):
    """Whatever a community is called, its cells are those of the label that most of its labelled cells have."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(480) % 6
    centres = 6 * torch.randn(6, 12, generator=generator)
    x = centres[truth] + torch.randn(480, 12, generator=generator)
    # Four of six types have labels, on a tenth of the cells.
    known = torch.where((torch.arange(480) % 10 == 0) & (truth < 4), truth, -1)
    guide = fit_views(x, 6, start=start, known=known, dimensions=(4, 8), seed=0).eval()
    found = guide(x, torch.zeros(480, dtype=torch.long)).argmax(1)
    assert (found == truth)[truth < 4].double().mean() > 0.95
    assert len(found.unique()) == 6
