"""Make docs/_static/story.png: what cplmixvi does, on blood cells with and without interferon.

python docs/make_picture.py trains a model on 4,000 cells of Kang et al. 2018, which takes two to four minutes.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from anndata import AnnData
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import cplmixvi as cpl

HERE = Path(__file__).resolve().parent
N_CELLS, N_GENES, N_TYPES = 4_000, 1_000, 13
GENES = ("ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "LY6E", "ISG20", "OAS1", "STAT1", "IRF7")
CONDITIONS = {"CTRL": "#4a6fa5", "STIM": "#d1742f"}
GREY = "#5a5a5a"
N_NAMED = 8


def fitted() -> tuple[AnnData, cpl.tl.Traversal]:
    """Annotated cells with a map, and the walk through their states."""
    adata = cpl.datasets.kang2018()
    rows = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:N_CELLS])
    adata = adata[rows].copy()
    adata = adata[:, cpl.pp.select_genes(adata, N_GENES)].copy()
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=N_TYPES)
    model.train(enable_progress_bar=False)
    cpl.tl.annotate(adata, model)
    result = cpl.tl.traverse(adata, model)
    # A map in which the conditions lie apart, as principal components have them: the types do not follow it.
    components = cpl.baselines.principal_components(cpl.pp.log_normalize(adata.X), 30)
    graph = cpl.baselines.neighbour_graph(components)
    sc.tl.umap(graph, random_state=0)
    adata.obsm["X_umap"] = graph.obsm["X_umap"]
    return adata, result


def draw(adata: AnnData, result: cpl.tl.Traversal) -> plt.Figure:
    """Arms, types, states, genes: one panel each."""
    plt.rcParams.update({"font.size": 8, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left"})
    # As wide as a page of the documentation, so that text is not shrunk there.
    figure, axes = plt.subplots(2, 2, figsize=(8.2, 6.6), layout="constrained", width_ratios=[1, 1.25])
    axes = axes.ravel()
    names = pd.crosstab(adata.obs["cplmixvi"], adata.obs["cell_type"]).idxmax(axis=1)
    draw_arms(axes[0])
    draw_types(axes[1], adata, names)
    shown = [str(name) for name in adata.obs["cplmixvi"].value_counts().index[:7]]
    draw_states(axes[2], adata, names, shown)
    draw_genes(axes[3], result, names, shown)
    return figure


def draw_arms(ax: plt.Axes) -> None:
    """A cell, two copies, two arms, one type."""
    ax.set_title("1  Two arms must agree")
    ax.set(xlim=(0, 10), ylim=(0, 8))
    ax.axis("off")
    rng = np.random.default_rng(3)
    values = rng.gamma(1.2, 1.0, 14)
    _bars(ax, 0.3, 3.4, values, GREY)
    ax.text(1.4, 2.9, "cell", ha="center", va="top", color=GREY)
    for y, colour, label in ((5.6, "#0b4f8a", "arm A"), (1.2, "#2f8f6b", "arm B")):
        _bars(ax, 3.25, y, values * rng.binomial(8, 0.5, 14) / 8, colour)
        ax.add_patch(FancyArrowPatch((2.55, 4.1), (3.0, y + 0.9), arrowstyle="-|>", mutation_scale=8, color=GREY))
        ax.add_patch(
            FancyBboxPatch(
                (5.8, y), 1.7, 1.3, boxstyle="round,pad=0.08", facecolor="white", edgecolor=colour, linewidth=1.4
            )
        )
        ax.text(6.65, y + 0.65, label, ha="center", va="center", color=colour)
        ax.add_patch(FancyArrowPatch((5.2, y + 0.65), (5.7, y + 0.65), arrowstyle="-|>", mutation_scale=8, color=GREY))
        end = (8.5, 4.75) if y > 4 else (8.5, 3.35)
        ax.add_patch(FancyArrowPatch((7.6, y + 0.65), end, arrowstyle="-|>", mutation_scale=8, color=GREY))
    ax.text(4.2, 7.35, "thinned copy", ha="center", color=GREY)
    ax.text(4.2, 0.75, "thinned copy", ha="center", va="top", color=GREY)
    ax.text(8.6, 4.05, "type c\nstate s", ha="center", va="center", fontweight="bold")
    ax.annotate("", (6.65, 5.4), (6.65, 2.7), arrowprops={"arrowstyle": "<->", "linestyle": "--", "color": "#a03030"})
    ax.text(6.5, 4.05, "same type?", ha="right", va="center", color="#a03030")


def _bars(ax: plt.Axes, x: float, y: float, heights: np.ndarray, colour: str) -> None:
    positions = x + 0.15 * np.arange(len(heights))
    ax.bar(positions, 1.4 * heights / 4, width=0.11, bottom=y, color=colour)
    ax.plot([positions[0] - 0.1, positions[-1] + 0.1], [y, y], color=colour, linewidth=0.8)


def draw_types(ax: plt.Axes, adata: AnnData, names: pd.Series) -> None:
    """Map of the cells by type."""
    from matplotlib.patheffects import withStroke

    ax.set_title("2  Types, not conditions")
    points, labels = adata.obsm["X_umap"], adata.obs["cplmixvi"].astype(str).to_numpy()
    confidence = adata.obs["cplmixvi_confidence"].to_numpy()
    order = np.random.default_rng(0).permutation(len(points))
    palette = plt.get_cmap("tab20")(np.arange(len(names)) % 20)[:, :3]
    colours = dict(zip(names.index.astype(str), palette, strict=True))
    rgb = np.array([colours[label] for label in labels])
    # Uncertain cells fade.
    rgb = 1 - (1 - rgb) * np.clip((confidence - 0.4) / 0.6, 0.15, 1)[:, None]
    ax.scatter(*points[order].T, s=3, c=rgb[order], linewidths=0, rasterized=True)
    halo = [withStroke(linewidth=2, foreground="white")]
    is_control = (adata.obs["stim"] == "CTRL").to_numpy()
    largest = [str(category) for category in adata.obs["cplmixvi"].value_counts().index[:N_NAMED]]
    # Each type is on the map twice; its name stands at the cells without interferon.
    places = {names[category]: np.median(points[(labels == category) & is_control], axis=0) for category in largest}
    for name, (x, y) in apart(places, 0.06 * np.ptp(points[:, 1]), 0.2 * np.ptp(points[:, 0])).items():
        ax.text(x, y, name, fontsize=6.5, ha="center", va="center", path_effects=halo)
    # Room for a small map beside the large one.
    ax.set_xlim(right=points[:, 0].max() + 0.3 * np.ptp(points[:, 0]))
    small = ax.inset_axes((0.73, 0.28, 0.27, 0.27))
    colour = adata.obs["stim"].map(CONDITIONS).to_numpy()
    small.scatter(*points[order].T, s=0.6, c=colour[order], linewidths=0, rasterized=True)
    small.set(xticks=[], yticks=[])
    small.spines[:].set_color("0.7")
    small.set_title("by stimulation", fontsize=6.5, fontweight="normal", loc="center", pad=2)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    ax.spines[["top", "right"]].set_visible(False)


def apart(places: dict[str, np.ndarray], height: float, width: float) -> dict[str, tuple[float, float]]:
    """Move names up where they would lie on one below."""
    moved: dict[str, tuple[float, float]] = {}
    for name, (x, y) in sorted(places.items(), key=lambda place: place[1][1]):
        while any(abs(x - other_x) < width and abs(y - other_y) < height for other_x, other_y in moved.values()):
            y += height / 4
        moved[name] = (float(x), float(y))
    return moved


def draw_states(ax: plt.Axes, adata: AnnData, names: pd.Series, shown: list[str]) -> None:
    """First state inside each type by condition."""
    ax.set_title("3  The state inside each type")
    state = adata.obsm["X_cplmixvi"][:, 0]
    grid = np.linspace(*np.quantile(state, [0.002, 0.998]), 200)
    for row, category in enumerate(shown):
        base = len(shown) - 1 - row
        for condition, colour in CONDITIONS.items():
            member = ((adata.obs["cplmixvi"] == category) & (adata.obs["stim"] == condition)).to_numpy()
            values = state[member]
            width = 1.06 * max(values.std(), 1e-3) * len(values) ** -0.2
            density = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2).sum(1)
            ax.fill_between(grid, base, base + 0.85 * density / density.max(), color=colour, alpha=0.75, linewidth=0)
        ax.axhline(base, color="0.7", linewidth=0.5)
    ax.set_yticks(np.arange(len(shown))[::-1] + 0.2, [names[category] for category in shown])
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="state 1", xticks=[])
    for condition, colour in CONDITIONS.items():
        ax.plot([], [], "s", color=colour, label={"CTRL": "control", "STIM": "interferon"}[condition])
    ax.legend(frameon=False, fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.4, -0.22), handletextpad=0.1)
    ax.spines[["top", "right", "left"]].set_visible(False)


def draw_genes(ax: plt.Axes, result: cpl.tl.Traversal, names: pd.Series, shown: list[str]) -> None:
    """What the state moves: change along it, one line of steps per type."""
    ax.set_title("4  The genes that it moves")
    genes = [gene for gene in GENES if gene in set(result.genes)]
    columns = [list(result.genes).index(gene) for gene in genes]
    path = list(result.paths).index("1")
    rows = [list(result.categories).index(category) for category in shown]
    effect = result.effect[rows, path][:, columns]
    limit = float(np.abs(effect).max())
    image = ax.imshow(effect, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.set_xticks(range(len(genes)), genes, rotation=90, fontsize=7)
    ax.set_yticks(range(len(shown)), [names[category] for category in shown])
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, aspect=25)
    bar.set_label("change along state 1 (sd of the gene)", fontsize=7)
    bar.outline.set_visible(False)
    ax.spines[:].set_visible(False)


def main() -> None:
    """Train, draw, save."""
    figure = draw(*fitted())
    figure.savefig(HERE / "_static" / "story.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
