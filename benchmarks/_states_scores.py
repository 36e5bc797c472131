"""Scores of states against what is known of the cells. Labels are read here only, after all fitting."""

from __future__ import annotations

import _states_cycle as cycle
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score
from sklearn.model_selection import cross_val_predict

import cplmixvi as cpl

INTERFERON_GENES = ("ISG15", "IFI6", "IFIT1", "IFIT3", "MX1")
MIN_CELLS = 10


def factor_scores(
    name: str, adata: AnnData, found: np.ndarray, state: np.ndarray, proba: np.ndarray
) -> dict[str, float]:
    """What is known of a data set's cells beside their types, as far as anything is; the cells are annotated."""
    scores: dict[str, float] = {}
    if name == "kang":
        scores |= condition_scores(adata, found, state)
    elif name == "rnamix":
        scores |= mixture_scores(adata, found, state, proba)
    elif name == "paul":
        scores |= pseudotime_scores(adata, found, state)
    if name in cycle.DATASETS:
        scores |= cycle.cycle_scores(name, adata, found, state)
    return scores


def shared_variance(state: np.ndarray, found: np.ndarray) -> float:
    """Share of the within-category variance of arm 0 that arm 1, aligned, has too; ``nan`` with one arm."""
    if state.shape[1] < 2:
        return np.nan
    first, second = (pd.DataFrame(state[:, arm]).groupby(found).transform(lambda s: s - s.mean()) for arm in (0, 1))
    return float(1 - np.square(first - second).to_numpy().sum() / np.square(first).to_numpy().sum())


def mixed(labels: np.ndarray, condition: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Groups of cells with at least ten of each of both conditions."""
    groups = [(name, np.flatnonzero(labels == name)) for name in np.unique(labels)]
    return [(name, cells) for name, cells in groups if min(np.bincount(condition[cells], minlength=2)) >= MIN_CELLS]


def condition_split(found: np.ndarray, truth: np.ndarray, condition: np.ndarray) -> float:
    """How far categories tell the condition inside a reference type: mean over types of NMI."""
    values = [normalized_mutual_info_score(found[cells], condition[cells]) for _, cells in mixed(truth, condition)]
    return float(np.mean(values))


def gap(state: np.ndarray, factor: np.ndarray, groups: list[np.ndarray]) -> float:
    """Mutual information gap of a factor: best minus second dimension, over the factor's entropy, mean over cells."""
    if state.shape[1] < 2:
        return np.nan
    gaps, sizes = [], []
    for cells in groups:
        gaps.append(cpl.metrics.mutual_information_gap(factor[cells], state[cells]).item())
        sizes.append(len(cells))
    return float(np.average(gaps, weights=sizes))


def condition_scores(adata: AnnData, found: np.ndarray, state: np.ndarray) -> dict[str, float]:
    """Kang: do types ignore interferon, and does a state find it?"""
    stim = (adata.obs["stim"].astype(str) == "STIM").to_numpy().astype(int)
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    groups = mixed(found, stim)
    sizes = [len(cells) for _, cells in groups]
    auc = np.array(
        [
            [max(a, 1 - a) for a in (roc_auc_score(stim[c], state[c, j]) for j in range(state.shape[1]))]
            for _, c in groups
        ]
    )
    genes = cpl.tl.state_genes(adata, n_genes=None)
    ranks = genes[genes["gene"].isin(INTERFERON_GENES)].pivot_table(
        index=["category", "gene"], columns="dimension", values="rank"
    )
    of_best = [ranks.loc[name].iloc[:, a.argmax()] for (name, _), a in zip(groups, auc, strict=True)]
    return {
        "stim_nmi": condition_split(found, truth, stim),
        "stim_auc": float(np.average(auc.max(1), weights=sizes)),
        "stim_auc_dim1": float(np.average(auc[:, 0], weights=sizes)),
        "stim_auc_worst": float(auc.max(1).min()),
        "stim_cells": float(np.sum(sizes) / len(stim)),
        "isg_rank": float(np.median(np.concatenate(of_best))),
        "isg_top20": float(np.mean(np.concatenate(of_best) <= 20)),
        "gap": gap(state, stim, [cells for _, cells in groups]),
    }


def mixture_scores(adata: AnnData, found: np.ndarray, state: np.ndarray, proba: np.ndarray) -> dict[str, float]:
    """RNA mixtures: are proportions and the amount of RNA in the answer?"""
    proportions = adata.obs[["H2228_prop", "H1975_prop", "HCC827_prop"]].to_numpy(dtype=float)
    amount = adata.obs["mRNA_amount"].to_numpy(dtype=float)

    def explained(features: np.ndarray) -> float:
        guess = cross_val_predict(RidgeCV(np.logspace(-4, 2, 13)), features, proportions, cv=10)
        residual = np.square(proportions - guess).sum()
        return float(1 - residual / np.square(proportions - proportions.mean(0)).sum())

    groups = [
        cells for cells in (np.flatnonzero(found == name) for name in np.unique(found)) if len(cells) >= MIN_CELLS
    ]
    within = [max(abs(spearmanr(state[c, j], amount[c])[0]) for j in range(state.shape[1])) for c in groups]
    return {
        "mix_r2": explained(np.hstack([proba, state])),
        "mix_r2_state": explained(state),
        "amount_rho": max(abs(float(spearmanr(state[:, j], amount)[0])) for j in range(state.shape[1])),
        "amount_rho_within": float(np.average(within, weights=[len(c) for c in groups])),
        "gap": gap(state, amount, groups),
    }


def pseudotime_scores(adata: AnnData, found: np.ndarray, state: np.ndarray) -> dict[str, float]:
    """Paul: does a state follow pseudotime inside a category? Cells without a finite pseudotime are left out."""
    time = adata.obs["dpt_pseudotime"].to_numpy(dtype=float)
    groups = [np.flatnonzero((found == name) & np.isfinite(time)) for name in np.unique(found)]
    groups = [cells for cells in groups if len(cells) >= MIN_CELLS]
    rho = [max(abs(spearmanr(state[c, j], time[c])[0]) for j in range(state.shape[1])) for c in groups]
    return {
        "pseudotime_rho": float(np.mean(rho)),
        "pseudotime_rho_cells": float(np.average(rho, weights=[len(c) for c in groups])),
        # Pseudotime hardly varies in most categories: each by its share of what varies within categories.
        "pseudotime_rho_varied": float(np.average(rho, weights=[len(c) * time[c].var() for c in groups])),
        "gap": gap(state, time, groups),
    }


def traversal_scores(result: cpl.tl.Traversal, adata: AnnData) -> dict[str, float]:
    """Along the main path of every type: what happens to markers, to the type, and to interferon genes."""
    sizes = adata.obs["cplmixvi"].value_counts()
    sizes.index = sizes.index.astype(str)
    path = "main" if "main" in result.paths else "1"
    leakage = result.leakage[result.leakage["path"] == path]
    weights = sizes.loc[leakage["category"]].to_numpy()
    sets = result.gene_sets[(result.gene_sets["path"] == path) & (result.gene_sets["gene_set"] == "interferon")]
    scores = {name: float(leakage[name].mean()) for name in ("markers_moved", "markers_observed", "markers_lost")}
    scores["markers_moved_cells"] = float(np.average(leakage["markers_moved"].fillna(0), weights=weights))
    scores["flips"] = float(leakage["flip_rate"].mean())
    if len(sets):
        scores["isg_monotone"] = float(sets["share_monotone"].mean())
        scores["isg_effect"] = float(sets["median_effect"].mean())
    return scores
