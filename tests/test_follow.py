"""Arms that start as good as their guide: the linear path, its fit, and answers that are kept."""

import numpy as np
import pytest
import torch

import cplmixvi as cpl
from cplmixvi._constants import CELL_KEY, COUNT_LIKELIHOODS
from cplmixvi.module import CategoryMoments, Covariates, LinearPath, likelihood_class
from cplmixvi.module._dual import DualWeight
from cplmixvi.train import _answers, _plan
from cplmixvi.train._answers import GuideAnswers
from cplmixvi.train._follow import follow_guide, logistic

pytestmark = pytest.mark.usefixtures("small_committee")


@pytest.fixture(scope="module")
def adata():
    adata = cpl.datasets.simulate(400, 80, 4, n_markers=8, seed=2)
    cpl.CplMixVI.setup_anndata(adata)
    return adata


class TestPath:
    def test_adds_nothing_until_it_is_set(self):
        path = LinearPath(30, 4)
        path(torch.rand(5, 30)).sum().backward()
        assert torch.count_nonzero(path(torch.rand(5, 30))) == 0
        assert torch.count_nonzero(path.weight.grad) == 0

    def test_coordinates_are_standardised_by_batch_and_clipped(self):
        path = LinearPath(2, 3, n_batch=3)
        mean = torch.tensor([[1.0, 0], [5, 0], [3, 0]])
        path.follow(mean, torch.tensor([2.0, 1.0]), torch.eye(2), clip=4.0)
        x = torch.tensor([[3.0, 0], [3, 0], [3, 0], [90, 0]])
        # The third batch was not among those that means are known of, and a cell may have no batch at all.
        first = path.coordinates(x, torch.tensor([0, 1, 2, 0]))[:, 0]
        torch.testing.assert_close(first, torch.tensor([1.0, -1, 0, 4]))
        assert path.coordinates(x)[0, 0] == 0

    @pytest.mark.parametrize(("n_genes", "k", "expected"), [(10, 5, 10), (500, 5, 25), (500, 60, 60), (500, 900, 128)])
    def test_has_coordinates_for_many_categories(self, n_genes, k, expected):
        path = LinearPath(n_genes, k)
        assert path.n_coordinates == expected
        # A guide may have more, or fewer.
        for width in (expected + 3, max(1, expected - 3)):
            path.follow(torch.zeros(2, n_genes), torch.ones(n_genes), torch.rand(n_genes, width), clip=10.0)
            assert path(torch.rand(3, n_genes)).shape == (3, k)


class TestLogistic:
    def test_finds_the_posterior_of_two_clouds(self):
        rng = np.random.default_rng(0)
        truth = rng.integers(0, 2, 4_000)
        z = torch.from_numpy((rng.standard_normal((4_000, 3)) + 2 * truth[:, None] * [1, 0, 0]).astype(np.float32))
        weight, bias = logistic(z, torch.nn.functional.one_hot(torch.from_numpy(truth), 2).float())
        slope = weight[:, 1] - weight[:, 0]
        # log p1/p0 = 2 z0 - 2 where means differ by 2 along the first axis.
        assert slope.tolist() == pytest.approx([2, 0, 0], abs=0.2)
        assert float(bias[1] - bias[0]) == pytest.approx(-2, abs=0.25)

    def test_coordinates_that_do_not_vary_get_no_weight(self):
        z = torch.cat([torch.rand(50, 1), torch.zeros(50, 2)], dim=1)
        weight, bias = logistic(z, torch.tensor([[0.3, 0.7]]).expand(50, 2))
        assert torch.count_nonzero(weight[1:]) == 0
        torch.testing.assert_close(torch.softmax(z @ weight + bias, 1)[0], torch.tensor([0.3, 0.7]), atol=1e-3, rtol=0)


def started(adata, monkeypatch):
    """A model whose arms were set but not trained, and its guide's answers."""
    seen = []
    monkeypatch.setattr(
        _plan,
        "follow_guide",
        lambda module, answers, batches: seen.append(answers) or follow_guide(module, answers, batches),
    )
    monkeypatch.setattr(_plan.CplMixPlan, "configure_optimizers", lambda self: None)
    model = cpl.CplMixVI(adata, n_categories=4)
    with pytest.warns(UserWarning):
        model.train(max_epochs=1, enable_progress_bar=False)
    return model, seen[0]


def test_arms_start_with_the_answers_of_the_guide(adata, monkeypatch):
    model, answers = started(adata, monkeypatch)
    x = torch.from_numpy(adata.X.toarray())
    module = model.module.eval()
    said = answers.guide(module.encoder_input(x), torch.zeros(len(x), dtype=torch.long)).argmax(1)
    for arm in module.arms:
        logits = arm.path(module.encoder_input(x), torch.zeros(len(x), dtype=torch.long)) + arm.category_head.bias
        assert (logits.argmax(1) == said).float().mean() > 0.97


def test_decoders_start_at_the_means_of_the_guides_categories(adata, monkeypatch):
    model, answers = started(adata, monkeypatch)
    x = torch.from_numpy(adata.X.toarray())
    none = torch.zeros(len(x), dtype=torch.long)
    said = answers.guide(model.module.encoder_input(x), none)
    means = said.T @ x
    shares = means / means.sum(1, keepdim=True)
    for arm in model.module.arms:
        library, covariates = torch.ones(4, 1), Covariates((torch.zeros(4, 1, dtype=torch.long),))
        decoded = torch.stack([arm.decode(torch.eye(4), torch.randn(4, 2), library, covariates).mean for _ in range(9)])
        # Nearer to their own than to any other's, by far, whatever the state.
        distance = (decoded.unsqueeze(2) - shares).abs().sum(-1)
        own = distance.diagonal(dim1=1, dim2=2)
        assert own.max() < 0.2 * (distance + 9 * torch.eye(4)).min()


def moments_of(x, labels, k, on_counts):
    moments = CategoryMoments(k, x.shape[1], on_counts)
    # In two parts, the second of which has no cell of the last category.
    order = torch.argsort(labels, descending=True)
    for part in order.tensor_split(2):
        moments.add(x[part], torch.nn.functional.one_hot(labels[part], k).float())
    return moments


class TestMoments:
    LABELS = torch.arange(6_000) % 3

    def test_of_values(self):
        rng = np.random.default_rng(0)
        means = torch.tensor([[0.0, 5], [1, 5], [2, 5]])
        x = means[self.LABELS] + torch.from_numpy(rng.normal(0, [0.5, 0], (6_000, 2)).astype(np.float32))
        moments = moments_of(x, self.LABELS, 3, on_counts=False)
        torch.testing.assert_close(moments.rates, means, atol=0.03, rtol=0)
        torch.testing.assert_close(moments.variance(), torch.tensor([0.25, 0]), atol=0.02, rtol=0)

    @pytest.mark.parametrize("far", [0.0, 1_000.0, -20_000.0])
    def test_of_values_far_from_zero(self, far):
        x = far + torch.randn(6_000, 2, generator=torch.Generator().manual_seed(0)) + self.LABELS[:, None]
        moments = moments_of(x, self.LABELS, 3, on_counts=False)
        torch.testing.assert_close(moments.rates, far + torch.tensor([[0.0, 0], [1, 1], [2, 2]]), atol=0.1, rtol=0)
        torch.testing.assert_close(moments.variance(), torch.ones(2), atol=0.1, rtol=0)

    def test_of_counts_of_cells_of_any_depth(self):
        rng = np.random.default_rng(0)
        shares, theta = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]), np.array([2.0, 8, np.inf])
        mean = rng.uniform(50, 500, (6_000, 1)) * shares[self.LABELS]
        varied = np.where(np.isfinite(theta), rng.gamma(np.minimum(theta, 99), size=mean.shape) / theta, 1)
        x = rng.poisson(mean * varied)
        moments = moments_of(torch.from_numpy(x).float(), self.LABELS, 3, on_counts=True)
        torch.testing.assert_close(moments.rates, torch.from_numpy(shares).float(), atol=0.05, rtol=0)
        # Libraries are sums of the counts, and so follow the genes that vary.
        found = moments.inverse_dispersion()
        assert found[0] < found[1] < found[2]

    def test_genes_that_do_not_vary_more_than_counts_do_have_no_dispersion(self):
        moments = moments_of(torch.full((30, 2), 4.0), torch.arange(30) % 2, 2, on_counts=True)
        assert moments.inverse_dispersion().isinf().all()

    def test_a_category_without_cells_has_the_mean_of_all(self):
        moments = moments_of(torch.rand(30, 2), torch.arange(30) % 2, 3, on_counts=False)
        torch.testing.assert_close(moments.rates[2], moments.rates[:2].mean(0), atol=0.05, rtol=0)


class TestStartOfLikelihoods:
    HIDDEN = torch.randn(20, 5, 30, generator=torch.Generator().manual_seed(0)) * 0.1 + 2 * torch.eye(5, 30)
    LABELS = torch.arange(5_000) % 5

    @pytest.mark.parametrize("name", ["nb", "zinb", "poisson", "normal", "mse", "bernoulli"])
    def test_values_have_the_means(self, name):
        rates = torch.rand(5, 12, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
        likelihood = likelihood_class(name)(30, 12)
        before = likelihood.output.weight.detach().clone()
        likelihood.start_at(self.HIDDEN, moments_of(rates[self.LABELS], self.LABELS, 5, name in COUNT_LIKELIHOODS))
        px = likelihood(self.HIDDEN.mean(0), rates.sum(1, keepdim=True))
        torch.testing.assert_close(px.mu if name == "zinb" else px.mean, rates, atol=0.02, rtol=0)
        # Zero inflation stays as it was.
        torch.testing.assert_close(likelihood.output.weight[12:], before[12:])

    def test_genes_have_the_variance_that_categories_leave(self):
        rng = np.random.default_rng(0)
        x = torch.from_numpy(rng.normal(0, np.linspace(0.2, 2, 12), (5_000, 12)).astype(np.float32))
        likelihood = likelihood_class("normal")(30, 12)
        likelihood.start_at(self.HIDDEN, moments_of(x, self.LABELS, 5, on_counts=False))
        torch.testing.assert_close(likelihood(self.HIDDEN[0], None).stddev[0], x.std(0), atol=0.02, rtol=0)
        counts = torch.from_numpy(rng.negative_binomial(3, 0.1, (5_000, 12)).astype(np.float32))
        likelihood = likelihood_class("nb")(30, 12)
        likelihood.start_at(self.HIDDEN, moments_of(counts, self.LABELS, 5, on_counts=True))
        assert likelihood.log_theta.exp().tolist() == pytest.approx([3.5] * 12, rel=0.25)

    def test_more_categories_than_hidden_units_and_hidden_layers_that_do_not_differ(self):
        for hidden in (torch.rand(3, 40, 6), torch.ones(3, 40, 6)):
            likelihood = likelihood_class("nb")(6, 12)
            likelihood.start_at(hidden, moments_of(torch.rand(80, 12), torch.arange(80) % 40, 40, on_counts=True))
            assert all(weight.isfinite().all() for weight in likelihood.parameters())

    @pytest.mark.parametrize("name", ["nb", "zinb", "poisson", "normal", "bernoulli"])
    def test_genes_that_no_cell_shows_stay_possible(self, name):
        likelihood = likelihood_class(name)(30, 12)
        likelihood.start_at(self.HIDDEN, moments_of(torch.eye(5, 12), torch.arange(5), 5, name in COUNT_LIKELIHOODS))
        px = likelihood(self.HIDDEN, torch.ones(5, 1))
        assert likelihood.log_prob(px, torch.ones(5, 12)).isfinite().all()

    def test_a_decoder_that_ends_in_the_output_is_left_alone(self):
        likelihood = likelihood_class("bernoulli")(30, 12)
        likelihood.output = torch.nn.Identity()
        likelihood.start_at(self.HIDDEN, moments_of(torch.rand(5, 12), torch.arange(5), 5, on_counts=False))


class TestAnswers:
    def guide(self, calls):
        def guide(values, batch):
            calls.append(len(values))
            return torch.softmax(values[:, :4], dim=1)

        return guide

    def minibatch(self, rows):
        return {"X": torch.arange(4.0 * len(rows)).view(-1, 4), "batch": torch.zeros(len(rows), 1), CELL_KEY: rows}

    @pytest.fixture
    def module(self, adata):
        return cpl.CplMixVI(adata, n_categories=4).module

    def test_the_guide_is_asked_once_per_cell(self, module):
        calls = []
        answers = GuideAnswers(self.guide(calls), module, 9)
        first = answers(self.minibatch(torch.tensor([7, 2, 8])))
        again = answers(self.minibatch(torch.tensor([7, 2, 8])))
        torch.testing.assert_close(first, again)
        torch.testing.assert_close(answers(self.minibatch(torch.tensor([8])))[0], first[2])
        assert calls == [3]
        answers(self.minibatch(torch.tensor([8, 1])))
        assert calls == [3, 2]

    @pytest.mark.parametrize("n_rows", [0, 9])
    def test_answers_that_would_not_fit_are_asked_for_again(self, module, monkeypatch, n_rows):
        monkeypatch.setattr(_answers, "MAX_KEPT", 30)
        monkeypatch.setattr(_answers, "MAX_LARGEST", 30)
        calls = []
        answers = GuideAnswers(self.guide(calls), module, n_rows)
        for _ in range(2):
            answers(self.minibatch(torch.tensor([1, 2])))
        assert calls == [2, 2]

    def test_of_too_many_answers_the_largest_are_kept(self, module, monkeypatch):
        monkeypatch.setattr(_answers, "MAX_KEPT", 30)
        monkeypatch.setattr(_answers, "N_LARGEST", 2)
        calls = []
        answers = GuideAnswers(self.guide(calls), module, 9)
        rows = torch.tensor([1, 2])
        first = answers(self.minibatch(rows))
        again = answers(self.minibatch(rows))
        assert calls == [2]
        torch.testing.assert_close(again.topk(2).values, first.topk(2).values)
        torch.testing.assert_close(again.sum(1), torch.ones(2))
        # The other two share what is left.
        rest = first.sum(1) - first.topk(2).values.sum(1)
        torch.testing.assert_close(again.sort(1).values[:, :2], (rest / 2)[:, None].expand(-1, 2))
        assert answers._kept.shape == answers._which.shape == (9, 2)

    def test_answers_about_drawn_counterparts_are_averaged_before_they_are_kept(self, module, monkeypatch):
        monkeypatch.setattr(type(module.augmenter), "nuisance_keys", ("stim",))
        said = torch.softmax(torch.randn(_answers.N_DRAWS + 3, 2, 4), dim=2)
        draws = iter(said)
        answers = GuideAnswers(lambda values, batch: next(draws), module, 9)
        minibatch = self.minibatch(torch.tensor([6, 2]))
        for n_draws in range(1, _answers.N_DRAWS + 1):
            torch.testing.assert_close(answers(minibatch), said[:n_draws].mean(0))
        # A training that is resumed goes on with them.
        monkeypatch.setattr(_answers, "guide_state", lambda guide: guide)
        monkeypatch.setattr(_answers, "guide_of", lambda guide: torch.nn.Module())
        for kept in (answers, GuideAnswers.of(answers.state(), module)):
            torch.testing.assert_close(kept(minibatch), said[: _answers.N_DRAWS].mean(0))
        assert next(draws).equal(said[_answers.N_DRAWS])


class TestToleranceThatCannotBeMet:
    def test_the_level_that_was_observed_is_tolerated(self):
        weight = DualWeight(1.0, 0.05)
        for _ in range(20):
            weight.observe(torch.tensor(0.12))
        for _ in range(200):
            weight.step(torch.tensor(0.12))
        assert float(weight.value) == pytest.approx(1.0, rel=1e-3)
        weight.step(torch.tensor(0.2))
        assert float(weight.value) > 1

    def test_a_level_below_the_tolerance_changes_nothing(self):
        weight = DualWeight(1.0, 0.05)
        weight.observe(torch.tensor(0.01))
        weight.step(torch.tensor(0.04))
        assert float(weight.value) < 1
