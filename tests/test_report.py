"""Sound fits are called sound, collapsed ones are not, and training says so."""

import numpy as np
import pytest

import cplmixvi as cpl
from cplmixvi.model import Report

pytestmark = pytest.mark.usefixtures("small_committee")


def report(labels, n_categories=4, certainty=0.97):
    """Report on arms with given labels ``(n_arms, n_cells)``."""
    labels = np.asarray(labels)
    proba = np.full((labels.shape[1], n_categories), (1 - certainty) / (n_categories - 1))
    proba[np.arange(labels.shape[1]), labels[0]] = certainty
    return Report.from_posterior(proba, labels.T)


TYPES = np.arange(200) % 4


def test_a_sound_fit_has_no_problems():
    sound = report([TYPES, TYPES])
    assert sound.sound
    assert sound.n_used == 4
    assert sound.agreement == 1
    assert sound.weakest[1] == 1
    assert "No sign of collapse" in str(sound)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0 * TYPES, 0 * TYPES]}, "one category"),
        ({"labels": [TYPES % 2, TYPES % 2], "n_categories": 8}, "Only 2 of 8"),
        ({"labels": [TYPES, TYPES], "certainty": 0.3}, "almost flat"),
        ({"labels": [TYPES, np.roll(TYPES, 1)]}, "agree on 0% of cells only"),
    ],
)
def test_every_kind_of_failure_has_its_sentence(arguments, message):
    bad = report(**arguments)
    assert not bad.sound
    assert message in str(bad)


def test_the_weakest_category_is_named():
    other = TYPES.copy()
    other[TYPES == 2] = 3
    assert report([TYPES, other]).weakest == ("2", 0.0)


def test_categories_that_are_not_to_be_relied_on_are_named_though_the_fit_is_sound():
    # Of category 2 one arm puts half elsewhere, category 0 is found again by halves less often.
    other = np.where((TYPES == 2) & (np.arange(200) < 100), 3, TYPES)
    labels, found_again = np.stack([TYPES, other], axis=1), np.array([0.55, 0.9, 0.9, 0.9])
    proba = np.eye(4)[TYPES]
    found = Report.from_posterior(proba, labels, np.array(["a", "b", "c", "d"]), found_again)
    assert found.sound
    assert found.doubtful == ("a", "c")
    assert found.doubtful_cells == 0.5
    assert "2 of the categories (a, c) with 50.0% of cells" in str(found)
    assert not report([TYPES, TYPES]).doubtful
    assert "relied" not in str(report([TYPES, TYPES]))


def test_one_arm_says_that_reproducibility_is_unknown():
    assert "unknown" in str(report([TYPES]))
    assert report([TYPES]).sound


def test_training_warns_of_an_unsound_fit_and_not_of_a_sound_one(make_counts):
    adata = make_counts(n_obs=240, n_types=3)
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    model = cpl.CplMixVI(adata, n_categories=20, n_hidden=8)
    with pytest.warns(UserWarning, match=r"See model.report\(\)"):
        model.train(max_epochs=1, warm_start=False, enable_progress_bar=False)
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=32)
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*model.report")
        model.train(max_epochs=60, enable_progress_bar=False)
    assert model.report().sound


def test_a_condition_is_counted_in_the_cells_that_are_reported(make_counts, tmp_path):
    adata = make_counts(n_obs=80)
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, 3, n_hidden=8)
    model.train(1, warm_start=False, enable_progress_bar=False)
    model.condition_ = np.repeat(np.array([1, 0, -1], dtype=np.int8), [10, 30, 40])
    assert model.report().condition == 0.25
    assert model.report(indices=range(10)).condition == 1
    assert model.report(indices=range(40, 80)).condition is None
    assert model.report(adata.copy()).condition is None
    model.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata[:30].copy())
    assert loaded.report(indices=range(20)).condition is None
