"""Tables of the paper, resumable: every fit is a line of ``results/<setting>.jsonl``.

python benchmarks/paper/run.py table1 --seeds 5
python benchmarks/paper/run.py table1 --data tasic2018 simulated115 --seeds 10
python benchmarks/paper/run.py tableS1
python benchmarks/paper/run.py arms --setting full
python benchmarks/paper/run.py propositions --seeds 1

A fit that is there is not repeated, unless it lacks a score that the table is about; the same fit serves all tables.
``--render`` only writes ``results/<table>.md``. With ``--out FILE``, fits and tables are those of another file: to
repeat what is there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

# What harnesses share. Last, because that folder has a types.py, and the standard library another.
sys.path.append(str(Path(__file__).parents[1]))

import _lines
from _tables import TABLES, render, summarise

os.environ.setdefault("OMP_NUM_THREADS", "1")
RESULTS = Path(__file__).parent / "results"


def run(name: str, method: str, seed: int, setting: str) -> dict:
    """One fit and its scores."""
    import logging

    import scvi
    import torch
    from _cases import METHODS, epochs_of, kept, load
    from _scores import score

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    torch.set_num_threads(1)
    train, held_out = load(name, setting)
    epochs = epochs_of(name, setting, train.n_obs)
    started = time.perf_counter()
    model = METHODS[method](train.copy(), name, seed, epochs)
    seconds = time.perf_counter() - started
    if method == "cplmixvi":
        model.save(kept(name, seed, setting), overwrite=True)
    return {
        "data": name,
        "method": method,
        "seed": seed,
        **score(model, name, train, held_out),
        **trained(model),
        "n_images": train.n_obs,
        "seconds": round(seconds, 1),
    }


def trained(model) -> dict[str, int]:
    """How long a model was trained and how many categories it uses; of clusters only the latter."""
    if not hasattr(model, "trainer"):
        return {"n_used": model.n_used}
    return {
        "n_used": int(model.report().n_used),
        "epochs": int(model.trainer.max_epochs),
        # Lightning counts a step of each of two optimisers.
        "steps": int(model.trainer.global_step) // len(model.trainer.optimizers),
    }


def read(path: Path) -> list[dict]:
    """Fits that are there; a later line about the same fit replaces an earlier one."""
    return list({key(entry): entry for entry in _lines.read(path)}.values())


def key(entry: dict) -> tuple[str, str, int]:
    """What a fit is known by."""
    return entry["data"], entry["method"], entry["seed"]


def main() -> None:
    """Fit what is missing and write the table."""
    from _cases import SETTINGS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument(
        "--data",
        nargs="+",
        help="data sets; by default those without a large download or hours of work",
    )
    parser.add_argument("--methods", nargs="+", help="methods; all of the table by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--setting", choices=list(SETTINGS), default="short")
    parser.add_argument("--out", type=Path, help="file of the fits, beside which tables are written")
    parser.add_argument("--render", action="store_true", help="write the table from the fits that are there")
    options = parser.parse_args()
    path = options.out or RESULTS / f"{options.setting}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = TABLES[options.table]
    done = {key(entry) for entry in read(path) if set(table.needs) <= set(entry)}
    for given, known in ((options.data, table.data), (options.methods, table.methods)):
        unknown = sorted(set(given or ()) - set(known))
        if unknown:
            parser.error(f"{', '.join(unknown)} not in {options.table}; there are {', '.join(known)}")
    wanted = table.fits(options.data, options.methods, options.seeds)
    for each in [] if options.render else _lines.missing(wanted, done, path):
        result = run(*each, options.setting)
        _lines.add(path, result)
        print(*each, f"accuracy {result['accuracy']:.4f} seconds {result['seconds']:.0f}", flush=True)
    runs = read(path)
    if runs:
        suffix = "" if options.setting == "short" else f"_{options.setting}"
        render(runs, options.table, path.parent / f"{options.table}{suffix}.md")
        if SETTINGS[options.setting].keys() == SETTINGS["short"].keys():
            summarise(runs, path.parent / f"summary{suffix}.md")


if __name__ == "__main__":
    main()
