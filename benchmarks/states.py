"""States: what they find, what they move, and what they leave alone; data sets x variants x seeds, resumable.

python benchmarks/states.py --data kang rnamix --variants default "one arm" --seeds 2

Every run is a line of ``results/states.jsonl``; runs that are there are not repeated. ``--render`` only writes tables.
"""

from __future__ import annotations

import sys

# The folder has a file called types: it must come after the standard library, whose module of that name is everywhere.
sys.path.append(sys.path.pop(0))

import argparse
import logging
import os
import warnings
from pathlib import Path

import _lines
import numpy as np
import pandas as pd

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
DATA = ("kang", "rnamix", "paul", "tasic2016", "scmix", "pbmc68k")
CYCLE = ["cycle_cells", "s_rho", "g2m_rho", "s_rho_all", "g2m_rho_all", "cycle_chance"]
FACTORS = {
    "kang": ["stim_nmi", "stim_auc", "stim_auc_dim1", "stim_auc_worst", "stim_cells", "isg_rank", "isg_top20", "gap"],
    "rnamix": ["mix_r2", "mix_r2_state", "amount_rho", "amount_rho_within", "gap"],
    "paul": ["pseudotime_rho", "pseudotime_rho_cells", "pseudotime_rho_varied", "gap", *CYCLE],
    "scmix": CYCLE,
    "pbmc68k": CYCLE,
}
TYPES = ["accuracy", "ari", "elbo", "arms_r2", "variance_1", "variance_2"]
TRAVERSAL = ["markers_moved", "markers_moved_cells", "markers_observed", "markers_lost", "flips", "flips_drawn"]
TRAVERSAL += ["isg_monotone", "isg_effect", "moved_within", "moved_half", "moved_published", "n_published"]


def run(name: str, variant: str, seed: int) -> dict:
    """One fit, or the one that is kept, and its scores."""
    import _states_markers as markers
    import _states_scores as scores
    import torch
    from _states_models import fitted

    import cplmixvi as cpl

    torch.set_num_threads(1)
    adata, model = fitted(name, variant, seed)
    # Models are kept as they were trained: the coordinates are found here, with the code as it is now.
    model.align_arms()
    cpl.tl.annotate(adata, model, overwrite=True)
    posterior = model.get_posterior()
    found = model.category_names[posterior.proba.argmax(1)].astype(str)
    state = posterior.combined
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    activity = model.get_state_activity()
    entry = {"data": name, "variant": variant, "seed": seed}
    entry |= {
        "accuracy": cpl.metrics.accuracy(truth, found),
        "ari": cpl.metrics.ari(truth, found),
        "elbo": float(model.get_elbo()),
        "arms_r2": scores.shared_variance(posterior.state, found),
    }
    for j in range(model.n_state):
        of_dimension = activity[activity["dimension"] == j + 1]
        entry[f"variance_{j + 1}"] = float(np.average(of_dimension["variance_share"], weights=of_dimension["n_cells"]))
    result = cpl.tl.traverse(adata, model)
    entry |= scores.traversal_scores(result, adata)
    entry |= markers.marker_scores(name, adata, model, found, result)
    drawn = cpl.tl.traverse(adata, model, n_draws=10).leakage
    entry["flips_drawn"] = float(drawn["flip_rate"].mean())
    entry |= scores.factor_scores(name, adata, found, state, posterior.proba)
    numbers = {key: float(value) for key, value in entry.items() if isinstance(value, float | np.floating)}
    return {**entry, **{key: value if np.isfinite(value) else None for key, value in numbers.items()}}


def run_held_out(name: str, variant: str, seed: int) -> dict:
    """One fit to four fifths of the cells, and its evidence on the others: for choices that must not see labels."""
    import _states_scores as scores
    import scvi
    import torch
    from _methods import QUIET
    from _states_models import VARIANTS, cells

    import cplmixvi as cpl

    torch.set_num_threads(1)
    adata, n_types, likelihood = cells(name)
    cpl.CplMixVI.setup_anndata(adata)
    scvi.settings.seed = seed
    model = cpl.CplMixVI(adata, **{"n_categories": n_types, "likelihood": likelihood} | VARIANTS[variant])
    model.train(train_size=0.8, **QUIET)
    activity = model.get_state_activity()
    share = activity.groupby("dimension")[["variance_share", "n_cells"]].apply(
        lambda d: np.average(d["variance_share"], weights=d["n_cells"])
    )
    return {
        "data": name,
        "variant": variant,
        "seed": seed,
        "elbo": float(model.get_elbo(indices=model.train_indices)),
        "elbo_held_out": float(model.get_elbo(indices=model.validation_indices)),
        "variance_least": float(share.min()),
        "arms_r2": scores.shared_variance(model.get_posterior().state, model.get_posterior().proba.argmax(1)),
    }


def render(runs: list[dict], path: Path) -> None:
    """Markdown: means over seeds, one table per data set of what its states find, and one of all traversals."""
    table = pd.DataFrame(runs)
    grouped = table.groupby(["data", "variant"], sort=False)
    means = grouped.mean(numeric_only=True).drop(columns="seed")
    means.insert(0, "seeds", grouped.size())
    parts = [
        "# States",
        "",
        "Means over seeds. Written by `benchmarks/states.py`.",
    ]
    for name in dict.fromkeys(table["data"]):
        columns = ["seeds", *TYPES, *FACTORS.get(name, [])]
        shown = means.loc[name][[column for column in columns if column in means]].dropna(axis=1, how="all")
        parts += ["", f"## {name}", "", shown.round(3).to_markdown()]
    shown = means[[column for column in TRAVERSAL if column in means]].reset_index()
    parts += ["", "## Traversals along the main path", "", shown.round(3).to_markdown(index=False), ""]
    path.write_text("\n".join(parts))


def main() -> None:
    """Run what is missing and write the tables."""
    from _states_models import ONLY, VARIANTS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "states.jsonl")
    parser.add_argument("--held-out", action="store_true", help="fit four fifths of the cells: evidence of the others")
    parser.add_argument("--render", action="store_true", help="write the tables from the runs that are there")
    options = parser.parse_args()
    if options.held_out:
        options.out = options.out.with_name(f"{options.out.stem}_held_out.jsonl")
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs = _lines.read(options.out)
    done = {(entry["data"], entry["variant"], entry["seed"]) for entry in runs}
    wanted = [(d, v, s) for s in range(options.seeds) for v in options.variants for d in options.data]
    wanted = [key for key in wanted if key[0] in ONLY.get(key[1], DATA)]
    for key in [] if options.render else _lines.missing(wanted, done, options.out):
        runs.append(run_held_out(*key) if options.held_out else run(*key))
        _lines.add(options.out, runs[-1])
        print(*key, {k: round(v, 3) for k, v in runs[-1].items() if isinstance(v, float)}, flush=True)
    if runs and options.held_out:
        table = pd.DataFrame(runs).round(3).drop(columns="seed")
        table = table.groupby(["data", "variant"], sort=False).mean().reset_index()
        head = "# States: evidence on held-out cells\n\nWritten by `benchmarks/states.py --held-out`.\n\n"
        options.out.with_suffix(".md").write_text(head + table.to_markdown(index=False) + "\n")
    elif runs:
        render(runs, options.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
