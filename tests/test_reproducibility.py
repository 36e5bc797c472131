"""The same seed gives the same model, other threads the same types, and many models no more memory than one."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import scvi
import torch

import cplmixvi as cpl


def fit(adata, seed=0, **options):
    scvi.settings.seed = seed
    cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = cpl.CplMixVI(adata, n_categories=4, n_hidden=32)
    model.train(**{"max_epochs": 15, "enable_progress_bar": False, "accelerator": "cpu"} | options)
    return model


@pytest.fixture(scope="module")
def model(make_counts):
    return fit(make_counts(n_obs=300, n_types=4))


def test_the_same_seed_gives_the_same_bits(model, make_counts):
    again = fit(make_counts(n_obs=300, n_types=4))
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    for name, frame in model.history.items():
        assert frame.equals(again.history[name]), name
    np.testing.assert_array_equal(model.predict(soft=True), again.predict(soft=True))
    other = fit(make_counts(n_obs=300, n_types=4), seed=1, max_epochs=1, warm_start=False)
    assert not torch.equal(other.module.arms[0].path.weight, model.module.arms[0].path.weight)


def test_the_number_of_threads_leaves_the_types_as_they_are(model, make_counts):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        other = fit(make_counts(n_obs=300, n_types=4))
    finally:
        torch.set_num_threads(before)
    assert len(set(model.predict())) == 4
    assert cpl.metrics.ari(model.predict(), other.predict()) >= 0.99


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_twenty_models_need_no_more_memory_than_five(make_counts):
    adata = make_counts(n_obs=100, n_vars=1_000)
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    modules, resident = [], []
    for _ in range(20):
        # Some 8 MB of weights, gradients and moments.
        model = cpl.CplMixVI(adata, n_categories=3, n_hidden=250)
        model.train(max_epochs=1, enable_progress_bar=False, warm_start=False, accelerator="cpu")
        model.predict()
        modules.append(weakref.ref(model.module))
        del model
        gc.collect()
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20)
    assert [module for module in modules if module() is not None] == []
    assert resident[-1] - resident[4] < 30
