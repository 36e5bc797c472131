"""Bars of how far refits find each category again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cplmixvi.pl._common import category_sizes, dress, inches_of, label_ticks, new_or_given, read_result, shorten, style

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def stability(adata: AnnData, key: str = "cplmixvi", *, ax: Axes | None = None) -> Axes:
    """Plot the stability of each category, the most stable one at the top.

    A bar is the mean over refits of the Jaccard index of the category and its partner in the refit: 1 means that every
    refit found the same cells, 0 that no refit had a partner for it. The number of cells follows each name, because
    small categories are less stable for that reason alone. A dashed line shows the mean over categories.

    Parameters
    ----------
    adata
        Cells that were annotated by :func:`cplmixvi.tl.annotate` and passed to :func:`cplmixvi.tl.stability`.
    key
        The ``key_added`` of that annotation.
    ax
        Axes to draw on; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The Axes. A category whose cells are all unassigned comes last and has no bar.

    Raises
    ------
    ValueError
        If the result or its stability is missing.
    """
    result = read_result(adata, key)
    if "stability_by_category" not in result:
        raise ValueError(
            f"key={key!r} was given but adata.uns[{key!r}]['stability_by_category'] is missing; "
            f"run cplmixvi.tl.stability(adata, model, {key!r}) first."
        )
    categories = [str(category) for category in result["categories"]]
    sizes = category_sizes(adata, key, categories)
    jaccard = np.asarray(result["stability_by_category"], dtype=float)
    is_known = np.isfinite(jaccard)
    mean = float(jaccard[is_known].mean())
    rows = np.lexsort((-sizes, np.where(is_known, -jaccard, np.inf)))

    names = [f"{shorten(categories[i])} ({sizes[i]:,})" for i in rows]
    with style():
        # Wide enough for the label below, whatever room the names take.
        ax = new_or_given(ax, (2.7 + inches_of(names), float(np.clip(0.8 + 0.15 * len(rows), 1.6, 8.5))))
        ax.barh(np.arange(len(rows)), jaccard[rows], height=0.8, color="0.6")
        ax.axvline(mean, color="black", linewidth=0.8, linestyle=(0, (3, 2)))
        ax.set(xlim=(0.0, 1.0), ylim=(len(rows) - 0.5, -0.5))
        ax.set(xlabel="stability (Jaccard index)", ylabel="category (cells)")
        dress(ax)
        label_ticks(ax.yaxis, names)
        ax.tick_params(axis="y", length=0.0)
        ax.set_title(f"mean {mean:.2f}", loc="left")
    return ax
