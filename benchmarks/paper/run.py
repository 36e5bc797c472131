"""Tables of the paper on images, resumable: every fit is a line of ``results/<setting>.jsonl``.

python benchmarks/paper/run.py table1 --seeds 5
python benchmarks/paper/run.py tableS1 --data mnist
python benchmarks/paper/run.py arms --setting full

A fit that is there is not repeated; the same fit serves all tables. ``--render`` only writes ``results/<table>.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path

import pandas as pd

os.environ.setdefault("OMP_NUM_THREADS", "1")
RESULTS = Path(__file__).parent / "results"


def run(name: str, method: str, seed: int, setting: str) -> dict:
    """One fit and its scores, on the images that it was trained on and on others."""
    import logging

    import scvi
    import torch
    from _cases import IMAGES, METHODS, SETTINGS, load

    import cplmixvi as cpl

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    torch.set_num_threads(1)
    train, held_out = load(name, setting)
    n_obs, epochs = SETTINGS[setting][name]
    started = time.perf_counter()
    model = METHODS[method](train.copy(), name, seed, epochs)
    seconds = time.perf_counter() - started
    scores = {}
    for part, images in (("", held_out), ("_train", train)):
        truth = images.obs[IMAGES[name].label].astype(str)
        labels = model.predict(images.copy())
        scores[f"accuracy{part}"] = cpl.metrics.accuracy(truth, labels)
        scores[f"nmi{part}"] = cpl.metrics.nmi(truth, labels)
    report = model.report()
    return {
        "data": name,
        "method": method,
        "seed": seed,
        **{key: round(float(value), 5) for key, value in scores.items()},
        "n_used": int(report.n_used),
        "n_images": n_obs,
        "epochs": epochs,
        "seconds": round(seconds, 1),
    }


def render(runs: list[dict], table: str, path: Path) -> None:
    """Mean, standard deviation and worst seed of every row, with what the paper reports."""
    from _cases import REPORTED, TABLES

    data, methods = TABLES[table]
    rows = []
    for name in data:
        for method in methods:
            some = pd.DataFrame([entry for entry in runs if (entry["data"], entry["method"]) == (name, method)])
            if some.empty:
                continue
            accuracy = 100 * some["accuracy"]
            rows.append(
                {
                    "data": "re-rendered dSprites" if name == "dsprites" else name,
                    "method": method,
                    "accuracy %": f"{accuracy.mean():.2f} ± {accuracy.std(ddof=0):.2f}",
                    "worst": f"{accuracy.min():.2f}",
                    "NMI": f"{some['nmi'].mean():.3f}",
                    "used": f"{some['n_used'].mean():.1f}",
                    "seeds": len(some),
                    "epochs": int(some["epochs"].iloc[0]),
                    "images": int(some["n_images"].iloc[0]),
                    "seconds": f"{some['seconds'].mean():.0f}",
                    "paper, accuracy %": REPORTED.get((name, method), ""),
                }
            )
    text = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    path.write_text(
        f"# {table}\n\nAccuracy by one-to-one matching on images that were not trained on; mean, standard deviation "
        f"and worst of the seeds. Written by `benchmarks/paper/run.py {table}`.\n\n{text}\n"
    )


def main() -> None:
    """Fit what is missing and write the table."""
    from _cases import SETTINGS, TABLES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--data", nargs="+", help="data sets; all of the table by default")
    parser.add_argument("--methods", nargs="+", help="methods; all of the table by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--setting", choices=list(SETTINGS), default="short")
    parser.add_argument("--render", action="store_true", help="write the table from the fits that are there")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{options.setting}.jsonl"
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(entry["data"], entry["method"], entry["seed"]) for entry in runs}
    data, methods = TABLES[options.table]
    for given, known in ((options.data, data), (options.methods, methods)):
        unknown = sorted(set(given or ()) - set(known))
        if unknown:
            parser.error(f"{', '.join(unknown)} not in {options.table}; there are {', '.join(known)}")
    wanted = [(d, m, s) for s in range(options.seeds) for d in options.data or data for m in options.methods or methods]
    for key in [] if options.render else wanted:
        if key in done:
            continue
        result = run(*key, options.setting)
        runs.append(result)
        with path.open("a") as stream:
            stream.write(json.dumps(result) + "\n")
        print(*key, f"accuracy {result['accuracy']:.4f} seconds {result['seconds']:.0f}", flush=True)
    if runs:
        suffix = "" if options.setting == "short" else f"_{options.setting}"
        render(runs, options.table, RESULTS / f"{options.table}{suffix}.md")


if __name__ == "__main__":
    main()
