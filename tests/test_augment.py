"""Augmenters: what a copy may and may not change."""

import numpy as np
import pytest
import torch

from cplmixvi import augment


@pytest.fixture
def counts():
    return torch.poisson(torch.rand(200, 50) * 4)


def test_thinned_copies_are_counts_with_binomial_moments(counts):
    copies = torch.stack([augment.CountThinning(0.3)(counts) for _ in range(400)])
    assert torch.equal(copies, copies.round())
    assert (copies <= counts).all()
    assert (copies >= 0).all()
    assert torch.allclose(copies.mean(0).sum(), 0.3 * counts.sum(), rtol=0.01)
    expected = 0.3 * 0.7 * counts
    assert torch.allclose(copies.var(0).sum(), expected.sum(), rtol=0.02)


def test_large_counts_are_thinned_as_small_ones_are_and_take_no_more_memory(monkeypatch):
    counts = torch.tensor([0.0, 3, 63, 64, 200, 5_000]).repeat(500, 1)
    copies = torch.stack([augment.CountThinning(0.3)(counts) for _ in range(20)]).view(-1, 6)
    expected = counts[0]
    assert torch.allclose(copies.mean(0), 0.3 * expected, rtol=0.02)
    assert torch.allclose(copies.var(0), 0.21 * expected, rtol=0.06)
    looked_at = []
    searched = torch.Tensor.__le__
    monkeypatch.setattr(torch.Tensor, "__le__", lambda a, b: looked_at.append(a.numel()) or searched(a, b))
    augment.CountThinning(0.3)(torch.full((100, 100), 500.0))
    # Distribution functions, of which a large count has none.
    assert sum(looked_at) < 10_000


def test_thinning_keeps_everything_at_one_and_draws_afresh_below(counts):
    assert torch.equal(augment.CountThinning(1.0)(counts), counts)
    assert augment.CountThinning(np.float32(0.5)).keep == (0.5, 0.5)
    thin = augment.CountThinning((0.2, 0.8))
    assert not torch.equal(thin(counts), thin(counts))


def test_interval_gives_cells_different_depths(counts):
    kept = augment.CountThinning((0.1, 0.9))(100 * counts).sum(1) / (100 * counts).sum(1)
    assert kept.min() < 0.2
    assert kept.max() > 0.8


def test_masking_zeroes_the_stated_share(counts):
    copy = augment.GeneMasking(0.25)(counts + 1)
    assert abs((copy == 0).float().mean() - 0.25) < 0.02
    assert torch.equal(copy[copy > 0], (counts + 1)[copy > 0])


def test_noise_keeps_zeros_and_has_the_stated_size(counts):
    values = counts * 10
    copy = augment.GaussianNoise(0.5)(values)
    assert torch.equal(copy == 0, values == 0)
    difference = (copy - values)[values > 0]
    assert abs(difference.std() - 0.5) < 0.02


@pytest.mark.parametrize("name", ["thin", "mask", "noise"])
def test_augmenters_leave_their_input_alone(name, counts):
    before = counts.clone()
    augment.resolve(name, "nb" if name == "thin" else "normal")(counts)
    assert torch.equal(counts, before)


def test_names_and_composition_resolve(counts):
    assert isinstance(augment.resolve("auto", "nb"), augment.CountThinning)
    assert isinstance(augment.resolve("auto", "normal"), augment.GeneMasking)
    assert isinstance(augment.resolve(None, "nb"), augment.Identity)
    both = augment.resolve(["thin", augment.GeneMasking(0.5)], "nb")
    assert both.needs_counts
    assert both(counts).sum() < 0.35 * counts.sum()


@pytest.mark.parametrize(
    ("given", "likelihood", "message"),
    [
        ("thinn", "nb", "not known"),
        ("thin", "normal", "not counts"),
        (["mask", "thin"], "mse", "not counts"),
        ([], "nb", "neither a name"),
        (3, "nb", "neither a name"),
    ],
)
def test_what_does_not_fit_is_refused(given, likelihood, message):
    with pytest.raises(ValueError, match=message):
        augment.resolve(given, likelihood)


@pytest.mark.parametrize("keep", [0, -0.1, 1.2, (0.8, 0.2)])
def test_impossible_probabilities_are_refused(keep):
    with pytest.raises(ValueError, match="outside"):
        augment.CountThinning(keep)
