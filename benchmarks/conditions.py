"""A condition that nobody named: a simulated response of real cells, which changes some types more than others.

python benchmarks/conditions.py --data pbmc4k kidney --seeds 1 --epochs 5

Half of the cells respond: counts of 100 genes are thinned, or molecules added, by log-folds from a normal distribution,
times a strength per type from a log-normal one (deviation ``--spread``, mean 1). Fits with the true number of types are
not told (``found``), do not look for a condition (``not looked for``), or are told which cells respond (``across``).
``none`` has the same cells without a response. Scores are those of types, the mutual information of categories and
response inside types, and, where a condition was found, the share of the cells whose level is right. Every fit is a
line of ``results/conditions.jsonl``; fits that are there are not repeated.
"""

from __future__ import annotations

import sys

# The folder has a file called types: it must come after the standard library, whose module of that name is everywhere.
sys.path.append(sys.path.pop(0))

import argparse
import os
import time
import warnings
from pathlib import Path

import _lines
import numpy as np
import pandas as pd
from anndata import AnnData

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
N_GENES = 100
VARIANTS = ("found", "not looked for", "across", "none")
SETTING = ["data", "fold", "spread", "cells", "epochs"]
SCORES = ["accuracy", "ari", "nmi_response", "found", "levels_right", "seconds"]


def with_response(adata: AnnData, truth: np.ndarray, fold: float, spread: float, seed: int) -> AnnData:
    """Counts of cells of which half respond, as ``obs["response"]`` says.

    Parameters
    ----------
    adata
        Counts.
    truth
        Types, ``(n_obs,)``.
    fold
        Standard deviation of the genes' natural log-folds; 0 for no response.
    spread
        Standard deviation of the logarithms of the types' strengths.
    seed
        Source of all randomness.
    """
    generator = np.random.default_rng(seed)
    counts = adata.X.toarray() if hasattr(adata.X, "toarray") else np.array(adata.X)
    responds = generator.random(adata.n_obs) < 0.5
    genes = generator.choice(adata.n_vars, N_GENES, replace=False)
    log_fold = generator.normal(0, fold, N_GENES)
    types = np.unique(truth)
    strengths = np.exp(generator.normal(0, spread, len(types)))
    for name, strength in zip(types, strengths / strengths.mean(), strict=True):
        rows = np.flatnonzero(responds & (truth == name))
        if len(rows) == 0:
            continue
        block = counts[np.ix_(rows, genes)].astype(np.int64)
        ratio = np.exp(np.clip(strength * log_fold, -4, 4))
        depth = counts[rows].sum(1, keepdims=True)
        usual = counts[truth == name].sum(0)[genes] / counts[truth == name].sum()
        added = generator.poisson(depth * usual * np.maximum(ratio - 1, 0))
        counts[np.ix_(rows, genes)] = generator.binomial(block, np.minimum(ratio, 1)) + added
    result = AnnData(counts.astype(np.float32), obs=adata.obs[[]].copy(), var=adata.var[[]].copy())
    result.obs["response"] = pd.Categorical(np.where(responds, "yes", "no"))
    return result


def run(name: str, variant: str, seed: int, fold: float, spread: float, cells: int, epochs: int | None) -> dict:
    """One line of the results."""
    import logging

    import scvi
    import torch
    from _data import CASES, load

    import cplmixvi as cpl

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    torch.set_num_threads(1)
    adata, truth, _ = load(name)
    some = np.random.default_rng(seed).permutation(adata.n_obs)[:cells]
    truth = truth[some]
    cells_of = with_response(adata[some], truth, 0.0 if variant == "none" else fold, spread, seed)
    scored = ~np.isin(truth, CASES[name].ignore)
    scvi.settings.seed = seed
    cpl.CplMixVI.setup_anndata(cells_of)
    model = cpl.CplMixVI(
        cells_of,
        n_categories=len(set(truth[scored])),
        augment="across=response+thin" if variant == "across" else "auto",
    )
    start = time.process_time()
    model.train(epochs, enable_progress_bar=False, accelerator="cpu", find_condition=variant in ("found", "none"))
    seconds = time.process_time() - start
    labels, response = model.predict().astype(str), (cells_of.obs["response"] == "yes").to_numpy()
    scores = cpl.metrics.evaluate(truth[scored], labels[scored])
    inside = [
        cpl.metrics.nmi(response[truth == one], labels[truth == one])
        for one in sorted(set(truth[scored]))
        if (truth == one).sum() >= 20
    ]
    right = None
    if model.condition_ is not None:
        agreement = np.mean((model.condition_ > 0) == response)
        right = round(float(max(agreement, 1 - agreement)), 4)
    return {
        **dict(zip(SETTING, (name, fold, spread, cells, epochs), strict=True)),
        "variant": variant,
        "seed": seed,
        "accuracy": round(float(scores["accuracy"]), 4),
        "ari": round(float(scores["ari"]), 4),
        "nmi_response": round(float(np.mean(inside)), 4),
        "found": model.condition_ is not None,
        "levels_right": right,
        "seconds": round(seconds, 1),
    }


def render(runs: list[dict], path: Path) -> None:
    """Markdown: a row per setting and variant, means over seeds."""
    table = pd.DataFrame(runs).astype({"found": float})
    table["variant"] = pd.Categorical(table["variant"], VARIANTS)
    means = table.groupby([*SETTING, "variant"], observed=True, dropna=False)
    rows = means[SCORES].mean().round(3).assign(fits=means.size()).reset_index()
    title = "# A condition that nobody named: simulated responses"
    note = "Means over seeds, seconds of the processor. Written by `benchmarks/conditions.py`."
    path.write_text("\n".join([title, "", note, "", rows.to_markdown(index=False), ""]))


def main() -> None:
    """Run what is missing and write the table."""
    from _data import CASES

    parser = argparse.ArgumentParser(description=__doc__)
    on_counts = [name for name, case in CASES.items() if case.likelihood == "nb"]
    parser.add_argument("--data", nargs="+", default=["pbmc4k"], choices=on_counts)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fold", type=float, default=1.0)
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--cells", type=int, default=4_000)
    parser.add_argument(
        "--epochs", type=int, help="few are enough to see the start; the default of a training otherwise"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "conditions.jsonl")
    parser.add_argument("--render", action="store_true", help="write the table from the fits that are there")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs = _lines.read(options.out)
    keys = [*SETTING, "variant", "seed"]
    done = {tuple(entry[key] for key in keys) for entry in runs}
    setting = (options.fold, options.spread, options.cells, options.epochs)
    wanted = [(d, *setting, v, s) for d in options.data for s in range(options.seeds) for v in options.variants]
    for name, *_, variant, seed in [] if options.render else _lines.missing(wanted, done, options.out):
        runs.append(run(name, variant, seed, *setting))
        _lines.add(options.out, runs[-1])
        print(*runs[-1].values(), flush=True)
    if runs:
        render(runs, options.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
