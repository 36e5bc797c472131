"""Training from the disk against training in memory: peak memory, throughput and what is found; resumable.

python benchmarks/large.py --cells 100000 200000 1000000 --where memory disk
python benchmarks/large.py --render

Every run is a process of its own, so that its peak memory is its own, and a line of ``results/large.jsonl``; runs that
are there are not repeated, but into another file (``--out``). What has to be compiled is compiled before, on a few
other cells. The cells are simulated in pieces and written to a file under ``--folder`` sorted by type, which is the
worst order to read blocks from. Times are of whole epochs, without the start, on the threads that are given: seconds,
and seconds of the processor, which other programs do not lengthen. Memory is of the whole process, from the import to
the annotated cells. ``--where annbatch`` trains on a collection that annbatch makes of the file (Python 3.12, ``pip
install "cplmixvi[annbatch]"``), and annotates the file.
"""

from __future__ import annotations

import sys

# The folder has a module called types: it must come after the standard library, whose module of that name is wanted.
sys.path.append(sys.path.pop(0))

import argparse
import json
import os
import resource
import subprocess
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import _lines
import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results"
N_TYPES, MEAN_COUNTS = 10, 150.0
#: What a run is known by.
KEYS = ("cells", "genes", "epochs", "batch_size", "where")
#: Cells that are simulated at a time.
PIECE = 20_000


def simulated(path: Path, n_cells: int, n_genes: int, seed: int = 0) -> Path:
    """Write an .h5ad of Poisson counts, about 5 % of which are not zero, in pieces, sorted by type."""
    import h5py
    from anndata import AnnData
    from anndata.io import sparse_dataset, write_elem
    from scipy import sparse

    from cplmixvi.datasets import simulate

    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    pattern = simulate(20 * N_TYPES, n_genes, N_TYPES, n_markers=100, marker_fold=6.0, seed=seed)
    rates = np.exp(rng.normal(0, 1.2, n_genes)[:, None] + pattern.varm["type_log_fold"]).T
    rates /= rates.sum(1, keepdims=True)
    types = np.sort(rng.integers(N_TYPES, size=n_cells))
    scratch = path.with_suffix(".tmp")
    obs = pd.DataFrame({"type": pd.Categorical(types.astype(str))}, index=np.arange(n_cells).astype(str))
    AnnData(obs=obs, var=pattern.var).write_h5ad(scratch)
    with h5py.File(scratch, "r+") as file:
        for start in range(0, n_cells, PIECE):
            rows = types[start : start + PIECE]
            depth = MEAN_COUNTS * np.exp(0.3 * rng.standard_normal(len(rows)))
            counts = sparse.csr_matrix(rng.poisson(depth[:, None] * rates[rows]).astype(np.float32))
            if start == 0:
                write_elem(file, "X", counts)
            else:
                sparse_dataset(file["X"]).append(counts)
    scratch.rename(path)
    return path


def run(path: Path, where: str, epochs: int, batch_size: int) -> dict:
    """Train on a file from where it is said and annotate; to be called in a process of its own."""
    import anndata
    import scvi
    from _machine import cpu_name
    from lightning.pytorch.callbacks import Callback
    from sklearn.metrics import adjusted_rand_score

    import cplmixvi as cpl

    class Clock(Callback):
        times: list[tuple[float, float]] = []

        def on_train_epoch_start(self, *args):
            self.times.append((time.perf_counter(), time.process_time()))

        on_train_epoch_end = on_train_epoch_start

    imported = peak()
    compile_loops(path, batch_size)
    scvi.settings.seed = 0
    begin = time.perf_counter()
    adata = anndata.read_h5ad(path, backed=None if where == "memory" else "r")
    options = {"max_epochs": epochs, "batch_size": batch_size, "enable_progress_bar": False, "logger": False}
    if where == "annbatch":
        collection = str(path.with_suffix(".zarr"))
        given = {"batch_size": batch_size, "preload_to_gpu": False, "dataset_size": "1GB", "shuffle": True}
        datamodule = options["datamodule"] = cpl.CplMixVI.setup_annbatch(collection, [str(path)], **given)
        model = cpl.CplMixVI(registry=datamodule.registry, n_categories=N_TYPES, target_library=MEAN_COUNTS)
    else:
        cpl.CplMixVI.setup_anndata(adata)
        model = cpl.CplMixVI(adata, n_categories=N_TYPES)
    model.train(callbacks=[Clock()], **options)
    trained, after_training = time.perf_counter(), peak()
    cpl.tl.annotate(adata, model)
    annotated = time.perf_counter()
    epoch, cpu = np.median(np.diff(Clock.times, axis=0)[::2], axis=0)
    return {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "where": where,
        "epochs": epochs,
        "batch_size": batch_size,
        "cells_per_s": round(adata.n_obs / epoch),
        "cells_per_cpu_s": round(adata.n_obs / cpu),
        "start_s": round(Clock.times[0][0] - begin, 1),
        "train_s": round(trained - begin, 1),
        "annotate_s": round(annotated - trained, 1),
        "peak_imported_mb": imported,
        "peak_trained_mb": after_training,
        "peak_mb": peak(),
        "ari": round(adjusted_rand_score(adata.obs["type"], adata.obs["cplmixvi"]), 4),
        "processor": cpu_name(),
    }


def compile_loops(path: Path, batch_size: int) -> None:
    """Step on a few other cells with as many genes as those of a file, so that no time is of compiling."""
    import h5py
    from speed import fit, simulated, with_paths

    with h5py.File(path) as file:
        n_genes = len(file["var"][file["var"].attrs["_index"]])
    few = simulated(4 * batch_size, n_genes, N_TYPES)
    fit(few, with_paths(few, n_categories=N_TYPES), batch_size=batch_size, epochs=1)


def peak() -> int:
    """Largest resident memory of this process so far, megabytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def render(path: Path) -> None:
    """Write the table of all runs, the last of each kind."""
    runs = pd.read_json(path, lines=True)
    keys = ["cells", "genes", "batch_size", "where"]
    runs = runs.groupby(keys, sort=True).last().reset_index()
    memory = runs[runs["where"] == "memory"].set_index(keys[:3])["cells_per_cpu_s"]
    of_memory = [memory.get(tuple(row[:3])) for row in runs[keys].itertuples(index=False)]
    runs["share of in memory"] = (runs["cells_per_cpu_s"] / pd.Series(of_memory, dtype=float)).round(2)
    runs["peak_gb"] = (runs.pop("peak_mb") / 1024).round(2)
    rates = ["cells_per_s", "cells_per_cpu_s", "share of in memory"]
    shown = [*keys, *rates, "peak_gb", "start_s", "annotate_s", "ari", "processor"]
    table = runs[shown].rename(columns=lambda name: name.replace("_", " ")).to_markdown(index=False)
    path.with_suffix(".md").write_text(f"# Cells in memory and in a file\n\n{table}\n")


def main() -> None:
    """Run what is missing and render."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000])
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--where", nargs="+", default=["memory", "disk"], choices=["memory", "disk", "annbatch"])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("TMPDIR", "/tmp")))
    parser.add_argument("--out", type=Path, default=RESULTS / "large.jsonl")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--alone", action="store_true", help="one run in this process, printed")
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(run(args.folder, args.where[0], args.epochs, args.batch_size)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = {tuple(row[key] for key in KEYS) for row in _lines.read(args.out)}
    settings = (args.genes, args.epochs, args.batch_size)
    wanted = [(n_cells, *settings, where) for n_cells in args.cells for where in args.where]
    for n_cells, *_, where in [] if args.render else _lines.missing(wanted, done, args.out):
        path = simulated(args.folder / f"cplmixvi_{n_cells}x{args.genes}.h5ad", n_cells, args.genes)
        command = [sys.executable, __file__, "--alone", "--folder", str(path), "--where", where]
        command += ["--epochs", str(args.epochs), "--batch-size", str(args.batch_size)]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            print(answer.stderr[-2000:], file=sys.stderr)
            continue
        line = answer.stdout.strip().splitlines()[-1]
        print(line, flush=True)
        _lines.add(args.out, json.loads(line))
    if args.out.exists():
        render(args.out)


if __name__ == "__main__":
    main()
