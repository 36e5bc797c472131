"""The shared-covariance mixture: moments, optimum, moves."""

import math

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from cplmixvi.train._mixture import Mixture, SharedCovarianceMixture


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
    mixture = model.fit(x)
    return model, mixture, model.posterior(x, mixture)


def test_separate_types_are_found_and_probabilities_are_probabilities():
    x, labels = blobs()
    _, mixture, posterior = fitted(x, 4)
    assert adjusted_rand_score(labels, posterior.argmax(1)) > 0.99
    assert torch.allclose(posterior.sum(1), torch.ones(len(x)), atol=1e-5)
    assert mixture.weight.sum() == pytest.approx(1)


def test_a_shared_direction_of_variation_does_not_split_types():
    x, labels = blobs(n=1500, d=6, k=3, spread=2.5, stretch=8.0)
    _, _, posterior = fitted(x, 3, n_starts=10, n_moves=20)
    ours = adjusted_rand_score(labels, posterior.argmax(1))
    spherical = GaussianMixture(3, covariance_type="spherical", n_init=5, random_state=0).fit_predict(x.numpy())
    assert ours > 0.9
    assert ours > adjusted_rand_score(labels, spherical) + 0.2


def test_one_covariance_and_many_degrees_of_freedom_are_sklearns_tied_mixture():
    x, _ = blobs(spread=3.0)
    _, mixture, _ = fitted(x, 4, shrinkage=math.inf, dof=1e6)
    tied = GaussianMixture(4, covariance_type="tied", n_init=5, random_state=0, tol=1e-6, max_iter=500).fit(x.numpy())
    assert mixture.log_likelihood == pytest.approx(tied.score(x.numpy()), abs=2e-3)
    assert torch.allclose(mixture.shared.float(), torch.from_numpy(tied.covariances_).float(), atol=0.02)


def test_covariances_lie_between_their_own_scatter_and_the_shared_one():
    x, _ = blobs()
    model, mixture, posterior = fitted(x, 4, shrinkage=2.0, dof=1e6)
    kappa = 2.0 * len(x) / 4
    for k in range(4):
        weight = posterior[:, k].double()
        centred = x.double() - mixture.mean[k].double()
        scatter = (centred.T * weight) @ centred
        expected = (scatter + kappa * mixture.shared) / (weight.sum() + kappa)
        assert torch.allclose(mixture.covariance[k], expected, atol=0.02)


def test_outliers_do_not_get_a_type_of_their_own():
    x, labels = blobs(n=400, k=3)
    x = torch.cat([x, 60 * torch.ones(2, x.shape[1])])
    _, _, posterior = fitted(x, 3)
    assert adjusted_rand_score(labels, posterior[:400].argmax(1)) > 0.95


def test_moves_escape_where_starts_alone_do_not():
    x, labels = blobs(n=900, d=3, k=9, spread=5.0, seed=3)
    stuck = SharedCovarianceMixture(9, n_starts=1, n_moves=0).fit(x)
    moved = SharedCovarianceMixture(9, n_starts=1, n_moves=60).fit(x)
    assert moved.log_likelihood >= stuck.log_likelihood


def test_same_generator_same_result_and_large_data_are_searched_on_a_subset():
    x, labels = blobs(n=1200)
    runs = [fitted(x, 4, n_search=300, generator=torch.Generator().manual_seed(5))[2].argmax(1) for _ in range(2)]
    assert torch.equal(*runs)
    assert adjusted_rand_score(labels, runs[0]) > 0.99


@pytest.mark.parametrize(("n", "d", "k"), [(3, 1, 1), (5, 2, 5), (20, 1, 2)])
def test_small_and_degenerate_data_fit(n, d, k):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    x[:, 0] += (torch.arange(n) > n / 2) * 20.0
    _, mixture, posterior = fitted(x, k)
    assert posterior.isfinite().all()
    assert isinstance(mixture, Mixture)


def test_constant_coordinates_fit():
    x, labels = blobs(n=200, k=2)
    x = torch.cat([x, torch.zeros(200, 1)], dim=1)
    _, _, posterior = fitted(x, 2)
    assert posterior.isfinite().all()
