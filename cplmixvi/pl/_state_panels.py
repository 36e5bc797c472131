"""States within types: one panel per type, and histograms of a dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cplmixvi.pl._common import (
    category_sizes,
    check_dim,
    dress,
    inches_of,
    label_ticks,
    listed,
    new_or_given,
    read_obs,
    read_result,
    shorten,
    style,
)
from cplmixvi.pl._states import (
    MAX_LEGEND_ROWS,
    draw_figure_legend,
    draw_legend,
    legend_inches,
    numbers_of,
    palette_of,
    read_points,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

_MAX_COLUMNS = 5
_PANEL_INCHES, _LEGEND_ROW_INCHES = 1.25, 0.16
_N_BINS = 40
#: Fewer cells of a type have no histogram unless they are asked for.
_FEWEST_CELLS = 10
#: Values of a column that histograms can be told apart by.
_MAX_VALUES = 12
#: Ends of the axes: a few outlying cells must not squeeze all others.
_SHOWN = (0.002, 0.998)


def state(
    adata: AnnData,
    key: str = "cplmixvi",
    *,
    color: str | None = None,
    categories: Sequence[str] | None = None,
    dims: tuple[int, int] = (0, 1),
) -> np.ndarray:
    """Scatter plot of the states, one panel per category, with all other cells in grey in the background.

    Parameters
    ----------
    adata
        Cells annotated by :func:`cplmixvi.tl.annotate`.
    key
        The ``key_added`` of the annotation.
    color
        Column of ``adata.obs``: numbers get a colour bar, anything else one colour per value; one colour for all cells
        by default.
    categories
        Categories to draw; all categories with cells by default.
    dims
        The two dimensions of the state, counted from 0.

    Returns
    -------
    numpy.ndarray
        Array of Axes, one per category.

    Raises
    ------
    ValueError
        If the result, a category, a dimension or the column is missing.
    """
    import matplotlib.pyplot as plt

    points = read_points(adata, f"X_{key}", dims)
    chosen = choose(adata, key, categories)
    labels = read_obs(adata, key, argument="key").astype(str).to_numpy()
    values = None if color is None else read_obs(adata, color, argument="color")
    has_legend = values is not None and values.dtype.kind not in "fiu"
    names = [str(value) for value in values.astype("category").cat.categories] if has_legend else []
    n_columns = min(_MAX_COLUMNS, len(chosen))
    n_rows = -(-len(chosen) // n_columns)
    with style():
        height = n_rows * (_PANEL_INCHES + 0.2) + 0.35
        # As many rows as there is room for; a column more takes room beside the panels, not from them.
        most_rows = min(int(height / _LEGEND_ROW_INCHES), 2 * MAX_LEGEND_ROWS)
        beside = legend_inches(names, most_rows) if names else 0.0 if values is None else 0.8
        figure, grid = plt.subplots(
            n_rows,
            n_columns,
            figsize=(n_columns * _PANEL_INCHES + 0.4 + beside, height),
            layout="constrained",
            squeeze=False,
            sharex=True,
            sharey=True,
        )
        axes = grid.ravel()
        for ax in axes[len(chosen) :]:
            ax.set_axis_off()
        colour = _colour_per_cell(figure, axes[: len(chosen)], adata, values, color, most_rows)
        low, high = np.quantile(points, _SHOWN, axis=0)
        # A state of one dimension has a column of zeros beside it.
        margin = np.where(high > low, 0.06 * (high - low), 1.0)
        limits = np.stack([low - margin, high + margin])
        for ax, name in zip(axes, chosen, strict=False):
            member = labels == name
            dots = {"s": 2.0, "linewidths": 0, "rasterized": True}
            ax.scatter(*points[~member].T, color="0.9", **dots)
            shown = np.random.default_rng(0).permutation(np.flatnonzero(member))
            ax.scatter(*points[shown].T, c=colour[shown], **dots)
            ax.set(xticks=[], yticks=[], xlim=limits[:, 0], ylim=limits[:, 1])
            ax.set_title(shorten(name, 20), loc="left", fontsize=7)
        figure.supxlabel(f"state {dims[0] + 1}", fontsize=8)
        figure.supylabel(f"state {dims[1] + 1}" if points[:, 1].any() else "", fontsize=8)
    return axes[: len(chosen)]


def state_histograms(
    adata: AnnData,
    key: str = "cplmixvi",
    *,
    dim: int = 0,
    color: str | None = None,
    categories: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot histograms of one dimension of the state, one category above the other (paper, Fig. 1).

    All histograms have the same area. If :func:`cplmixvi.tl.compare_states` was called, the title gives its effect
    sizes.

    Parameters
    ----------
    adata
        Cells annotated by :func:`cplmixvi.tl.annotate`.
    key
        The ``key_added`` of the annotation.
    dim
        Dimension of the state, counted from 0.
    color
        Column of ``adata.obs`` with few values: one histogram per value, each with its share of the area.
    categories
        Categories to draw, from the top; by default all with ten cells, the most widely spread ones first.
    ax
        Axes to draw on; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the result, a category, the dimension or the column is missing, or the column has too many values.
    """
    from cplmixvi.tl._state_genes import read_state

    read_result(adata, key)
    state = read_state(adata, key)
    check_dim(dim, state.shape[1])
    s = state[:, dim]
    chosen = choose(adata, key, categories)
    labels = read_obs(adata, key, argument="key").astype(str).to_numpy()
    if categories is None:
        # Of a few cells a histogram is spikes, beside which others are flat.
        sizes = category_sizes(adata, key, chosen)
        chosen = [name for name, size in zip(chosen, sizes, strict=True) if size >= _FEWEST_CELLS] or chosen
        chosen = sorted(chosen, key=lambda name: -float(np.std(s[labels == name])))
    groups = None if color is None else read_obs(adata, color, argument="color").astype("category")
    if groups is not None and not 0 < len(groups.cat.categories) <= _MAX_VALUES:
        raise ValueError(
            f"color={color!r} has {len(groups.cat.categories)} values; a column with 1 to {_MAX_VALUES} is needed."
        )
    names = ["all"] if groups is None else [str(name) for name in groups.cat.categories]
    codes = np.zeros(len(s), dtype=int) if groups is None else groups.cat.codes.to_numpy()
    low, high = np.quantile(s, _SHOWN)
    # A state that no cell moves in has a bin all the same.
    edges = np.linspace(*((low, high) if high > low else (low - 0.5, high + 0.5)), _N_BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    sizes = category_sizes(adata, key, chosen)
    rows = [f"{shorten(name, 20)} ({size:,})" for name, size in zip(chosen, sizes, strict=True)]
    with style():
        # Wide enough for the title, whatever room the names take.
        width = 2.8 + inches_of(rows) + (0.0 if groups is None else legend_inches(names, MAX_LEGEND_ROWS))
        ax = new_or_given(ax, (width, float(np.clip(0.7 + 0.24 * len(chosen), 1.6, 9.0))))
        colours = np.array([[0.45, 0.55, 0.7]]) if groups is None else palette_of(adata, color, groups)
        heights = np.array([_shares(s[labels == name], codes[labels == name], len(names), edges) for name in chosen])
        # A narrow type may reach over its neighbour, so that wide ones need not be flat.
        highest = heights.max((1, 2))
        unit = min(1.0 / max(np.median(highest), 1e-12), 1.9 / max(highest.max(), 1e-12))
        for row, of_type in enumerate(heights):
            for colour, height in zip(colours, of_type, strict=True):
                top = row - unit * height
                ax.fill_between(centres, row, top, color=colour, alpha=0.6, linewidth=0, zorder=row)
                ax.plot(centres, top, color=colour, linewidth=0.6, zorder=row)
        ax.set_ylim(len(chosen) - 0.8, float(np.min(np.arange(len(chosen)) - unit * highest)) - 0.1)
        ax.set_xlim(edges[0], edges[-1])
        label_ticks(ax.yaxis, rows)
        ax.tick_params(axis="y", length=0)
        ax.set(xlabel=f"state {dim + 1}", ylabel="category (cells)")
        ax.spines["left"].set_visible(False)
        dress(ax)
        ax.set_title(_effect(adata, key, dim), loc="left")
        if groups is not None:
            draw_legend(ax, names, colours)
    return ax


def _shares(s: np.ndarray, codes: np.ndarray, n_codes: int, edges: np.ndarray) -> np.ndarray:
    """Share of a type's cells per value and bin, ``(n_codes, n_bins)``."""
    return np.array([np.histogram(s[codes == code], edges)[0] for code in range(n_codes)]) / max(len(s), 1)


def choose(adata: AnnData, key: str, categories: Sequence[str] | None) -> list[str]:
    """Types to draw: those given, or all of the annotation that have cells.

    Raises
    ------
    ValueError
        If one is not in the annotation.
    """
    there = [str(name) for name in read_result(adata, key)["categories"]]
    if categories is None:
        sizes = category_sizes(adata, key, there)
        if not sizes.any():
            raise ValueError(f"All cells of obs[{key!r}] are unassigned; annotate with a lower min_confidence.")
        return [name for name, size in zip(there, sizes, strict=True) if size]
    chosen = [str(name) for name in listed(categories)]
    unknown = [name for name in chosen if name not in there]
    if unknown or not chosen:
        raise ValueError(
            f"categories={categories!r} was given; categories of {key!r} are {', '.join(there[:20])}; name some of "
            "these."
        )
    return chosen


def _effect(adata: AnnData, key: str, dim: int) -> str:
    tests = adata.uns[key].get("state_tests")
    if tests is None:
        return ""
    found = np.flatnonzero(np.asarray(tests["dimension"]) == dim + 1)
    if not len(found):
        return ""
    row = int(found[0])
    return f"effect on location {tests['location_effect'][row]:.2f}, on spread {tests['spread_effect'][row]:.2f}"


def _colour_per_cell(
    figure, axes, adata: AnnData, values: pd.Series | None, name: str | None, n_rows: int
) -> np.ndarray:
    """One colour per cell, ``(n_obs, 3 or 4)``, with its key beside the panels."""
    from matplotlib import cm
    from matplotlib.colors import Normalize

    if values is None:
        return np.tile([0.2, 0.35, 0.55], (adata.n_obs, 1))
    if values.dtype.kind in "fiu":
        numbers = numbers_of(values, name)
        mapper = cm.ScalarMappable(Normalize(*np.nanquantile(numbers, _SHOWN)), "viridis")
        figure.colorbar(mapper, ax=list(axes), label=name, shrink=0.7, aspect=25).outline.set_linewidth(0.6)
        colours = mapper.to_rgba(numbers)
        colours[np.isnan(numbers)] = (0.8, 0.8, 0.8, 1)
        return colours
    values = values.astype("category")
    palette = palette_of(adata, name, values)
    draw_figure_legend(figure, [str(value) for value in values.cat.categories], palette, n_rows)
    # Grey for missing values, whose code is -1.
    return np.vstack([palette, np.full((1, 3), 0.8)])[values.cat.codes.to_numpy()]
