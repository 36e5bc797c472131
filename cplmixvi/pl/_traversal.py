"""Heat maps of expression along paths through the states, and of the genes that go with a state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cplmixvi.pl._common import (
    check_choice,
    check_count,
    check_dim,
    inches_of,
    listed,
    new_or_given,
    read_result,
    shorten,
    style,
)
from cplmixvi.pl._state_panels import choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from cplmixvi.tl import Traversal

_GENE_INCHES = 0.125
_STEP_INCHES = 0.075


def traversal(
    adata: AnnData,
    key: str = "cplmixvi",
    *,
    categories: Sequence[str] | None = None,
    gene_sets: Sequence[str] | None = None,
    path: str = "main",
    n_genes: int = 10,
    standardize: bool = True,
) -> np.ndarray:
    """Plot expression along a path through the states: one row of panels per category, one column per gene set.

    Genes are on the x axis and steps on the y axis (paper, Fig. 6).

    Parameters
    ----------
    adata
        Annotated cells, traversed by :func:`cplmixvi.tl.traverse`.
    key
        The ``key_added`` of the annotation.
    categories
        Categories to draw; the first three that were traversed by default.
    gene_sets
        Names of gene sets: ``"markers"``, those of the category itself, and others; all of them by default, at most
        four.
    path
        ``"main"`` or a dimension, ``"1"``, ``"2"``, ...
    n_genes
        Number of genes per panel, those that move most. Panels of the same set show the same genes for all categories,
        except for markers.
    standardize
        Draw the difference from the middle of the path in standard deviations of the gene over all cells; otherwise the
        expression itself.

    Returns
    -------
    numpy.ndarray
        Array of Axes, shape ``(n_types, n_sets)``.

    Raises
    ------
    ValueError
        If the traversal, a category, a set or the path is missing.
    """
    import matplotlib.pyplot as plt

    check_count(n_genes, argument="n_genes")
    result = read_traversal(adata, key)
    there = [str(name) for name in result.categories]
    chosen = there[:3] if categories is None else choose(adata, key, categories)
    for name in chosen:
        check_choice(name, there, argument="categories")
    paths = [str(name) for name in result.paths]
    if path == "main" and "main" not in paths:
        path = "1"
    check_choice(path, paths, argument="path")
    known = list(dict.fromkeys(result.members["gene_set"].astype(str)))
    sets = known[:4] if gene_sets is None else listed(gene_sets)
    for name in sets:
        check_choice(name, known, argument="gene_sets")
    if not sets:
        raise ValueError(
            "The traversal has no gene sets, not even markers of types; give some to tl.traverse(gene_sets=...)."
        )
    p = paths.index(path)
    genes = {(name, label): _genes(result, there, chosen, name, label, p, n_genes) for name in chosen for label in sets}
    widths = [max(max(len(genes[name, label]) for name in chosen), 1) for label in sets]
    n_steps = result.expression.shape[2]
    with style():
        size = (
            sum(widths) * _GENE_INCHES + 0.25 * len(sets) + 1.3,
            len(chosen) * (n_steps * _STEP_INCHES + 0.75) + 0.3,
        )
        figure, axes = plt.subplots(
            len(chosen), len(sets), figsize=size, layout="constrained", squeeze=False, width_ratios=widths
        )
        panels = {
            where: _matrix(result, there.index(where[0]), p, found, standardize) for where, found in genes.items()
        }
        colours = _colours([panel for panel in panels.values() if panel.size], standardize)
        for (name, label), ax in zip(genes, axes.ravel(), strict=True):
            image = _panel(ax, panels[name, label], result.genes[genes[name, label]], colours)
            if label == sets[0]:
                ax.set_ylabel(f"{shorten(name, 18)}\nstate {path if path != 'main' else ''}".rstrip())
                ax.set_yticks([0, n_steps - 1], ["low", "high"])
            if name == chosen[0]:
                ax.set_title(label, loc="left", fontsize=8)
        what = "change (sd of the gene)" if standardize else result.params["scale"]
        bar = figure.colorbar(image, ax=axes, label=what, shrink=min(1.0, 1.2 / size[1] + 0.2), aspect=18)
        bar.outline.set_linewidth(0.6)
    return axes


def state_genes(
    adata: AnnData,
    key: str = "cplmixvi",
    *,
    dim: int = 0,
    categories: Sequence[str] | None = None,
    n_genes: int = 6,
    ax: Axes | None = None,
) -> Axes:
    """Plot correlations of genes with a dimension of the state: top genes of any category's ranking against categories.

    Parameters
    ----------
    adata
        Annotated cells, ranked by :func:`cplmixvi.tl.state_genes`.
    key
        The ``key_added`` of the annotation.
    dim
        Dimension of the state, counted from 0.
    categories
        Categories to draw; all that were ranked by default.
    n_genes
        Number of top genes of each category; a gene that several categories share is drawn once.
    ax
        Axes to draw on; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The Axes. A gene that was not kept in a category's ranking is left blank there; a dot marks an adjusted p-value
        below 0.01.

    Raises
    ------
    ValueError
        If the ranking, a category or the dimension is missing.
    """
    import pandas as pd

    check_count(n_genes, argument="n_genes")
    result = read_result(adata, key)
    if "state_genes" not in result:
        raise ValueError(
            f"key={key!r} was given but adata.uns[{key!r}]['state_genes'] is missing; "
            f"run cplmixvi.tl.state_genes(adata, {key!r}) first."
        )
    table = pd.DataFrame({name: np.asarray(values) for name, values in result["state_genes"].items()})
    check_dim(dim, int(table["dimension"].max()))
    table = table[table["dimension"] == dim + 1].astype({"category": str, "gene": str})
    # Of genes of one name, the one that goes best with the state.
    table = table.sort_values("rank", kind="stable").drop_duplicates(["category", "gene"]).sort_index()
    ranked = list(dict.fromkeys(table["category"]))
    chosen = ranked if categories is None else choose(adata, key, categories)
    for name in chosen:
        check_choice(name, ranked, argument="categories")
    table = table[table["category"].isin(chosen)]
    best = table[table["rank"] <= n_genes]
    order = best["gene"].value_counts(sort=False)
    genes = sorted(order.index, key=lambda gene: (-order[gene], list(order.index).index(gene)))
    wide = (
        table.pivot(index="category", columns="gene", values="correlation")
        .reindex(chosen, axis=0)
        .reindex(genes, axis=1)
    )
    sure = table.pivot(index="category", columns="gene", values="pvalue_adjusted").reindex_like(wide).to_numpy() < 0.01
    return _correlation_map(wide, sure, dim, ax)


def _correlation_map(wide: pd.DataFrame, sure: np.ndarray, dim: int, ax: Axes | None) -> Axes:
    with style():
        rows = [shorten(name, 20) for name in wide.index]
        genes = [shorten(name, 20) for name in wide.columns]
        # Few genes or categories leave room for the title and what the bar says all the same.
        size = (
            max(len(genes) * _GENE_INCHES, 1.2) + inches_of(rows) + 1.1,
            max(len(rows) * 0.16, 1.0) + inches_of(genes) + 0.5,
        )
        ax = new_or_given(ax, size)
        image = ax.imshow(wide.to_numpy(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        ax.scatter(*np.nonzero(sure)[::-1], s=1.5, color="black", linewidths=0)
        ax.set_xticks(np.arange(len(genes)), genes, rotation=90, fontsize=6)
        ax.set_yticks(np.arange(len(rows)), rows)
        ax.tick_params(length=0)
        ax.set_ylabel("category")
        ax.set_title(f"genes of state {dim + 1}", loc="left")
        ax.figure.colorbar(image, ax=ax, label="rank correlation", aspect=15, fraction=0.05).outline.set_linewidth(0.6)
    return ax


def read_traversal(adata: AnnData, key: str) -> Traversal:
    from cplmixvi.tl import Traversal

    result = read_result(adata, key)
    # Those of version 0.1 have no deviations.
    if "deviation" not in result.get("traversals", ()):
        raise ValueError(
            f"key={key!r} was given but adata.uns[{key!r}]['traversals'] is missing; "
            f"run cplmixvi.tl.traverse(adata, model, key_added={key!r}) first."
        )
    return Traversal.from_uns(result["traversals"])


def _genes(
    result: Traversal, there: list[str], chosen: list[str], name: str, label: str, path: int, n_genes: int
) -> np.ndarray:
    """Positions of the genes of a panel, those that go up first."""
    members = result.members[result.members["gene_set"] == label]
    own = members["category"].astype(str)
    members = members[(own == name) | (own == "")]
    positions = np.flatnonzero(np.isin(result.genes.astype(str), members["gene"].astype(str)))
    of_types = [there.index(name)] if (own != "").any() else [there.index(other) for other in chosen]
    effect = result.effect[of_types, path][:, positions]
    best = np.argsort(-np.abs(effect).max(0), kind="stable")[:n_genes]
    return positions[best[np.argsort(-effect[:, best].mean(0), kind="stable")]]


def _matrix(result: Traversal, category: int, path: int, genes: np.ndarray, standardize: bool) -> np.ndarray:
    """What a panel shows, ``(n_steps, n_genes)``."""
    x = result.expression[category, path][:, genes]
    if not standardize:
        return x
    # A gene that is the same in all cells does not move.
    return (x - x[len(x) // 2]) / np.where(result.deviation > 0, result.deviation, np.inf)[genes]


def _colours(panels: list[np.ndarray], standardize: bool) -> dict[str, Any]:
    """Colour map of all panels, and the values at its ends."""
    low, high = (float(end([end(panel) for panel in panels])) if panels else 0.0 for end in (np.min, np.max))
    if standardize:
        limit = max(-low, high)
        return {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    # Counts and probabilities start at 0; scaled values do not.
    return {"cmap": "viridis", "vmin": min(low, 0.0), "vmax": high}


def _panel(ax: Axes, values: np.ndarray, genes: np.ndarray, colours: dict[str, Any]):
    image = ax.imshow(values, aspect="auto", origin="lower", interpolation="nearest", **colours)
    ax.set_xticks(np.arange(len(genes)), genes, rotation=90, fontsize=6)
    ax.set_yticks([])
    ax.tick_params(length=0)
    return image
