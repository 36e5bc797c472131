"""Two processes train one model, as one process does with minibatches of both."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scvi
from sklearn.metrics import adjusted_rand_score

import cplmixvi as cpl
from cplmixvi import _processes
from cplmixvi.model._settings import settled

SCRIPT = Path(__file__).with_name("train_together.py")


def start(kind, n_processes, folder):
    """Processes as torchrun starts them, one thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n_processes)}
    command = [sys.executable, str(SCRIPT), kind, str(n_processes), str(folder)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ranks = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n_processes)]
    ranks = ranks if n_processes > 1 else [{}]
    return [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **rank}, **options) for rank in ranks]


def finish(processes):
    try:
        for process in processes:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one and two processes have found, which run at the same time."""
    folder = tmp_path_factory.mktemp("processes")
    finish([*start("same", 1, folder), *start("same", 2, folder)])
    return folder


@pytest.mark.parametrize("distance", ["aitchison", "perturbed"])
def test_two_processes_train_as_one_does(folder, distance):
    one, first, second = (np.load(folder / f"{distance}_{name}.npz") for name in ("0_of_1", "0_of_2", "1_of_2"))
    assert len(one["losses"]) == len(first["losses"]) == 52
    # The losses fall by far more than that.
    assert one["losses"][0] > 1.03 * one["losses"][-1]
    np.testing.assert_allclose(first["losses"], one["losses"], rtol=1e-4)
    assert adjusted_rand_score(one["labels"], first["labels"]) >= 0.99
    # Each process had the other half of every minibatch.
    together = one["rows"].reshape(52, -1)
    apart = np.hstack([found["rows"].reshape(52, -1) for found in (first, second)])
    np.testing.assert_array_equal(np.sort(apart), np.sort(together))
    # Buffers too, which are no part of the gradient: running variances, multipliers, batch normalisation.
    for name in [name for name in one.files if name.startswith("state.") and "alignment" not in name]:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-6, atol=1e-7, err_msg=name)
    shared = [name for name in one.files if name.endswith("running_var") or "coupling" in name or "guide" in name]
    assert len([name for name in shared if name.startswith("state.")]) > 8
    for name in shared:
        np.testing.assert_allclose(first[name], one[name], rtol=1e-2, atol=1e-6, err_msg=name)
    # One of the processes writes the history, of the cells of both.
    for name in ("train_loss", "agreement_train", "lambda_train", "guide_weight_train"):
        np.testing.assert_allclose(first[f"history.{name}"], one[f"history.{name}"], rtol=1e-3, err_msg=name)


def test_two_processes_read_a_file_in_parts(tmp_path):
    adata = cpl.datasets.simulate(203, 60, 4, n_markers=10, mean_counts=600, n_batches=2, seed=0)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    finish(start("file", 2, tmp_path))
    first, second = (np.load(tmp_path / f"file_{rank}.npz") for rank in range(2))
    rows = [found["rows"].tolist() for found in (first, second)]
    # 203 cells: one of them is seen twice, so that both have as many minibatches.
    assert len(rows[0]) == len(rows[1]) == 5 * 102
    assert set(rows[0][:102]) | set(rows[1][:102]) == set(range(203))
    assert len(set(rows[0][:102]) & set(rows[1][:102])) <= 1
    for name in [name for name in first.files if name.startswith("state.")]:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert adjusted_rand_score(adata.obs["type"], first["labels"]) > 0.9


def test_one_process_needs_no_others():
    import torch

    value = torch.tensor([1.0, 2.0])
    assert _processes.summed(value) is value
    assert _processes.averaged(value) is value
    assert (_processes.n_processes(), _processes.process_index()) == (1, 0)
    assert _processes.any_of(True) is True
    assert _processes.same_everywhere("x") == "x"


class TestRefused:
    """What each process would do by itself."""

    def model(self, make_counts, **options):
        adata = make_counts()
        cpl.CplMixVI.setup_anndata(adata, layer="counts")
        return cpl.CplMixVI(adata, **options)

    def test_a_number_of_categories_that_may_differ(self, make_counts):
        model = self.model(make_counts)
        scvi.settings.seed = None
        with pytest.raises(ValueError, match="a number of categories of its own; give n_categories"):
            model.train(devices=2, accelerator="cpu")

    def test_an_augmenter_that_has_not_learned(self, make_counts):
        with pytest.raises(ValueError, match=r"trained by one process; call model.train_augmenter\(\)"):
            self.model(make_counts, n_categories=3, augment="learned").train(strategy="ddp", devices=2)


@pytest.mark.parametrize(
    ("devices", "several"),
    [(1, False), (2, True), ("auto", False), ("2", True), ([0], False), ([0, 1], True), (-1, True)],
)
def test_several_devices_train_together_whatever_they_are_called(devices, several):
    given = {"devices": devices, "plan_kwargs": {}, "train_size": 1.0, "batch_size": 10, "max_epochs": 1}
    assert ("strategy" in settled(given, 100, False)) == several
    assert settled({**given, "strategy": "ddp_spawn"}, 100, False)["strategy"] == "ddp_spawn"
