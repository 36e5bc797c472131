"""Terms of the objective: recorded values of the reference, closed forms, and the paper's weights."""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from cplmixvi.module import _losses as losses
from cplmixvi.module import _simplex as simplex

GOLDEN = np.load(Path(__file__).parent / "data" / "golden_terms.npz")
CASES = ("eval2", "train2", "train3", "train2_beta_lam", "train2_mask")


def golden(case, name):
    return torch.from_numpy(np.asarray(GOLDEN[f"{case}/{name}"], dtype=np.float64))


@pytest.mark.parametrize("case", CASES)
def test_terms_equal_the_reference(case):
    mean, variance = golden(case, "mu"), golden(case, "log_var").exp()
    np.testing.assert_allclose(losses.kl_normal(mean, variance).mean(-1), golden(case, "kl"), rtol=1e-5)
    squared = losses.half_squared_error(golden(case, "x"), golden(case, "recon")).mean(-1)
    np.testing.assert_allclose(squared, golden(case, "rec_mse_part"), rtol=1e-5)
    per_arm = losses.negative_entropy(golden(case, "qc")).mean(-1)
    per_pair = [per_arm[a] + per_arm[b] for a, b in combinations(range(len(per_arm)), 2)]
    np.testing.assert_allclose(per_pair, golden(case, "neg_entropy"), rtol=1e-5)


@pytest.mark.parametrize(("case", "lam", "beta"), [("eval2", 1, 1), ("train3", 1, 1), ("train2_beta_lam", 2.5, 0.01)])
def test_objective_equals_the_reference_total(case, lam, beta):
    q = golden(case, "qc")
    distance2 = simplex.pairwise_distance2(
        simplex.perturbed_coordinates(simplex.safe_log(q), simplex.category_variance(q))
    )
    objective = losses.coupled_objective(
        losses.half_squared_error(golden(case, "x"), golden(case, "recon")),
        losses.kl_normal(golden(case, "mu"), golden(case, "log_var").exp()),
        losses.negative_entropy(q),
        distance2,
        lam=lam,
        beta=beta,
    ).mean()
    # The recorded total carries two terms without gradient that the paper does not have: a constant per pair and the
    # cross-entropy of binarised values.
    n_arms, n_categories = len(q), q.shape[-1]
    n_pairs = n_arms * (n_arms - 1) // 2
    constant = n_pairs * (n_categories / 2 * math.log(2 * math.pi) - 0.5 * math.log(2 * lam))
    binarised = (n_arms - 1) * golden(case, "rec_bce_part").sum()
    np.testing.assert_allclose(objective, golden(case, "total") - constant - binarised, rtol=1e-5)


def test_kl_to_a_given_prior_matches_torch():
    q = torch.distributions.Normal(torch.randn(5, 3), torch.rand(5, 3) + 0.1)
    p = torch.distributions.Normal(torch.randn(5, 3), torch.rand(5, 3) + 0.1)
    expected = torch.distributions.kl_divergence(q, p).sum(-1)
    assert torch.allclose(losses.kl_normal(q.loc, q.variance, p.loc, p.variance), expected, atol=1e-5)


def test_entropy_of_certain_and_uniform_choices():
    p = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    assert torch.allclose(-losses.negative_entropy(p), torch.tensor([0.0, math.log(4)]), atol=1e-6)


@pytest.mark.parametrize("n_arms", [1, 2, 3])
def test_weights_of_the_two_forms_of_the_objective(n_arms):
    ones = torch.ones(n_arms, 4)
    n_pairs = n_arms * (n_arms - 1) // 2
    distance2 = torch.full((4,), float(n_pairs))
    relaxed = losses.coupled_objective(3 * ones, 2 * ones, -ones, distance2, lam=0.5, beta=0.1)
    assert torch.allclose(relaxed, torch.full((4,), max(n_arms - 1, 1) * n_arms * 2.2 + 0.5 * n_pairs))
    constrained = losses.coupled_objective(3 * ones, 2 * ones, -ones, distance2, lam=0.5, beta=0.1, constrained=True)
    assert torch.allclose(constrained, torch.full((4,), n_arms * 2.2 + (0.5 if n_pairs else 0)))
