"""The same seed gives the same model, other threads the same types, and many models no more memory than one."""

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback

import cplmixvi as cpl

pytestmark = pytest.mark.usefixtures("small_committee")


def fit(adata, seed=0, **options):
    scvi.settings.seed = seed
    cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=32)
    model.train(**{"max_epochs": 6, "enable_progress_bar": False, "accelerator": "cpu"} | options)
    return model


@pytest.fixture(scope="module")
def model(make_counts):
    return fit(make_counts(n_obs=160, n_vars=40))


def test_the_same_seed_gives_the_same_bits(model, make_counts):
    again = fit(make_counts(n_obs=160, n_vars=40))
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    for name, frame in model.history.items():
        assert frame.equals(again.history[name]), name
    np.testing.assert_array_equal(model.predict(soft=True), again.predict(soft=True))
    other = fit(make_counts(n_obs=160, n_vars=40), seed=1)
    assert not torch.equal(other.module.arms[0].path.weight, model.module.arms[0].path.weight)


def test_deterministic_algorithms_are_of_the_training_only(make_counts):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, *args):
            seen.append(torch.are_deterministic_algorithms_enabled())

    fit(make_counts(n_obs=60), deterministic=True, callbacks=[Look()], max_epochs=1, warm_start=False)
    assert set(seen) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device to repeat a training on")
def test_the_same_seed_gives_the_same_labels_on_a_gpu(make_counts):
    first, second = (
        fit(make_counts(n_obs=160, n_vars=40), accelerator="gpu", devices=1, deterministic=True) for _ in range(2)
    )
    np.testing.assert_array_equal(first.predict(), second.predict())
    assert len(set(first.predict())) == 3


TWO_THREADS = """
import json, sys
import anndata, torch
torch.set_num_threads(2)
import cplmixvi as cpl, scvi
sys.path.insert(0, sys.argv[2])
from _quick_start import quick_start
scvi.settings.seed = 0
adata = anndata.read_h5ad(sys.argv[1])
cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
model = cpl.CplMixVI(adata, n_categories=3, n_hidden=32)
with quick_start():
    model.train(max_epochs=6, enable_progress_bar=False, accelerator="cpu")
print(json.dumps([torch.get_num_threads(), model.predict().tolist()]))
"""


@pytest.mark.slow
def test_the_number_of_threads_leaves_the_types_as_they_are(model, make_counts, tmp_path):
    """In a process of its own, whose threads sleep while they wait: on a busy core they would spin for minutes."""
    make_counts(n_obs=160, n_vars=40).write_h5ad(tmp_path / "in.h5ad")
    waiting = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", TWO_THREADS, str(tmp_path / "in.h5ad"), str(Path(__file__).parent)],
        env={**os.environ, **waiting},
        capture_output=True,
        text=True,
        check=True,
    )
    n_threads, labels = json.loads(ran.stdout.splitlines()[-1])
    assert n_threads == 2
    assert len(set(labels)) == 3
    assert cpl.metrics.ari(model.predict(), labels) >= 0.99


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_twelve_models_need_no_more_memory_than_five(make_counts):
    adata = make_counts(n_obs=60, n_vars=500)
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    modules, resident = [], []
    for _ in range(12):
        # Some 6 MB of weights, gradients and moments.
        model = cpl.CplMixVI(adata, n_categories=3, n_hidden=200)
        model.train(max_epochs=1, enable_progress_bar=False, warm_start=False, accelerator="cpu")
        model.predict()
        modules.append(weakref.ref(model.module))
        del model
        gc.collect()
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20)
    assert [module for module in modules if module() is not None] == []
    assert resident[-1] - resident[4] < 25
