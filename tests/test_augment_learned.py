"""The learned augmenter: its noise learns, its copies are like cells of the type, and it is saved with a model."""

import os
import signal

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.linear_model import LogisticRegression

import cplmixvi as cpl
from cplmixvi import augment
from cplmixvi._constants import COPIES_KEY
from cplmixvi.augment._emission import BinaryEmission, CountEmission, LogValueEmission
from cplmixvi.train import AugmenterPlan, CplMixSplitter

QUIET = {"enable_progress_bar": False}
SHORT = {"max_epochs": 1, "warm_start": False, **QUIET}


@pytest.fixture(scope="module")
def adata(make_counts):
    return make_counts(n_obs=400, n_vars=80, n_batches=1, mean_counts=800)


@pytest.fixture(scope="module")
def model(adata):
    scvi.settings.seed = 1
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=16, augment="learned+thin")
    model.train_augmenter(max_epochs=150, **QUIET)
    return model


@pytest.fixture
def x(adata):
    return torch.from_numpy(adata.X.toarray())


def learned(model):
    (part,) = augment.learned_parts(model.module.augmenter)
    return part


def built(likelihood="nb", n_genes=30):
    augmenter = augment.LearnedAugmenter(n_latent=4, n_hidden=8)
    augmenter.build(n_genes, likelihood, 100.0)
    augmenter.generator.requires_grad_(True)
    return augmenter


def values(likelihood):
    x = torch.poisson(torch.rand(64, 30) * 3)
    return {"nb": x, "normal": torch.log1p(x), "bernoulli": (x > 2).float()}[likelihood]


@pytest.mark.parametrize("likelihood", ["nb", "normal", "bernoulli"])
def test_every_loss_of_a_copy_reaches_the_noise(likelihood):
    plan = AugmenterPlan(built(likelihood), 30, least_spread=100.0, margin=100.0)
    for name in ("reconstruction", "divergence", "adversarial", "triplet", "spread"):
        plan.zero_grad()
        terms, _ = plan.generator_terms(values(likelihood))
        terms[name].backward()
        generator = plan.augmenter.generator
        for layer in (generator.mix, generator.log_variance):
            assert layer.weight.grad.abs().sum() > 0, name
            assert torch.isfinite(layer.weight.grad).all()


def test_training_moves_all_of_the_generator_and_the_noise_most_of_all(adata):
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=3, augment="learned")
    before = {name: weight.clone() for name, weight in learned(model).generator.named_parameters()}
    model.train_augmenter(max_epochs=2, **QUIET)
    for name, weight in learned(model).generator.named_parameters():
        assert not torch.equal(weight, before[name]), name
        assert not weight.requires_grad


def test_copies_keep_the_type_and_look_like_cells(adata, model, x):
    part = learned(model)
    copies = part(x)
    assert torch.equal(copies, copies.round())
    assert abs(copies.sum() / x.sum() - 1) < 0.03
    types = adata.obs["type"].to_numpy()
    log_x, log_copies = part.log_values(x).numpy(), part.log_values(copies).numpy()
    classifier = LogisticRegression(max_iter=500).fit(log_x[::2], types[::2])
    assert classifier.score(log_x[1::2], types[1::2]) > 0.97
    assert classifier.score(log_copies[1::2], types[1::2]) > 0.95
    for name in np.unique(types):
        inside = types == name
        assert 0.5 < log_copies[inside].var(0).sum() / log_x[inside].var(0).sum() < 1.5


def test_copies_differ_from_the_cell_and_from_each_other(model, x):
    first, second = model.module.with_copies({"X": x})[COPIES_KEY]
    for a, b in ((first, x), (second, x), (first, second)):
        assert (a != b).any(1).all()
    assert (learned(model)(x) != learned(model)(x)).any()


def test_losses_are_kept_and_fall(model):
    history = model.augmenter_history_
    assert {"reconstruction", "divergence", "adversarial", "triplet", "spread", "discriminator"} == set(history)
    assert len(history["reconstruction"]) == 150
    assert history["reconstruction"][-1] < history["reconstruction"][0]


def test_it_is_frozen_while_arms_train_and_saved_with_them(adata, model, x, tmp_path):
    before = {name: value.clone() for name, value in learned(model).generator.state_dict().items()}
    n_epochs = len(model.augmenter_history_["triplet"])
    model.train(**SHORT)
    assert len(model.augmenter_history_["triplet"]) == n_epochs
    model.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata=adata)
    for part in (learned(model), learned(loaded)):
        assert part.fitted
        for name, value in part.generator.state_dict().items():
            assert torch.equal(value, before[name])
    torch.manual_seed(0)
    copies = learned(model)(x)
    torch.manual_seed(0)
    assert torch.equal(learned(loaded)(x), copies)
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
    # Nothing is learned anew.
    loaded.train(**SHORT)
    assert torch.equal(learned(loaded).generator.mix.weight, before["mix.weight"])
    assert loaded.augmenter_history_ == model.augmenter_history_


def test_arms_have_their_augmenter_trained_first(adata, monkeypatch):
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=8, augment="learned")
    with pytest.raises(ValueError, match="has not been trained"):
        model.module.augmenter(torch.ones(2, 80))
    called = []
    train_augmenter = model.train_augmenter
    monkeypatch.setattr(model, "train_augmenter", lambda **kwargs: called.append(train_augmenter(1, **kwargs)))
    model.train(**SHORT)
    model.train(**SHORT)
    assert len(called) == 1


def test_the_same_seed_learns_the_same(adata):
    copies = []
    for seed in (3, 3, 4):
        scvi.settings.seed = seed
        cpl.CplMixVI.setup_anndata(adata)
        model = cpl.CplMixVI(adata, n_categories=3, augment="learned")
        model.train_augmenter(max_epochs=1, indices=range(100), **QUIET)
        copies.append(learned(model)(torch.ones(5, 80)))
    assert torch.equal(copies[0], copies[1])
    assert not torch.equal(copies[0], copies[2])


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
def test_other_values_are_copied_as_such(adata, likelihood):
    log = np.log1p(adata.X.toarray())
    adata.layers["values"] = log if likelihood == "normal" else (log > 1.5).astype(np.float32)
    cpl.CplMixVI.setup_anndata(adata, layer="values")
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=8, likelihood=likelihood, augment="learned")
    model.train_augmenter(max_epochs=40, **QUIET)
    model.train(**SHORT)
    given = torch.from_numpy(adata.layers["values"])
    copies = learned(model)(given)
    assert abs((copies > 0).float().mean() - (given > 0).float().mean()) < 0.05
    if likelihood == "bernoulli":
        assert set(copies.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("emission", [CountEmission, LogValueEmission, BinaryEmission])
def test_draws_have_the_moments_that_the_likelihood_says(emission):
    torch.manual_seed(0)
    layer = emission(5, 3)
    hidden = torch.randn(1, 5).expand(20_000, 5)
    x = torch.tensor([[4.0, 0.0, 2.0]]) if emission is not BinaryEmission else torch.tensor([[1.0, 0.0, 1.0]])
    with torch.no_grad():
        draws, log_prob = layer(hidden, x.expand(20_000, 3))
        # The mean likelihood of draws is minus their entropy: it is highest under the distribution they come from.
        own = torch.stack([layer(hidden[:1], row[None])[1] for row in draws[:300]]).mean()
    assert torch.isfinite(log_prob).all()
    assert own.isfinite()
    if emission is CountEmission:
        mean = 6 * torch.softmax(layer.output(hidden[:1]), -1)[0]
        assert torch.allclose(draws.mean(0), mean, rtol=0.1)
        assert torch.allclose(draws.var(0), mean + mean**2 / layer.log_theta.exp(), rtol=0.2)
        from scvi.distributions import NegativeBinomial

        reference = NegativeBinomial(mu=mean, theta=layer.log_theta.exp()).log_prob(x[0]).sum()
        assert torch.allclose(log_prob[0], reference, atol=1e-4)


def test_a_trained_one_is_used_again(adata, model):
    cells = adata[:200].copy()
    cpl.CplMixVI.setup_anndata(cells)
    again = cpl.CplMixVI(cells, n_categories=3, n_hidden=16, augment=learned(model))
    assert learned(again).fitted
    assert learned(again) is not learned(model)
    fewer = adata[:, :50].copy()
    cpl.CplMixVI.setup_anndata(fewer)
    assert not learned(cpl.CplMixVI(fewer, n_categories=3, augment=learned(model))).fitted


def test_it_learns_from_some_cells(adata, monkeypatch):
    cpl.CplMixVI.setup_anndata(adata)
    seen = []
    split = CplMixSplitter.__init__

    def look(self, *args, **kwargs):
        seen.append(kwargs["external_indexing"][0])
        split(self, *args, **kwargs)

    monkeypatch.setattr(CplMixSplitter, "__init__", look)
    model = cpl.CplMixVI(adata, n_categories=3, augment="learned")
    options = {"max_epochs": 1, "enable_progress_bar": False}
    for indices in (np.arange(40), np.arange(adata.n_obs) < 40, [*range(40), 3]):
        model.train_augmenter(indices=indices, **options)
        np.testing.assert_array_equal(seen.pop(), np.arange(40))
    for indices, message in ((["cell0"], "names of cells"), ([10**6], "there are"), (np.ones(3, bool), "mask of 3")):
        with pytest.raises(ValueError, match=message):
            model.train_augmenter(indices=indices, **options)


def test_ctrl_c_is_an_interrupt(adata):
    class Interrupt(Callback):
        def on_train_batch_start(self, *args):
            os.kill(os.getpid(), signal.SIGINT)

    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=3, augment="learned")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="interrupted"):
        model.train_augmenter(max_epochs=2, callbacks=[Interrupt()], enable_progress_bar=False)
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_cannot_be_trained_is_said(adata):
    cpl.CplMixVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="no learned augmenter"):
        cpl.CplMixVI(adata, n_categories=3).train_augmenter()
    with pytest.raises(ValueError, match="n_latent=0"):
        augment.LearnedAugmenter(n_latent=0)
