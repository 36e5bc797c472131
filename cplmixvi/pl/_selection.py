"""Curves of how well halves of the data agree on each number of categories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cplmixvi.pl._common import dress, new_or_given, settle, style

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_INCHES_PER_DIGIT = 0.06
_CHOSEN = {"color": "black", "linewidth": 0.8, "linestyle": (0, (3, 2)), "zorder": 0.5}


def select_categories(adata: AnnData, key: str = "cplmixvi", *, ax: Axes | None = None) -> Axes:
    """Plot how well halves of the data agree for each number of categories that was tried.

    Above: the share of cells that two fits to independent halves of the data put into the same category, and the score,
    which adds a credit for more categories (see :class:`cplmixvi.train.Selection`). A dashed line marks the number
    chosen. Below: how many of the categories are stable, that is, contain mostly the same cells in both fits; a grey
    line shows where all of them would be.

    Parameters
    ----------
    adata
        Cells that :func:`cplmixvi.tl.select_categories` was called on, or that were annotated by a model that
        determined the number of categories itself.
    key
        The ``key_added`` of that call.
    ax
        Axes to draw on; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The Axes with the score. Those with the stable categories, below it, are a child of it.

    Raises
    ------
    ValueError
        If the selection is missing.
    """
    from cplmixvi.tl import read_selection

    selection = read_selection(adata, key)
    table, chosen = selection.table, selection.n_categories
    tried = table.index.to_numpy()
    with style():
        ax = new_or_given(ax, (3.6, 3.2))
        from seaborn import color_palette

        blue = color_palette("colorblind")[0]
        look = {"marker": "o", "markersize": 3, "linewidth": 1.2}
        ax.plot(tried, table["agreement"], color="0.6", label="agreement: same category in both halves", **look)
        ax.plot(tried, table["score"], color=blue, label="score: with a credit for more categories", **look)
        ax.axvline(chosen, **_CHOSEN)
        ax.set(
            ylim=(min(0.0, 1.05 * table["score"].min()), max(1.02, 1.05 * table["score"].max())),
            ylabel="share of cells, score",
        )
        # Opaque, because the dashed line may pass behind it.
        ax.legend(framealpha=1.0, edgecolor="none")
        ax.set_title(f"{chosen} categories", loc="left")
        stable = ax.inset_axes((0.0, -0.55, 1.0, 0.45), sharex=ax)
        _draw_stable(stable, tried, table["n_stable"].to_numpy(), chosen)
        ax.tick_params(axis="x", which="both", labelbottom=False)
        dress(ax)
        settle(ax, n_rounds=8)
        _number_axis(stable, tried, chosen)
    return ax


def _draw_stable(ax: Axes, tried: np.ndarray, n_stable: np.ndarray, chosen: int) -> None:
    """Draw the number of stable categories beside the number there is."""
    everything = np.geomspace(tried[0], tried[-1], 200)
    ax.plot(everything, everything, color="0.6", linewidth=0.8, zorder=0.5)
    ax.annotate("all", (tried[0], tried[0]), (3, 3), textcoords="offset points", color="0.4", fontsize=7)
    ax.plot(tried, n_stable, color="black", marker="o", markersize=3, linewidth=1.2)
    ax.axvline(chosen, **_CHOSEN)
    # The line of all categories is left behind where it would press the others to the ground.
    top = max(1.0, 1.25 * n_stable.max())
    ax.set_ylim(-0.05 * top, top)
    ax.locator_params(axis="y", nbins=4, integer=True)
    ax.set(xlabel="number of categories", ylabel="stable\ncategories")


def _number_axis(ax: Axes, tried: np.ndarray, chosen: int) -> None:
    """Make the axis logarithmic, with a tick at every number that was tried and labels where they have room."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

    low, high = np.log(tried[0] / 1.1), np.log(tried[-1] * 1.1)
    ax.set_xscale("log")
    ax.set_xlim(np.exp(low), np.exp(high))
    width = ax.get_window_extent().width / ax.figure.dpi
    labelled = [chosen]
    for number in tried:
        gaps = np.abs(np.log(number / np.array(labelled))) / (high - low) * width
        # As wide as the number and a gap of one digit.
        if gaps.min() >= _INCHES_PER_DIGIT * (len(str(number)) + 1):
            labelled.append(int(number))
    ax.xaxis.set_major_locator(FixedLocator(sorted(labelled)))
    ax.xaxis.set_major_formatter(FixedFormatter([str(number) for number in sorted(labelled)]))
    ax.xaxis.set_minor_locator(FixedLocator(tried))
    ax.xaxis.set_minor_formatter(NullFormatter())
