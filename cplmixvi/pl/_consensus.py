"""Heat map of how far the arms agree on each category."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cplmixvi.pl._common import (
    category_sizes,
    check_choice,
    colour_bar,
    dress,
    label_ticks,
    new_or_given,
    read_result,
    sequential,
    settle,
    shorten,
    stored_order,
    style,
    text_colour,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.image import AxesImage

_MAX_ANNOTATED = 16


def consensus(
    adata: AnnData,
    key: str = "cplmixvi",
    *,
    order: Literal["size", "name", "similarity", "dendrogram"] = "size",
    annotate: bool | None = None,
    cmap: str | Colormap | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot the consensus between arms for all pairs of categories.

    Entry ``(i, j)`` is the share of cells that one arm assigns to ``i`` and another arm to ``j``, averaged over pairs
    of arms: 1 on the diagonal means that the arms agree on every cell of that category. Bars above the heat map show
    the number of cells per category, bars beside it the diagonal.

    Parameters
    ----------
    adata
        Cells annotated by :func:`cplmixvi.tl.annotate` with a model of at least two arms.
    key
        The ``key_added`` of that annotation.
    order
        Order of the categories: by decreasing number of cells (``"size"``), in their natural order (``"name"``), with
        those that the arms confuse next to each other (``"similarity"``, leaf order of average linkage), or with those
        of similar expression next to each other (``"dendrogram"``, the order of :func:`cplmixvi.tl.order_categories`).
    annotate
        Write each value that rounds to 0.01 or more into its entry; by default only if there is room.
    cmap
        A matplotlib colour map for shares from 0 to 1; white to dark blue by default.
    ax
        Axes to draw on; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The Axes of the heat map. Its bars and colour bar are child Axes of it.

    Raises
    ------
    ValueError
        If the result is missing, comes from a model with one arm or has not been ordered, or ``order`` is not one of
        those above.
    """
    check_choice(order, ("size", "name", "similarity", "dendrogram"), argument="order")
    result = read_result(adata, key)
    if "consensus" not in result:
        raise ValueError(
            f"key={key!r} holds the result of a model with one arm, which has no consensus between arms; "
            "two arms or more are needed; train CplMixVI(adata, n_arms=2) and annotate again."
        )
    categories = [str(category) for category in result["categories"]]
    sizes = category_sizes(adata, key, categories)
    matrix = np.asarray(result["consensus"], dtype=float)
    by_category = np.asarray(result["consensus_by_category"], dtype=float)
    rows = _stored(result, key, categories) if order == "dendrogram" else _ordered(order, matrix, sizes)
    matrix, sizes, by_category = matrix[np.ix_(rows, rows)], sizes[rows], by_category[rows]
    labels = [shorten(categories[i]) for i in rows]

    with style():
        side = float(np.clip(1.6 + 0.13 * len(labels), 2.4, 6.0))
        ax = new_or_given(ax, (1.32 * side + 1.1, 1.2 * side + 0.6))
        # aspect="auto", because the layout engine cannot place bars around Axes that shrink when they are drawn.
        image = ax.imshow(
            matrix, cmap=sequential(cmap), vmin=0.0, vmax=1.0, interpolation="nearest", aspect="auto", rasterized=True
        )
        if annotate or (annotate is None and len(labels) <= _MAX_ANNOTATED):
            _write_values(image, matrix, size=float(np.clip(80 / len(labels), 5.0, 8.0)))
        ax.set(xlabel="category in one arm", ylabel="category in another arm")
        dress(ax)
        label_ticks(ax.xaxis, labels)
        label_ticks(ax.yaxis, labels)
        ax.spines[:].set_visible(True)
        _size_bars(ax, sizes)
        _consensus_bars(ax, by_category)
        colour_bar(ax, image, "share of cells", (1.25, 0.0, 0.035, 1.0))
        settle(ax)
    return ax


def _stored(result: Mapping[str, Any], key: str, categories: list[str]) -> np.ndarray:
    """Positions of the categories in the order that ``tl.order_categories`` wrote."""
    rank = {name: i for i, name in enumerate(stored_order(result, key))}
    # Categories of which all cells are unassigned are not in the dendrogram: they come last.
    return np.argsort([rank.get(name, len(rank)) for name in categories], kind="stable")


def _ordered(order: str, matrix: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Positions of the categories in the order asked for."""
    if order == "size":
        return np.argsort(-sizes, kind="stable")
    if order == "name" or len(matrix) < 3:
        return np.arange(len(matrix))
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    similarity = (matrix + matrix.T) / 2
    distance = np.clip(1.0 - similarity, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    return leaves_list(linkage(squareform(distance, checks=False), method="average", optimal_ordering=True))


def _write_values(image: AxesImage, matrix: np.ndarray, *, size: float) -> None:
    for i, j in zip(*np.nonzero(matrix >= 0.005), strict=True):
        value = matrix[i, j]
        text = "1" if value >= 0.995 else f"{value:.2f}".lstrip("0")
        colour = text_colour(image, value)
        image.axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)


def _size_bars(ax: Axes, sizes: np.ndarray) -> None:
    """Draw the cells per category above the heat map, on a log axis where they span more than a factor of 30."""
    bars = ax.inset_axes((0.0, 1.03, 1.0, 0.16), sharex=ax)
    bars.bar(np.arange(len(sizes)), sizes, width=0.8, color="0.6")
    positive = sizes[sizes > 0]
    if len(positive) and positive.max() > 30 * positive.min():
        bars.set_yscale("log")
    else:
        bars.locator_params(axis="y", nbins=3)
    bars.tick_params(axis="x", bottom=False, labelbottom=False)
    bars.set_ylabel("cells", rotation=0, ha="right", va="center")


def _consensus_bars(ax: Axes, by_category: np.ndarray) -> None:
    """Draw the diagonal beside the heat map, with its mean as a line."""
    bars = ax.inset_axes((1.03, 0.0, 0.16, 1.0), sharey=ax)
    # A category that only the average of the arms chooses has no consensus.
    known = by_category[np.isfinite(by_category)]
    mean = float(known.mean()) if known.size else 0.0
    bars.barh(np.arange(len(by_category)), by_category, height=0.8, color="0.6")
    bars.axvline(mean, color="black", linewidth=0.8, linestyle=(0, (3, 2)))
    bars.set_xlim(0.0, 1.0)
    bars.set_xticks([0.0, 1.0], ["0", "1"])
    bars.tick_params(axis="y", left=False, labelleft=False)
    bars.set_xlabel("consensus")
    bars.set_title(f"mean {mean:.2f}", fontsize=7)
