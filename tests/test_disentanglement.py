"""Scores against known factors, on latent variables whose scores are known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy

from cplmixvi import metrics


@pytest.fixture(scope="module")
def factors():
    """Two independent numbers and a type, 2,000 observations."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"x": rng.integers(0, 8, 2_000), "y": rng.integers(0, 8, 2_000), "shape": rng.integers(0, 3, 2_000)}
    )


def noisy(values, scale=0.05, seed=1):
    return values + scale * np.random.default_rng(seed).standard_normal(len(values))


class TestDisentanglementScore:
    def test_a_variable_of_its_own_for_every_factor_is_perfect(self, factors):
        state = np.column_stack([noisy(-3 * factors["y"]), noisy(factors["x"])])
        assert metrics.disentanglement_score(factors, state, factors["shape"].astype(str)) == 1

    def test_a_factor_that_nothing_follows_loses_its_votes(self, factors):
        """Shape is not in the latents: its third of the votes goes to whichever varies least by chance."""
        state = np.column_stack([noisy(factors["y"]), noisy(factors["x"])])
        score = metrics.disentanglement_score(factors, state, n_votes=3_000)
        assert score == pytest.approx(2 / 3, abs=0.03)

    def test_mixed_factors_are_no_better_than_chance_between_them(self, factors):
        x, y = factors["x"].to_numpy(), factors["y"].to_numpy()
        state = np.column_stack([noisy(x + y), noisy(x - y)])
        score = metrics.disentanglement_score(factors[["x", "y"]], state, n_votes=3_000)
        assert score == pytest.approx(0.5, abs=0.05)

    def test_categories_vote_by_the_chance_to_differ(self, factors):
        """A category that is the shape in 97 of 100 observations still varies least where the shape is fixed."""
        rng = np.random.default_rng(2)
        category = np.where(rng.random(2_000) < 0.03, rng.integers(0, 3, 2_000), factors["shape"])
        state = rng.standard_normal((2_000, 1))
        assert metrics.disentanglement_score(factors[["shape"]], state, category) == 1
        with_x = metrics.disentanglement_score(
            factors[["shape", "x"]], np.column_stack([noisy(factors["x"])]), category
        )
        assert with_x == 1

    def test_dimensions_near_the_prior_are_left_out(self, factors):
        """A dimension of hardly any spread that follows x and y at once would win votes of both."""
        x, y = factors["x"].to_numpy(), factors["y"].to_numpy()
        state = np.column_stack([noisy(x, 2.5), noisy(y, 2.5, seed=2), 1e-4 * (x + y)])
        kl = [1.0, 1.0, 0.01]
        left_out = metrics.disentanglement_score(factors[["x", "y"]], state, kl=kl)
        alone = metrics.disentanglement_score(factors[["x", "y"]], state[:, :2])
        assert left_out == alone > 0.9
        kept = metrics.disentanglement_score(factors[["x", "y"]], state, kl=kl, min_kl=0.001)
        assert kept == metrics.disentanglement_score(factors[["x", "y"]], state) < alone - 0.1

    def test_units_and_order_do_not_matter_and_seeds_repeat(self, factors):
        x, y = factors["x"].to_numpy(), factors["y"].to_numpy()
        state = np.column_stack([noisy(x + 0.7 * y, 2), noisy(y, 4), np.zeros(2_000)])
        scores = {
            metrics.disentanglement_score(factors, each, seed=3)
            for each in (state, state * [1e-3, 1e3, 1], state[:, ::-1])
        }
        assert len(scores) == 1

    def test_what_cannot_be_scored_is_refused(self, factors):
        state = np.column_stack([factors["x"], factors["y"]]).astype(float)
        for arguments, message in (
            ((factors, state[:-1]), "one row per observation"),
            ((factors, state * [np.nan, 1]), "missing values"),
            ((factors, state, ["a"]), "1 categories"),
            ((factors, np.ones((2_000, 2))), "no latent variable varies"),
            ((np.arange(2_000), state), "no two observations"),
        ):
            with pytest.raises(ValueError, match=message):
                metrics.disentanglement_score(*arguments)
        with pytest.raises(ValueError, match="one value for each of 2"):
            metrics.disentanglement_score(factors, state, kl=[1.0])
        with pytest.raises(ValueError, match="at least one vote"):
            metrics.disentanglement_score(factors, state, n_votes=0)


class TestMutualInformationGap:
    def test_by_hand(self):
        """A bit that one variable tells and another tells with one error in ten."""
        bit = np.tile([0, 1], 500)
        flipped = np.where(np.arange(1_000) % 20 < 2, 1 - bit, bit)
        gap = metrics.mutual_information_gap({"bit": bit}, flipped[:, None].astype(float), np.where(bit, "on", "off"))
        assert gap.index.tolist() == ["bit"]
        # The second has 1 bit less the entropy of an error in ten.
        assert gap["bit"] == pytest.approx(entropy([0.1, 0.9], base=2))

    def test_one_variable_each_is_one_and_copies_are_zero(self, factors):
        x = factors["x"].to_numpy(dtype=float)
        apart = metrics.mutual_information_gap(factors, np.column_stack([x, factors["y"]]), factors["shape"])
        assert (apart > 0.95).all()
        assert metrics.mutual_information_gap(x, np.column_stack([x, -x])).item() == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("kind", [float, object])
    def test_continuous_factors_are_cut(self, kind):
        time = np.random.default_rng(0).random(4_000)
        state = np.column_stack([np.exp(3 * time), np.random.default_rng(1).random(4_000)])
        assert metrics.mutual_information_gap(time.astype(kind), state).item() > 0.95

    @pytest.mark.parametrize("kind", [str, pd.CategoricalDtype()])
    def test_names_are_not_cut_however_many(self, kind):
        """Thirty donors, which the first dimension tells apart and bins of which it could not."""
        donor = pd.Series(np.arange(3_000) % 30)
        state = np.column_stack([donor % 20, np.random.default_rng(0).random(3_000)])
        named = ("donor " + donor.astype(str)).astype(kind)
        expected = (np.log(30) - 20 / 30 * np.log(2)) / np.log(30)
        gap = metrics.mutual_information_gap({"donor": named}, state)["donor"]
        second = metrics.mutual_information_gap({"donor": named}, state[:, ::-1])["donor"]
        assert gap == pytest.approx(expected, abs=0.05) and second == pytest.approx(gap)

    def test_a_factor_that_does_not_vary_and_too_few_latents(self, factors):
        state = np.column_stack([factors["x"], factors["y"]])
        assert metrics.mutual_information_gap(np.ones(2_000), state).item() == 0
        with pytest.raises(ValueError, match="a gap needs two"):
            metrics.mutual_information_gap(factors, state[:, :1])
