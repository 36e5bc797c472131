"""Tutorials run from top to bottom, on fewer cells and with shorter trainings than readers see."""

import json
import logging
import shlex
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
import scvi
from _command_line import call
from _quick_start import quick_start

import cplmixvi as cpl

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
#: Cells of each data set, where it is not the last number, and epochs of each training.
N_CELLS, FEW = {"kang2018": 2_000, "tasic2016": 300, "mnist": 2_000}, 400
N_EPOCHS = 3


def fewer(load, n_cells):
    def loaded(*args, **kwargs):
        adata = load(*args, **kwargs)
        return adata[np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:n_cells])].copy()

    return loaded


def shorter(train):
    def trained(self, max_epochs=None, **kwargs):
        return train(self, max_epochs=N_EPOCHS, **kwargs)

    return trained


def fewer_numbers(select):
    def selected(*args, candidates, **kwargs):
        return select(*args, candidates=candidates[:2], **kwargs)

    return selected


def place_anywhere(adata, **_):
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))


def run_command(line, names):
    """Do what a shell does with a command of ours: its output may go to a file, and others may follow it."""
    first, *_ = line.format(**names).split(";")
    command, _, file = first.partition(">")
    program, *arguments = shlex.split(command)
    assert program == "cplmixvi"
    if arguments[0] == "annotate":
        arguments += ["--max-epochs", str(N_EPOCHS)]
    status, out, err = call(*arguments)
    if file:
        Path(file.strip()).write_text(out)
    return status, err


@pytest.fixture
def _small(data_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("CPLMIXVI_DATA_DIR", str(data_dir.resolve()))
    monkeypatch.chdir(tmp_path)
    for name in cpl.datasets.available():
        monkeypatch.setattr(cpl.datasets, name, fewer(getattr(cpl.datasets, name), N_CELLS.get(name, FEW)))
    for model in (cpl.CplMixVI, scvi.model.SCVI):
        monkeypatch.setattr(model, "train", shorter(model.train))
    monkeypatch.setattr(cpl.tl, "select_categories", fewer_numbers(cpl.tl.select_categories))
    # It is not ours, and compiling it takes longer than all else in a tutorial.
    monkeypatch.setattr(sc.tl, "umap", place_anywhere)
    # What tutorials set for themselves is not for the tests that come after them.
    loggers = [logging.getLogger(name) for name in ("lightning.fabric", "lightning.pytorch")]
    levels, verbosity = [logger.level for logger in loggers], scvi.settings.verbosity
    with mpl.rc_context(), quick_start():
        yield
    scvi.settings.verbosity = verbosity
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_all_cells_run(path, tmp_path):
    names = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        lines = source.splitlines()
        exec(compile("\n".join(line for line in lines if not line.startswith("!")), path.name, "exec"), names)
        for line in lines:
            if line.startswith("!"):
                status, err = run_command(line[1:], names)
                assert (status == 0) != ("exit status" in line), err
    assert plt.get_fignums()
    assert not list(tmp_path.iterdir()), "files are left behind"
