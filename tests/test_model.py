"""The scvi-tools model: set-up, training arguments, getters, saving."""

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scvi
import torch

import cplmixvi as cpl
from cplmixvi.model._devices import resolve_device

pytestmark = pytest.mark.usefixtures("small_committee")

TYPES = 3


@pytest.fixture(scope="module")
def adata(make_counts):
    adata = make_counts(n_obs=240, n_types=TYPES)
    adata.obs["site"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 2, "a", "b"))
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    adata.obs["depth"] = np.asarray(adata.X.sum(1)).ravel() / 100
    return adata


@pytest.fixture(scope="module")
def model(adata):
    scvi.settings.seed = 1
    cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = cpl.CplMixVI(adata, n_categories=TYPES, n_hidden=32)
    model.train(max_epochs=100, enable_progress_bar=False)
    return model


def quick(adata, *, setup=None, epochs=2, train=None, **options):
    cpl.CplMixVI.setup_anndata(adata, **({"layer": "counts"} | (setup or {})))
    model = cpl.CplMixVI(adata, **({"n_categories": TYPES, "n_hidden": 8} | options))
    model.train(max_epochs=epochs, enable_progress_bar=False, **(train or {}))
    return model


def test_arms_that_share_a_network_find_types_and_are_kept(adata, tmp_path):
    model = quick(adata, epochs=40, share_arms=True, n_hidden=32)
    posterior = model.get_posterior()
    np.testing.assert_allclose(posterior.state[:, 0], posterior.state[:, 1], atol=1e-4)
    assert cpl.metrics.ari(adata.obs["type"], model.predict()) > 0.6
    model.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata)
    assert loaded.module.arms[0] is loaded.module.arms[1]
    np.testing.assert_allclose(loaded.predict(soft=True), model.predict(soft=True), atol=1e-6)


def test_types_of_separate_clusters_are_found(adata, model):
    assert cpl.metrics.ari(adata.obs["type"], model.predict()) > 0.6


def test_training_lowers_the_loss_and_history_says_so(model):
    expected = {"reconstruction_loss", "kl_local", "elbo", "distance", "disagreement", "entropy", "agreement", "lambda"}
    expected |= {"guide_divergence", "guide_weight"}
    assert {f"{name}_train" for name in expected} | {"train_loss"} == set(model.history)
    reconstruction = model.history["reconstruction_loss_train"].to_numpy().ravel()
    assert len(reconstruction) == 100
    assert reconstruction[-10:].mean() < reconstruction[:3].mean()


def test_predictions_and_probabilities_belong_together(adata, model):
    labels, proba = model.predict(), model.predict(soft=True)
    assert list(proba.columns) == ["0", "1", "2"]
    assert (proba.index == adata.obs_names).all()
    assert (proba.columns[proba.to_numpy().argmax(1)] == labels).all()
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    some = model.predict(indices=[5, 3])
    assert list(some) == list(labels[[5, 3]])


def test_batch_size_does_not_change_an_answer(model):
    np.testing.assert_allclose(
        model.predict(soft=True, batch_size=7), model.predict(soft=True, batch_size=128), atol=1e-5
    )


def test_without_an_arm_states_are_the_mean_of_the_aligned_arms(model):
    state, variance = model.get_state(return_variance=True)
    assert state.shape == variance.shape == (240, 2)
    assert state.dtype == variance.dtype == np.float32
    arms = np.stack([model.get_state(arm=arm) for arm in (0, 1)])
    np.testing.assert_allclose(state, arms.mean(0), atol=1e-5)
    assert (variance >= arms.var(0) - 1e-5).all()
    with pytest.raises(ValueError, match="arms 0 to 1"):
        model.get_state(arm=2)


def test_consensus_agrees_with_the_labels_of_the_arms(model):
    consensus = model.get_consensus()
    first, second = consensus.labels.T
    assert consensus.mean == pytest.approx((first == second).mean())
    np.testing.assert_array_equal(consensus.by_cell, (first == second).astype(np.float32))
    k = first[0]
    both = ((first == k) & (second == k)).sum()
    assert consensus.by_category[k] == pytest.approx(both / max((first == k).sum(), (second == k).sum()))
    assert consensus.counts.sum() == 240


def test_one_arm_has_no_consensus(adata):
    consensus = quick(adata, n_arms=1).get_consensus()
    assert np.isnan(consensus.mean)
    assert np.isnan(consensus.by_category).all()


def test_expression_getters_work(adata, model):
    expression = model.get_normalized_expression(library_size=100, gene_list=list(adata.var_names[:4]))
    assert expression.shape == (240, 4)
    assert (model.get_normalized_expression().sum(1) - 1).abs().max() < 1e-4
    observed = adata.X.toarray() / adata.X.sum(1)
    types = adata.obs["type"].to_numpy()
    decoded = model.get_normalized_expression().to_numpy()
    for name in np.unique(types):
        correlation = np.corrcoef(observed[types == name].mean(0).ravel(), decoded[types == name].mean(0))[0, 1]
        assert correlation > 0.9
    shifted = model.get_normalized_expression(transform_batch=adata.obs["batch"].unique()[0])
    assert not np.allclose(shifted, decoded)
    samples = model.posterior_predictive_sample(n_samples=3)
    assert samples.shape == (240, 60, 3)
    assert abs(samples.todense().mean() / adata.X.mean() - 1) < 0.2
    assert model.get_normalized_expression(n_samples=2, return_mean=False).shape == (2, 240, 60)


def test_differential_expression_finds_the_markers(adata, model):
    adata.obs["called"] = pd.Categorical(model.predict())
    group = adata.obs["called"].iloc[0]
    table = model.differential_expression(groupby="called", group1=group, silent=True)
    inside = (adata.obs["called"] == group).to_numpy()
    observed = np.log2(adata.X[inside].mean(0) + 1e-2) - np.log2(adata.X[~inside].mean(0) + 1e-2)
    change = table["lfc_mean"] if "lfc_mean" in table else np.log2(table["scale1"] / table["scale2"])
    assert np.corrcoef(change.loc[adata.var_names], np.asarray(observed).ravel())[0, 1] > 0.7


def test_elbo_and_reconstruction_error_are_finite_and_ordered(adata, model):
    assert model.get_elbo(return_mean=False).shape == (240,)
    untrained = cpl.CplMixVI(adata, n_categories=TYPES, n_hidden=32)
    untrained.is_trained_ = True
    assert model.get_elbo() > untrained.get_elbo()
    error = model.get_reconstruction_error()
    assert 0 < error["reconstruction_loss"] < -model.get_elbo()


@pytest.mark.parametrize("likelihood", ["zinb", "poisson"])
def test_other_count_likelihoods_train(adata, likelihood):
    model = quick(adata, likelihood=likelihood)
    assert np.isfinite(model.get_elbo())
    assert model.posterior_predictive_sample().shape == (240, 60)


@pytest.mark.parametrize("likelihood", ["normal", "mse"])
@pytest.mark.parametrize("augment", ["auto", "noise", "none"])
def test_log_values_train(adata, likelihood, augment):
    adata.layers["log"] = cpl.pp.log_normalize(adata.X)
    model = quick(adata, setup={"layer": "log"}, likelihood=likelihood, augment=augment)
    assert model.get_normalized_expression().shape == (240, 60)
    assert np.isfinite(model.get_elbo())


@pytest.mark.parametrize(("likelihood", "augment"), [("normal", "auto"), ("bernoulli", "auto"), ("normal", "noise")])
def test_decoded_values_are_those_of_cells_and_not_of_their_copies(adata, likelihood, augment):
    """Copies without some of the values have a smaller mean."""
    values = cpl.pp.log_normalize(adata.X).toarray() if likelihood == "normal" else (adata.X > 0).toarray()
    adata.layers["values"] = values.astype(np.float32)
    model = quick(adata, epochs=60, setup={"layer": "values"}, likelihood=likelihood, augment=augment)
    decoded, real = model.get_normalized_expression().to_numpy().mean(0), adata.layers["values"].mean(0)
    assert decoded @ real / (real @ real) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("unit", ["relative", "of all genes"])
def test_size_factors_of_any_unit_give_the_same_fit(adata, unit):
    depth = np.asarray(adata.X.sum(1)).ravel()
    adata.obs["factor"] = depth / np.median(depth) if unit == "relative" else 3 * depth
    scvi.settings.seed = 0
    expected = quick(adata.copy(), epochs=5)
    scvi.settings.seed = 0
    model = quick(adata, epochs=5, setup={"size_factor_key": "factor"})
    assert model.module.size_factor_scale * adata.obs["factor"].iloc[0] == pytest.approx(depth[0])
    assert float(model.get_elbo()) == pytest.approx(float(expected.get_elbo()), rel=1e-2)
    drawn = model.posterior_predictive_sample().sum()
    assert float(drawn) == pytest.approx(depth.sum(), rel=0.05)
    adata.obs["factor"] = 0.0
    cpl.CplMixVI.setup_anndata(adata, size_factor_key="factor")
    with pytest.raises(ValueError, match="not positive"):
        cpl.CplMixVI(adata, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, "max_epochs=0 must be"),
        ({"max_epochs": -1}, "max_epochs=-1 must be"),
        ({"max_epochs": 1.5}, "max_epochs=1.5 must be"),
        ({"batch_size": 0}, "batch_size=0 must be"),
        ({"train_size": 0}, "train_size=0 must be"),
        ({"train_size": 1.5}, "train_size=1.5 must be"),
        ({"train_size": 1, "early_stopping": True}, "lower train_size"),
        ({"train_size": 1, "check_val_every_n_epoch": 1}, "lower train_size"),
        ({"validation_size": 0.0, "early_stopping": True}, "leave validation_size out"),
        ({"train_size": "0.9"}, "train_size='0.9' must be"),
        ({"validation_size": 1}, "validation_size=1 must be"),
        ({"train_size": 0.9, "validation_size": 0.2}, "more than all cells"),
        (
            {"early_stopping": True, "datasplitter_kwargs": {"external_indexing": [np.arange(100), [], []]}},
            "there are none",
        ),
        ({"checkpoint_dir": __file__}, "is a file; name a folder"),
    ],
    ids=str,
)
def test_trainings_that_cannot_be_are_refused_before_the_start(adata, monkeypatch, options, message):
    monkeypatch.setattr(cpl.CplMixVI, "_fit", lambda self, *args, **kwargs: pytest.fail("it was begun"))
    cpl.CplMixVI.setup_anndata(adata)
    with pytest.raises(ValueError, match=message):
        cpl.CplMixVI(adata, 3).train(**options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n_hidden", value) for value in (0, 2.5, True)),
        ("n_layers", 0),
        *(("temperature", value) for value in (0, -1, np.nan)),
        ("beta", -1),
        *(("dual_rate", value) for value in (-1.0, np.nan)),
        ("variance_momentum", 5.0),
        ("hard", "no"),
        ("dropout_rate", 1),
        ("guide_epsilon", -1),
        ("target_library", -5.0),
    ],
)
def test_arguments_of_the_module_out_of_range_are_refused(adata, name, value):
    cpl.CplMixVI.setup_anndata(adata)
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        cpl.CplMixVI(adata, 3, **{name: value})


def test_rows_that_are_none_are_refused(adata, model):
    for rows in ([], adata.obs_names[:3], [0.5]):
        for getter in (model.predict, model.get_state, model.get_novelty, model.report):
            with pytest.raises(ValueError, match="indices must be row numbers"):
                getter(indices=rows)
    mask = np.arange(adata.n_obs) < 5
    assert np.array_equal(model.predict(indices=mask), model.predict(indices=range(5)))
    decoded = model.decode_state(np.zeros((1, 2)), "0", indices=mask)
    assert decoded.expression.shape == (1, adata.n_vars)
    with pytest.raises(ValueError, match="library_size=-1"):
        model.decode_state(np.zeros((1, 2)), "0", library_size=-1)


def test_a_model_without_cells_says_so(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata=False)
    for call in (loaded.predict, loaded.train, loaded.report):
        with pytest.raises(ValueError, match="has no cells"):
            call()
    with pytest.raises(ValueError, match="adata=True"):
        cpl.CplMixVI.load(tmp_path / "model", adata=True)


def test_getters_of_scvi_tools_work_or_say_why_not(adata, model):
    parameters = model.get_likelihood_parameters()
    assert parameters["mean"].shape == parameters["dispersions"].shape == adata.shape
    with pytest.raises(NotImplementedError, match="library size is observed"):
        model.get_latent_library_size()
    poisson = quick(adata, likelihood="poisson")
    for getter in (poisson.get_likelihood_parameters, poisson.get_feature_correlation_matrix):
        with pytest.raises(NotImplementedError, match="needs likelihood='nb' or 'zinb'"):
            getter()


@pytest.mark.parametrize("options", [{}, {"distance": "perturbed", "epsilon": None}], ids=str)
def test_half_precision_trains(adata, options):
    model = quick(adata, train={"precision": "bf16-mixed"}, **options)
    assert np.isfinite(model.get_elbo())
    assert model.training_["n_epochs"] == 2


def test_epochs_are_counted_without_a_logger(adata):
    assert quick(adata, train={"logger": False}).training_["n_epochs"] == 2


def test_a_string_is_no_list_of_columns(adata):
    for name in ("categorical_covariate_keys", "continuous_covariate_keys"):
        with pytest.raises(ValueError, match=r"give a list, \['age'\]"):
            cpl.CplMixVI.setup_anndata(adata, **{name: "age"})


def test_binary_values_train(adata):
    adata.layers["binary"] = (adata.X > 0).astype(np.float32)
    model = quick(adata, setup={"layer": "binary"}, likelihood="bernoulli")
    expression = model.get_normalized_expression().to_numpy()
    assert ((expression >= 0) & (expression <= 1)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"distance": "perturbed", "epsilon": None},
        {"distance": "aitchison", "epsilon": None, "lam": 0.5},
        {"distance": "perturbed", "epsilon": 0.1},
        {"guide_epsilon": None},
        {"hard": True},
        {"n_arms": 3},
        {"n_arms": 1},
        {"n_state": 1},
    ],
    ids=str,
)
def test_options_of_the_method_train_and_survive_saving(adata, tmp_path, options):
    model = quick(adata, **options)
    model.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata=adata)
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
    assert loaded.module.coupling.lam.value == model.module.coupling.lam.value
    if options.get("epsilon", 0.05) is None:
        assert model.module.coupling.lam.value == options.get("lam", 1.0)


def test_all_covariates_and_size_factors_register_and_train(adata):
    model = quick(
        adata,
        setup={
            "batch_key": "batch",
            "labels_key": "type",
            "categorical_covariate_keys": ["site"],
            "continuous_covariate_keys": ["age"],
            "size_factor_key": "depth",
        },
    )
    arm = model.module.arms[0]
    assert arm.encoder.n_cov == 2 + 2 + 1
    assert arm.decoder.n_cov == 2 + 2 + 1
    assert model.predict().shape == (240,)
    library = next(iter(model._make_data_loader(adata=model.adata)))[scvi.REGISTRY_KEYS.SIZE_FACTOR_KEY]
    np.testing.assert_allclose(library[:3].ravel(), adata.obs["depth"][:3], rtol=1e-5)


def test_same_seed_same_bits_other_seed_other_result(adata):
    def run(seed):
        scvi.settings.seed = seed
        return quick(adata, epochs=3).predict(soft=True).to_numpy()

    first, again, other = run(3), run(3), run(4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_training_arguments_of_scvi_pass_through(adata, tmp_path):
    scvi.settings.logging_dir = str(tmp_path)
    model = quick(
        adata,
        epochs=6,
        train={
            "early_stopping": True,
            "early_stopping_patience": 2,
            "accelerator": "cpu",
            "devices": 1,
            "plan_kwargs": {"lr": 0.05, "n_epochs_kl_warmup": 3, "reduce_lr_on_plateau": True},
            "datasplitter_kwargs": {"pin_memory": False},
            "gradient_clip_val": 1.0,
            "enable_checkpointing": True,
            "batch_size": 32,
        },
    )
    assert {"elbo_validation", "validation_loss", "agreement_validation"} <= set(model.history)
    assert len(model.validation_indices) == 24
    assert len(model.history["elbo_train"]) <= 6
    assert any(tmp_path.iterdir())


def test_split_given_from_outside_is_used(adata):
    train, validation = np.arange(0, 200), np.arange(200, 240)
    model = quick(adata, train={"datasplitter_kwargs": {"external_indexing": [train, validation, np.array([])]}})
    assert np.array_equal(model.train_indices, train)


def test_all_cells_are_trained_on_by_default(model):
    assert len(model.train_indices) == 240
    assert len(model.validation_indices) == 0


def test_second_training_goes_on_from_the_first(adata):
    model = quick(adata, epochs=3)
    before = model.history["reconstruction_loss_train"].to_numpy().ravel()
    statistics = [buffer.clone() for name, buffer in model.module.named_buffers() if "running_mean" in name]
    model.train(max_epochs=2, enable_progress_bar=False)
    again = [buffer for name, buffer in model.module.named_buffers() if "running_mean" in name]
    assert all(not torch.equal(a, b) for a, b in zip(statistics, again, strict=True)), "trained in evaluation mode"
    after = model.history["reconstruction_loss_train"].to_numpy().ravel()
    assert len(after) == 5
    assert after[3:].mean() < before[0]


def test_saving_keeps_everything(adata, model, tmp_path):
    model.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata=adata)
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
    assert set(loaded.history) == set(model.history)
    without = cpl.CplMixVI.load(tmp_path / "model", adata=False)
    assert list(without.predict(adata.copy())) == list(model.predict())


def test_untrained_models_do_not_predict(adata):
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    with pytest.raises(RuntimeError, match="[Tt]rain"):
        cpl.CplMixVI(adata, n_categories=2).predict()


def test_until_it_is_found_the_number_of_categories_is_a_bound(adata):
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    assert cpl.CplMixVI(adata).n_categories == 12
    assert cpl.CplMixVI(adata, n_categories="auto").n_categories == 12


def test_the_model_says_what_it_is(model):
    assert "n_categories: 3" in model.summary_string
    assert "CountThinning" in model.summary_string


def test_library_code_leaves_the_number_of_threads_alone(adata):
    before = torch.get_num_threads()
    quick(adata)
    assert torch.get_num_threads() == before


def test_devices():
    assert resolve_device("cpu", 3) == torch.device("cpu")
    assert resolve_device("auto", "auto").type in ("cpu", "cuda")
    assert resolve_device("auto", "cpu") == torch.device("cpu")
    for arguments in (("tpu",), ("cpu", [0, 1]), ("gpu", 99)):
        with pytest.raises(ValueError):
            resolve_device(*arguments)


def test_parts_of_the_model_use_names_that_it_has(model):
    """The classes of scvi-tools have no types, so that a type checker lets any name of the model pass."""
    names = set()
    for path in Path(cpl.model.__file__).parent.glob("*.py"):
        for part in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(part, ast.ClassDef) and part.name.endswith("Mixin"):
                names |= {
                    n.attr for n in ast.walk(part) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"
                }
    assert {"module", "get_posterior"} <= names
    assert not {name for name in names if not hasattr(model, name)}
