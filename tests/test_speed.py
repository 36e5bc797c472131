"""What was made fast gives what the plain way gives: values, gradients and draws."""

import numpy as np
import pytest
import torch
from scipy import stats
from scvi.distributions import NegativeBinomial
from scvi.nn import FCLayers
from torch import nn

import cplmixvi as cpl
from cplmixvi.augment import CountThinning
from cplmixvi.module import Arm, CplMixVAE, likelihood_class
from cplmixvi.module import _counts as counts_of
from cplmixvi.module import _dense as dense

N_CELLS, N_GENES, N_HIDDEN = 7, 9, 4


@pytest.fixture
def _small_blocks(monkeypatch):
    """Minibatches of a test are worked on in several blocks, as large ones are."""
    monkeypatch.setattr(dense, "BLOCK_ENTRIES", 2 * N_GENES)


def counts(n_cells=N_CELLS, dtype=torch.float64):
    """Zeros, small and large counts, and a cell with no molecules."""
    x = torch.poisson(torch.rand(n_cells, N_GENES, dtype=dtype) * 20)
    x[torch.rand_like(x) < 0.4] = 0
    x[0, 0], x[1, 1], x[2] = 500, counts_of.TABLE_COUNTS, 0
    return x


def layer(dtype=torch.float64):
    weights = {"hidden": (N_CELLS, N_HIDDEN), "weight": (N_GENES, N_HIDDEN), "bias": (N_GENES,), "theta": (N_GENES,)}
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in weights.values()]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("noise", [0, 0.3])
def test_gradients_of_the_likelihood_are_those_of_its_value(noise):
    x = counts()
    x = x + noise * (x > 0)
    library = x.sum(1, keepdim=True).clamp_min(1)
    score = counts_of.NegativeBinomialScore.apply
    assert torch.autograd.gradcheck(lambda *weights: score(*weights, library, x), layer())


@pytest.mark.usefixtures("_small_blocks")
def test_the_likelihood_of_counts_is_that_of_the_distribution():
    x, weights = counts(), layer()
    library = x.sum(1, keepdim=True).clamp_min(1)
    hidden, weight, bias, log_theta = weights
    scale = torch.softmax(nn.functional.linear(hidden, weight, bias), -1)
    expected = NegativeBinomial(mu=library * scale, theta=log_theta.exp()).log_prob(x).sum(-1)
    found = counts_of.NegativeBinomialScore.apply(*weights, library, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # Cells have weights of their own in a gradient.
    importance = torch.rand(N_CELLS, dtype=torch.float64)
    both = [torch.autograd.grad(value @ importance, weights, retain_graph=True) for value in (found, expected)]
    # scvi-tools adds 1e-8 inside logarithms, which tells where a mean is near that.
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_values_may_lie_in_memory_by_genes():
    torch.manual_seed(0)
    hidden, weight, bias, log_theta = (torch.randn(*size) for size in ((7, 4), (9, 4), (9,), (9,)))
    x = torch.poisson(torch.full((7, 9), 3.0))
    library = x.sum(1, keepdim=True)
    weight.requires_grad_()
    results = []
    for values in (x, x.t().contiguous().t()):
        score = counts_of.NegativeBinomialScore.apply(hidden, weight, bias, log_theta, library, values)
        results.append((score.detach(), *torch.autograd.grad(score.sum(), weight)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_tables_give_what_gamma_functions_give():
    x, theta = counts(), torch.rand(N_GENES, dtype=torch.float64) * 3 + 1e-3
    x[3, 3] = 2 - 1e-9
    table = counts_of.GammaTable(theta, x)
    for function in (counts_of.log_gammas, counts_of.digammas):
        torch.testing.assert_close(table(function, x), function(x, theta), rtol=1e-9, atol=1e-9)
    z = torch.logspace(-3, 5, 200, dtype=torch.float64)
    torch.testing.assert_close(counts_of.digamma(z), torch.digamma(z), rtol=1e-9, atol=1e-9)


def test_single_precision_keeps_large_dispersions():
    """Theta log(theta / (theta + mu)) must not be a difference of large numbers."""
    x, weights = counts().clamp(max=counts_of.TABLE_COUNTS), layer()
    with torch.no_grad():
        weights[3] += 12
    library = x.sum(1, keepdim=True).clamp_min(1)
    exact = counts_of.NegativeBinomialScore.apply(*weights, library, x)
    single = counts_of.NegativeBinomialScore.apply(*(v.float() for v in (*weights, library, x)))
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson", "mse"])
def test_scores_are_those_of_the_distributions(name):
    likelihood = likelihood_class(name)(N_HIDDEN, N_GENES).double()
    x, hidden = counts(), torch.randn(3, N_CELLS, N_HIDDEN, dtype=torch.float64)
    library = x.sum(1, keepdim=True).clamp_min(1)
    expected = likelihood.log_prob(likelihood(hidden, library), x)
    # Several samples at once, and one by one.
    torch.testing.assert_close(likelihood.score(hidden, library, x), expected)
    one_by_one = torch.stack([likelihood.score(sample, library, x) for sample in hidden])
    torch.testing.assert_close(one_by_one, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n_in", "n_out"), [(9, 4), (4, 9)])
def test_linear_is_that_of_torch(n_in, n_out):
    x, weight = torch.randn(7, n_in, requires_grad=True), torch.randn(n_out, n_in, requires_grad=True)
    bias, upstream = torch.randn(n_out, requires_grad=True), torch.randn(7, n_out)
    results = []
    for function in (dense.linear, nn.functional.linear):
        value = function(x, weight, bias)
        results.append([value, *torch.autograd.grad(value, (x, weight, bias), upstream)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_products_without_onednn_are_the_same(monkeypatch):
    a, b, bias = torch.randn(6, 5), torch.randn(4, 5), torch.randn(4)
    with_it = dense.product(a, b, bias)
    monkeypatch.setattr(dense, "_has_onednn", lambda: False)
    torch.testing.assert_close(dense.product(a, b, bias), with_it, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("covariates", [{}, {"n_cat_list": (3, 1, 2), "n_cont": 2}])
def test_encoder_is_that_of_scvi_tools(covariates):
    encoder = dense.Encoder(N_GENES, N_HIDDEN, n_layers=2, dropout_rate=0.0, **covariates)
    plain = FCLayers(
        N_GENES, N_HIDDEN, n_layers=2, n_hidden=N_HIDDEN, dropout_rate=0.0, inject_covariates=False, **covariates
    )
    plain.load_state_dict(encoder.state_dict())
    x = torch.randn(20, N_GENES)
    codes = [torch.randint(0, levels, (20, 1)) for levels in covariates.get("n_cat_list", (1,))]
    cont = torch.randn(20, 2) if covariates else None
    results = []
    for network in (encoder, plain):
        value = network(x, *codes, cont=cont)
        results.append([value, *torch.autograd.grad(value.square().sum(), network.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("n_batch", [1, 2])
def test_paths_clip_around_the_mean_of_the_batch(n_batch):
    path = Arm(N_GENES, 3, 2, likelihood_class("nb"), n_cats_per_cov=(n_batch,)).path
    mean, scale = torch.randn(n_batch + 1, N_GENES), torch.rand(N_GENES) + 0.1
    path.follow(mean, scale, torch.eye(N_GENES), clip=1.5)
    x, batch = 3 * torch.randn(N_CELLS, N_GENES), torch.randint(0, n_batch, (N_CELLS,))
    expected = ((x - mean[batch]) / scale).clamp(-1.5, 1.5)
    torch.testing.assert_close(path.coordinates(x, batch)[:, :N_GENES], expected, rtol=1e-5, atol=1e-5)
    unknown = ((x - mean[-1]) / scale).clamp(-1.5, 1.5)
    torch.testing.assert_close(path.coordinates(x)[:, :N_GENES], unknown, rtol=1e-5, atol=1e-5)


def test_paths_that_are_not_set_add_nothing():
    path = Arm(N_GENES, 3, 2, likelihood_class("nb")).path
    assert (path(torch.randn(N_CELLS, N_GENES)) == 0).all()


@pytest.mark.parametrize("keep", [0.5, 0.93, 0.01])
@pytest.mark.parametrize("count", [1, 3, 20, 63, 64, 200])
def test_thinned_counts_are_binomial(keep, count):
    drawn = CountThinning(keep)(torch.full((100, 2_000), float(count))).numpy().ravel()
    values = np.arange(count + 1)
    expected = stats.binom.pmf(values, count, keep) * len(drawn)
    observed = np.bincount(drawn.astype(int), minlength=count + 1)
    assert len(observed) == count + 1
    # Rare values together, so that the statistic is chi-squared.
    often = expected > 10
    if not often.all():
        expected = np.append(expected[often], expected[~often].sum())
        observed = np.append(observed[often], observed[~often].sum())
    statistic = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    assert stats.chi2.sf(statistic, len(expected) - 1) > 1e-4


def test_thinned_entries_and_copies_are_independent():
    x = torch.full((500, 1_000), 4.0)
    thin = CountThinning(0.5)
    first, second = thin(x), thin(x)
    pairs = ((first, second), (first[:, :-1], first[:, 1:]), (first[:-1], first[1:]), (first[:, :-4], first[:, 4:]))
    for one, other in pairs:
        correlation = np.corrcoef(one.numpy().ravel(), other.numpy().ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(one.numel())


def test_the_seed_decides_what_is_thinned():
    x, copies = counts(dtype=torch.float32), []
    for _ in range(2):
        torch.manual_seed(1)
        copies.append(CountThinning(0.5)(x))
    assert torch.equal(*copies)


def test_a_step_needs_no_more_matrices_than_one_per_arm_and_its_input():
    """Memory of a step, so that nothing of the size of the minibatch creeps back in: per arm, what it reads and the
    shares that it decodes are kept, and its gradient is made."""
    n_cells, n_genes, n_arms = 256, 2_000, 2
    module = CplMixVAE(n_genes, n_categories=5, n_arms=n_arms, augmenter=CountThinning(0.5))
    tensors = {"X": torch.poisson(torch.rand(n_cells, n_genes)), "batch": torch.zeros(n_cells, 1)}
    tensors["copies"] = module.draw_copies(tensors)
    kept = []

    def pack(tensor):
        if tensor.numel() == n_cells * n_genes:
            kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(tensors)[2].loss.backward()
    # Per arm: its copy, the encoder's input, the shares.
    assert len(set(kept)) == 3 * n_arms


@pytest.mark.parametrize(("options", "kind"), [({}, torch.optim.Adam), ({"optimizer": "AdamW"}, torch.optim.AdamW)])
def test_weights_move_in_one_pass(make_counts, options, kind):
    adata = make_counts(n_obs=40, n_vars=20)
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=3)
    model.train(1, warm_start=False, plan_kwargs={"lr": 0.01, "weight_decay": 1e-4, **options})
    (optimizer,) = model.trainer.optimizers
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["fused"], group["lr"], group["weight_decay"], group["eps"]) == (True, 0.01, 1e-4, 1e-8)


def test_an_optimiser_of_ones_own_is_taken(make_counts):
    adata = make_counts(n_obs=40, n_vars=20)
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=3)
    own = {"optimizer": "Custom", "optimizer_creator": lambda parameters: torch.optim.SGD(parameters, lr=1e-4)}
    model.train(1, warm_start=False, plan_kwargs=own)
    assert isinstance(model.trainer.optimizers[0], torch.optim.SGD)
