"""Types against baselines: data sets x methods x seeds, one process per run, resumable.

python benchmarks/types.py --data pbmc4k worm --methods cplmixvi pca_kmeans --seeds 3

Every run is a line of ``results/types.jsonl``; runs that are there are not repeated. ``--render`` only writes tables:
``results/types.md``, and that of the README.
"""

from __future__ import annotations

import sys

# This file is called types: its folder must come after the standard library, whose module of that name is everywhere.
sys.path.append(sys.path.pop(0))

import argparse
import json
import os
import resource
import time
import warnings
from pathlib import Path

import _lines
import numpy as np
import pandas as pd

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "types.jsonl"
SCORES = ["accuracy", "balanced_accuracy", "nmi", "ami", "ari", "n_categories", "rare_recall"]
CERTAINTY = ["consensus", "expected_calibration_error", "brier", "seed_ari"]
COST = ["seconds", "cpu_seconds", "peak_gb"]


def run(name: str, method: str, seed: int) -> dict:
    """One fit and its scores."""
    import logging

    import scvi
    import torch
    from _data import CASES, load
    from _methods import METHODS

    import cplmixvi as cpl

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    torch.set_num_threads(1)
    case = CASES[name]
    adata, truth, n_types = load(name)
    started, started_cpu = time.perf_counter(), time.process_time()
    result = METHODS[method](adata, n_types, seed, case.likelihood)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    confidence = None if result.proba is None else result.proba.max(1)
    scores = cpl.metrics.evaluate(
        truth,
        result.labels,
        proba=result.proba,
        confidence=confidence,
        categories=result.categories,
        ignore=case.ignore,
    )
    codes = np.unique(result.labels.astype(str), return_inverse=True)[1].tolist()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "data": name,
        "method": method,
        "seed": seed,
        "n_types": n_types,
        **{key: float(value) for key, value in {**scores, **result.extra}.items()},
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_gb": round(peak, 3),
        "labels": codes,
    }


def run_apart(name: str, method: str, seed: int) -> dict | None:
    """Run in a forked process, so that its peak memory and threads are its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "w") as stream:
            try:
                json.dump(run(name, method, seed), stream)
                code = 0
            except Exception as error:  # noqa: BLE001 - one failed run must not end the others
                print(f"{name} {method} {seed}: {type(error).__name__}: {error}", file=sys.stderr)
                code = 1
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    return json.loads(text) if os.waitpid(child, 0)[1] == 0 else None


def seed_ari(result: dict, out: Path) -> float:
    """Keep the labels of a run and compare them with those of its earlier seeds: mean adjusted Rand index.

    Labels are kept for each file of results apart.
    """
    from sklearn.metrics import adjusted_rand_score

    labels = np.array(result.pop("labels"))
    kept = HERE / "cache" / "labels" if out == RESULTS else out.with_name(f"{out.stem}_labels")
    folder = kept / result["data"] / result["method"]
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [np.load(path) for path in sorted(folder.glob("*.npy")) if path.stem != str(result["seed"])]
    np.save(folder / f"{result['seed']}.npy", labels)
    return float(np.mean([adjusted_rand_score(labels, other) for other in earlier])) if earlier else np.nan


def summarise(runs: list[dict]) -> pd.DataFrame:
    """Mean over seeds per data set and method, with the worst seed's ARI."""
    table = pd.DataFrame(runs)
    numeric = [column for column in (*SCORES, *CERTAINTY, *COST) if column in table]
    grouped = table.groupby(["data", "method"], sort=False)
    summary = grouped[numeric].mean()
    summary.insert(0, "seeds", grouped.size())
    summary["ari_worst"] = grouped["ari"].min()
    return summary


def render(runs: list[dict], path: Path) -> None:
    """Markdown: one table per score with data sets as columns, then the table of everything."""
    summary = summarise(runs)
    parts = ["# Types against baselines", "", "Means over seeds. Written by `benchmarks/types.py`."]
    for score in ("ari", "accuracy", "nmi"):
        wide = summary[score].unstack("data")
        wide["mean"] = wide.mean(axis=1, skipna=False)
        parts += ["", f"## {score.upper()}", "", wide.round(3).to_markdown()]
    parts += ["", "## All scores", "", summary.round(3).reset_index().to_markdown(index=False), ""]
    path.write_text("\n".join(parts))
    if path == RESULTS.with_suffix(".md"):
        sys.path.append(str(HERE.parent / "docs"))
        from _pages import write_readme

        write_readme(HERE.parent / "README.md", runs)


def main() -> None:
    """Run what is missing and write the tables."""
    from _data import CASES
    from _methods import METHODS

    import cplmixvi

    # Loaded before forking: once for all runs, and no run sees code that changed under it.
    assert cplmixvi.CplMixVI
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="write the tables from the runs that are there")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs = _lines.read(options.out)
    done = {(entry["data"], entry["method"], entry["seed"]) for entry in runs}
    wanted = [(d, m, s) for d in options.data for s in range(options.seeds) for m in options.methods]
    for key in [] if options.render else _lines.missing(wanted, done, options.out):
        result = run_apart(*key)
        if result is None:
            continue
        result["seed_ari"] = seed_ari(result, options.out.resolve())
        runs.append(result)
        _lines.add(options.out, result)
        shown = " ".join(f"{name} {result.get(name, np.nan):.3f}" for name in ("accuracy", "nmi", "ari", "seconds"))
        print(*key, shown, flush=True)
    if runs:
        render(runs, options.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
