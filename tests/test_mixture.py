"""The shared-covariance mixture: moments, optimum, several views, moves."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

import cplmixvi as cpl
from cplmixvi.train._em import Fit
from cplmixvi.train._gaussian import inverse_root, mahalanobis2, moments
from cplmixvi.train._mixture import SharedCovarianceMixture
from cplmixvi.train._views import Projection, no_batch


def blobs(n=600, d=4, k=4, spread=6.0, seed=0, stretch=1.0):
    """Types that differ in mean and share one long axis of variation."""
    generator = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(k, d, generator=generator)
    labels = torch.randint(k, (n,), generator=generator)
    states = torch.randn(n, 1, generator=generator) * stretch
    axis = torch.nn.functional.normalize(torch.ones(1, d), dim=1)
    return means[labels] + states * axis + torch.randn(n, d, generator=generator), labels


def fitted(x, k, **options):
    model = SharedCovarianceMixture(k, **({"n_starts": 5, "n_moves": 5} | options))
    return model, model.fit([x])


def ari(labels, fit):
    return adjusted_rand_score(labels, fit.posterior.argmax(1))


def one_hot(labels, k):
    return torch.nn.functional.one_hot(labels, k).float()


def crossed(n=600, seed=0):
    """Four types; a view tells two from the other two clearly and within either pair faintly, the other view crosswise.

    A fit starts in one view alone, so that each view must say a little about every type.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    views = [torch.randn(n, 2, generator=generator) for _ in range(2)]
    for view, clear, faint in zip(views, (labels // 2, labels % 2), (labels % 2, labels // 2), strict=True):
        view[:, 0] += 8.0 * clear
        view[:, 1] += 2.5 * faint
    return views, labels


def trapped(n=200, seed=0):
    """Three blobs in a row, and a start that gives two components to the first and one to the other two."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(n)
    x = torch.randn(3 * n, 2, generator=generator)
    x[:, 0] += torch.tensor([0.0, 40.0, 52.0])[labels]
    start = torch.where(labels == 0, (x[:, 1] > 0).long(), 2)
    return x, labels, one_hot(start, 3)


# ---------------------------------------------------------------------- one view


def test_separate_types_are_found_and_probabilities_are_probabilities():
    x, labels = blobs()
    _, fit = fitted(x, 4)
    assert ari(labels, fit) > 0.99
    assert torch.allclose(fit.posterior.sum(1), torch.ones(len(x)), atol=1e-5)
    assert fit.posterior.min() >= 0
    assert fit.weight.sum() == pytest.approx(1)
    assert torch.allclose(fit.weight, fit.posterior.mean(0), atol=1e-3)


def test_a_shared_direction_of_variation_does_not_split_types():
    x, labels = blobs(n=1500, d=6, k=3, spread=2.5, stretch=8.0)
    _, fit = fitted(x, 3, n_starts=10, n_moves=20)
    spherical = GaussianMixture(3, covariance_type="spherical", n_init=5, random_state=0).fit_predict(x.numpy())
    assert ari(labels, fit) > 0.9
    assert ari(labels, fit) > adjusted_rand_score(labels, spherical) + 0.2


def test_one_covariance_and_many_degrees_of_freedom_are_sklearns_tied_mixture():
    x, _ = blobs(spread=3.0)
    _, fit = fitted(x, 4, shrinkage=math.inf, dof=1e6)
    tied = GaussianMixture(4, covariance_type="tied", n_init=5, random_state=0, tol=1e-6, max_iter=500).fit(x.numpy())
    assert fit.log_likelihood == pytest.approx(tied.score(x.numpy()), abs=2e-3)
    assert torch.allclose(fit.mixtures[0].shared.float(), torch.from_numpy(tied.covariances_).float(), atol=0.02)


def test_covariances_lie_between_their_own_scatter_and_the_shared_one():
    x, _ = blobs()
    _, fit = fitted(x, 4, shrinkage=2.0, dof=1e6)
    (mixture,) = fit.mixtures
    kappa = 2.0 * len(x) / 4
    for k in range(4):
        weight = fit.posterior[:, k].double()
        centred = x.double() - mixture.mean[k].double()
        scatter = (centred.T * weight) @ centred
        expected = (scatter + kappa * mixture.shared) / (weight.sum() + kappa)
        assert torch.allclose(mixture.covariance[k], expected, atol=0.02)


def test_the_shared_covariance_is_the_harmonic_mean():
    x, labels = blobs(n=1200, spread=30.0)
    x = x + torch.tensor([0.0, 1.0, 3.0, 6.0])[labels, None] * torch.randn(x.shape, generator=torch.manual_seed(0))
    model = SharedCovarianceMixture(4, shrinkage=0.3)
    (mixture,) = model.maximise([x], one_hot(labels, 4), n_iterations=100, tolerance=1e-8).mixtures
    harmonic = torch.linalg.inv(torch.linalg.inv(mixture.covariance).mean(0))
    assert torch.allclose(mixture.shared.diagonal(), harmonic.diagonal(), rtol=0.03)
    assert mixture.shared.diagonal().max() < 0.6 * mixture.covariance.mean(0).diagonal().max()


def test_outliers_do_not_get_a_type_of_their_own():
    x, labels = blobs(n=400, k=3)
    x = torch.cat([x, 60 * torch.ones(2, x.shape[1])])
    _, fit = fitted(x, 3)
    assert adjusted_rand_score(labels, fit.posterior[:400].argmax(1)) > 0.95


def test_same_generator_same_result_and_large_data_are_searched_on_a_subset(monkeypatch):
    x, labels = blobs(n=1200)
    sizes = []
    maximise = SharedCovarianceMixture.maximise

    def spy(self, views, *args, **kwargs):
        sizes.append(len(views[0]))
        return maximise(self, views, *args, **kwargs)

    monkeypatch.setattr(SharedCovarianceMixture, "maximise", spy)
    runs = [fitted(x, 4, n_search=300, generator=torch.Generator().manual_seed(5))[1] for _ in range(2)]
    assert torch.equal(runs[0].posterior, runs[1].posterior)
    assert ari(labels, runs[0]) > 0.99
    # All but the last step of each run.
    assert sizes.count(1200) == 2
    assert set(sizes) == {300, 1200}


def test_every_iteration_makes_the_fit_likelier():
    x, _ = blobs(spread=2.0)
    model = SharedCovarianceMixture(4)
    start = one_hot(torch.arange(len(x)) % 4, 4)
    reached = [model.maximise([x], start, n_iterations=n, tolerance=-1.0).log_likelihood for n in range(1, 40)]
    assert np.diff(reached).min() > -1e-4
    assert reached[-1] > reached[0] + 0.1


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (3, 1, 1), (5, 2, 5), (3, 2, 30), (20, 1, 2), (20, 2, 30)])
@pytest.mark.parametrize("shrinkage", [0.0, 3.0, math.inf])
def test_small_and_degenerate_data_fit(n, d, k, shrinkage):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    x[:, 0] += (torch.arange(n) > n / 2) * 20.0
    _, fit = fitted(x, k, shrinkage=shrinkage)
    assert isinstance(fit, Fit)
    assert fit.posterior.shape == (n, k)
    assert torch.allclose(fit.posterior.sum(1), torch.ones(n), atol=1e-5)
    assert math.isfinite(fit.log_likelihood)
    if k == 2:
        assert ari(torch.arange(n) > n / 2, fit) == 1


def test_coordinates_that_are_constant_or_all_far_from_zero_fit():
    x, labels = blobs(n=400, k=2)
    _, fit = fitted(torch.cat([x, torch.zeros(400, 1)], dim=1), 2)
    assert ari(labels, fit) > 0.99
    # Far away, sums of squares lose the covariance among their digits.
    x, labels = blobs(n=400, d=5, k=2, spread=30.0)
    _, fit = fitted(x + 3000.0, 2)
    assert ari(labels, fit) > 0.99


# ------------------------------------------------------------------ several views


def test_what_cannot_get_above_a_bound_is_given_up_and_what_can_is_untouched():
    x, _ = blobs(n=400, k=5, spread=3.0)
    model = SharedCovarianceMixture(5)
    start = model._seeded(x)
    full = model.maximise([x], start, n_iterations=40, tolerance=0)
    assert torch.equal(model.maximise([x], start, n_iterations=40, tolerance=0, above=-100).posterior, full.posterior)
    seen = []
    model._log_joint, log_joint = lambda *given: seen.append(1) or log_joint(*given), model._log_joint
    given_up = model.maximise([x], start, n_iterations=40, tolerance=0, above=full.log_likelihood + 1)
    assert given_up.log_likelihood < full.log_likelihood + 1 and len(seen) < 15


@pytest.mark.parametrize("n", [900, 1_100])
def test_moments_are_those_of_numpy_however_many_points(n):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)) + 5
    weight = torch.rand(n, 4, generator=torch.Generator().manual_seed(1))
    mean, scatter = moments(x, weight)
    for k in range(4):
        cov = np.cov(x.T.double(), aweights=weight[:, k].double(), bias=True) * float(weight[:, k].double().sum())
        np.testing.assert_allclose(mean[k], np.average(x.double(), axis=0, weights=weight[:, k].double()), rtol=1e-5)
        np.testing.assert_allclose(scatter[k], cov, rtol=1e-4, atol=1e-3)


def test_a_fits_posterior_is_what_the_fitter_says_of_the_points():
    views, _ = crossed()
    model = SharedCovarianceMixture(4)
    fit = model.fit(views)
    again = model.posterior(views, fit)
    assert torch.allclose(again.sum(1), torch.ones(len(again)), atol=1e-5)
    assert torch.allclose(again, fit.posterior, atol=1e-3)
    # Of other points too, and of each for itself.
    others, labels = crossed(seed=1)
    assert ari(labels, Fit(fit.mixtures, fit.weight, model.posterior(others, fit), 0.0)) > 0.95
    assert torch.allclose(model.posterior([v[:3] for v in views], fit), again[:3], atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_two_views_find_what_neither_finds_alone(seed):
    views, labels = crossed(seed=seed)
    both = SharedCovarianceMixture(4).fit(views)
    assert len(both.mixtures) == 2
    assert ari(labels, both) > 0.97
    for view in views:
        assert ari(labels, SharedCovarianceMixture(4).fit([view])) < 0.85


def test_a_view_given_twice_is_no_further_evidence():
    x, _ = blobs(spread=1.0)
    start = one_hot(torch.arange(len(x)) % 4, 4)
    model = SharedCovarianceMixture(4)
    once, twice = (model.maximise(views, start, n_iterations=20, tolerance=-1.0) for views in ([x], [x, x]))
    assert once.posterior.max(1).values.min() < 0.9
    assert torch.allclose(once.posterior, twice.posterior, atol=1e-3)
    assert once.log_likelihood == pytest.approx(twice.log_likelihood, abs=1e-4)


def test_points_of_a_known_component_keep_it_whatever_the_data_say():
    x, labels = blobs()
    model, fit = fitted(x, 4)
    known = torch.full((len(x),), -1)
    found = fit.posterior.argmax(1)
    wrong = (found == 0).nonzero().squeeze(1)[:5]
    known[wrong] = 3
    known[(found == 1).nonzero().squeeze(1)[:5]] = 1
    labelled = model.maximise([x], fit.posterior, n_iterations=20, known=known)
    assert torch.equal(labelled.posterior[known >= 0], one_hot(known[known >= 0], 4))
    free = known < 0
    assert torch.equal(labelled.posterior.argmax(1)[free], found[free])
    # Without the labels the data decide.
    assert (model.posterior([x], labelled).argmax(1)[wrong] == 0).all()
    # Weights count what is known.
    assert torch.allclose(labelled.weight, labelled.posterior.mean(0), atol=1e-3)


def test_known_points_alone_name_the_components():
    x, labels = blobs()
    model = SharedCovarianceMixture(4)
    known = torch.where(torch.arange(len(x)) < 60, labels, -1)
    flat = torch.full((len(x), 4), 0.25)
    fit = model.maximise([x], flat, n_iterations=60, known=known)
    assert (fit.posterior.argmax(1) == labels).float().mean() > 0.99


# --------------------------------------------------------------------------- moves


def test_moves_escape_from_two_components_on_one_blob_and_one_on_two():
    x, labels, start = trapped()
    stuck = SharedCovarianceMixture(3, n_moves=0).fit([x], starts=[start])
    moved = SharedCovarianceMixture(3, n_moves=3).fit([x], starts=[start])
    assert ari(labels, stuck) < 0.7
    assert ari(labels, moved) > 0.99
    assert moved.log_likelihood > stuck.log_likelihood + 0.1


def test_moves_escape_in_several_views_at_once():
    x, labels, start = trapped()
    views = [x, x @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]])]
    assert ari(labels, SharedCovarianceMixture(3, n_moves=0).fit(views, starts=[start])) < 0.7
    assert ari(labels, SharedCovarianceMixture(3, n_moves=3).fit(views, starts=[start])) > 0.99


@pytest.mark.parametrize("seed", range(3))
def test_moves_never_make_a_fit_less_likely(seed):
    generator = torch.Generator().manual_seed(seed)
    x, _ = blobs(n=400, d=3, k=6, spread=4.0, seed=seed)
    views = [x, x[:, :2]]
    model = SharedCovarianceMixture(6, n_moves=8, generator=generator)
    start = one_hot(torch.randint(6, (400,), generator=generator), 6)
    before = model.maximise(views, start, n_iterations=30)
    after = model._move(views, before, model.n_moves)
    assert after.log_likelihood >= before.log_likelihood
    # What is kept is what was judged.
    assert torch.allclose(model.posterior(views, after), after.posterior, atol=1e-5)


def test_moves_are_counted_and_never_pair_a_component_with_itself(monkeypatch):
    x, _ = blobs(n=300, k=2)
    model = SharedCovarianceMixture(2, n_moves=10)
    fit = model.fit([x])
    emptied = []
    maximise = model.maximise

    def spy(views, posterior, **kwargs):
        emptied.append(bool((posterior.sum(0) < 1).any()))
        return maximise(views, posterior, **kwargs)

    monkeypatch.setattr(model, "maximise", spy)
    model._move([x], fit, model.n_moves)
    # One component cut and the other removed, either way.
    assert emptied == [False, False]
    emptied.clear()
    model.n_moves = 1
    model._move([x], fit, model.n_moves)
    assert len(emptied) == 1


# ----------------------------------------------------------------------- distances


def components(k, d=4, spread=6.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = spread * torch.randn(k, d, generator=generator)
    factor = torch.eye(d) + 0.2 * torch.randn(k, d, d, generator=generator)
    covariance = (factor @ factor.mT).double()
    x = mean.repeat(5, 1) + torch.randn(5 * k, d, generator=generator)
    centred = x.double()[:, None] - mean.double()
    exact = torch.einsum("nki,kij,nkj->nk", centred, torch.linalg.inv(covariance), centred)
    root = inverse_root(covariance.mean(0)).float()
    return x, mean, inverse_root(covariance).float(), root, exact


def test_whitening_makes_a_covariance_the_identity():
    x, _ = blobs()
    mixture = fitted(x, 4)[1].mixtures[0]
    (whitening, log_det), root = mixture.whitening(), mixture.root()
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.allclose(whitening.mT.double() @ mixture.covariance @ whitening.double(), eye, atol=1e-4)
    assert torch.allclose(root.T.double() @ mixture.shared @ root.double(), eye, atol=1e-4)
    assert torch.allclose(log_det.double(), torch.logdet(mixture.covariance), atol=1e-4)


def test_distances_to_few_components_are_exact():
    x, mean, whitening, root, exact = components(24)
    assert torch.allclose(mahalanobis2(x, mean, whitening).double(), exact, rtol=1e-3, atol=1e-3)
    shared = mahalanobis2(x, mean, root[None])
    assert torch.allclose(shared, torch.cdist(x @ root, mean @ root).square(), rtol=1e-3, atol=1e-2)
    assert not torch.allclose(shared.double(), exact, rtol=0.1)


@pytest.mark.parametrize("k", [25, 60])
def test_distances_to_many_components_are_exact_where_they_matter(k):
    x, mean, whitening, root, exact = components(k)
    distance2 = mahalanobis2(x, mean, whitening, root).double()
    nearest = exact.argmin(1, keepdim=True)
    assert torch.equal(distance2.argmin(1, keepdim=True), nearest)
    assert torch.allclose(distance2.gather(1, nearest), exact.gather(1, nearest), rtol=1e-3, atol=1e-3)
    near = torch.isclose(distance2, exact, rtol=1e-3, atol=1e-3)
    assert (near.sum(1) >= 12).all()
    assert (near.sum(1) < k).any()
    # The twelve nearest by the shared covariance come before all others.
    rank = torch.cdist(x @ root, mean @ root).argsort(1)
    ordered = distance2.gather(1, rank)
    assert (ordered[:, :12].amax(1) <= ordered[:, 12:].amin(1)).all()


def test_a_far_component_with_a_wide_covariance_is_not_taken_for_a_near_one():
    x, mean, whitening, root, _ = components(40)
    # Narrow where they are near: their own distances exceed the shared ones of many that are far.
    distance2 = mahalanobis2(x, mean, 30 * whitening, root)
    rank = torch.cdist(x @ root, mean @ root).argsort(1)
    ordered = distance2.gather(1, rank)
    assert (ordered[:, :12].amax(1) <= ordered[:, 12:].amin(1)).all()


def test_many_components_are_found():
    x, labels = blobs(n=2400, d=6, k=30, spread=8.0)
    _, fit = fitted(x, 30, n_starts=2, n_moves=10)
    assert ari(labels, fit) > 0.95


def test_pieces_of_a_large_type_give_way_to_two_small_types_that_are_one():
    sizes = [759, 532, 373, 261, 183, 128, 90, 63, 44, 31, 22, 15]
    adata = cpl.datasets.simulate(n_obs=sum(sizes), n_types=12, type_sizes=sizes, seed=0)
    types = adata.obs["type"].cat.codes.to_numpy().astype(int)
    x = torch.as_tensor(cpl.pp.log_normalize(adata.X.toarray()))
    z = Projection(x, no_batch(x), 20, 0.5)(x, no_batch(x))
    views = [z[:, :10], z]
    # The largest type is cut in two, the two smallest are one.
    wrong = np.where(types == 11, 10, types)
    wrong[(types == 0) & (z[:, 12].numpy() > 0)] = 11
    fitter = SharedCovarianceMixture(12, generator=torch.Generator().manual_seed(0))
    found = fitter.fit(views, starts=[torch.eye(12)[torch.from_numpy(wrong)]])
    assert cpl.metrics.ari(types, found.posterior.argmax(1).numpy()) > 0.99
