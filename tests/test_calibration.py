"""Certainty: no more than fits to halves of the data find again, and no type where there is none."""

import anndata as ad
import numpy as np
import pytest
import scvi
import torch

import cplmixvi as cpl
from cplmixvi.model import Report
from cplmixvi.model._calibration import exponents, flattened
from cplmixvi.train import HalfFits

pytestmark = pytest.mark.usefixtures("small_committee")


@pytest.fixture(scope="module")
def noise():
    """Counts of one type: genes differ in their mean and cells in their depth."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(2, 0.5, 60) * rng.lognormal(0, 0.3, (300, 1))
    return ad.AnnData(rng.poisson(rate).astype(np.float32))


def trained(adata, n_categories, plan_kwargs=None, **setup):
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata, **setup)
    model = cpl.CplMixVI(adata, n_categories, n_hidden=16)
    model.train(max_epochs=10, enable_progress_bar=False, plan_kwargs=plan_kwargs)
    return model


@pytest.fixture(scope="module")
def model_of_noise(noise):
    with pytest.warns(UserWarning, match="only into the same category"):
        return trained(noise, 6)


@pytest.fixture(scope="module")
def model_of_types(make_counts):
    return trained(make_counts(n_obs=300, n_vars=60, n_types=3), 3, layer="counts")


def test_noise_has_no_types_and_certainty_says_so(model_of_noise, model_of_types):
    report = model_of_noise.report()
    assert not report.sound
    assert report.found_again < 0.4 < 0.9 < model_of_types.report().found_again
    assert str(report).count("Fits to half of the data") == 2
    of_noise, of_types = (model.predict(soft=True).max(axis=1) for model in (model_of_noise, model_of_types))
    assert of_noise.mean() < 0.5 < 0.9 < of_types.mean()
    assert model_of_types.report().sound


def test_two_categories_that_chance_would_find_again_as_often_are_no_types():
    labels = np.repeat([0, 1], 50)
    proba = np.eye(2)[labels]
    both = np.stack([labels, labels], axis=1)
    reports = [Report.from_posterior(proba, both, found_again=np.full(2, share)) for share in (0.65, 0.75)]
    assert [report.sound for report in reports] == [False, True]
    assert "little more than chance" in str(reports[0])
    one = Report.from_posterior(np.ones((5, 1)), np.zeros((5, 2), dtype=int), found_again=np.ones(1))
    assert one.sound


def test_labels_do_not_change_and_certainty_never_rises(model_of_noise):
    raw = model_of_noise.get_posterior(calibrated=False).proba
    proba = model_of_noise.get_posterior().proba
    np.testing.assert_array_equal(proba.argmax(1), raw.argmax(1))
    assert (proba.max(1) <= raw.max(1) + 1e-6).all()
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-5)


def test_cells_of_a_category_are_as_certain_as_it_is_found_again(model_of_noise):
    found_again = model_of_noise.calibration_["found_again"]
    proba = model_of_noise.get_posterior().proba
    category = proba.argmax(1)
    raw = model_of_noise.get_posterior(calibrated=False).proba.max(1)
    for k in np.unique(category):
        # The most probable of six categories has at least a sixth.
        expected = max(min(found_again[k], raw[category == k].mean()), 1 / 6)
        assert proba[category == k].max(1).mean() == pytest.approx(expected, abs=0.01)


def test_exponents_bring_each_category_to_its_certainty():
    proba = np.random.default_rng(0).dirichlet(np.full(5, 0.2), size=2_000)
    certainty = np.array([0.3, 0.5, 0.7, 0.9, 1.0])
    exponent = exponents(proba, certainty)
    result = flattened(torch.from_numpy(proba), torch.from_numpy(exponent)).numpy()
    best = proba.argmax(1)
    mean = np.array([result[best == k].max(1).mean() for k in range(5)])
    before = np.array([proba[best == k].max(1).mean() for k in range(5)])
    np.testing.assert_allclose(mean, np.minimum(certainty, before), atol=1e-4)
    # Certainty is only lowered: what was below stays as it was, to the bit.
    assert exponent[-1] == 1
    np.testing.assert_array_equal(result[best == 4], proba[best == 4])
    assert (np.argsort(result, axis=1)[:, -2:] == np.argsort(proba, axis=1)[:, -2:]).all()


def test_categories_that_no_cell_has_stay_as_they_are():
    proba = np.array([[0.8, 0.2, 0.0]] * 4)
    exponent = exponents(proba, np.array([0.5, 0.5, 0.5]))
    assert exponent[1] == exponent[2] == 1
    result = flattened(torch.from_numpy(proba), torch.from_numpy(exponent))
    assert float(result[0, 0]) == pytest.approx(0.5, abs=1e-3)


def test_share_found_again_follows_its_definition():
    final = np.repeat([0, 1], 10)
    # The first fit has the categories the other way round, the second puts half of the second into the first.
    fits = np.stack([1 - final, np.where(np.arange(20) < 15, 0, 1)])
    found = HalfFits(np.arange(20), fits).found_again(final, 3)
    overall = (20 + 15) / 40
    expected = [(20 + 5 * overall) / 25, (15 + 5 * overall) / 25, overall]
    np.testing.assert_allclose(found, expected)


def test_halves_do_not_change_the_training(make_counts):
    adata = make_counts(n_obs=200, n_vars=30, n_types=3)
    models = [trained(adata.copy(), 3, layer="counts")]
    models.append(trained(adata.copy(), 3, {"fit_halves": False}, layer="counts"))
    assert models[0].calibration_ is not None
    assert models[1].calibration_ is None
    assert np.isnan(models[1].report().found_again)
    for name, value in models[0].module.state_dict().items():
        assert torch.equal(value, models[1].module.state_dict()[name]), name


@pytest.mark.parametrize("setup", [{"labels_key": "type"}, {"batch_key": "batch"}])
def test_labels_and_batches_enter_the_halves(make_counts, setup):
    adata = make_counts(n_obs=300, n_vars=40, n_types=3)
    model = trained(adata, 3, layer="counts", **setup)
    assert (model.calibration_["found_again"] > 0.8).all()


def test_too_few_cells_are_not_halved(make_counts):
    model = trained(make_counts(n_obs=50, n_vars=30, n_types=3), 6, layer="counts")
    assert model.calibration_ is None


def test_log_values_are_halved_by_genes(make_counts):
    adata = make_counts(n_obs=300, n_vars=40, n_types=3)
    adata.X = np.log1p(adata.layers["counts"])
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, 3, likelihood="normal", n_hidden=16)
    model.train(max_epochs=5, enable_progress_bar=False)
    assert (model.calibration_["found_again"] > 0.8).all()


def test_it_is_written_and_saved(model_of_noise, noise, tmp_path):
    adata = noise.copy()
    cpl.tl.annotate(adata, model_of_noise)
    result = adata.uns["cplmixvi"]
    assert len(result["found_again_by_category"]) == len(result["categories"])
    used = [int(name) for name in result["categories"]]
    np.testing.assert_allclose(
        result["found_again_by_category"], model_of_noise.calibration_["found_again"][used], rtol=1e-6
    )
    np.testing.assert_allclose(adata.obs["cplmixvi_confidence"], model_of_noise.get_posterior().proba.max(1), rtol=1e-5)
    model_of_noise.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata=noise, accelerator="cpu")
    np.testing.assert_allclose(loaded.get_posterior().proba, model_of_noise.get_posterior().proba, atol=1e-6)
