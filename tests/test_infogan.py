"""InfoGAN: its two losses and whose weights each moves, its training, and its use as a model."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from _squares import SIDE, images_of_squares
from anndata import AnnData

import cplmixvi as cpl
from cplmixvi.baselines import InfoGAN, InfoGANModule

QUIET = {"enable_progress_bar": False}


def module_of(**options):
    options = {"n_channels": 2, "n_hidden": 8, **options}
    return InfoGANModule(SIDE**2, n_categories=3, n_state=2, n_arms=1, **options).train()


@pytest.fixture(scope="module")
def shapes():
    return images_of_squares()


@pytest.fixture(scope="module")
def model(shapes):
    scvi.settings.seed = 2
    InfoGAN.setup_anndata(shapes)
    model = InfoGAN(shapes, 3, n_channels=8, n_hidden=32, n_noise=8)
    with warnings.catch_warnings():
        # Another seed, or another processor, may end in an optimum that the report warns of.
        warnings.simplefilter("ignore", UserWarning)
        model.train(max_epochs=100, batch_size=64, **QUIET)
    return model


class TestLosses:
    def test_codes_are_as_documented(self):
        codes = module_of().draw(20_000)
        assert torch.equal(codes.c.argmax(1), codes.category)
        assert torch.bincount(codes.category).div(20_000).sub(1 / 3).abs().max() < 0.02
        assert codes.s.abs().max() <= 3**0.5
        # A fourth moment of 9/5 is that of a uniform distribution; a normal one has 3.
        for moment, expected in ((1, 0), (2, 1), (4, 1.8)):
            assert codes.s.pow(moment).mean(0).tolist() == pytest.approx([expected] * 2, abs=0.05)
        assert codes.noise.shape == (20_000, 62)
        assert codes.noise.pow(4).mean() == pytest.approx(3, abs=0.1)

    def test_they_are_the_published_ones(self):
        module = module_of(category_weight=0.7, state_weight=0.3)
        x, codes = torch.rand(16, SIDE**2), module.draw(16)
        images = module.generate(codes)
        assert 0 <= images.min() and images.max() <= 1
        (arm,) = module.arms
        real, drawn = (torch.sigmoid(arm.critic(arm.encoder(each))) for each in (x, images))
        hidden, log_qc = arm.read(arm.encoder(images))
        mean, variance = arm.state(hidden, codes.c)
        density = torch.exp(-((codes.s - mean) ** 2) / (2 * variance)) / (2 * torch.pi * variance).sqrt()
        not_said = -0.7 * log_qc[torch.arange(16), codes.category].mean() - 0.3 * density.log().sum(1).mean()
        of_discriminator, terms = module.discriminator_loss(x, images, codes)
        expected = -real.log().mean() - (1 - drawn).log().mean()
        torch.testing.assert_close(terms["discriminator"], expected)
        torch.testing.assert_close(of_discriminator, expected + not_said)
        of_generator, terms = module.generator_loss(images, codes)
        torch.testing.assert_close(terms["generator"], -drawn.log().mean())
        torch.testing.assert_close(of_generator, -drawn.log().mean() + not_said)

    def test_the_discriminators_loss_reaches_all_of_its_weights_and_none_of_the_generators(self):
        module = module_of()
        codes = module.draw(16)
        module.discriminator_loss(torch.rand(16, SIDE**2), module.generate(codes), codes)[0].backward()
        assert all(weight.grad is None for weight in module.generator)
        # A bias in front of a normalisation has no effect, and no gradient but for rounding.
        assert all(weight.grad is not None for weight in module.discriminator)
        assert all(weight.grad.abs().max() > 1e-6 for weight in module.discriminator if weight.dim() > 1)

    @pytest.mark.parametrize("term", ["generator", "category", "state"])
    def test_every_term_of_the_generators_loss_reaches_it(self, term):
        module = module_of()
        codes = module.draw(16)
        module.generator_loss(module.generate(codes), codes)[1][term].backward()
        assert all(weight.grad.abs().max() > 0 for weight in module.generator if weight.dim() > 1)

    @pytest.mark.parametrize("term", ["category", "state"])
    def test_information_trains_what_reads_the_codes(self, term):
        module = module_of()
        codes = module.draw(16)
        module.discriminator_loss(torch.rand(16, SIDE**2), module.generate(codes), codes)[1][term].backward()
        (arm,) = module.arms
        readers = {"category": arm.category_head, "state": arm.state_mean}
        for name, layer in readers.items():
            assert (layer.weight.grad is not None) == (name == term)
        assert arm.head[0].weight.grad.abs().max() > 0 and arm.encoder[1].weight.grad.abs().max() > 0
        assert arm.critic.weight.grad is None

    def test_images_have_the_shape_that_is_given(self):
        module = InfoGANModule(96, n_categories=3, n_arms=1, n_channels=2, image_shape=(8, 12))
        assert module.generate(module.draw(4)).shape == (4, 96)
        assert module.arms[0].encoder[0](torch.zeros(1, 96)).shape == (1, 1, 8, 12)


#: Of models that are trained for an epoch or two.
UNSOUND = pytest.mark.filterwarnings("ignore:.*See model.report")


class TestTraining:
    @UNSOUND
    @pytest.mark.parametrize(("rate", "moves"), [("discriminator_lr", "generator"), ("lr", "discriminator")])
    def test_each_optimiser_moves_its_own_network_alone(self, shapes, rate, moves):
        InfoGAN.setup_anndata(shapes)
        model = InfoGAN(shapes, 3, n_channels=2, n_hidden=8)
        before = {name: [w.clone() for w in getattr(model.module, name)] for name in ("generator", "discriminator")}
        model.train(max_epochs=1, batch_size=64, plan_kwargs={rate: 0.0}, **QUIET)
        for name, weights in before.items():
            same = [torch.equal(old, new) for old, new in zip(weights, getattr(model.module, name), strict=True)]
            assert not any(same) if name == moves else all(same)
        assert int(model.module.n_steps) == 7

    @UNSOUND
    def test_an_interrupted_training_goes_on_as_it_would_have(self, shapes, tmp_path, monkeypatch):
        def made():
            scvi.settings.seed = 0
            InfoGAN.setup_anndata(shapes)
            return InfoGAN(shapes, 3, n_channels=2, n_hidden=8)

        whole = made()
        whole.train(max_epochs=4, batch_size=64, **QUIET)
        part = made()
        usual = part.module.generator_loss

        def interrupted(*args):
            if int(part.module.n_steps) == 17:
                raise RuntimeError("crash")
            return usual(*args)

        monkeypatch.setattr(part.module, "generator_loss", interrupted)
        with pytest.raises(RuntimeError, match="crash"):
            part.train(max_epochs=4, batch_size=64, checkpoint_dir=tmp_path, checkpoint_every=1, **QUIET)
        resumed = made()
        resumed.train(max_epochs=4, batch_size=64, resume=tmp_path, **QUIET)
        assert int(resumed.module.n_steps) == int(whole.module.n_steps) == 28
        for name, value in whole.module.state_dict().items():
            torch.testing.assert_close(resumed.module.state_dict()[name], value, msg=name)

    def test_every_weight_that_is_used_belongs_to_one_network(self):
        module = module_of()
        generator, discriminator = ({*map(id, weights)} for weights in (module.generator, module.discriminator))
        assert not generator & discriminator
        unused = {name for name, weight in module.named_parameters() if id(weight) not in generator | discriminator}
        assert unused == {"arms.0.path.weight"}

    def test_history_has_the_terms_and_no_bound_of_a_likelihood(self, model):
        assert {"discriminator_train", "generator_train", "category_train", "state_train"} <= set(model.history)
        assert "elbo_train" not in model.history and "reconstruction_loss_train" not in model.history
        category = model.history["category_train"].to_numpy(dtype=float)
        assert len(category) == 100
        assert category[-1] < 0.5 * category[0]

    @UNSOUND
    def test_a_loss_that_is_not_finite_leads_back_to_the_last_good_epoch(self, shapes, monkeypatch):
        InfoGAN.setup_anndata(shapes)
        model = InfoGAN(shapes, 3, n_channels=2, n_hidden=8)
        usual, calls = model.module.generator_loss, []

        def broken_once(*args):
            calls.append(1)
            loss, terms = usual(*args)
            return (loss * torch.nan if len(calls) == 3 else loss), terms

        monkeypatch.setattr(model.module, "generator_loss", broken_once)
        with pytest.warns(UserWarning, match="diverged in epoch 1"):
            model.train(max_epochs=2, batch_size=64, **QUIET)
        assert all(weight.isfinite().all() and weight.requires_grad for weight in model.module.discriminator)


class TestModel:
    def test_types_are_found_written_and_kept(self, shapes, model, tmp_path):
        adata = shapes.copy()
        cpl.tl.annotate(adata, model)
        # Which optimum is found, and so how good types are, differs from seed to seed and from processor to processor.
        assert list(adata.obs["cplmixvi"]) == list(model.predict()) and adata.obs["cplmixvi"].nunique() > 1
        model.save(tmp_path / "model")
        loaded = InfoGAN.load(tmp_path / "model", shapes.copy())
        pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True), atol=1e-6)
        np.testing.assert_allclose(loaded.get_state(), model.get_state(), atol=1e-5)
        assert "InfoGAN" in model.card()

    @torch.inference_mode()
    def test_what_is_drawn_from_codes_is_read_as_these(self, model):
        # With the minibatch's moments, as in training: running ones lag behind networks that chase each other.
        module = model.module.train()
        codes = module.draw(600)
        hidden, log_qc = module.arms[0].encode(module.generate(codes), None)
        assert (log_qc.argmax(1) == codes.category).float().mean() > 0.9
        mean, _ = module.arms[0].state(hidden, codes.c)
        for dimension in range(2):
            assert np.corrcoef(mean[:, dimension], codes.s[:, dimension])[0, 1] > 0.7

    def test_decoding_is_without_noise(self, model):
        state = np.array([[-1.0, 0.5], [1.0, 0.5]], dtype=np.float32)
        first, second = (model.decode_state(state, "1").expression for _ in range(2))
        assert first.shape == (2, SIDE**2) and first.min() >= 0 and first.max() <= 1
        np.testing.assert_array_equal(first, second)
        assert np.abs(first[0] - first[1]).max() > 0.05
        assert np.isfinite(model.get_elbo())

    @pytest.mark.parametrize("likelihood", ["nb", "normal"])
    def test_it_is_for_images_only(self, likelihood):
        adata = AnnData(np.ones((40, 16), dtype=np.float32))
        InfoGAN.setup_anndata(adata)
        with pytest.raises(ValueError, match="not one of images.*likelihood='bernoulli'"):
            InfoGAN(adata, 3, likelihood=likelihood)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"image_shape": (9, 16)}, "multiples of 4"),
            ({"image_shape": (-12, -12)}, "not the pixels of an image"),
            ({"image_shape": (8, 8)}, r"not the pixels of an image of shape \(8, 8\)"),
            ({"n_noise": -1}, "n_noise=-1 must be a whole number of at least 0"),
            ({"n_channels": 0}, "n_channels=0 must be a whole number of at least 1"),
            ({"state_weight": -1}, "state_weight=-1 must be at least 0"),
            ({"n_layers": 3}, "no such setting"),
            ({"n_batch": 2}, "no batches"),
        ],
    )
    def test_impossible_settings_are_refused(self, options, said):
        with pytest.raises(ValueError, match=said):
            module_of(**options)

    def test_what_it_does_not_do_is_refused(self, shapes):
        InfoGAN.setup_anndata(shapes)
        with pytest.raises(ValueError, match="baselines do not find it"):
            InfoGAN(shapes)
        model = InfoGAN(shapes, 3, n_channels=2)
        with pytest.raises(ValueError, match="no warm start"):
            model.train(1, warm_start=True)
        with pytest.raises(ValueError, match="no loss says"):
            model.train(1, plan_kwargs={"reduce_lr_on_plateau": True}, **QUIET)
        with pytest.raises(ValueError, match="n_epochs_kl_warmup=3: the objective has no divergence"):
            model.train(1, plan_kwargs={"n_epochs_kl_warmup": 3}, **QUIET)
