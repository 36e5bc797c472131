"""JointVAE and CascadeVAE: their objectives, their schedules, and their use as models."""

import math
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from _squares import images_of_squares
from anndata import AnnData
from scvi import REGISTRY_KEYS

import cplmixvi as cpl
from cplmixvi.baselines import (
    CascadeModule,
    CascadeVAE,
    InfoGAN,
    JointModule,
    JointVAE,
    assign_categories,
    kmeans,
    leiden,
    neighbour_graph,
    principal_components,
)
from cplmixvi.module import Covariates

pytestmark = pytest.mark.usefixtures("small_committee")


def minibatch(n=12, n_genes=9):
    x = torch.rand(n, n_genes).round()
    return {REGISTRY_KEYS.X_KEY: x, REGISTRY_KEYS.BATCH_KEY: torch.zeros(n, 1, dtype=torch.long)}


def module_of(cls, **options):
    return cls(9, n_categories=3, n_state=2, n_arms=1, likelihood="bernoulli", n_hidden=8, **options)


@pytest.fixture(scope="module")
def blocks():
    """Binary cells of three types that have different thirds of the genes, and one state in all of them."""
    rng = np.random.default_rng(0)
    types = rng.integers(0, 3, 300)
    p = np.full((300, 30), 0.05)
    p[np.arange(300)[:, None], 8 * types[:, None] + np.arange(8)] = 0.9
    p[:, 24:] = rng.random((300, 1))
    return AnnData((rng.random(p.shape) < p).astype(np.float32), obs={"type": types.astype(str)})


@pytest.fixture(scope="module")
def squares():
    return images_of_squares()


class TestAssignment:
    @pytest.mark.parametrize("congestion", [0, 0.3, 2.0])
    def test_the_least_cost_is_found(self, congestion):
        rng = np.random.default_rng(1)
        for _ in range(5):
            cost = rng.random((6, 3)) * [1, 1, 0.2]

            def total(labels, cost=cost):
                load = np.bincount(labels, minlength=3)
                return cost[np.arange(6), labels].sum() + congestion * (load * (load - 1) / 2).sum()

            least = min(total(np.array(labels)) for labels in product(range(3), repeat=6))
            assert total(assign_categories(cost, congestion)) == pytest.approx(least)

    def test_congestion_fills_all_categories_alike(self):
        cost = np.random.default_rng(0).random((30, 3)) + [0, 0, 5]
        assert np.bincount(assign_categories(cost, 0), minlength=3)[2] == 0
        assert np.bincount(assign_categories(cost, 100), minlength=3).tolist() == [10, 10, 10]


class TestJointVAE:
    def test_capacities_grow_linearly_to_the_logarithm_of_the_categories(self):
        module = module_of(JointModule, capacity_state=6, capacity_category=5)
        module.plan_steps(400)
        seen = []
        for _ in range(150):
            seen.append(module.capacities)
            module.dual_step({})
        assert seen[0] == (0, 0)
        assert seen[10] == pytest.approx((0.6, 0.5))
        assert seen[50] == pytest.approx((3, math.log(3)))
        assert seen[100] == seen[149] == pytest.approx((6, math.log(3)))

    def test_loss_is_the_published_one(self):
        module = module_of(JointModule, gamma=7.0, capacity_category=1.0, capacity_steps=10).train()
        module.n_steps += 5
        tensors = minibatch()
        inference, generative, output = module.forward(tensors)
        (arm,) = inference["arms"]
        probability = module.arms[0].likelihood(*generative["decoded"][0]).probs
        x = tensors[REGISTRY_KEYS.X_KEY]
        error = -(x * probability.log() + (1 - x) * (1 - probability).log()).sum(1).mean()
        kl_s = 0.5 * (arm.mean**2 + arm.variance - 1 - arm.variance.log()).sum(1).mean()
        q = arm.log_qc.exp()
        kl_c = math.log(3) + (q * q.log()).sum(1).mean()
        expected = error + 7 * (kl_s - 2.5).abs() + 7 * (kl_c - 0.5).abs()
        torch.testing.assert_close(output.loss, expected)

    @pytest.mark.parametrize("options", [{"gamma": -1}, {"capacity_state": -1}, {"capacity_steps": 0}])
    def test_impossible_settings_are_refused(self, options):
        with pytest.raises(ValueError, match="must be at least"):
            module_of(JointModule, **options)


class TestCascadeVAE:
    def test_states_are_released_one_by_one_and_categories_at_their_stage(self):
        module = module_of(CascadeModule, category_stage=1, beta_high=10, beta_low=0.5).train()
        module.plan_steps(9)
        released, categorical = [], []
        for _ in range(9):
            inference, _, output = module.forward(minibatch())
            (arm,) = inference["arms"]
            released.append(module.n_released)
            categorical.append(float(arm.c.sum(1).mean()))
            divergence = 0.5 * (arm.mean**2 + arm.variance - 1 - arm.variance.log())
            beta = torch.tensor([0.5] * module.n_released + [10.0] * (2 - module.n_released))
            expected = output.reconstruction_loss_sum / output.n_obs_minibatch + (divergence * beta).sum(1).mean()
            torch.testing.assert_close(output.loss, expected)
            module.dual_step({})
        assert released == [1, 1, 1, 1, 1, 1, 2, 2, 2]
        assert categorical == [0, 0, 0, 1, 1, 1, 1, 1, 1]

    def test_the_category_is_the_one_that_reconstructs_best(self):
        module = module_of(CascadeModule, category_stage=0, congestion=0).eval()
        tensors = minibatch()
        x, covariates = tensors[REGISTRY_KEYS.X_KEY], Covariates.of(tensors)
        (arm,) = module.arms
        hidden, log_qc = arm.encode(x, covariates)
        errors = []
        for k in range(3):
            c = torch.nn.functional.one_hot(torch.full((12,), k), 3).float()
            mean, _ = arm.state(hidden, c)
            p = arm.decode(c, mean, torch.ones(12, 1), covariates).probs
            errors.append(-(x * p.log() + (1 - x) * (1 - p).log()).sum(1))
        torch.testing.assert_close(log_qc, torch.log_softmax(-torch.stack(errors, 1), 1))
        module.train()
        assigned = module.forward(tensors)[0]["arms"][0]
        assert torch.equal(assigned.c.argmax(1), assigned.log_qc.argmax(1))

    @pytest.mark.parametrize("options", [{"congestion": -1}, {"stage_steps": 0}, {"category_stage": 3}])
    def test_impossible_settings_are_refused(self, options):
        with pytest.raises(ValueError, match="must be"):
            module_of(CascadeModule, **options)


class TestConvolutions:
    """Networks of images in the place of fully connected layers."""

    def test_they_are_the_published_ones(self):
        options = {"n_categories": 10, "n_state": 10, "n_channels": 32, "n_hidden": 256}
        (arm,) = JointModule(32 * 32, n_arms=1, likelihood="bernoulli", **options).arms
        shapes = [tuple(weight.shape) for weight in arm.encoder.parameters() if weight.dim() > 1]
        assert shapes == [(32, 1, 4, 4), (64, 32, 4, 4), (64, 64, 4, 4), (256, 64 * 4 * 4)]
        shapes = [tuple(weight.shape) for weight in arm.decoder.parameters() if weight.dim() > 1]
        assert shapes == [(256, 20), (64 * 4 * 4, 256), (64, 32, 4, 4), (32, 32, 4, 4), (32, 1, 4, 4)]
        assert not list(arm.likelihood.parameters())

    @pytest.mark.parametrize(("n_pixels", "image_shape"), [(28 * 28, None), (5 * 9, (5, 9))])
    def test_images_keep_their_size_and_their_place(self, n_pixels, image_shape):
        options = {"n_categories": 3, "n_state": 2, "n_channels": 2, "n_hidden": 8, "image_shape": image_shape}
        (arm,) = JointModule(n_pixels, n_arms=1, likelihood="bernoulli", **options).arms
        latent = torch.rand(4, 7, 5)
        logits = arm.decoder(latent)
        assert logits.shape == (4, 7, n_pixels)
        torch.testing.assert_close(logits[2], arm.decoder(latent[2]))
        # Zeros are what the margin is, so that a wider image of zeros reads the same.
        rows, columns = image_shape or (28, 28)
        read = arm.encoder.layers[:2](torch.rand(3, n_pixels))
        assert read.shape[2:] == (-(-rows // 8) * 8, -(-columns // 8) * 8)
        assert read.count_nonzero() <= 3 * n_pixels

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_channels": 0}, "n_channels=0 must be a whole number of at least 1"),
            ({"n_channels": 2, "image_shape": 28}, "28 are not rows and columns of an image"),
            ({"n_channels": 2, "image_shape": (4.5, 2)}, "are not rows and columns of an image"),
            ({"n_channels": 2, "image_shape": (2, 4)}, r"9 values are not the pixels of an image of shape \(2, 4\)"),
            ({"n_channels": 2, "n_layers": 3}, "n_layers: a network of convolutions has no such setting"),
            ({"n_channels": 2, "n_batch": 2}, "a network of convolutions has no batches"),
            ({"image_shape": (3, 3)}, "give n_channels too"),
        ],
    )
    def test_what_they_cannot_read_is_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            module_of(JointModule, **options)
        with pytest.raises(ValueError, match="use likelihood='bernoulli'"):
            JointModule(9, n_categories=3, n_arms=1, likelihood="nb", n_channels=2)

    @pytest.mark.filterwarnings("ignore:.*See model.report")
    @pytest.mark.parametrize("cls", [JointVAE, CascadeVAE])
    def test_they_learn_images_and_are_kept(self, cls, squares, tmp_path):
        cls.setup_anndata(squares)
        options = {"gamma": 3, "capacity_state": 10.0} if cls is JointVAE else {"category_stage": 0}
        model = cls(squares, 3, n_state=2, likelihood="bernoulli", n_channels=4, n_hidden=32, **options)
        # What categories become hangs on the seed; that images are drawn does not.
        model.train(max_epochs=20, batch_size=40, enable_progress_bar=False)
        errors = model.history["reconstruction_loss_train"].to_numpy().ravel()
        assert errors[-1] < 0.6 * errors[0]
        drawn = model.get_normalized_expression().to_numpy()
        assert drawn.shape == squares.shape
        lit = squares.X > 0
        # 1.7 (JointVAE, three seeds) to 3.5 and more; an image that is the same for all has 1.
        assert drawn[lit].mean() > 1.3 * drawn[~lit].mean()
        model.save(tmp_path / "model")
        loaded = cls.load(tmp_path / "model", squares)
        np.testing.assert_allclose(loaded.predict(soft=True), model.predict(soft=True), atol=1e-6)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (JointVAE, {"capacity_state": 0.5, "capacity_category": 1.1, "capacity_steps": 600}),
        (CascadeVAE, {"category_stage": 0}),
    ],
    ids=["JointVAE", "CascadeVAE"],
)
def test_types_are_found_written_and_kept(cls, options, blocks, tmp_path):
    adata = blocks.copy()
    cls.setup_anndata(adata)
    model = cls(adata, 3, n_state=1, likelihood="bernoulli", n_hidden=32, **options)
    model.train(max_epochs=150, enable_progress_bar=False)
    cpl.tl.annotate(adata, model)
    assert cpl.metrics.accuracy(adata.obs["type"], adata.obs["cplmixvi"]) > 0.9
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", adata)
    np.testing.assert_allclose(loaded.predict(soft=True), model.predict(soft=True), atol=1e-6)
    assert cls.__name__ in model.card()


def test_counts_are_read_at_a_common_depth(make_counts):
    adata = make_counts(n_obs=150)
    CascadeVAE.setup_anndata(adata, layer="counts")
    model = CascadeVAE(adata, 3, n_state=2, likelihood="nb", n_hidden=32, category_stage=0)
    model.train(max_epochs=60, enable_progress_bar=False)
    deeper = adata.copy()
    deeper.layers["counts"] = deeper.layers["counts"] * 3
    # Which optimum is found depends on the seed, but not all cells are in one category.
    assert len(set(model.predict())) > 1
    assert (model.predict(deeper) == model.predict()).mean() > 0.95


@pytest.mark.parametrize("cls", [JointVAE, CascadeVAE])
def test_what_baselines_do_not_do_is_refused(cls, blocks):
    cls.setup_anndata(blocks)
    with pytest.raises(ValueError, match="baselines do not find it"):
        cls(blocks, likelihood="bernoulli")
    with pytest.raises(ValueError, match=f"n_arms=2: {cls.__name__} has one arm; leave n_arms out"):
        cls(blocks, 3, likelihood="bernoulli", n_arms=2)
    with pytest.raises(ValueError, match="n_arms=2: .*VAE has one arm; leave n_arms out"):
        cls._module_cls(blocks.n_vars, n_categories=3, likelihood="bernoulli", n_arms=2)
    assert cls._module_cls(blocks.n_vars, n_categories=3, likelihood="bernoulli").n_arms == 1


#: Options of the coupled arms that the objectives of baselines have no use for.
UNUSED = {
    "beta": 2.0,
    "state_prior": "type",
    "lam": 1.0,
    "epsilon": None,
    "distance": "perturbed",
    "guide_epsilon": 0.1,
    "dual_rate": 0.1,
    "variance_momentum": 0.2,
    "share_arms": True,
    "state_given_category": False,
}
UNUSED_OF = {JointVAE: UNUSED} | dict.fromkeys((CascadeVAE, InfoGAN), UNUSED | {"temperature": 0.5, "hard": True})


@pytest.mark.parametrize(("cls", "option"), [(cls, option) for cls, options in UNUSED_OF.items() for option in options])
def test_an_option_that_would_change_nothing_is_refused(cls, option, squares):
    cls.setup_anndata(squares)
    value = UNUSED_OF[cls][option]
    said = rf"{option}={value!r}: {cls.__name__} has no such setting.*leave it out.*own are \w+"
    with pytest.raises(ValueError, match=said):
        cls(squares, 3, likelihood="bernoulli", **{option: value})
    with pytest.raises(ValueError, match=said):
        cls._module_cls(squares.n_vars, n_categories=3, likelihood="bernoulli", **{option: value})


@pytest.mark.parametrize("cls", list(UNUSED_OF))
def test_what_belongs_to_a_warm_start_is_refused(cls, squares):
    cls.setup_anndata(squares)
    model = cls(squares, 3, likelihood="bernoulli", n_hidden=8)
    begin = np.arange(3), np.eye(3)
    for given in ({"warm_start": True}, {"find_condition": True}):
        for options in (given, {"plan_kwargs": given}):
            with pytest.raises(ValueError, match=f"{next(iter(given))}=True: {cls.__name__} has no warm start"):
                model.train(1, **options)
    for given in ({"guided_fraction": 0.5}, {"guided_fraction": 0.0}, {"fit_halves": True}, {"begin": begin}):
        with pytest.raises(ValueError, match=f"^{next(iter(given))}.*no warm start.*leave {next(iter(given))} out"):
            model.train(1, plan_kwargs=given)
    assert not model.is_trained_


@pytest.mark.filterwarnings("ignore:.*See model.report")
@pytest.mark.parametrize("cls", [JointVAE, CascadeVAE])
def test_to_say_that_there_is_no_start_is_to_say_what_is_so(cls, blocks):
    cls.setup_anndata(blocks)
    model = cls(blocks, 3, likelihood="bernoulli", n_hidden=8)
    off = {"enable_progress_bar": False, "logger": False}
    model.train(1, warm_start=False, find_condition=False, plan_kwargs={"fit_halves": False}, **off)
    assert model.is_trained_


def test_clusters_far_apart_are_found():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 40)
    values = rng.normal(size=(120, 20)) + 8 * np.eye(3, 20)[truth]
    components = principal_components(values, 5)
    assert components.shape == (120, 5)
    for labels in (
        kmeans(components, 3),
        leiden(neighbour_graph(components), resolution=0.1),
    ):
        assert cpl.metrics.accuracy(truth, labels) == 1.0


@pytest.mark.filterwarnings("ignore:(Probabilities are almost flat|All cells|Only):UserWarning")
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_cascade_has_all_likelihoods_of_counts(make_counts, likelihood):
    adata = make_counts(n_obs=80, n_vars=30)
    CascadeVAE.setup_anndata(adata)
    model = CascadeVAE(adata, np.int64(3), likelihood=likelihood, n_hidden=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*within the support")
        model.train(max_epochs=2, enable_progress_bar=False)
    assert model.predict().shape == (80,)
    with pytest.raises(ValueError, match="no warm start"):
        model.train(max_epochs=1, plan_kwargs={"warm_start": True})
