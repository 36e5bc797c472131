"""Other readings of "markers move": published markers instead of found ones, and other units than the gene's own."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

import cplmixvi as cpl

#: What the cell types of kang2018 are commonly told by, written down before anything was measured with it.
KANG = {
    "CD14 Mono": ("CD14", "LYZ", "S100A8", "S100A9"),
    "CD16 Mono": ("FCGR3A", "MS4A7", "VMO1"),
    "DC": ("FCER1A", "CST3", "HLA-DQA1", "GPR183"),
    "pDC": ("IL3RA", "TSPAN13", "IGJ"),
    "Mk": ("PPBP", "PF4", "GNG11"),
    "Eryth": ("HBA1", "HBA2", "HBB"),
    "B": ("MS4A1", "CD79A", "CD79B"),
    "B Activated": ("MS4A1", "CD79A", "MIR155HG", "NME1"),
    "T activated": ("CREM", "HSPH1", "CACYBP"),
    "CD4 Naive T": ("CD3D", "SELL", "CCR7", "GIMAP5"),
    "CD4 Memory T": ("CD3D", "IL7R", "CD2"),
    "CD8 T": ("CD8A", "CD3D", "CCL5"),
    "NK": ("GNLY", "NKG7", "KLRD1"),
}


def published(name: str, adata: AnnData, found: np.ndarray) -> dict[str, list[str]]:
    """Markers of each category that has some: those of the reference type that most of its cells have.

    Types of tasic2016 are named after their markers, as those of the paper's Fig. 6 are.
    """
    genes = set(map(str, adata.var_names))
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    markers = {}
    for category in np.unique(found):
        kind = pd.Series(truth[found == category]).mode().iloc[0]
        listed = [gene for gene in (KANG[kind] if name == "kang" else kind.split("_")) if gene in genes]
        if listed:
            markers[category] = listed
    return markers


def marker_scores(
    name: str, adata: AnnData, model: cpl.CplMixVI, found: np.ndarray, result: cpl.tl.Traversal
) -> dict[str, float]:
    """Shares of markers that move along the main path, by three more readings.

    ``moved_within``: by one standard deviation of the gene over the type's own cells. ``moved_half``: by half of what
    tells the type from all other cells. ``moved_published``: published markers, by one deviation over all cells.
    """
    on_counts = model.likelihood == "nb"
    values = cpl.pp.log_normalize(adata.X, float(model.module.target_library)) if on_counts else adata.X
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    rates = np.expm1(values) if on_counts else values
    path = list(result.paths).index("main" if "main" in result.paths else "1")
    position = pd.Index(result.genes)
    own = result.members[result.members["gene_set"] == "markers"].groupby("category")["gene"].agg(list)
    within, half = [], []
    for i, category in enumerate(result.categories):
        if category not in own:
            continue
        genes = position.get_indexer(own[category])
        steps = result.expression[i, path][:, genes]
        change, member = np.abs(steps[-1] - steps[0]), found == category
        outside = rates[~member][:, genes].mean(0)
        contrast = np.abs(steps[len(steps) // 2] - (np.log1p(outside) if on_counts else outside))
        within.append(np.mean(change >= values[member][:, genes].std(0)))
        half.append(np.mean(change >= contrast / 2))
    scores = {"moved_within": float(np.mean(within)), "moved_half": float(np.mean(half))}
    if name in ("kang", "tasic2016"):
        leakage = cpl.tl.traverse(adata, model, markers=published(name, adata, found)).leakage
        leakage = leakage[leakage["path"] == result.paths[path]]
        scores["moved_published"] = float(leakage["markers_moved"].mean())
        scores["moved_published_pooled"] = float(
            np.nansum(leakage["markers_moved"] * leakage["n_markers"]) / leakage["n_markers"].sum()
        )
        scores["n_published"] = float(leakage["n_markers"].sum())
    return scores
