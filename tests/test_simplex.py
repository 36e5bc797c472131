"""Distances on the simplex: recorded values, algebra and Proposition 3."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cplmixvi.module import _simplex as simplex

GOLDEN = np.load(Path(__file__).parent / "data" / "golden_terms.npz")
CASES = ("eval2", "train2", "train3", "train2_beta_lam", "train2_mask")


def golden(case, name):
    return torch.from_numpy(np.asarray(GOLDEN[f"{case}/{name}"], dtype=np.float64))


def log_simplex(n_parts):
    """Points of the simplex with no part below about 1e-4."""
    values = arrays(np.float64, (n_parts,), elements=st.floats(-4, 4))
    return values.map(lambda v: torch.log_softmax(torch.from_numpy(v), -1))


@pytest.mark.parametrize("case", CASES)
def test_perturbed_distance_equals_the_reference(case):
    q = golden(case, "qc")
    coordinates = simplex.perturbed_coordinates(simplex.safe_log(q), simplex.category_variance(q))
    pairs = list(combinations(range(len(q)), 2))
    per_pair = [simplex.pairwise_distance2(coordinates[list(pair)]).mean() for pair in pairs]
    np.testing.assert_allclose(per_pair, golden(case, "dsigma2"), rtol=1e-5)
    np.testing.assert_allclose(simplex.pairwise_distance2(coordinates).mean(), golden(case, "dsigma2").sum(), rtol=1e-5)


def simplex_pairs():
    """Two log-points of a simplex with standard deviations of their parts."""
    return st.integers(2, 8).flatmap(
        lambda k: st.tuples(
            log_simplex(k),
            log_simplex(k),
            *2 * (arrays(np.float64, (k,), elements=st.floats(0.05, 2)).map(torch.from_numpy),),
        )
    )


@settings(deadline=None, max_examples=300)
@given(simplex_pairs())
def test_perturbed_distance_stays_within_its_bounds(case):
    bounds = simplex.perturbation_bounds(*case)
    slack = 1e-9 * (1 + bounds.perturbed2 + bounds.aitchison2)
    assert bounds.rho_lower >= 0
    assert bounds.rho_upper >= 0
    assert bounds.aitchison2 - bounds.rho_lower <= bounds.perturbed2 + slack
    assert bounds.perturbed2 <= bounds.aitchison2 + bounds.rho_upper + slack


def paper_bounds(log_p, log_q, sigma_p, sigma_q):
    """Proposition 3 to the letter: (rho_l, rho_u)."""
    n_parts = len(log_p)
    g = (1 / sigma_p - 1) * log_p - (1 / sigma_q - 1) * log_q
    tau_c = (log_p - log_q).max()
    rho_upper = n_parts * (g.max() ** 2 + tau_c**2) + 2 * g.sum() * tau_c
    return g.sum() ** 2 / n_parts - n_parts * (-g).max() ** 2, rho_upper


@settings(deadline=None, max_examples=300)
@given(simplex_pairs())
def test_proposition_3_holds_in_the_regime_it_is_derived_for(case):
    log_p, log_q, sigma_p, sigma_q = case
    g = (1 / sigma_p - 1) * log_p - (1 / sigma_q - 1) * log_q
    delta = log_p - log_q
    bounds = simplex.perturbation_bounds(*case)
    _, rho_upper = paper_bounds(*case)
    if (g >= 0).all() and delta.max() >= delta.abs().max():
        assert torch.isclose(rho_upper, bounds.rho_upper)
    if torch.allclose(g, g.mean()):  # equal perturbations: the lower bound reduces to d^2 <= d_sigma^2
        assert bounds.aitchison2 <= bounds.perturbed2 + 1e-9 * (1 + bounds.perturbed2)


@pytest.mark.parametrize(("sigma", "side"), [([0.5, 0.5, 0.5], "upper"), ([0.2, 0.5, 0.9], "lower")])
def test_proposition_3_to_the_letter_has_counterexamples(sigma, side):
    log_p = torch.tensor([0.8, 0.1, 0.1]).log()
    case = (log_p, log_p, torch.tensor(sigma), torch.ones(3))
    bounds, (rho_lower, rho_upper) = simplex.perturbation_bounds(*case), paper_bounds(*case)
    if side == "upper":
        assert bounds.perturbed2 > bounds.aitchison2 + rho_upper
    else:
        assert bounds.perturbed2 < bounds.aitchison2 - rho_lower
    assert bounds.aitchison2 - bounds.rho_lower <= bounds.perturbed2 <= bounds.aitchison2 + bounds.rho_upper


def test_equal_arms_have_no_distance():
    log_q = torch.log_softmax(torch.randn(1, 5, 4), -1).expand(3, 5, 4)
    assert torch.all(simplex.pairwise_distance2(simplex.clr(log_q)) < 1e-10)


@settings(deadline=None, max_examples=50)
@given(log_simplex(5), log_simplex(5), st.permutations(range(5)), st.floats(-3, 3))
def test_aitchison_distance_ignores_scale_and_order(log_p, log_q, order, shift):
    def distance(u, v):
        return simplex.pairwise_distance2(simplex.clr(torch.stack([u, v]).unsqueeze(1)))

    reference = distance(log_p, log_q)
    assert torch.allclose(distance(log_p + shift, log_q), reference, atol=1e-9)
    assert torch.allclose(distance(log_p[list(order)], log_q[list(order)]), reference, atol=1e-9)


@pytest.mark.parametrize("n_arms", [2, 3, 5])
def test_sum_over_pairs_is_linear_in_arms_but_exact(n_arms):
    u = torch.randn(n_arms, 7, 4, dtype=torch.float64)
    naive = sum((u[a] - u[b]).square().sum(-1) for a, b in combinations(range(n_arms), 2))
    assert torch.allclose(simplex.pairwise_distance2(u), naive)


def test_one_cell_has_no_variance():
    assert torch.equal(simplex.category_variance(torch.rand(2, 1, 3)), torch.zeros(2, 3))
