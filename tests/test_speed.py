"""What was made fast gives what the plain way gives: values, gradients and draws."""

import pickle
import sys
import time

import numpy as np
import pytest
import torch
from scipy import stats
from scvi.distributions import NegativeBinomial
from scvi.nn import FCLayers
from torch import nn

import cplmixvi as cpl
from cplmixvi import _compiled, _memory
from cplmixvi._constants import COPIES_KEY
from cplmixvi.augment import CountThinning
from cplmixvi.module import Arm, CplMixVAE, likelihood_class
from cplmixvi.module import _dense as dense
from cplmixvi.module._scores import NegativeBinomialScore, digamma

N_CELLS, N_GENES, N_HIDDEN = 7, 9, 4


@pytest.fixture(params=[1, 3])
def _compiled_loops(request, monkeypatch):
    """Small minibatches are worked on by the compiled loops, as large ones are, and by several threads."""
    monkeypatch.setattr(_compiled, "MIN_VALUES", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    assert _compiled.kernels(torch.zeros(1, 1)) is not None


def counts(n_cells=N_CELLS, dtype=torch.float64):
    """Zeros, small and large counts, and a cell with no molecules."""
    x = torch.poisson(torch.rand(n_cells, N_GENES, dtype=dtype) * 20)
    x[torch.rand_like(x) < 0.4] = 0
    x[0, 0], x[1, 1], x[1, 2], x[2] = 500, 31, 32, 0
    return x


def layer(dtype=torch.float64):
    weights = {"hidden": (N_CELLS, N_HIDDEN), "weight": (N_GENES, N_HIDDEN), "bias": (N_GENES,), "theta": (N_GENES,)}
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in weights.values()]


@pytest.mark.parametrize("noise", [0, 0.3])
def test_gradients_of_the_likelihood_are_those_of_its_value(noise):
    x = counts()
    x = x + noise * (x > 0)
    library = x.sum(1, keepdim=True).clamp_min(1)
    score = NegativeBinomialScore.apply
    assert torch.autograd.gradcheck(lambda *weights: score(*weights, library, x), layer())


def test_the_likelihood_of_counts_is_that_of_the_distribution():
    x, weights = counts(), layer()
    library = x.sum(1, keepdim=True).clamp_min(1)
    hidden, weight, bias, log_theta = weights
    scale = torch.softmax(nn.functional.linear(hidden, weight, bias), -1)
    expected = NegativeBinomial(mu=library * scale, theta=log_theta.exp()).log_prob(x).sum(-1)
    found = NegativeBinomialScore.apply(*weights, library, x)
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
        score = NegativeBinomialScore.apply(hidden, weight, bias, log_theta, library, values)
        results.append((score.detach(), *torch.autograd.grad(score.sum(), weight)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_digamma_is_that_of_torch():
    z = torch.logspace(-3, 5, 200, dtype=torch.float64)
    torch.testing.assert_close(digamma(z), torch.digamma(z), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("_compiled_loops")
@pytest.mark.parametrize("theta", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("noise", [0, 0.3])
@pytest.mark.parametrize("alike", [True, False])
def test_compiled_loops_give_the_likelihood_and_its_gradients(theta, noise, alike):
    """In single precision what the formula gives in double, for counts of every size and values between them."""
    x, weights = counts(), layer()
    x = x + noise * torch.rand_like(x) * (x > 0)
    x[3, :3] = torch.tensor([1, 5_000, 1e5])
    with torch.no_grad():
        weights[3] += np.log(theta)
    library = x.sum(1, keepdim=True).clamp_min(1)
    # Cells that count alike, as in training, and not.
    importance = torch.full((N_CELLS,), 0.5) if alike else torch.rand(N_CELLS)
    results = []
    for dtype in (torch.float32, torch.float64):
        given = [value.detach().to(dtype).requires_grad_() for value in weights]
        score = NegativeBinomialScore.apply(*given, library.to(dtype), x.to(dtype))
        gradients = torch.autograd.grad(score @ importance.to(dtype), given)
        results.append([value.detach().double() for value in (score, *gradients)])
    (score, *gradients), (expected, *exact) = results
    # A count of 1e5 has terms of up to 2e6, of which single precision has seven digits: they are right to .1 each.
    assert ((score - expected).abs() < 1e-5 * expected.abs() + 4e-6 * x.amax(1) + 1e-3).all()
    for ours, theirs in zip(gradients, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.usefixtures("_compiled_loops")
@pytest.mark.parametrize(("depth", "error"), [(1e4, 0.02), (1e6, 2.0)])
def test_sums_over_thousands_of_genes_keep_their_digits(depth, error):
    torch.manual_seed(0)
    n_cells, n_genes = 16, 5_000
    hidden, weight, bias = torch.randn(n_cells, 20), torch.randn(n_genes, 20) * 0.3, torch.randn(n_genes) * 1.5
    log_theta = torch.randn(n_genes)
    mean = depth * torch.softmax(hidden @ weight.t() + bias, -1)
    x = torch.poisson(mean * torch.distributions.Gamma(log_theta.exp(), log_theta.exp()).sample([n_cells]))
    given = [hidden, weight, bias, log_theta, x.sum(1, keepdim=True), x]
    exact = NegativeBinomialScore.apply(*(value.double() for value in given))
    assert (NegativeBinomialScore.apply(*given) - exact).abs().max() < error


@pytest.mark.usefixtures("_compiled_loops")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", range(4))
def test_compiled_loops_do_not_hide_what_is_not_finite(bad, place):
    """A training that diverges goes back, which it must see."""
    x, weights = counts(dtype=torch.float32), [value.detach() for value in layer(torch.float32)]
    weights[place].view(-1)[0] = bad
    score = NegativeBinomialScore.apply(*weights, x.sum(1, keepdim=True).clamp_min(1), x)
    plain = NegativeBinomialScore.apply(
        *(value.double() for value in (*weights, x.sum(1, keepdim=True).clamp_min(1), x))
    )
    assert not score[~plain.isfinite()].isfinite().any()


@pytest.mark.usefixtures("_compiled_loops")
def test_compiled_loops_give_what_encoders_and_paths_read():
    x, factor = counts(dtype=torch.float32), 10 ** (6 * torch.rand(N_CELLS, 1) - 3)
    torch.testing.assert_close(_compiled.scaled_log1p(x, factor), (x * factor).log1p(), rtol=1e-6, atol=1e-7)
    mean, inverse_scale = torch.randn(2, N_GENES), torch.rand(N_GENES)
    for group in (None, torch.randint(0, 2, (N_CELLS,))):
        values = [value.double() for value in (x, mean, inverse_scale)]
        expected = _compiled.standardised(values[0], values[1], group, values[2])
        found = _compiled.standardised(x, mean, group, inverse_scale)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_loops_are_compiled_where_nothing_can_be_written(monkeypatch):
    """As in an installation that only its administrator may change, for a user without a home."""
    from cplmixvi import _kernels

    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(_kernels, "njit", njit)
    assert _kernels.compiled(len) is len


def test_without_numba_torch_does_the_same(monkeypatch):
    x, factor = torch.rand(200, 300), torch.rand(200, 1)
    with_it = _compiled.scaled_log1p(x, factor)
    monkeypatch.setattr(_compiled, "_kernels", lambda: None)
    assert _compiled.kernels(x) is None
    torch.testing.assert_close(_compiled.scaled_log1p(x, factor), with_it)


def test_numba_and_what_it_is_built_on_may_be_missing(monkeypatch):
    for name in ("numba", "llvmlite", "llvmlite.binding"):
        monkeypatch.setitem(sys.modules, name, None)
    assert _compiled._kernels.__wrapped__() is None
    assert dense._prefers_onednn.__wrapped__() is False


@pytest.mark.parametrize("least", [0, 100])
def test_single_precision_keeps_large_dispersions(least, monkeypatch):
    """Theta log(theta / (theta + mu)) must not be a difference of large numbers."""
    monkeypatch.setattr(_compiled, "MIN_VALUES", least)
    x, weights = counts().clamp(max=32), layer()
    with torch.no_grad():
        weights[3] += 12
    library = x.sum(1, keepdim=True).clamp_min(1)
    exact = NegativeBinomialScore.apply(*weights, library, x)
    single = NegativeBinomialScore.apply(*(v.float() for v in (*weights, library, x)))
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("least", [0, 10**9])
@pytest.mark.parametrize("log_theta", [30.0, 60.0, 100.0])
def test_genes_that_vary_like_poisson_counts_have_their_likelihood(least, log_theta, monkeypatch):
    monkeypatch.setattr(_compiled, "MIN_VALUES", least)
    likelihood = likelihood_class("nb")(N_HIDDEN, N_GENES)
    x, hidden = counts().float(), torch.randn(N_CELLS, N_HIDDEN)
    library = x.sum(1, keepdim=True).clamp_min(1)
    with torch.no_grad():
        likelihood.log_theta.fill_(log_theta)
        found = likelihood.score(hidden, library, x)
        rate = library * torch.softmax(likelihood.output(hidden), -1)
        expected = torch.distributions.Poisson(rate).log_prob(x).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson", "normal", "mse", "bernoulli"])
def test_scores_are_those_of_the_distributions(name):
    likelihood = likelihood_class(name)(N_HIDDEN, N_GENES).double()
    x, hidden = counts(), torch.randn(3, N_CELLS, N_HIDDEN, dtype=torch.float64)
    x = x.clamp(max=1) if name == "bernoulli" else x
    library = x.sum(1, keepdim=True).clamp_min(1)
    expected = likelihood.log_prob(likelihood(hidden, library), x)
    # Several samples at once, and one by one.
    torch.testing.assert_close(likelihood.score(hidden, library, x), expected)
    one_by_one = torch.stack([likelihood.score(sample, library, x) for sample in hidden])
    torch.testing.assert_close(one_by_one, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["normal", "mse"])
def test_gradients_of_squares_are_those_of_the_distribution(name):
    likelihood = likelihood_class(name)(N_HIDDEN, N_GENES).double()
    x, library = counts(), torch.ones(N_CELLS, 1, dtype=torch.float64)
    hidden = torch.randn(N_CELLS, N_HIDDEN, dtype=torch.float64, requires_grad=True)
    for parameter in likelihood.parameters():
        nn.init.normal_(parameter, std=0.3)
    # Cells that do not count alike.
    upstream = torch.rand(N_CELLS, dtype=torch.float64)
    inputs = [hidden, *likelihood.parameters()]
    ours = torch.autograd.grad(likelihood.score(hidden, library, x), inputs, upstream)
    theirs = torch.autograd.grad(likelihood.log_prob(likelihood(hidden, library), x), inputs, upstream)
    torch.testing.assert_close(ours, theirs)


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


@pytest.fixture
def _onednn(monkeypatch):
    if not dense._has_onednn():
        pytest.skip("torch has no products of oneDNN here")
    monkeypatch.setattr(dense, "_prefers_onednn", lambda: True)


@pytest.mark.usefixtures("_onednn")
@pytest.mark.parametrize("some", [torch.randn(100, 1003)[:, :1000], torch.randn(1000, 103)[:, :100].t()])
def test_products_with_some_columns_of_a_matrix_take_as_long_as_with_all(some):
    # As an encoder has them that reads covariates. What does not know such strides takes a thousand times as long.
    a, whole = torch.randn(128, 1000), some.contiguous()

    def seconds(b):
        start = time.perf_counter()
        dense.product(a, b)
        return time.perf_counter() - start

    torch.testing.assert_close(dense.product(a, some), a @ some.t(), rtol=1e-4, atol=1e-4)
    assert min(seconds(some) for _ in range(5)) < 50 * min(seconds(whole) for _ in range(5))


@pytest.mark.usefixtures("_onednn")
def test_products_without_onednn_are_the_same(monkeypatch):
    a, b, bias = torch.randn(6, 5), torch.randn(4, 5), torch.randn(4)
    with_it = dense.product(a, b, bias)
    monkeypatch.setattr(dense, "_prefers_onednn", lambda: False)
    torch.testing.assert_close(dense.product(a, b, bias), with_it, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "is_better"), [("znver4", True), ("sapphirerapids", False), ("apple-m1", False)])
def test_onednn_is_for_processors_of_amd(name, is_better, monkeypatch):
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_name", lambda: name)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(dense, "_has_onednn", lambda: True)
    assert dense._prefers_onednn.__wrapped__() == is_better


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
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


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
@pytest.mark.parametrize("least", [0, 2**20])
def test_thinned_counts_are_binomial(keep, count, least, monkeypatch):
    """By compiled loops and by torch."""
    monkeypatch.setattr(_compiled, "MIN_VALUES", least)
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


@pytest.mark.parametrize("least", [0, 2**20])
def test_thinned_entries_and_copies_are_independent(least, monkeypatch):
    monkeypatch.setattr(_compiled, "MIN_VALUES", least)
    x = torch.full((500, 1_000), 4.0)
    thin = CountThinning(0.5)
    first, second = thin(x), thin(x)
    pairs = ((first, second), (first[:, :-1], first[:, 1:]), (first[:-1], first[1:]), (first[:, :-4], first[:, 4:]))
    for one, other in pairs:
        correlation = np.corrcoef(one.numpy().ravel(), other.numpy().ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(one.numel())


@pytest.mark.parametrize("least", [0, 2**20])
def test_the_seed_decides_what_is_thinned(least, monkeypatch):
    """Whatever the number of threads."""
    monkeypatch.setattr(_compiled, "MIN_VALUES", least)
    x, copies = counts(dtype=torch.float32), []
    for n_threads in (1, 1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n_threads=n_threads: n_threads)
        torch.manual_seed(1)
        copies.append(CountThinning(0.5)(x))
    assert torch.equal(*copies[:2])
    assert torch.equal(*copies[1:])


def test_a_step_needs_no_more_matrices_than_one_per_arm_and_its_input():
    """Memory of a step, so that nothing of the size of the minibatch creeps back in: per arm, what it reads and the
    shares that it decodes are kept, and its gradient is made."""
    n_cells, n_genes, n_arms = 256, 2_000, 2
    module = CplMixVAE(n_genes, n_categories=5, n_arms=n_arms, augmenter=CountThinning(0.5))
    tensors = {"X": torch.poisson(torch.rand(n_cells, n_genes)), "batch": torch.zeros(n_cells, 1)}
    tensors["copies"] = module.with_copies(tensors)[COPIES_KEY]
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


@pytest.mark.parametrize("user", ["part", "array", "gradient"])
def test_memory_in_use_is_not_handed_out_again(user):
    memory, weight = _memory.KeptMemory(), torch.ones(3, requires_grad=True)
    uses = {"part": lambda x: x[1:, :2], "array": lambda x: x.numpy(), "gradient": lambda x: (x * weight).sum()}
    used = uses[user](memory.empty((4, 3)).fill_(1))
    memory.empty((2, 3)).fill_(5)
    if user == "gradient":
        assert torch.equal(*torch.autograd.grad(used, weight), torch.full((3,), 4.0))
    else:
        assert (used == 1).all()
    del used
    # From now on both pieces are free: each goes to what is no larger, the smaller one first.
    places = [memory.empty(shape).data_ptr() for shape in ((4, 3), (2, 3), (3, 4), (1, 3))]
    assert places[0] == places[2] != places[1] == places[3]


def test_kept_memory_does_not_go_to_other_processes():
    memory = _memory.KeptMemory()
    x = memory.empty((4, 3)).fill_(1)
    pickle.loads(pickle.dumps(memory)).empty((4, 3)).fill_(5)
    assert (x == 1).all()


def test_training_in_kept_memory_gives_the_same_and_leaves_none(monkeypatch):
    adata = cpl.datasets.simulate(100, 30, 3, seed=0)
    cpl.CplMixVI.setup_anndata(adata)
    monkeypatch.setattr(_compiled, "MIN_VALUES", 0)
    trained, taken = [], []
    empty = _memory.KeptMemory.empty
    monkeypatch.setattr(_memory.KeptMemory, "empty", lambda *given: taken.append(1) or empty(*given))
    for least in (0, 2**40):
        monkeypatch.setattr(_memory, "MIN_BYTES", least)
        taken.clear()
        torch.manual_seed(0)
        model = cpl.CplMixVI(adata, n_categories=3)
        model.train(5, batch_size=40, warm_start=False)
        assert bool(taken) == (least == 0)
        assert not model.trainer.lightning_module._memory._arrays
        trained.append(model.history["elbo_train"].to_numpy(float))
    # Products of matrices are rounded by where in memory these lie, and biases before batch normalisation, which have
    # no gradient but such rounding, drift apart in any two trainings now and then.
    np.testing.assert_allclose(*trained, rtol=1e-5)
