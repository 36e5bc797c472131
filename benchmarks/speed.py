"""How fast a step is, and how it grows: one process per row, resumable.

python benchmarks/speed.py                  # all cases but a million cells
python benchmarks/speed.py reference arms
python benchmarks/speed.py cells --names 1000000

Every row is a line of ``results/speed.jsonl``; rows that are there are not measured again. ``--render`` only writes the
tables and the figure. One thread; rates are cells per second of CPU time, which other processes of a shared machine
disturb least, and those of wall time are kept beside them. What is compared is measured in turn in one process.
"""

from __future__ import annotations

import sys

# Beside this file is one called types: their folder must come after the standard library.
sys.path.append(sys.path.pop(0))

import argparse
import json
import os
import resource
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import _lines
import numpy as np

for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")
HERE = Path(__file__).parent
N_CELLS, N_GENES, N_TYPES, BATCH = 4_096, 5_000, 115, 512
ROUNDS, EPOCHS = 3, 2
#: Rows of every case; those after a bar are measured only if they are named.
CASES = {
    "machine": ["products"],
    "reference": ["2 arms, batch 512", "2 arms, batch 1000", "3 arms, batch 1000"],
    "arms": ["1", "2", "3", "5", "8"],
    "categories": ["10", "50", "115", "500", "1000", "5000"],
    "batches": ["1", "2", "20"],
    "genes": ["500", "1000", "2000", "5000", "10000"],
    "cells": ["1000", "10000", "100000", "|", "1000000"],
    "scvi": ["1 arm", "2 arms"],
    "quality": ["scmix", "tasic2016", "paul"],
}


class Clock:
    """CPU and wall seconds of every epoch of a training, and of what comes before and after."""

    def __init__(self):
        from lightning.pytorch.callbacks import Callback

        clock, self.epochs = self, []

        class Epochs(Callback):
            def on_train_epoch_start(self, *_):
                clock.started = now()

            def on_train_epoch_end(self, *_):
                clock.epochs.append(now() - clock.started)

        self.callback = Epochs()

    def rates(self, n_cells: int, n_skipped: int = 1) -> dict[str, float]:
        """Cells per second of the median epoch, without the first."""
        cpu, wall = np.median(np.stack(self.epochs[n_skipped:]), axis=0)
        return {"cells_per_s": n_cells / cpu, "cells_per_wall_s": n_cells / wall}


def now() -> np.ndarray:
    return np.array([time.process_time(), time.perf_counter()])


def simulated(n_obs: int = N_CELLS, n_vars: int = N_GENES, n_types: int = N_TYPES):
    """Counts of as many molecules per cell as genes."""
    import cplmixvi as cpl

    adata = cpl.datasets.simulate(n_obs, n_vars, n_types, n_markers=min(10, n_vars // n_types), mean_counts=n_vars)
    cpl.CplMixVI.setup_anndata(adata)
    return adata


def fit(adata, model=None, *, batch_size: int = BATCH, epochs: int = 1 + EPOCHS, warm: bool = False, **options):
    """Train, and the clock of it."""
    import cplmixvi as cpl

    model = model or cpl.CplMixVI(adata, **options)
    clock = Clock()
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    model.train(
        epochs, batch_size=batch_size, warm_start=warm, find_condition=False, callbacks=[clock.callback], **settings
    )
    return model, clock


def with_paths(adata, **options):
    """A model whose arms have linear paths, as after a start, so that a step takes as long as it does then."""
    import torch

    import cplmixvi as cpl

    model = cpl.CplMixVI(adata, **options)
    for arm in model.module.arms:
        axes = torch.randn(adata.n_vars, arm.path.n_coordinates) / adata.n_vars**0.5
        arm.path.follow(torch.zeros(2, adata.n_vars), torch.ones(adata.n_vars), axes, clip=10.0)
    return model


def machine(_: str) -> dict:
    """Products of the size of a step and copies larger than the caches, and what a step needs of both."""
    import torch

    from cplmixvi.module._dense import product

    x, weight = torch.rand(BATCH, N_GENES), torch.rand(100, N_GENES)
    large = torch.rand(2**27)
    copied = torch.empty_like(large)

    def best(function: Callable[[], object]) -> float:
        seconds = []
        for _ in range(12):
            started = time.process_time()
            function()
            seconds.append(time.process_time() - started)
        return min(seconds)

    gflop = 2 * x.numel() * len(weight) / 1e9
    coordinates = min(max(25, N_TYPES), 128)
    # Per arm: encoder forward and to its weights; path; decoder forward, to its input and to its weights.
    flop = 2 * 2 * N_GENES * (5 * 100 + coordinates)
    # Per arm, passes over a minibatch's matrix: copy 2, sums 2, what the encoder reads 2, the encoder 1, what the path
    # reads 2, path 1, logits 1, score and gradients 3, products of the gradients 3.
    n_bytes = 2 * 17 * 4 * N_GENES
    rates = {
        "gflop_per_s_torch": gflop / best(lambda: torch.nn.functional.linear(x, weight)),
        "gflop_per_s_used": gflop / best(lambda: product(x, weight)),
        "copy_gb_per_s": 2 * 4 * large.numel() / 1e9 / best(lambda: copied.copy_(large)),
    }
    arithmetic, memory = flop / rates["gflop_per_s_used"] / 1e9, n_bytes / rates["copy_gb_per_s"] / 1e9
    needs = {
        "mflop_per_cell": flop / 1e6,
        "mb_per_cell": n_bytes / 1e6,
        "floor_cells_per_s": 1 / max(arithmetic, memory),
    }
    return {**rates, **needs, "cells_per_s_if_in_turn": 1 / (arithmetic + memory)}


def reference(name: str) -> dict:
    """The reference's step in plain PyTorch and whole trainings, in turn, on the same cells."""
    import torch
    from _speed_reference import Reference, train_reference

    n_arms, batch_size = int(name.split()[0]), int(name.split()[-1])
    adata = simulated()
    values = torch.from_numpy(adata.X.toarray())
    values = torch.log1p(values / values.sum(1, keepdim=True) * 1e6)
    model = with_paths(adata, n_categories=N_TYPES, n_arms=n_arms)
    clock = Clock()
    fit(adata, model, batch_size=batch_size, epochs=1)
    references = {
        detection: Reference(N_GENES, N_TYPES, n_arms=n_arms, detection=detection) for detection in (True, False)
    }
    seconds = {detection: [] for detection in references}
    n_seen = len(values) // batch_size * batch_size
    for _ in range(ROUNDS):
        for detection, plain in references.items():
            started = now()
            train_reference(plain, values, batch_size, EPOCHS)
            seconds[detection].append((now() - started) / EPOCHS)
        clock.epochs += fit(adata, model, batch_size=batch_size)[1].epochs[1:]
    ours = clock.rates(len(values), 0)
    theirs = {detection: n_seen / np.median(np.stack(spent), axis=0) for detection, spent in seconds.items()}
    return {
        **ours,
        "reference": theirs[True][0],
        "reference_no_detection": theirs[False][0],
        "ratio": ours["cells_per_s"] / theirs[True][0],
        "ratio_wall": ours["cells_per_wall_s"] / theirs[True][1],
        "ratio_no_detection": ours["cells_per_s"] / theirs[False][0],
        "density": float(np.mean(adata.X.toarray() > 0)),
    }


def arms(name: str) -> dict:
    adata = simulated()
    return fit(adata, with_paths(adata, n_categories=N_TYPES, n_arms=int(name)))[1].rates(N_CELLS)


def categories(name: str) -> dict:
    # More categories than cells are refused.
    adata = simulated(n_obs=8_192, n_vars=1_000)
    return fit(adata, with_paths(adata, n_categories=int(name)))[1].rates(adata.n_obs)


def batches(name: str) -> dict:
    """Cells of several batches, which encoders and decoders see."""
    import cplmixvi as cpl

    adata = simulated(n_vars=1_000)
    adata.obs["batch"] = (np.arange(adata.n_obs) % int(name)).astype(str)
    cpl.CplMixVI.setup_anndata(adata, batch_key="batch")
    return fit(adata, with_paths(adata, n_categories=N_TYPES))[1].rates(N_CELLS)


def genes(name: str) -> dict:
    adata = simulated(n_vars=int(name), n_types=30)
    return fit(adata, with_paths(adata, n_categories=30))[1].rates(N_CELLS)


def cells(name: str) -> dict:
    """Default training on 1,000 genes, with its start."""
    n_obs = int(name)
    adata = simulated(n_obs=n_obs, n_vars=1_000, n_types=20)
    started = now()
    _, clock = fit(adata, n_categories=20, epochs=3, warm=True)
    start = float((now() - started - sum(clock.epochs))[0])
    return {**clock.rates(n_obs), "start_s": start}


def scvi_beside(name: str) -> dict:
    """scVI with its own defaults, in turn, on the same cells with the same batch size."""
    import scvi

    adata = simulated(n_vars=2_000, n_types=30)
    scvi.model.SCVI.setup_anndata(adata)
    theirs, ours = Clock(), Clock()
    model = with_paths(adata, n_categories=30, n_arms=int(name.split()[0]))
    for _ in range(ROUNDS):
        clock = Clock()
        settings = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        scvi.model.SCVI(adata).train(
            1 + EPOCHS, batch_size=BATCH, train_size=1.0, callbacks=[clock.callback], **settings
        )
        theirs.epochs += clock.epochs[1:]
        ours.epochs += fit(adata, model)[1].epochs[1:]
    rates = ours.rates(N_CELLS, 0)
    scvi_rate = theirs.rates(N_CELLS, 0)["cells_per_s"]
    return {**rates, "scvi": scvi_rate, "ratio": rates["cells_per_s"] / scvi_rate}


def quality(name: str) -> dict:
    """Consensus and accuracy after the default number of passes over the cells, which is at most 200."""
    from _data import CASES as DATA
    from _data import load

    import cplmixvi as cpl

    adata, truth, n_types = load(name)
    cpl.CplMixVI.setup_anndata(adata)
    started = now()
    model = cpl.CplMixVI(adata, n_categories=n_types, likelihood=DATA[name].likelihood)
    model.train(enable_progress_bar=False)
    cpu, wall = now() - started
    labels = model.predict(adata)
    return {
        "passes": model.trainer.max_epochs,
        "cpu_s": cpu,
        "wall_s": wall,
        "consensus": float(model.get_consensus().mean),
        "accuracy": float(cpl.metrics.accuracy(truth, labels)),
    }


MEASURES = {
    "machine": machine,
    "reference": reference,
    "arms": arms,
    "batches": batches,
    "categories": categories,
    "genes": genes,
    "cells": cells,
    "scvi": scvi_beside,
    "quality": quality,
}


def usual(case: str) -> list[str]:
    """Rows of a case that are measured unless others are named."""
    names = CASES[case]
    return names[: names.index("|")] if "|" in names else names


def measure(case: str, name: str) -> dict:
    """One row, in this process."""
    import logging

    import scvi
    import torch
    from _machine import cpu_name

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    torch.set_num_threads(1)
    scvi.settings.seed = 0
    row = {key: float(f"{value:.5g}") for key, value in MEASURES[case](name).items()}
    row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
    return {"case": case, "name": name, **row, "cpu": cpu_name(), "torch": torch.__version__}


def readable(value: object) -> object:
    """Three digits of a number, and no fewer than it has before the point."""
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def render(rows: list[dict], path: Path) -> None:
    """A table per case, and the growth as a figure."""
    import pandas as pd
    from _speed_figure import draw

    parts = ["# Speed", "", "One thread. Written by `benchmarks/speed.py`; cells per second of CPU time.", ""]
    for case, names in CASES.items():
        some = [row for row in rows if row["case"] == case]
        some.sort(key=lambda row: names.index(row["name"]))
        if some:
            table = pd.DataFrame(some).drop(columns=["case", "cpu", "torch"]).map(readable)
            processors = ", ".join(sorted({row["cpu"] for row in some}))
            shown = table.to_markdown(index=False, disable_numparse=True)
            parts += [f"## {case}", "", f"On {processors}.", "", shown, ""]
    path.write_text("\n".join(parts))
    draw(rows, path.with_suffix(".png"))


def main() -> None:
    """Measure what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"{', '.join(CASES)}; all by default")
    parser.add_argument("--names", nargs="+", help="rows of the case; all but the largest by default")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speed.jsonl")
    parser.add_argument("--render", action="store_true", help="write the tables from the rows that are there")
    parser.add_argument(
        "--here", action="store_true", help="measure one row and print it, for the processes of this file"
    )
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"{', '.join(sorted(unknown))} not known; there are {', '.join(CASES)}")
    if options.names:
        for case in options.cases or CASES:
            # A row that is none of the case's could not be placed in its table.
            if unknown := sorted(set(options.names) - (set(CASES[case]) - {"|"})):
                there = ", ".join(name for name in CASES[case] if name != "|")
                parser.error(f"--names {', '.join(unknown)}: {case} has no such rows; there are {there}")
    if options.here:
        print(json.dumps(measure(options.cases[0], options.names[0])))
        return
    rows = _lines.read(options.out)
    done = {(row["case"], row["name"]) for row in rows}
    wanted = [(case, name) for case in options.cases or CASES for name in options.names or usual(case)]
    for case, name in [] if options.render else _lines.missing(wanted, done, options.out):
        command = [sys.executable, __file__, case, "--names", name, "--here"]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if answer.returncode:
            print(f"{case} {name}: failed", file=sys.stderr)
            continue
        rows.append(json.loads(answer.stdout.splitlines()[-1]))
        _lines.add(options.out, rows[-1])
        print(rows[-1], flush=True)
    if rows:
        render(rows, options.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
