"""Stability: refits that agree with the result score one, others less, and nothing else changes."""

import gc

import numpy as np
import pandas as pd
import pytest
import scvi
import torch

import cplmixvi as cpl
from cplmixvi.tl import _stability

pytestmark = pytest.mark.usefixtures("small_committee")

N_OBS = 160


@pytest.fixture(scope="module")
def fitted(make_counts):
    adata = make_counts(n_obs=N_OBS, n_vars=50)
    scvi.settings.seed = 1
    cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=16)
    model.train(max_epochs=20, enable_progress_bar=False)
    cpl.tl.annotate(adata, model)
    return adata, model


@pytest.fixture
def annotated(fitted):
    return fitted[0].copy()


@pytest.fixture
def refits(monkeypatch):
    """Give the labels that refits are to find instead of fitting; returns the list to fill."""
    labels = []
    pending = iter(labels)
    monkeypatch.setattr(_stability, "_labels_of_refit", lambda *_: np.asarray(next(pending), dtype=object))
    return labels


def test_the_same_cells_under_other_names_are_perfectly_stable(annotated, fitted, refits):
    renamed = annotated.obs["cplmixvi"].astype(object).map({"0": "7", "1": "0", "2": "1"})
    refits += [renamed, annotated.obs["cplmixvi"]]
    result = cpl.tl.stability(annotated, fitted[1], n_repeats=2)
    assert (result.by_category["jaccard"] == 1).all()
    assert (result.by_cell == 1).all()
    assert result.ari_to_result == result.ari_between == pytest.approx(1)
    assert (result.n_repeats, result.subsample) == (2, 0.8)


def test_a_type_that_loses_cells_is_less_stable(annotated, fitted, refits):
    labels = annotated.obs["cplmixvi"].astype(object)
    moved = np.flatnonzero(labels == "0")[:10]
    changed = labels.copy()
    changed.iloc[moved] = "1"
    refits += [labels, changed]
    result = cpl.tl.stability(annotated, fitted[1], n_repeats=2)
    n = result.by_category["n_cells"]
    assert dict(n) == dict(labels.value_counts())
    expected = {"0": (1 + (n["0"] - 10) / n["0"]) / 2, "1": (1 + n["1"] / (n["1"] + 10)) / 2, "2": 1}
    assert dict(result.by_category["jaccard"]) == pytest.approx(expected)
    assert (result.by_cell.iloc[moved] == 0.5).all()
    assert result.by_cell.drop(annotated.obs_names[moved]).eq(1).all()
    one = cpl.metrics.ari(labels, changed)
    assert result.ari_to_result == pytest.approx((1 + one) / 2)
    assert result.ari_between == pytest.approx(one)


def test_types_without_a_partner_are_not_found(annotated, fitted, refits):
    # Sizes of our own, because of two types of one size either may be the partner of both together.
    labels = pd.Series(np.repeat(["0", "1", "2"], [80, 50, 30]), index=annotated.obs_names, dtype=object)
    annotated.obs["cplmixvi"] = pd.Categorical(labels)
    refits.append(labels.replace("2", "1"))
    result = cpl.tl.stability(annotated, fitted[1], n_repeats=1)
    assert dict(result.by_category["jaccard"]) == pytest.approx({"0": 1, "1": 50 / 80, "2": 0})
    assert (result.by_cell == (labels != "2")).all()
    assert np.isnan(result.ari_between)


def test_unassigned_cells_are_left_out(annotated, fitted, refits):
    everything = annotated.obs["cplmixvi"].astype(object)
    cut = float(np.quantile(annotated.obs["cplmixvi_confidence"], 0.2))
    cpl.tl.annotate(annotated, fitted[1], min_confidence=cut)
    unassigned = (annotated.obs["cplmixvi"] == "unassigned").to_numpy()
    assert unassigned.any()
    refits.append(everything)
    result = cpl.tl.stability(annotated, fitted[1], n_repeats=1)
    assert (result.by_cell.isna() == unassigned).all()
    assert result.by_category["n_cells"].sum() == N_OBS - unassigned.sum()
    assert (result.by_category["jaccard"] == 1).all()


def test_real_refits_write_two_keys_and_leave_the_rest_alone(annotated, fitted):
    adata, model = fitted
    gc.collect()
    before = {"models": count_models(), "set up": len(cpl.CplMixVI._setup_adata_manager_store)}
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    original = annotated.copy()
    scvi.settings.seed = 5
    # Reordered cells are recognised by name.
    shuffled = annotated[np.random.default_rng(0).permutation(N_OBS)].copy()
    generators = np.random.get_state()[1].tolist(), torch.get_rng_state()
    result = cpl.tl.stability(shuffled, model, n_repeats=2, subsample=0.7, train_kwargs={"max_epochs": 6})

    assert scvi.settings.seed == 5
    assert np.random.get_state()[1].tolist() == generators[0]
    assert torch.equal(torch.get_rng_state(), generators[1])
    assert set(shuffled.obs) - set(original.obs) == {"cplmixvi_stability"}
    assert shuffled.obs["cplmixvi_stability"].dtype == np.float32
    np.testing.assert_array_equal(shuffled.obs["cplmixvi_stability"], result.by_cell)
    assert set(result.by_cell.unique()) <= {0.0, 0.5, 1.0}
    by_category = shuffled.uns["cplmixvi"]["stability_by_category"]
    assert by_category.dtype == np.float32
    assert list(result.by_category.index) == list(shuffled.uns["cplmixvi"]["categories"])
    np.testing.assert_allclose(by_category, result.by_category["jaccard"], rtol=1e-6)
    assert set(shuffled.uns) == set(original.uns)
    assert (shuffled.X != original[shuffled.obs_names].X).sum() == 0
    # Real types of simulated data come back; shuffled labels would have an index near 0.
    assert result.ari_to_result > 0.3

    gc.collect()
    assert {"models": count_models(), "set up": len(cpl.CplMixVI._setup_adata_manager_store)} == before
    assert all((value == weights[name]).all() for name, value in model.module.state_dict().items())
    assert "cplmixvi_stability" not in adata.obs
    assert (model.predict() == original.obs["cplmixvi"]).all()


def count_models():
    # By type: `isinstance` also asks an object for its __class__, which some objects of other libraries do not have.
    return sum(issubclass(type(thing), cpl.CplMixVI) for thing in gc.get_objects())


def test_a_column_of_something_else_is_kept(annotated, fitted):
    adata = annotated.copy()
    adata.obs["cplmixvi_stability"] = "mine"
    with pytest.raises(ValueError, match="was not written by cplmixvi"):
        cpl.tl.stability(adata, fitted[1], n_repeats=1)
    assert (adata.obs["cplmixvi_stability"] == "mine").all()


def test_refits_differ_by_seed_and_repeat_with_it(fitted):
    _, model = fitted
    first, again, other = (
        _stability._labels_of_refit(model, N_OBS // 2, seed, {"max_epochs": 3}) for seed in (3, 3, 4)
    )
    assert len(set(first)) > 1
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.filterwarnings("ignore:Category 1 in:UserWarning")
def test_a_batch_may_be_missing_from_the_subsample(make_counts):
    adata = make_counts(n_obs=60, n_vars=30)
    adata.obs["batch"] = pd.Categorical(["rare"] + ["common"] * 59)
    cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = cpl.CplMixVI(adata, n_categories=2, n_hidden=8)
    labels = _stability._labels_of_refit(model, 6, 0, {"max_epochs": 1, "warm_start": False})
    assert labels.shape == (60,)


def test_the_figure_draws_what_is_written(annotated, fitted, refits):
    pytest.importorskip("matplotlib")
    changed = annotated.obs["cplmixvi"].astype(object)
    changed.iloc[np.flatnonzero(changed == "0")[:10]] = "1"
    refits.append(changed)
    result = cpl.tl.stability(annotated, fitted[1], n_repeats=1)
    drawn = [bar.get_width() for bar in cpl.pl.stability(annotated).patches]
    np.testing.assert_allclose(drawn, sorted(result.by_category["jaccard"], reverse=True), rtol=1e-6)


def test_labels_that_became_numbers_are_still_the_categories(annotated, fitted, refits):
    refits.append(annotated.obs["cplmixvi"])
    annotated.obs["cplmixvi"] = annotated.obs["cplmixvi"].astype(int)
    result = cpl.tl.stability(annotated, fitted[1], n_repeats=1)
    assert (result.by_cell == 1).all()


def test_a_new_annotation_drops_the_stability_of_the_old(annotated, fitted, refits):
    refits.append(annotated.obs["cplmixvi"])
    cpl.tl.stability(annotated, fitted[1], n_repeats=1)
    cpl.tl.annotate(annotated, fitted[1])
    assert "cplmixvi_stability" not in annotated.obs
    assert "stability_by_category" not in annotated.uns["cplmixvi"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_repeats": 0}, "n_repeats=0"),
        ({"n_repeats": 1.5}, "n_repeats=1.5"),
        ({"subsample": 0}, r"subsample=0 is outside \(0, 1\]"),
        ({"subsample": 1.2}, "subsample=1.2"),
        ({"seed": -1}, "seed=-1"),
        ({"subsample": 0.01}, "leaves 2 of 160 cells.*need at least 3"),
        ({"key": "other"}, r"key='other' names no result.*it has 'cplmixvi'.*tl\.annotate"),
    ],
)
def test_bad_options_are_refused_before_anything_is_fitted(annotated, fitted, refits, options, message):
    with pytest.raises(ValueError, match=message):
        cpl.tl.stability(annotated, fitted[1], **options)


def test_a_model_without_cells_is_refused(annotated, fitted, tmp_path):
    fitted[1].save(tmp_path / "model")
    model = cpl.CplMixVI.load(tmp_path / "model", adata=False)
    with pytest.raises(ValueError, match="loaded without cells"):
        cpl.tl.stability(annotated, model)


def test_other_cells_than_the_models_are_refused(annotated, fitted, refits):
    with pytest.raises(ValueError, match="adata has 100 cells and the model was set up with 160"):
        cpl.tl.stability(annotated[:100].copy(), fitted[1])
    annotated.obs_names = [f"other{i}" for i in range(N_OBS)]
    with pytest.raises(ValueError, match="not the same cells by name"):
        cpl.tl.stability(annotated, fitted[1])
    annotated.obs_names = fitted[0].obs_names
    annotated.obs["cplmixvi"] = "B cell"
    with pytest.raises(ValueError, match="has the label 'B cell'"):
        cpl.tl.stability(annotated, fitted[1])
