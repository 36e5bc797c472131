"""States of several arms in common coordinates: what is aligned, kept and decoded."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cplmixvi as cpl
from cplmixvi.module import StateAlignment, StatePrior, StatePrograms, mean_over_arms
from cplmixvi.module._losses import kl_normal

K, S, N = 3, 2, 600


def rotations(generator, n):
    """Random orthogonal matrices, reflections among them, ``(n, S, S)``."""
    return torch.linalg.qr(torch.randn(n, S, S, generator=generator))[0]


def arms_of(seed, noise=0.0):
    """States that two arms see in coordinates of their own in each category, and the categories."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(N, S, generator=generator) * torch.tensor([1.0, 0.4])
    category = torch.randint(K, (N,), generator=generator)
    turn, scale = rotations(generator, K), torch.rand(K, generator=generator) + 0.5
    shift = torch.randn(K, S, generator=generator)
    other = scale[category, None] * torch.einsum("nst,nt->ns", turn[category], truth) + shift[category]
    other = other + noise * torch.randn(N, S, generator=generator)
    return truth, torch.stack([truth @ rotations(generator, 1)[0], other]), category


class TestAlignment:
    @given(st.integers(0, 1_000))
    @settings(max_examples=20, deadline=None)
    def test_arms_that_differ_by_sign_scale_rotation_and_origin_become_one(self, seed):
        _, state, category = arms_of(seed)
        alignment = StateAlignment(2, K, S)
        alignment.fit(state, category)
        (first, second), _ = alignment(state, torch.ones_like(state), category)
        # Small categories are shrunk to the rotation that all share, so not exact: .70 is the least of all seeds.
        for k in range(K):
            centred = [arm[category == k] - arm[category == k].mean(0) for arm in (first, second)]
            assert np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1] > 0.65

    def test_first_dimension_is_the_direction_of_most_variance(self):
        truth, state, category = arms_of(0)
        alignment = StateAlignment(2, K, S)
        alignment.fit(state, category)
        z = alignment(state, torch.ones_like(state), category)[0][0]
        assert abs(np.corrcoef(z[:, 0], truth[:, 0])[0, 1]) > 0.98
        assert abs(np.corrcoef(z[:, 1], truth[:, 1])[0, 1]) > 0.95

    def test_groups_within_types_lie_along_one_dimension_even_where_variances_are_equal(self):
        generator = torch.Generator().manual_seed(0)
        side = torch.randint(2, (N,), generator=generator).float() * 2 - 1
        truth = torch.stack(
            [0.95 * side + 0.3 * torch.randn(N, generator=generator), torch.randn(N, generator=generator)]
        )
        state = truth.T @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
        alignment = StateAlignment(1, 1, S)
        alignment.fit(state[None], torch.zeros(N, dtype=torch.long))
        z = alignment(state[None], torch.ones(1, N, S), torch.zeros(N, dtype=torch.long))[0][0]
        found = np.abs(np.corrcoef(z.T, side)[-1, :2])
        assert found.max() > 0.9
        assert found.min() < 0.15

    @given(st.integers(0, 1_000))
    @settings(max_examples=20, deadline=None)
    def test_a_dimension_goes_with_the_same_genes_in_all_categories(self, seed):
        generator = torch.Generator().manual_seed(seed)
        # Two groups and a gradient, each with genes of its own, in coordinates that each category turns as it likes.
        truth = torch.stack(
            [torch.randint(2, (N,), generator=generator) * 2.0 - 1, 0.5 * torch.randn(N, generator=generator)], dim=1
        )
        category = torch.randint(K, (N,), generator=generator)
        x = truth @ torch.randn(S, 40, generator=generator) + torch.randn(N, 40, generator=generator)
        x = x + torch.randn(K, 40, generator=generator)[category]
        turn = rotations(generator, K)
        state = torch.einsum("nst,nt->ns", turn[category], truth) + torch.randn(K, S, generator=generator)[category]
        state = state[None]
        programs = StatePrograms(K, S, 40)
        for rows in torch.arange(N).split(250):
            programs.add(state[0, rows], x[rows], category[rows])
        alignment = StateAlignment(1, K, S)
        alignment.fit(state, category, programs.sums())
        z = alignment(state, torch.ones_like(state), category)[0][0]
        found = np.array(
            [[np.corrcoef(z[category == k, j], truth[category == k, j])[0, 1] for j in range(S)] for k in range(K)]
        )
        assert (np.abs(found) > 0.9).all()
        assert (np.sign(found) == np.sign(found[0])).all()
        assert (alignment.likeness > 0.7).all()
        torch.testing.assert_close(alignment.inverse(z, category), state, atol=1e-4, rtol=1e-4)

    def test_genes_that_only_one_category_has_are_not_like_those_of_the_others(self):
        generator = torch.Generator().manual_seed(0)
        category = torch.arange(N) % K
        state = torch.randn(1, N, 1, generator=generator)
        x = torch.randn(N, 40, generator=generator)
        for k, effect in enumerate((1.0, 1.0, 0.0)):
            x[category == k, :5] += effect * state[0, category == k]
        x[category == 2, 20:25] += state[0, category == 2]
        programs = StatePrograms(K + 1, 1, 40)
        programs.add(state[0], x, category)
        alignment = StateAlignment(1, K + 1, 1)
        alignment.fit(state, category, programs.sums())
        first, second, other, empty = alignment.likeness[:, 0]
        assert min(first, second) > 0.5
        assert abs(other) < 0.3
        assert empty == 0

    def test_states_without_a_spread_are_turned_into_numbers(self):
        category = torch.arange(N) % K
        programs = StatePrograms(K, S, 5)
        programs.add(torch.zeros(N, S), torch.ones(N, 5), category)
        alignment = StateAlignment(1, K, S)
        alignment.fit(torch.zeros(1, N, S), category, programs.sums())
        assert torch.isfinite(alignment.rotation).all()
        assert torch.isfinite(alignment.likeness).all()

    def test_fewer_genes_than_dimensions(self):
        generator = torch.Generator().manual_seed(0)
        state, category = torch.randn(1, N, 3, generator=generator), torch.arange(N) % K
        programs = StatePrograms(K, 3, 1)
        programs.add(state[0], state[0, :, :1] + 1, category)
        alignment = StateAlignment(1, K, 3)
        alignment.fit(state, category, programs.sums())
        torch.testing.assert_close(alignment.rotation @ alignment.rotation.mT, torch.eye(3).expand(1, K, 3, 3))

    def test_more_than_two_dimensions_turn_into_a_rotation(self):
        state = torch.randn(2, N, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.7, 0.5, 0.2])
        alignment = StateAlignment(2, 1, 4)
        alignment.fit(state, torch.zeros(N, dtype=torch.long))
        torch.testing.assert_close(alignment.rotation @ alignment.rotation.mT, torch.eye(4).expand(2, 1, 4, 4))

    def test_a_handful_of_cells_follows_the_rotation_of_the_others(self):
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(500, S, generator=generator)
        second = -first
        category = torch.zeros(500, dtype=torch.long)
        category[:3] = 1
        second[:3] = torch.randn(3, S, generator=generator)
        alignment = StateAlignment(2, K, S)
        alignment.fit(torch.stack([first, second]), category)
        turns = alignment.rotation[1] @ alignment.rotation[0].transpose(-1, -2)
        for k in (0, 1, 2):
            torch.testing.assert_close(turns[k], -torch.eye(S), atol=0.1, rtol=0)

    @given(st.integers(0, 1_000))
    @settings(max_examples=20, deadline=None)
    def test_inverse_takes_every_arm_back(self, seed):
        _, state, category = arms_of(seed, noise=0.3)
        alignment = StateAlignment(2, K, S)
        alignment.fit(state, category)
        z, _ = alignment(state, torch.ones_like(state), category)
        for arm in (0, 1):
            torch.testing.assert_close(alignment.inverse(z[arm], category)[arm], state[arm], atol=1e-4, rtol=1e-4)

    def test_variances_turn_and_scale_with_the_states(self):
        _, state, category = arms_of(1, noise=0.1)
        alignment = StateAlignment(2, K, S)
        alignment.fit(state, category)
        variance = torch.rand(2, N, S) + 0.1
        draws = state[:, :1] + variance[:, :1].sqrt() * torch.randn(2, 20_000, S)
        drawn, _ = alignment(draws, torch.ones_like(draws), category[:1].expand(20_000))
        _, claimed = alignment(state[:, :1], variance[:, :1], category[:1])
        torch.testing.assert_close(drawn.var(1), claimed[:, 0], rtol=0.05, atol=0)

    def test_what_arms_disagree_on_is_uncertain(self):
        mean = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])
        combined, variance = mean_over_arms(mean, torch.full_like(mean, 0.5))
        torch.testing.assert_close(combined, torch.zeros(1, 2))
        torch.testing.assert_close(variance, torch.tensor([[1.5, 0.5]]))


class TestPrior:
    def test_standard_prior_is_the_same_for_all_types_and_learns_nothing(self):
        prior = StatePrior("standard", K, S)
        mean, variance = prior(torch.eye(K))
        assert not list(prior.parameters())
        assert (mean == 0).all()
        assert (variance == 1).all()

    def test_divergence_from_a_prior_per_type_is_that_of_torch(self):
        prior = StatePrior("type", K, S)
        torch.nn.init.normal_(prior.mean)
        torch.nn.init.normal_(prior.log_variance)
        c = torch.nn.functional.one_hot(torch.tensor([2, 0]), K).float()
        mean, variance = torch.randn(2, S), torch.rand(2, S) + 0.1
        code = torch.tensor([2, 0])
        expected = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, variance.sqrt()),
            torch.distributions.Normal(prior.mean[code], (0.5 * prior.log_variance[code]).exp()),
        ).sum(-1)
        torch.testing.assert_close(kl_normal(mean, variance, *prior(c)), expected)

    def test_unknown_prior(self):
        with pytest.raises(ValueError, match="state_prior='flat'.*'standard', 'type'"):
            StatePrior("flat", K, S)


@pytest.fixture
def fitted(fitted_states):
    return fitted_states


class TestStatesOfAModel:
    def test_the_state_that_was_simulated_is_found_in_every_type(self, fitted):
        adata, model = fitted
        state, types = model.get_state(), adata.obs["type"].to_numpy()
        for name in np.unique(types):
            centred = state[types == name] - state[types == name].mean(0)
            main = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
            truth = pd.Series(adata.obsm["state"][types == name, 0])
            assert abs(truth.corr(pd.Series(main), method="spearman")) > 0.9

    def test_new_cells_and_a_loaded_model_get_the_same_coordinates(self, fitted, tmp_path):
        adata, model = fitted
        model.save(tmp_path / "model")
        loaded = cpl.CplMixVI.load(tmp_path / "model", adata=False)
        np.testing.assert_allclose(loaded.get_state(adata[50:60].copy()), model.get_state()[50:60], atol=1e-5)
        assert torch.equal(loaded.module.priors[1].mean, model.module.priors[1].mean)
        assert (model.module.priors[1].mean != 0).any()

    def test_models_saved_before_there_was_an_alignment_still_load(self, fitted):
        adata, model = fitted
        state = {name: value for name, value in model.module.state_dict().items() if "alignment" not in name}
        cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
        other = cpl.CplMixVI(adata, n_categories=3, n_hidden=32, state_prior="type")
        other.module.load_state_dict(state)
        assert (other.module.alignment.scale == 1).all()

    def test_activity_is_that_of_the_states(self, fitted):
        _, model = fitted
        table = model.get_state_activity()
        assert len(table) == 3 * S
        row = table[(table["category"] == "1") & (table["dimension"] == 1)].iloc[0]
        mean, variance = model.get_state(return_variance=True)
        member = model.predict() == "1"
        assert row["n_cells"] == member.sum()
        # Both are divided by the same prior variance, which cancels.
        assert row["variance_share"] / row["uncertainty"] == pytest.approx(
            mean[member, 0].var() / variance[member, 0].mean(), rel=1e-3
        )
        assert (table["kl"] >= 0).all()
        # Every type was simulated with genes of its own.
        assert table["shared"].abs().max() < 0.6
        assert (table.groupby("category")["variance_share"].max() > 0.4).all(), "a state was simulated in every type"

    def test_decoding_a_cells_own_state_gives_its_type_and_expression(self, fitted):
        adata, model = fitted
        member = np.flatnonzero(model.predict() == "0")
        decoded = model.decode_state(model.get_state()[member[:20]], "0", indices=member, library_size=1_000)
        np.testing.assert_allclose(decoded.expression.sum(1), 1_000, rtol=1e-4)
        assert decoded.flips.mean() < 0.1
        observed = np.asarray(adata.X[member].mean(0)).ravel()
        assert np.corrcoef(observed, decoded.expression.mean(0))[0, 1] > 0.95

    @pytest.mark.parametrize(
        ("state", "category", "message"),
        [
            (np.zeros((1, 3)), "0", r"\(n_states, 2\)"),
            (np.full((1, 2), np.nan), "0", "not finite"),
            (np.zeros((1, 2)), "B cell", "'B cell' is not the name of one of the model's: '0'"),
        ],
    )
    def test_what_cannot_be_decoded(self, fitted, state, category, message):
        with pytest.raises(ValueError, match=message):
            fitted[1].decode_state(state, category)
