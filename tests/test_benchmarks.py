"""What the harnesses share with the package's internals: it must still fit them when these change."""

import importlib
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import scvi
import torch

import cplmixvi as cpl

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def shared(monkeypatch):
    """What fits a guide once for all augmenters of ``augmenters.py``; the package is as before afterwards."""
    from cplmixvi.train import _plan

    # Put back when the test ends: the harness, a process of its own, does not do that.
    monkeypatch.setattr(_plan, "fit_guide", _plan.fit_guide)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import augmenters

    return augmenters.Shared()


def noted(monkeypatch, owner, name):
    """What a function returns from now on, in the order of its calls."""
    function, returned = getattr(owner, name), []

    def call(*given, **options):
        returned.append(function(*given, **options))
        return returned[-1]

    monkeypatch.setattr(owner, name, call)
    return returned


def test_augmenters_are_compared_from_one_guide(shared, monkeypatch):
    from cplmixvi.train import _plan

    fitted, handed = noted(monkeypatch, shared, "fit_guide"), noted(monkeypatch, _plan, "fit_guide")
    adata = cpl.datasets.simulate(n_obs=150, n_vars=60, n_types=3, marker_fold=12, n_markers=10, seed=0)
    cpl.CplMixVI.setup_anndata(adata)
    for augment in ("thin", "noise"):
        model = cpl.CplMixVI(adata, n_categories=3, augment=augment)
        shared.key = ("simulated", 0, None)
        model.train(max_epochs=3, train_size=1, enable_progress_bar=False, logger=False)
    assert len(fitted) == 1 and len(handed) == 2
    first, second = (guide.answer.state_dict() for guide in handed)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


@pytest.fixture
def harness(monkeypatch, tmp_path):
    """Run a script of the benchmarks in this process, with arguments."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(name, *arguments):
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        module.main()

    # Scripts are processes of their own, and quiet; tests are not.
    logger, verbosity, threads = (
        logging.getLogger("lightning.pytorch"),
        scvi.settings.verbosity,
        torch.get_num_threads(),
    )
    level = logger.level
    yield run
    logger.setLevel(level)
    scvi.settings.verbosity = verbosity
    torch.set_num_threads(threads)


def test_what_is_missing_is_what_is_wanted_and_not_there(harness, capsys):
    lines = importlib.import_module("_lines")
    assert lines.missing([("a", 0), ("a", 1)], {("a", 0)}, Path("x.jsonl")) == [("a", 1)]
    assert capsys.readouterr().out == ""
    assert lines.missing([("a", 0)], {("a", 0), ("b", 0)}, Path("x.jsonl")) == []
    assert "nothing to do: all 1 rows are in x.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "row"),
    [
        (
            "conditions",
            ["--data", "pbmc4k", "--variants", "none"],
            {"data": "pbmc4k", "fold": 1.0, "spread": 0.5, "cells": 4_000, "epochs": None, "variant": "none", "seed": 0}
            | {"accuracy": 0.5, "ari": 0.5, "nmi_response": 0.1, "found": False, "levels_right": None, "seconds": 1.0},
        ),
        (
            "augmenters",
            ["copies", "--data", "scmix", "--augmenters", "thin", "--seeds", "0"],
            {"data": "scmix", "augmenter": "thin", "seed": 0, "copy_accuracy": 0.9},
        ),
        (
            "large",
            ["--cells", "50", "--where", "disk"],
            {"cells": 50, "genes": 2_000, "where": "disk", "epochs": 1, "batch_size": 512, "cells_per_s": 10}
            | {
                "cells_per_cpu_s": 10,
                "start_s": 1.0,
                "annotate_s": 1.0,
                "peak_mb": 100,
                "ari": 1.0,
                "processor": "one",
            },
        ),
        (
            "speed",
            ["arms", "--names", "5"],
            {"case": "arms", "name": "5", "cells_per_s": 1.0, "peak_gb": 1.0, "cpu": "one", "torch": "2"},
        ),
    ],
)
def test_a_script_says_that_its_rows_are_there_and_writes_its_table(
    harness, name, arguments, row, tmp_path, monkeypatch, capsys
):
    # One script replaces it.
    monkeypatch.setattr("cplmixvi.train._plan.fit_guide", cpl.train._plan.fit_guide)
    path = tmp_path / "again" / f"{name}.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(row) + "\n")
    harness(name, *arguments, "--out", path, *(["--folder", tmp_path] if name == "large" else []))
    assert f"nothing to do: all 1 rows are in {path}" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 1
    assert path.with_suffix(".md").read_text().startswith("# ")


def test_new_types_are_rendered_without_a_run(harness, tmp_path):
    path = tmp_path / "new_types.jsonl"
    row = {"data": "pbmc4k", "left_out": "B", "seed": 0, "n_new": 9}
    row |= {"auroc_confidence": 0.5, "auroc_novelty": 0.75, "false_alarms": 0.0}
    path.write_text(json.dumps(row) + "\n")
    harness("new_types", "--render", "--out", path)
    assert "0.75" in path.with_suffix(".md").read_text()


def test_a_row_of_the_speed_that_there_is_not_is_refused_with_those_that_there_are(harness, tmp_path, capsys):
    for arguments in (["cells", "--names", "10"], ["cells", "--names", "|"]):
        with pytest.raises(SystemExit) as error:
            harness("speed", *arguments, "--out", tmp_path / "speed.jsonl")
        assert error.value.code == 2
        assert "cells has no such rows; there are 1000, 10000, 100000, 1000000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_copies_of_log_values_are_compared_as_they_are(shared, likelihood, monkeypatch):
    """Counts are brought to log values of a common depth; log values are what is compared already."""
    augmenters = importlib.import_module("augmenters")
    adata = cpl.datasets.simulate(n_obs=60, n_vars=30, n_types=3, seed=0)
    if likelihood == "normal":
        adata.X = cpl.pp.log_normalize(adata.X)
    truth, seen = adata.obs["type"].astype(str).to_numpy(), []
    monkeypatch.setattr(augmenters, "labelled", lambda name: (adata, truth, 3, likelihood))
    monkeypatch.setattr(augmenters, "_types_of_copies", lambda real, copies, *rest: seen.extend([real, copies]) or {})
    monkeypatch.setattr(augmenters, "_spread", lambda *given: {})
    monkeypatch.setattr(augmenters, "_told", lambda *given: {})
    augmenters.run_copies("simulated", "none", 0, shared)
    real, copies = seen
    np.testing.assert_array_equal(real, copies)
    values = cpl.pp.to_csr(adata.X).toarray()
    assert np.allclose(real, values) == (likelihood == "normal")
