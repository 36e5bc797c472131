"""What fails in the middle leaves the model and the cells as they were."""

import os
import signal

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from scvi.train import Trainer

import cplmixvi as cpl
from cplmixvi.train import CplMixPlan, CplMixSplitter, _guide, _plan

#: Trainings as short as these are.
pytestmark = [
    pytest.mark.usefixtures("small_committee"),
    pytest.mark.filterwarnings("ignore:Probabilities are almost flat:UserWarning"),
]
QUIET = {"enable_progress_bar": False}


class Broken(RuntimeError):
    pass


def raising(*args, **kwargs):
    raise Broken("out of memory")


class At(Callback):
    """Calls something once so many steps were taken."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_train_batch_end(self, trainer, plan, *args):
        if trainer.global_step == self.step:
            # The training is in the state that must not stay.
            assert plan.module.guided
            assert isinstance(plan.module.augmenter, cpl.augment.Compose)
            self.what()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def make(make_counts):
    adata = make_counts(n_obs=160, n_vars=20)
    cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
    return cpl.CplMixVI(adata, n_categories=3, n_hidden=8)


@pytest.fixture(scope="module")
def guide(make_counts):
    model = make(make_counts)
    splitter = CplMixSplitter(model.adata_manager, batch_size=40, train_size=1.0)
    splitter.setup()
    return _guide.fit_guide(model.module, splitter.train_dataloader())


@pytest.fixture
def model(make_counts, guide, monkeypatch):
    """A model whose training finds a condition, so that the augmenter is another one while it lasts."""

    def fit_guide(module, batches, adopt, begin):
        # Fitted once for all tests: it takes most of the time of trainings as short as these.
        adopt(lambda values, batch: values[:, 0] > values[:, 0].mean(), True)
        return guide

    monkeypatch.setattr(_plan, "fit_guide", fit_guide)
    return make(make_counts)


def state(model):
    """All that a user can see of a model, and of its cells."""
    module, adata = model.module, model.adata
    return {
        "module": id(module),
        "augmenter": id(module.augmenter),
        "cells of the augmenter": sorted(vars(module.augmenter)),
        "flags": (module.guided, module.training, module.device, [p.requires_grad for p in module.parameters()]),
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "attributes": {name: value for name, value in vars(model).items() if name.endswith("_") and name != "history_"},
        "history": {name: frame.copy() for name, frame in (model.history or {}).items()},
        "obs": adata.obs.copy(),
        "keys": [sorted(part) for part in (adata.uns, adata.obsm, cpl.pp.layer_names(adata), adata.var)],
        "predicted": model.predict(soft=True) if model.is_trained_ else None,
    }


def assert_equal(first, second):
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_equal(first[name], second[name])
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif hasattr(first, "equals"):
        assert first.equals(second)
    else:
        np.testing.assert_equal(first, second)


@pytest.mark.parametrize("trained", [False, True], ids=["new", "trained"])
@pytest.mark.parametrize(
    ("what", "error"), [(raising, Broken), (interrupt, KeyboardInterrupt)], ids=["error", "ctrl-c"]
)
def test_a_training_that_fails_leaves_the_model_as_it_was(model, trained, what, error):
    if trained:
        model.train(max_epochs=2, batch_size=40, **QUIET)
    before = state(model)
    options = {"max_epochs": 8, "batch_size": 40, "warm_start": True, **QUIET}
    with pytest.raises(error):
        # In the middle of the second of two epochs whose categories are drawn from the guide.
        model.train(callbacks=[At(6, what)], **options)
    assert_equal(before, state(model))
    if not trained:
        with pytest.raises(RuntimeError, match="train"):
            model.predict()
        # What failed left no trace in what is learned after it.
        other = cpl.CplMixVI(model.adata, n_categories=3, n_hidden=8)
        other.module.load_state_dict(before["weights"])
        for each in (model, other):
            scvi.settings.seed = 5
            each.train(**{**options, "warm_start": False})
        assert_equal(dict(model.module.state_dict()), dict(other.module.state_dict()))


@pytest.mark.parametrize("place", ["guide", "alignment", "report"])
def test_so_does_one_that_fails_before_or_after_its_steps(model, monkeypatch, place):
    model.train(max_epochs=2, batch_size=40, **QUIET)
    before = state(model)
    target = {"guide": (_plan, "fit_guide"), "alignment": (model, "align_arms"), "report": (model, "report")}[place]
    with monkeypatch.context() as patch:
        patch.setattr(*target, raising)
        with pytest.raises(Broken):
            model.train(max_epochs=2, batch_size=40, warm_start=True, **QUIET)
    assert_equal(before, state(model))


def test_a_plan_that_is_used_without_the_model_leaves_the_module_too(model):
    module = model.module
    augmenter = module.augmenter
    plan = CplMixPlan(module, warm_start=True)
    trainer = Trainer(max_epochs=8, accelerator="cpu", devices=1, callbacks=[At(6, raising)], logger=False, **QUIET)
    splitter = CplMixSplitter(model.adata_manager, batch_size=40, train_size=1.0)
    with pytest.raises(Broken):
        trainer.fit(plan, splitter)
    assert plan.level is not None
    assert module.augmenter is augmenter
    assert not module.guided


@pytest.mark.parametrize("place", ["posterior", "summary"])
def test_an_annotation_that_fails_changes_no_cell(model, monkeypatch, place):
    model.train(max_epochs=2, batch_size=40, **QUIET)
    adata = model.adata
    cpl.tl.annotate(adata, model)
    adata.uns["cplmixvi_colors"] = ["#000000"] * 3
    before, written = state(model), adata.uns["cplmixvi"]
    target = {"posterior": (model, "get_posterior"), "summary": (cpl.tl._annotate, "_summary")}[place]
    with monkeypatch.context() as patch:
        patch.setattr(*target, raising)
        with pytest.raises(Broken):
            cpl.tl.annotate(adata, model)
    assert_equal(before, state(model))
    assert adata.uns["cplmixvi"] is written
