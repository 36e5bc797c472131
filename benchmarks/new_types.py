"""New cells: is a type that was left out of the training told apart, and are probabilities as good as of other cells?

python benchmarks/new_types.py --data pbmc4k --seeds 1

One type after the other is left out, with a quarter of the cells of the other types. The score is the area under the
ROC curve of left-out against held-out cells, of two readings: the complement of the confidence (the largest
probability), and :meth:`cplmixvi.CplMixVI.get_novelty`. One more fit leaves out no type: its calibration error, against
the reference labels, is that of the cells that were trained on and of those that were not. Every fit is a line of
``results/new_types.jsonl``; fits that are there are not repeated.
"""

from __future__ import annotations

import sys

# The folder has a file called types: it must come after the standard library, whose module of that name is everywhere.
sys.path.append(sys.path.pop(0))

import argparse
import os
import warnings
from pathlib import Path

import _lines
import numpy as np
import pandas as pd

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
NOTHING = "nothing"
CALIBRATION = ["error_trained", "error_new", "accuracy_trained", "accuracy_new"]
READINGS = ["auroc_confidence", "auroc_novelty", "false_alarms"]


def fit(name: str, left_out: str, seed: int):
    """Train without one type. Returns the model, all cells, their types, which were trained on, which are left out."""
    import logging

    import scvi
    import torch
    from _data import CASES, load

    import cplmixvi as cpl

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    torch.set_num_threads(1)
    adata, truth, n_types = load(name)
    new = truth == left_out
    held_out = ~new & (np.random.default_rng(seed).random(adata.n_obs) < 0.25)
    scvi.settings.seed = seed
    train = adata[~new & ~held_out].copy()
    cpl.CplMixVI.setup_anndata(train)
    model = cpl.CplMixVI(train, n_categories=n_types - int(new.any()), likelihood=CASES[name].likelihood)
    model.train(enable_progress_bar=False, accelerator="cpu")
    return model, adata, truth, ~new & ~held_out, new


def score(model, adata, truth, trained, new) -> dict[str, float]:
    """Score the cells that were not trained on."""
    from sklearn.metrics import roc_auc_score

    seen, is_new = adata[~trained].copy(), new[~trained]
    confidence = model.predict(seen, soft=True).to_numpy().max(1)
    novelty = model.get_novelty(seen)
    return {
        "n_new": int(is_new.sum()),
        "auroc_confidence": round(float(roc_auc_score(is_new, -confidence)), 4),
        "auroc_novelty": round(float(roc_auc_score(is_new, novelty)), 4),
        # Share of known cells that a threshold of .95 calls new; .05 if novelty means what it says.
        "false_alarms": round(float((novelty[~is_new] > 0.95).mean()), 4),
    }


def calibration(name: str, model, adata, truth, trained, new) -> dict[str, float]:
    """Calibration error and accuracy of cells that were trained on, which match categories to types, and of others."""
    from _data import CASES

    import cplmixvi as cpl

    labels, confidence = model.predict(adata), model.predict(adata, soft=True).to_numpy().max(1)
    scored = ~np.isin(truth, CASES[name].ignore)
    partner = cpl.metrics.match_categories(truth[trained & scored], labels[trained & scored])
    right = np.array([partner.get(label) for label in labels.astype(str)]) == truth
    result = {}
    for part, cells in (("trained", trained & scored), ("new", ~trained & scored)):
        result[f"n_{part}"] = int(cells.sum())
        error = cpl.metrics.expected_calibration_error(right[cells], confidence[cells])
        result[f"error_{part}"] = round(float(error), 4)
        result[f"accuracy_{part}"] = round(float(right[cells].mean()), 4)
    return result


def run(name: str, left_out: str, seed: int) -> dict:
    """One line of the results."""
    fitted = fit(name, left_out, seed)
    scores = calibration(name, *fitted) if left_out == NOTHING else score(*fitted)
    return {"data": name, "left_out": left_out, "seed": seed, **scores}


def render(runs: list[dict], path: Path) -> None:
    """Markdown: a row per type that was left out, and their mean."""
    parts = ["# Types that were left out", "", "Means over seeds. Written by `benchmarks/new_types.py`."]
    all_runs = pd.DataFrame(runs)
    calibrated = all_runs[all_runs["left_out"] == NOTHING]
    for name, table in all_runs[all_runs["left_out"] != NOTHING].groupby("data"):
        by_type = table.groupby("left_out")[["n_new", *READINGS]].mean()
        by_type.loc["mean"] = by_type.mean()
        parts += ["", f"## {name}", "", by_type.round(3).reset_index().to_markdown(index=False)]
    if len(calibrated):
        by_data = calibrated.groupby("data")[CALIBRATION].mean().round(3).reset_index()
        parts += [
            "",
            "## No type left out",
            "",
            "Expected calibration error against the reference labels, and accuracy.",
        ]
        parts += ["", by_data.to_markdown(index=False)]
    path.write_text("\n".join([*parts, ""]))


def main() -> None:
    """Run what is missing and write the table."""
    from _data import CASES, load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["pbmc4k"], choices=list(CASES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=["types", "nothing"], help="what is left out; one after the other by default")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "new_types.jsonl")
    parser.add_argument("--render", action="store_true", help="write the table from the fits that are there")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs = _lines.read(options.out)
    done = {(entry["data"], entry["left_out"], entry["seed"]) for entry in runs}
    wanted = []
    for name in [] if options.render else options.data:
        types = [] if options.only == "nothing" else sorted(set(load(name)[1]) - set(CASES[name].ignore))
        left_out = types if options.only == "types" else [*types, NOTHING]
        wanted += [(name, each, seed) for seed in range(options.seeds) for each in left_out]
    for each in [] if options.render else _lines.missing(wanted, done, options.out):
        runs.append(run(*each))
        _lines.add(options.out, runs[-1])
        print(*runs[-1].values(), flush=True)
    if runs:
        render(runs, options.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
