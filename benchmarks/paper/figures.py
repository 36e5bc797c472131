"""Figures of the paper, each from one fit of the short setting (or, Fig. 5, from the fits of the tables).

python benchmarks/paper/figures.py style                     # Fig. 1: a style by digit
python benchmarks/paper/figures.py traversal                 # Fig. 3: digits along their states
python benchmarks/paper/figures.py confusion --data zeisel48 # Fig. 4: against the reference taxonomy
python benchmarks/paper/figures.py gain                      # Fig. 5: accuracy above JointVAE by number of arms

They are written to ``results/figures``. A model that ``run.py`` has kept is not fitted again.
"""

from __future__ import annotations

import argparse

import matplotlib
import numpy as np
import pandas as pd
from anndata import AnnData
from run import RESULTS, read

matplotlib.use("Agg")
FIGURES = RESULTS / "figures"
N_SHOWN = 5_000


def annotated(name: str, seed: int):
    """Annotated data of a fit of ours, those that were not trained on where there are such, and the model."""
    import torch
    from _cases import METHODS, epochs_of, kept, load

    import cplmixvi as cpl

    torch.set_num_threads(1)
    train, held_out = load(name, "short")
    folder = kept(name, seed, "short")
    if folder.exists():
        model = cpl.CplMixVI.load(folder, train.copy())
    else:
        model = METHODS["cplmixvi"](train.copy(), name, seed, epochs_of(name, "short", train.n_obs))
        model.save(folder)
    adata = train.copy() if held_out is None else held_out[:N_SHOWN].copy()
    cpl.tl.annotate(adata, model)
    return adata, model


def taxonomy(values: np.ndarray, types: np.ndarray, ignore: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Reference types along a tree of their mean log values, and its linkage, made as by ``tl.order_categories``."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import pdist

    names = sorted(set(types) - set(ignore))
    means = np.stack([values[types == name].mean(0) for name in names])
    tree = linkage(pdist(means, "correlation"), method="average", optimal_ordering=True)
    return [names[leaf] for leaf in leaves_list(tree)], tree


def style(name: str, seed: int) -> None:
    """Histograms by digit of the dimension of the state that varies most between the digits' means."""
    import cplmixvi as cpl

    adata, _ = annotated("mnist", seed)
    state = pd.DataFrame(adata.obsm["X_cplmixvi"])
    between = state.groupby(adata.obs["cplmixvi"].to_numpy(), observed=True).mean().var() / state.var()
    named(adata, "digit")
    ax = cpl.pl.state_histograms(adata, dim=int(between.to_numpy().argmax()))
    save(ax, "fig1_style")


def traversal(name: str, seed: int) -> None:
    """Images decoded along the first principal direction of every category's states."""
    import cplmixvi as cpl

    adata, model = annotated("mnist", seed)
    cpl.tl.traverse(adata, model)
    save(cpl.pl.image_traversal(adata), "fig3_traversal")


def confusion(name: str, seed: int) -> None:
    """Reference types in the order of their taxonomy, whose tree stands at the left, against categories."""
    from _cases import CASES
    from _data import log_values
    from scipy.cluster.hierarchy import dendrogram

    import cplmixvi as cpl

    case = CASES[name]
    adata, _ = annotated(name, seed)
    types = adata.obs[case.label].astype(str).to_numpy()
    leaves, tree = taxonomy(log_values(adata, case.likelihood), types, case.ignore)
    ax = cpl.pl.confusion(adata, case.label, order=leaves, ignore=case.ignore)
    # The tree ends where the names of the types begin.
    beside = ax.inset_axes((-0.6, 0.0, 0.2, 1.0), sharey=ax)
    drawn = dendrogram(tree, no_plot=True)
    for y, x in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        # Leaves of scipy's drawing are at 5, 15, 25, ...
        beside.plot(-np.array(x), (np.array(y) - 5) / 10, color="0.3", linewidth=0.8, solid_capstyle="round")
    beside.set_axis_off()
    save(ax, f"fig4_{name}")


def gain(name: str, seed: int) -> None:
    """Accuracy above that of JointVAE by number of arms, points of single seeds and their means."""
    import matplotlib.pyplot as plt

    runs = pd.DataFrame(read(RESULTS / "short.jsonl"))
    runs = runs[runs["data"] == name]
    baseline = runs.loc[runs["method"] == "JointVAE", "accuracy"]
    ours = {"cplmixvi, 1 arm": 1, "cplmixvi": 2, "cplmixvi, 3 arms": 3, "cplmixvi, 5 arms": 5}
    ours = runs[runs["method"].isin(ours)].assign(n_arms=lambda t: t["method"].map(ours))
    if baseline.empty or ours.empty:
        raise SystemExit(f"no fits of {name} by both: run.py arms --data {name}")
    above = 100 * (ours["accuracy"] - baseline.mean())
    figure, ax = plt.subplots(figsize=(3.6, 2.8), layout="constrained")
    ax.plot(ours["n_arms"], above, "o", color="0.75", markersize=4)
    means = above.groupby(ours["n_arms"]).mean()
    ax.plot(means.index, means, "D-", color="#0b4f8a", markersize=5)
    ax.set(xlabel="arms", ylabel="accuracy above JointVAE, points", title=name, xticks=sorted(set(ours["n_arms"])))
    ax.spines[["top", "right"]].set_visible(False)
    save(ax, f"fig5_{name}")


def named(adata: AnnData, label: str) -> None:
    """Call categories by the reference type that they match."""
    import cplmixvi as cpl

    matched = cpl.metrics.match_categories(adata.obs[label].astype(str), adata.obs["cplmixvi"])
    adata.obs["cplmixvi"] = adata.obs["cplmixvi"].cat.rename_categories(matched)


def save(ax, name: str) -> None:
    """Write a figure."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    ax.figure.savefig(FIGURES / f"{name}.png", dpi=150, bbox_inches="tight")
    print(FIGURES / f"{name}.png")


DRAWN = {"style": style, "traversal": traversal, "confusion": confusion, "gain": gain}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=list(DRAWN))
    parser.add_argument("--data", help="of confusion and gain", default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    DRAWN[options.figure](options.data or {"confusion": "zeisel48"}.get(options.figure, "mnist"), options.seed)
