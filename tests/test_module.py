"""The coupled arms as a module: posteriors, copies, likelihoods, coupling."""

import math

import numpy as np
import pytest
import torch
from scvi import REGISTRY_KEYS

from cplmixvi._constants import COPIES_KEY, GUIDE_KEY, TARGETS_KEY
from cplmixvi.augment import Compose, CountThinning, GaussianNoise, GeneMasking
from cplmixvi.module import Coupling, Covariates, CplMixVAE, likelihood_class
from cplmixvi.module._dual import DualWeight
from cplmixvi.module._losses import guide_divergence

N_CELLS, N_GENES = 24, 15
ALL = ("nb", "zinb", "poisson", "normal", "mse", "bernoulli")


def minibatch(likelihood="nb", **extra):
    values = torch.poisson(torch.rand(N_CELLS, N_GENES) * 3) + (torch.arange(N_GENES) == 0)
    if likelihood in ("normal", "mse"):
        values = torch.log1p(values)
    if likelihood == "bernoulli":
        values = (values > 1).float()
    return {
        REGISTRY_KEYS.X_KEY: values,
        REGISTRY_KEYS.BATCH_KEY: torch.randint(0, 2, (N_CELLS, 1)),
        **extra,
    }


def make_module(likelihood="nb", **options):
    options = {"n_categories": 4, "n_state": 2, "n_batch": 2, "n_hidden": 12} | options
    return CplMixVAE(N_GENES, likelihood=likelihood, **options)


@pytest.mark.parametrize("likelihood", ALL)
@pytest.mark.parametrize("n_arms", [1, 3])
@pytest.mark.parametrize("hard", [False, True])
def test_every_parameter_of_every_arm_learns(likelihood, n_arms, hard):
    module, tensors = make_module(likelihood, n_arms=n_arms, hard=hard), minibatch(likelihood)
    for arm in module.arms:
        # Without coordinates a path adds nothing and learns nothing.
        arm.path.follow(torch.zeros(1, N_GENES), torch.ones(N_GENES), torch.eye(N_GENES), clip=10.0)
    tensors[COPIES_KEY] = module.with_copies(tensors)[COPIES_KEY]
    module(tensors)[2].loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or "bias" in name, name


def test_arms_that_share_a_network_say_the_same_of_a_cell_and_differ_on_copies():
    module, tensors = make_module(share_arms=True, n_arms=3, augmenter=CountThinning(0.5)), minibatch()
    alone = make_module(n_arms=1)
    assert len(module.arms) == 3
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in alone.parameters())
    first, *others = (output.log_qc for output in module.eval()(tensors)[0]["arms"])
    assert all(torch.equal(first, other) for other in others)
    module.train()
    tensors[COPIES_KEY] = module.with_copies(tensors)[COPIES_KEY]
    inference, _, output = module(tensors)
    assert not torch.equal(inference["arms"][0].log_qc, inference["arms"][1].log_qc)
    assert output.extra_metrics["distance"] > 0


@pytest.mark.parametrize("likelihood", ALL)
def test_a_few_steps_lower_the_loss(likelihood):
    module, tensors = make_module(likelihood), minibatch(likelihood)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    trace = []
    for _ in range(60):
        loss = module(tensors)[2]
        optimizer.zero_grad()
        loss.loss.backward()
        optimizer.step()
        trace.append(loss.reconstruction_loss_sum.item())
    assert sum(trace[-5:]) < sum(trace[:5])


def test_category_head_has_one_softmax_and_samples_lie_on_the_simplex():
    module, tensors = make_module(), minibatch()
    arms = module.inference(**module._get_inference_input(tensors))["arms"]
    for arm, output in zip(module.arms, arms, strict=True):
        assert torch.allclose(output.log_qc.exp().sum(-1), torch.ones(N_CELLS), atol=1e-5)
        assert torch.allclose(output.c.sum(-1), torch.ones(N_CELLS), atol=1e-5)
        hidden, log_qc = arm.encode(module.encoder_input(tensors["X"]), Covariates.of(tensors))
        assert torch.allclose(log_qc, torch.log_softmax(arm.category_head(hidden), -1))


def test_gumbel_samples_follow_the_probabilities():
    module = make_module(n_arms=1)
    log_qc = torch.log(torch.tensor([[0.6, 0.3, 0.08, 0.02]])).expand(20_000, 4)
    drawn = module.arms[0].sample_category(log_qc, 0.5, hard=True)
    assert torch.equal(drawn.detach().round(), drawn.detach())
    assert torch.allclose(drawn.mean(0), log_qc[0].exp(), atol=0.02)


def test_state_noise_is_gaussian_and_depends_on_the_category():
    module, tensors = make_module(n_arms=1), minibatch()
    module.eval()
    arm, covariates = module.arms[0], Covariates.of(tensors)
    draws = torch.stack([arm(tensors["X"], covariates, temperature=1, hard=False, sample=False).s for _ in range(2000)])
    output = arm(tensors["X"], covariates, temperature=1, hard=False, sample=False)
    standardised = (draws - output.mean) / output.variance.sqrt()
    assert abs(standardised.mean()) < 0.02
    assert abs(standardised.std() - 1) < 0.02
    hidden, _ = arm.encode(tensors["X"], covariates)
    first, second = (
        arm.state(hidden, torch.nn.functional.one_hot(torch.full((N_CELLS,), k), 4).float())[0] for k in (0, 1)
    )
    assert not torch.allclose(first, second)
    free = make_module(n_arms=1, state_given_category=False).arms[0]
    assert torch.equal(*(free.state(hidden, torch.eye(4)[k].expand(N_CELLS, 4))[0] for k in (0, 1)))


def test_categories_are_drawn_for_a_loss_and_the_most_probable_ones_otherwise():
    module, tensors = make_module(n_arms=1), minibatch()
    module.eval()
    probable = torch.nn.functional.one_hot(module(tensors, compute_loss=False)[0]["arms"][0].log_qc.argmax(-1), 4)
    drawn = torch.stack([module(tensors)[0]["arms"][0].c for _ in range(400)])
    log_qc = module(tensors)[0]["arms"][0].log_qc
    assert (drawn.mean(0) - log_qc.exp()).abs().max() < 0.15
    assert (drawn != probable).any()
    assert torch.equal(module(tensors, compute_loss=False)[0]["arms"][0].c, probable.float())


def test_arms_get_independent_copies_and_their_own_library_size():
    module, tensors = make_module(augmenter=CountThinning(0.5), n_arms=2), minibatch()
    tensors[COPIES_KEY] = module.with_copies(tensors)[COPIES_KEY]
    assert not torch.equal(*tensors[COPIES_KEY])
    inference = module.inference(**module._get_inference_input(tensors))
    library = module._get_generative_input(tensors, inference)["library"]
    for copy, size in zip(tensors[COPIES_KEY], library, strict=True):
        assert torch.equal(size, copy.sum(-1, keepdim=True).clamp_min(1))


def test_a_registered_size_factor_follows_the_thinned_share():
    module = make_module(augmenter=CountThinning(0.5))
    tensors = minibatch(**{REGISTRY_KEYS.SIZE_FACTOR_KEY: torch.full((N_CELLS, 1), 7.0)})
    tensors[COPIES_KEY] = module.with_copies(tensors)[COPIES_KEY]
    inference = module.inference(**module._get_inference_input(tensors))
    library = module._get_generative_input(tensors, inference)["library"]
    share = tensors[COPIES_KEY][0].sum(-1) / tensors["X"].sum(-1)
    assert torch.allclose(library[0].squeeze(), 7 * share)


def test_size_factors_are_in_molecules_of_the_genes():
    module, factor = make_module(size_factor_scale=30.0), torch.rand(N_CELLS, 1) + 0.5
    tensors = minibatch(**{REGISTRY_KEYS.SIZE_FACTOR_KEY: factor})
    inference = module.inference(**module._get_inference_input(tensors))
    assert torch.allclose(module._get_generative_input(tensors, inference)["library"][0], 30 * factor)


@pytest.mark.parametrize(
    "augmenter", [GeneMasking(0.5), GaussianNoise(1.0), Compose([CountThinning(), GeneMasking(0.5)])]
)
def test_what_copies_lack_is_reconstructed(augmenter):
    module = make_module(augmenter=augmenter)
    batch = module.with_copies(minibatch())
    thins = isinstance(augmenter, Compose)
    for copy, target in zip(batch[COPIES_KEY], batch[TARGETS_KEY], strict=True):
        assert not torch.equal(copy, target)
        assert torch.equal(target, batch[REGISTRY_KEYS.X_KEY]) != thins
        assert (target <= batch[REGISTRY_KEYS.X_KEY]).all()
        if not isinstance(augmenter, GaussianNoise):
            assert torch.equal(copy[copy > 0], target[copy > 0])
    inference = module.inference(**module._get_inference_input(batch))
    library = module._get_generative_input(batch, inference)["library"]
    for target, size in zip(batch[TARGETS_KEY], library, strict=True):
        assert torch.equal(size, target.sum(-1, keepdim=True).clamp_min(1))
    of_targets = module(batch)[2].loss
    # The same numbers, but for what is reconstructed.
    torch.manual_seed(0)
    first = module(batch)[2].reconstruction_loss_sum
    torch.manual_seed(0)
    second = module({**batch, TARGETS_KEY: batch[COPIES_KEY]})[2].reconstruction_loss_sum
    assert of_targets.isfinite()
    assert first != second


def test_inference_sees_the_cell_itself():
    module, tensors = make_module(augmenter=CountThinning(0.2)), minibatch()
    module.eval()
    first, second = (module.inference(**module._get_inference_input(tensors))["arms"][0].log_qc for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_encoders_do_not_read_sequencing_depth(likelihood):
    module = make_module(likelihood)
    x = minibatch()["X"]
    assert torch.allclose(module.encoder_input(x), module.encoder_input(3 * x), atol=1e-5)


def test_covariates_enter_encoder_and_decoder():
    module = make_module(n_cats_per_cov=(3,), n_continuous_cov=2, n_arms=1).eval()
    extra = {
        REGISTRY_KEYS.CAT_COVS_KEY: torch.randint(0, 3, (N_CELLS, 1)),
        REGISTRY_KEYS.CONT_COVS_KEY: torch.randn(N_CELLS, 2),
    }
    tensors = minibatch(**extra)

    def results(tensors):
        torch.manual_seed(0)
        inference = module.inference(**module._get_inference_input(tensors))
        generative = module.generative(**module._get_generative_input(tensors, inference))
        return inference["arms"][0].log_qc, generative["px"].scale

    before = results(tensors)
    for key in (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.CAT_COVS_KEY, REGISTRY_KEYS.CONT_COVS_KEY):
        changed = results({**tensors, key: 1 - tensors[key].clamp(0, 1)})
        assert not torch.allclose(before[0], changed[0]), key
        assert not torch.allclose(before[1], changed[1]), key


def test_average_of_arms_is_the_average_expression():
    module, tensors = make_module().eval(), minibatch()
    inference = module.inference(**module._get_inference_input(tensors))
    generative = module.generative(**module._get_generative_input(tensors, inference))
    decoded = zip(module.arms, generative["decoded"], strict=True)
    expected = sum(arm.likelihood(*of_arm).scale for arm, of_arm in decoded) / 2
    assert torch.allclose(generative["px"].get_normalized("scale"), expected)


def test_elbo_terms_are_those_of_a_uniform_prior():
    module, tensors = make_module(n_arms=1).eval(), minibatch()
    _, _, output = module(tensors, get_inference_input_kwargs={"full_forward_pass": True})
    kl = output.kl_local["kl_category"]
    assert (kl >= -1e-5).all()
    assert (kl <= math.log(4) + 1e-5).all()
    total = output.reconstruction_loss["reconstruction_loss"] + output.kl_local["kl_state"] + kl
    assert torch.allclose(output.loss, total.mean() - math.log(4), rtol=1e-5)


def test_dual_weights_rise_above_their_tolerance_fall_below_it_and_stay_in_bounds():
    weight = DualWeight(1.0, 0.1, rate=0.5, bounds=(0.5, 3.0))
    weight.step(torch.tensor(0.2))
    assert weight.value == pytest.approx(math.exp(0.5 * math.log(2)))
    for _ in range(20):
        weight.step(torch.tensor(1.0))
    assert weight.value == 3
    for _ in range(20):
        weight.step(torch.tensor(0.0))
    assert weight.value == 0.5
    fixed = DualWeight(2.0)
    fixed.step(torch.tensor(5.0))
    assert fixed.value == 2


@pytest.mark.parametrize("n_arms", [2, 3, 8])
@pytest.mark.parametrize("distance", ["perturbed", "aitchison"])
def test_disagreement_is_a_share_of_the_spread(distance, n_arms):
    coupling = Coupling(n_arms, 5, distance=distance).train()
    one = torch.log_softmax(3 * torch.randn(1, 200, 5), -1)
    same = coupling(one.expand(n_arms, 200, 5))
    assert same.share < 1e-6
    assert same.distance2.abs().max() < 1e-2
    strangers = coupling(torch.log_softmax(3 * torch.randn(n_arms, 200, 5), -1))
    assert 0.45 < strangers.share < 0.55, "two independent arms share half of the spread within a cell"


def test_guide_divergence_is_relative_to_what_the_guide_says():
    guide = torch.softmax(4 * torch.randn(300, 4), -1)
    log_q = torch.stack([guide.log(), guide.mean(0).log().expand(300, 4)])
    divergence, information = guide_divergence(log_q, guide)
    assert torch.allclose(divergence[0], torch.zeros(300), atol=1e-4)
    assert torch.allclose(divergence[1].mean(), information, rtol=1e-3)


def test_a_minibatch_of_one_type_does_not_blow_the_relative_divergence_up():
    module = make_module()
    one_type = torch.tensor([[0.97, 0.01, 0.01, 0.01]]).expand(N_CELLS, 4)
    metrics = module(minibatch(**{GUIDE_KEY: one_type}))[2].extra_metrics
    assert metrics["guide_divergence"] < 10


def test_guided_arms_decode_the_guides_categories():
    module = make_module()
    guide = torch.eye(4)[torch.arange(N_CELLS) % 4]
    tensors = minibatch(**{GUIDE_KEY: guide})
    module.guided = True
    inference = module.inference(**module._get_inference_input(tensors))
    assert all(torch.equal(output.c, guide) for output in inference["arms"])
    module.guided = False
    inference = module.inference(**module._get_inference_input(tensors))
    assert not torch.equal(inference["arms"][0].c, guide)


def test_running_variance_does_not_depend_on_one_batch_but_its_gradient_does():
    coupling = Coupling(2, 3, distance="perturbed").train()
    logits = torch.randn(2, 40, 3, requires_grad=True)
    log_q = torch.log_softmax(logits, -1)
    before = coupling.running_variance.clone()
    coupling(log_q).distance2.mean().backward()
    batch = log_q.detach().exp().var(1)
    assert torch.allclose(coupling.running_variance, before + 0.1 * (batch - before), atol=1e-6)
    assert logits.grad.abs().sum() > 0
    coupling.eval()
    frozen = coupling.running_variance.clone()
    coupling(log_q)
    assert torch.equal(coupling.running_variance, frozen)


def test_what_is_next_to_impossible_does_not_decide_over_the_distance():
    coupling = Coupling(2, 3, distance="perturbed").eval()
    likely = torch.tensor([0.5, 0.5 - 1e-20, 1e-20], dtype=torch.float64).log().repeat(2, 4, 1)
    likely[1, :, 2] = np.log(1e-40)
    assert float(coupling(likely).distance2.max()) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [({"distance": "euclid"}, "not known"), ({"lam": -1}, "at least 0"), ({"epsilon": 0}, "between 0 and 1")],
)
def test_coupling_refuses_nonsense(options, message):
    with pytest.raises(ValueError, match=message):
        Coupling(2, 3, **options)


def output_layer(name, logits, **parameters):
    """A likelihood whose output is ``logits``, and the hidden layer for it."""
    likelihood = likelihood_class(name)(1, logits.shape[-1] // likelihood_class(name).n_outputs)
    with torch.no_grad():
        likelihood.output.weight.zero_()
        likelihood.output.bias.copy_(logits)
        for parameter, value in parameters.items():
            getattr(likelihood, parameter).fill_(value)
    return likelihood, torch.zeros(1, 1)


def test_poisson_shares_may_be_too_small_for_a_number():
    likelihood, hidden = output_layer("poisson", torch.tensor([0.0, -120.0, 1.0]))
    x = torch.tensor([[1.0, 2.0, 3.0]])
    score = likelihood.score(hidden, torch.tensor([[6.0]]), x)
    share = torch.log_softmax(torch.tensor([0.0, -120.0, 1.0], dtype=torch.float64), 0)
    expected = (x * (share + np.log(6)) - torch.lgamma(x + 1)).sum() - 6
    assert float(score.detach()) == pytest.approx(float(expected), rel=1e-6)
    score.sum().backward()
    assert torch.isfinite(likelihood.output.bias.grad).all()
    # The same as the distribution's where that is a number.
    likelihood, hidden = output_layer("poisson", torch.randn(3))
    library = torch.tensor([[6.0]])
    torch.testing.assert_close(
        likelihood.score(hidden, library, x), likelihood.log_prob(likelihood(hidden, library), x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("name", "n_outputs"), [("nb", 1), ("zinb", 2)])
def test_counts_that_are_all_but_poisson_keep_their_digits(name, n_outputs):
    logits = torch.tensor([0.0, 1.0, 2.0, -20.0, -20.0, -20.0])[: 3 * n_outputs]
    likelihood, hidden = output_layer(name, logits, log_theta=15.0)
    x, library = torch.tensor([[10.0, 20.0, 70.0]]), torch.tensor([[100.0]])
    px = likelihood(hidden, library)
    expected = torch.distributions.Poisson(px.mu.double()).log_prob(x.double()).sum(-1)
    # At an inverse dispersion of 3e6, single precision is wrong by several nats.
    torch.testing.assert_close(likelihood.log_prob(px, x).double(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(likelihood.score(hidden, library, x).double(), expected, rtol=1e-3, atol=1e-3)


def test_unknown_likelihood_is_refused():
    with pytest.raises(ValueError, match="'nbb' is not known"):
        make_module("nbb")
