"""Heat map of reference types against categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from cplmixvi import metrics
from cplmixvi._constants import UNASSIGNED
from cplmixvi.metrics._labels import has_label
from cplmixvi.pl._common import (
    check_choice,
    colour_bar,
    dress,
    label_ticks,
    new_or_given,
    read_obs,
    read_result,
    sequential,
    settle,
    shorten,
    stored_order,
    style,
    text_colour,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.image import AxesImage

_MAX_ANNOTATED = 20
_BAR_LABELS = {"reference": "share of the type", "category": "share of the category", None: "cells"}


def confusion(
    adata: AnnData,
    reference_key: str,
    key: str = "cplmixvi",
    *,
    normalize: Literal["reference", "category"] | None = "reference",
    order: Literal["matching", "dendrogram"] | Sequence[str] = "matching",
    ignore: Sequence[str] = (),
    annotate: bool | None = None,
    cmap: str | Colormap | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot reference types against categories.

    By default, columns follow the one-to-one matching of categories and reference types from which the accuracy is
    computed, so that a good annotation shows a diagonal. Categories without a partner are to the right of a line,
    followed by unassigned cells, which are never correct.

    Parameters
    ----------
    adata
        Cells annotated by :func:`cplmixvi.tl.annotate`.
    reference_key
        Column of ``adata.obs`` with the reference types.
    key
        The ``key_added`` of the annotation.
    normalize
        Make each row (``"reference"``) or each column (``"category"``) sum to 1, or show numbers of cells (``None``).
    order
        ``"matching"``, or ``"dendrogram"``: columns in the order of :func:`cplmixvi.tl.order_categories`, with its tree
        above them, and rows ordered by the columns that contain their cells. With a list of reference types, such as
        the leaves of a taxonomy (paper, Fig. 4): rows in that order, and columns ordered by their partners.
    ignore
        Reference labels that mean "unknown"; cells with these labels, or without a label, are left out.
    annotate
        Write shares of 0.05 or more (or the numbers of cells) into their entries; by default only if there is room.
    cmap
        A matplotlib colour map; white to dark blue by default.
    ax
        Axes to draw on; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The Axes of the heat map; its title gives the accuracy under the matching (ACC), NMI and ARI.

    Raises
    ------
    ValueError
        If the result or the reference column is missing, no cell has a reference type, the categories have not been
        ordered, or an option is not one of those above.
    """
    check_choice(normalize, ("reference", "category", None), argument="normalize")
    rows = [str(name) for name in order] if np.iterable(order) and not isinstance(order, str) else None
    if rows is None:
        check_choice(order, ("matching", "dendrogram"), argument="order")
    result = read_result(adata, key)
    leaves = stored_order(result, key) if rows is None and order == "dendrogram" else None
    truth, labels = _labelled(adata, reference_key, key, ignore)
    # Uncertain cells are no category that a type could be matched to.
    assigned = labels.where(labels != UNASSIGNED)
    partner = metrics.match_categories(truth, assigned, ignore=ignore)
    counts = metrics.confusion(truth, labels, ignore=ignore)
    counts = _matched(counts, partner, rows) if leaves is None else _along_tree(counts, leaves)
    shares = _normalised(counts, normalize)

    with style():
        longest, longest_below = (
            max(len(shorten(str(name))) for name in axis) for axis in (counts.index, counts.columns)
        )
        size = (
            # Long names of types take room beside the heat map, not from it.
            float(np.clip(2.8 + 0.21 * counts.shape[1], 3.8, 8.0)) + 0.06 * max(longest - 14, 0),
            # As do those of categories, which stand upright, below it.
            float(np.clip(1.2 + 0.21 * counts.shape[0], 2.4, 8.5)) + 0.06 * max(longest_below - 3, 0),
        )
        ax = new_or_given(ax, size)
        top = 1.0 if normalize else max(float(shares.to_numpy().max()), 1.0)
        image = ax.imshow(
            shares, cmap=sequential(cmap), vmin=0.0, vmax=top, interpolation="nearest", aspect="auto", rasterized=True
        )
        if annotate or (annotate is None and max(counts.shape) <= _MAX_ANNOTATED):
            _write_values(image, shares.to_numpy(), as_share=normalize is not None)
        n_left = len(partner) if leaves is None else len(leaves)
        if n_left < counts.shape[1]:
            ax.axvline(n_left - 0.5, color="black", linewidth=0.8)
        ax.set(xlabel=f"category ({key})", ylabel=f"{reference_key} (cells)")
        dress(ax)
        label_ticks(ax.xaxis, [shorten(str(name)) for name in counts.columns])
        label_ticks(ax.yaxis, [f"{shorten(str(name))} ({n:,})" for name, n in counts.sum(axis=1).items()])
        ax.spines[:].set_visible(True)
        if leaves is None:
            ax.set_title(_scores(truth, assigned, ignore), loc="left")
        else:
            _tree(ax, np.asarray(result["linkage"], dtype=float)).set_title(
                _scores(truth, assigned, ignore), loc="left"
            )
        colour_bar(ax, image, _BAR_LABELS[normalize], (1.02, 0.0, 0.025, 1.0))
        settle(ax)
    return ax


def _labelled(adata: AnnData, reference_key: str, key: str, ignore: Sequence[str]) -> tuple[pd.Series, pd.Series]:
    """Get reference types and categories of all cells, once it is sure that some cell has a reference type."""
    reference = read_obs(adata, reference_key, argument="reference_key")
    labels = read_obs(adata, key, argument="key")
    if not has_label(reference, ignore).any():
        raise ValueError(
            f"reference_key={reference_key!r} was given but adata.obs[{reference_key!r}] names no type for any cell; "
            "some cells with a reference type are needed; pass another column or a shorter ignore."
        )
    return reference, labels


def _matched(counts: pd.DataFrame, partner: dict, order: Sequence[str] | None) -> pd.DataFrame:
    """Rows in the order given, or by falling size and those without a partner last; partners on the diagonal."""
    rows = counts.sum(axis=1).sort_values(ascending=False, kind="stable").index
    if order is not None:
        left_out = [str(row) for row in rows if str(row) not in order]
        if left_out:
            raise ValueError(f"order lacks {', '.join(left_out[:3])}: give all reference types that cells have")
        rows = sorted(rows, key=lambda row: order.index(str(row)))
    column_of = {partner[column]: column for column in counts.columns if partner.get(column) in rows}
    # A taxonomy's order is not broken for types without a partner.
    paired = [row for row in rows if row in column_of or order is not None]
    alone = [row for row in rows if row not in paired]
    position = {row: i for i, row in enumerate(paired + alone)}
    extra = [column for column in counts.columns if column not in column_of.values()]
    extra.sort(key=lambda column: (column == UNASSIGNED, position[counts[column].idxmax()], -counts[column].sum()))
    columns = [column_of[row] for row in paired if row in column_of] + extra
    # By position: rows that are called True and False would be taken for a mask.
    return counts.iloc[counts.index.get_indexer(paired + alone), counts.columns.get_indexer(columns)]


def _along_tree(counts: pd.DataFrame, leaves: Sequence[str]) -> pd.DataFrame:
    """Columns as the tree has them, the unassigned last, and rows by the mean position of their cells."""
    counts = counts.reindex(columns=[*leaves, *(column for column in counts.columns if column not in leaves)])
    counts = counts.fillna(0)
    shares = counts[list(leaves)].to_numpy(dtype=float)
    # Squared, so that the column with most cells counts for more than a few cells far away.
    weight = shares**2
    centre = weight @ np.arange(len(leaves)) / np.maximum(weight.sum(axis=1), 1e-12)
    return counts.iloc[np.argsort(centre, kind="stable")]


def _tree(ax: Axes, linkage: np.ndarray) -> Axes:
    """Draw the dendrogram of the first columns above the heat map."""
    from scipy.cluster.hierarchy import dendrogram

    above = ax.inset_axes((0.0, 1.02, 1.0, 0.2), sharex=ax)
    drawn = dendrogram(linkage, no_plot=True)
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        # Leaves of scipy's drawing are at 5, 15, 25, ...
        above.plot((np.array(x) - 5) / 10, y, color="0.3", linewidth=0.8, solid_capstyle="round")
    above.set_ylim(bottom=0)
    above.tick_params(axis="x", bottom=False, labelbottom=False)
    above.set_yticks([])
    above.spines[:].set_visible(False)
    return above


def _normalised(counts: pd.DataFrame, normalize: str | None) -> pd.DataFrame:
    if normalize is None:
        return counts
    if normalize == "reference":
        return counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    return counts.div(counts.sum(axis=0).clip(lower=1), axis=1)


def _write_values(image: AxesImage, shares: np.ndarray, *, as_share: bool) -> None:
    for i, j in zip(*np.nonzero(shares >= (0.05 if as_share else 1)), strict=True):
        value = shares[i, j]
        text = f"{value:.0f}" if not as_share else "1" if value >= 0.995 else f"{value:.2f}".lstrip("0")
        colour = text_colour(image, value)
        image.axes.text(j, i, text, ha="center", va="center", fontsize=5.5, color=colour)


def _scores(truth: pd.Series, labels: pd.Series, ignore: Sequence[str]) -> str:
    """Accuracy under the matching, NMI and ARI in one line."""
    scores = {"ACC": metrics.accuracy, "NMI": metrics.nmi, "ARI": metrics.ari}
    return "   ".join(f"{name} {score(truth, labels, ignore=ignore):.2f}" for name, score in scores.items())
