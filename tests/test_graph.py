"""Many types: communities of a neighbour graph, and the choice between them and the likeliest mixture."""

import random

import numpy as np
import pytest
import torch

import cplmixvi as cpl
from cplmixvi.metrics import ari
from cplmixvi.train import _choice
from cplmixvi.train._choice import choose_start
from cplmixvi.train._graph import GraphMixture, _linked, communities
from cplmixvi.train._views import usual_dimensions


def blobs(sizes, *, n_dims=6, distance=12.0, seed=0):
    """Round clouds far from each other, and the cloud of every point."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = distance * rng.standard_normal((len(sizes), n_dims))
    return (centres[truth] + rng.standard_normal((len(truth), n_dims))).astype(np.float32), truth


def test_communities_are_as_many_as_wanted_and_small_where_types_are_small():
    points, truth = blobs([400, 200, 100, 40, 25])
    for join_pieces in (False, True):
        labels = communities(points, 5, join_pieces=join_pieces)
        assert ari(truth, labels) == 1
        assert sorted(np.bincount(labels)) == [25, 40, 100, 200, 400]


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_fewer_communities_than_the_graph_has_parts_are_joined_by_distance(wanted):
    near = np.array([[0.0, 0], [8, 0], [60, 0], [68, 0]], dtype=np.float32)
    rng = np.random.default_rng(0)
    points = np.repeat(near, 50, axis=0) + rng.standard_normal((200, 2)).astype(np.float32)
    for join_pieces in (False, True):
        labels = communities(points, wanted, join_pieces=join_pieces)
        assert set(labels) == set(range(wanted))
        if wanted == 2:
            assert ari(np.repeat([0, 0, 1, 1], 50), labels) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_small_communities_are_told_from_pieces_of_large_ones(seed):
    """Two long bands of 1,200 points, and three clouds of 30 beside one of them."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(5), [1200, 1200, 30, 30, 30])
    points = rng.standard_normal((len(truth), 4))
    for band, height in enumerate((0, 20)):
        points[truth == band, 0] += rng.uniform(-20, 20, 1200)
        points[truth == band, 1] += height
    for cloud, place in zip((2, 3, 4), (-13, 0, 13), strict=True):
        points[truth == cloud, :2] += (place, -5)
    points = points.astype(np.float32)
    assert ari(truth, communities(points, 5)) < 0.7
    joined = communities(points, 5, join_pieces=True)
    assert ari(truth, joined) > 0.98
    assert sorted(np.bincount(joined))[:3] == pytest.approx([30] * 3, abs=3)


def test_pieces_are_joined_where_the_least_share_of_edges_is_left_leading_out():
    """Four communities of which one has no edge to another, by hand; as if one edge more led out, of mean weight w."""
    labels = np.arange(8) // 2
    edges = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [0, 2], [1, 3], [3, 4]])
    weights = np.array([1.0, 2.0, 3.0, 1.0, 0.5, 0.5, 0.4])
    w = weights.mean()

    def phi(out, inside):
        return np.log((out + w) / (out + 2 * inside + w))

    apart = phi(1, 1), phi(1.4, 2), phi(0.4, 3), phi(0, 1)
    first, second = phi(0.4, 4) + apart[2], phi(1, 5.4) + apart[0]
    assert first < second
    union, openness = _linked(labels, edges, weights, 4)
    assert union.tolist() == [0, 1, 2, 3] and openness == pytest.approx(sum(apart))
    union, openness = _linked(labels, edges, weights, 3)
    assert union.tolist() == [0, 0, 1, 2] and openness == pytest.approx(first + apart[3])
    # What no edge leads to is left alone.
    assert _linked(labels, edges, weights, 1)[0].tolist() == [0, 0, 0, 1]


def test_communities_depend_on_their_seed_alone():
    points, _ = blobs([60] * 4, distance=1.5)
    random.seed(1)
    before = random.getstate()
    first = communities(points, 6, seed=3)
    assert random.getstate() == before
    random.seed(2)
    np.testing.assert_array_equal(first, communities(points, 6, seed=3))


def test_more_communities_than_points_leave_categories_empty():
    points, _ = blobs([4, 3])
    fit = GraphMixture(10).fit([torch.from_numpy(points)])
    assert fit.posterior.shape == (7, 10)
    assert torch.isfinite(fit.posterior).all()


def test_mixture_starts_from_what_most_starts_agree_on():
    points, truth = blobs([150, 80, 30])
    x = torch.from_numpy(points)
    right = torch.nn.functional.one_hot(torch.from_numpy(truth), 3).float()
    wrong = torch.nn.functional.one_hot(torch.from_numpy(np.random.default_rng(0).integers(0, 3, 260)), 3).float()
    fit = GraphMixture(3).fit([x, x[:, :3]], starts=[wrong, right, right])
    assert ari(truth, fit.posterior.argmax(1).numpy()) == 1


def test_all_points_get_a_component_where_the_graph_sees_some(monkeypatch):
    monkeypatch.setattr("cplmixvi.train._graph.MAX_POINTS", 200)
    points, truth = blobs([300, 200, 100])
    fit = GraphMixture(3).fit([torch.from_numpy(points)])
    assert ari(truth, fit.posterior.argmax(1).numpy()) == 1


def test_a_graph_has_more_coordinates_for_more_categories():
    assert usual_dimensions("graph", 100) == (40, 60, 80, 100)
    assert usual_dimensions("graph", 25) == usual_dimensions("mixture", 100) == (10, 15, 20, 25)


class TestChoice:
    def test_few_categories_or_cells_are_for_the_mixture_without_a_look(self, monkeypatch):
        monkeypatch.setattr(_choice, "views_of_halves", lambda *args: pytest.fail("looked"))
        x = torch.rand(299, 5)
        assert choose_start(x, 25, on_counts=False) == "mixture"
        assert choose_start(x, 30, on_counts=False) == "mixture"

    @pytest.mark.parametrize(("better", "chosen"), [(0.02, "mixture"), (0.05, "graph")])
    def test_communities_must_be_clearly_more_reproducible(self, monkeypatch, better, chosen):
        found = iter([0.5, 0.5, 0.5 + better, 0.5 + better])
        monkeypatch.setattr(_choice, "agreement", lambda *args: dict.fromkeys(("agreement", "ari"), next(found)))
        monkeypatch.setattr(_choice, "views_of_halves", lambda *args: [])
        assert choose_start(torch.rand(300, 5), 30, on_counts=False) == chosen

    def test_types_that_vary_in_the_same_way_are_for_the_mixture(self):
        rng = np.random.default_rng(0)
        truth = rng.permutation(
            np.repeat(np.arange(26), cpl.datasets.imbalanced_sizes(600, 26, smallest=8, largest=90))
        )
        x = 2 * rng.standard_normal((26, 100))[truth] + rng.standard_normal((600, 100))
        assert choose_start(torch.from_numpy(x.astype(np.float32)), 26, on_counts=False) == "mixture"
