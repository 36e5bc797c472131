"""What all figures share: reading a result, a quiet style, Axes and labels that stay readable."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from cplmixvi import pp
from cplmixvi._constants import SELECTION_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.colors import Colormap
    from matplotlib.image import AxesImage

_INCHES_PER_LABEL = 0.125
"""Room that one tick label needs at the default size; where there is less, labels are thinned."""
_INCHES_PER_CHARACTER = 0.06

_STYLE = {
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Small fonts and thin lines for the artists made inside; the caller's own settings come back afterwards."""
    from matplotlib import rcParams

    # Only what is ours: rc_context would also take back that the first figure in a notebook switches on its display.
    before = {name: rcParams[name] for name in _STYLE}
    rcParams.update(_STYLE)
    try:
        yield
    finally:
        rcParams.update(before)


def new_or_given(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """``ax`` itself, or the Axes of a new figure of ``figsize`` inches.

    Raises
    ------
    ValueError
        If ``ax`` is something else.
    """
    import matplotlib.pyplot as plt

    if isinstance(ax, plt.Axes):
        return ax
    if ax is not None:
        raise ValueError(f"ax is a {type(ax).__name__}; give Axes of matplotlib, or leave it out for a new figure.")
    return plt.subplots(figsize=figsize, layout="constrained")[1]


def read_result(adata: AnnData, key: str) -> Mapping[str, Any]:
    """Get what ``tl.annotate`` left in ``adata.uns[key]``.

    Raises
    ------
    ValueError
        If there is no such entry, or something else wrote it.
    """
    pp.check_adata(adata)
    result = adata.uns.get(key) if isinstance(key, str) else None
    if hasattr(result, "keys") and {"categories", "history"} <= set(result.keys()):
        return result
    found = sorted(name for name, value in adata.uns.items() if hasattr(value, "keys") and "categories" in value)
    there = f"results found under: {', '.join(found)}" if found else "this AnnData holds no result of cplmixvi"
    what = "is missing" if result is None else "was not written by cplmixvi"
    if hasattr(result, "keys") and SELECTION_KEY in result:
        what = "has a selection of the number of categories only"
    raise ValueError(
        f"key={key!r} was given but adata.uns[{key!r}] {what}; {there}; "
        f"run cplmixvi.tl.annotate(adata, model, key_added={key!r}) first or pass the key that it was given."
    )


def read_obs(adata: AnnData, column: str, *, argument: str) -> Any:
    """Get the column ``adata.obs[column]``.

    Raises
    ------
    ValueError
        If there is no such column; ``argument`` is the name that the caller knows it by.
    """
    if isinstance(column, str) and column in adata.obs:
        return adata.obs[column]
    columns = [str(name) for name in adata.obs.columns]
    there = ", ".join(columns[:12]) + (", ..." if len(columns) > 12 else "")
    raise ValueError(
        f"{argument}={column!r} needs the column adata.obs[{column!r}], which is missing; "
        f"columns there: {there or 'none'}; pass the name of one of them."
    )


def check_choice(value: object, allowed: Sequence[object], *, argument: str) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise ValueError(f"{argument}={value!r} was given; allowed are {options}; pass one of these.")


def check_count(value: object, *, argument: str) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least 1."""
    if not pp.is_whole(value) or value < 1:
        raise ValueError(f"{argument}={value!r} was given; give a whole number of at least 1.")


def check_dim(dim: object, n_dims: int) -> None:
    """Raise ValueError unless ``dim`` is one of so many dimensions of the state, counted from 0."""
    if not pp.is_whole(dim) or not 0 <= dim < n_dims:
        there = ", ".join(map(str, range(n_dims)))
        raise ValueError(f"dim={dim!r} was given; dimensions of the state are {there}; give one of these.")


def listed(given: object) -> list:
    """One name, or several."""
    return [given] if isinstance(given, str) or not np.iterable(given) else list(given)


def category_sizes(adata: AnnData, key: str, categories: Sequence[str]) -> np.ndarray:
    """Cells per category from ``adata.obs[key]``, shape ``(n_categories,)``.

    Raises
    ------
    ValueError
        If the column is missing, or has labels that are not categories of the result.
    """
    from cplmixvi.tl._annotate import read_labels

    counts = read_labels(adata, key).value_counts()
    return np.array([int(counts.get(category, 0)) for category in categories])


def sequential(cmap: str | Colormap | None) -> str | Colormap:
    """``cmap``, or one of evenly falling lightness that is white at zero, so that an empty entry costs no ink."""
    if cmap is not None:
        return cmap
    from seaborn import cubehelix_palette

    return cubehelix_palette(start=0.6, rot=-0.6, gamma=0.9, hue=0.9, light=1.0, dark=0.12, as_cmap=True)


def dress(ax: Axes) -> None:
    """Give an Axes that the caller made the same small fonts and open sides as one of ours."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=_STYLE["xtick.labelsize"])
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(_STYLE["axes.labelsize"])


def inches_of(labels: Sequence[str]) -> float:
    """Width of the longest of some tick labels or entries of a legend."""
    return _INCHES_PER_CHARACTER * max(map(len, labels), default=0)


def label_ticks(axis: XAxis | YAxis, labels: Sequence[str]) -> None:
    """Put one tick at each integer position, or at every second, third, ... one where there is no room for all."""
    box = axis.axes.get_window_extent()
    length = (box.width if axis.axis_name == "x" else box.height) / axis.axes.figure.dpi
    step = max(1, int(np.ceil(len(labels) * _INCHES_PER_LABEL / max(length, _INCHES_PER_LABEL))))
    positions = np.arange(0, len(labels), step)
    axis.set_ticks(positions, [labels[i] for i in positions])
    # Upright where they are long, or wider than the room that each has.
    room = step * length / max(len(labels), 1) - _INCHES_PER_CHARACTER
    if axis.axis_name == "x" and (max(map(len, labels), default=0) > 3 or inches_of(labels) > room):
        axis.set_tick_params(rotation=90)


def colour_bar(ax: Axes, image: AxesImage, label: str, bounds: tuple[float, float, float, float]) -> None:
    """Draw a thin colour bar at ``bounds`` (in parts of ``ax``)."""
    bar = ax.figure.colorbar(image, cax=ax.inset_axes(bounds))
    bar.set_label(label)
    bar.outline.set_linewidth(0.6)


def settle(ax: Axes, n_rounds: int = 1) -> None:
    """Lay the figure out ``n_rounds`` times more than drawing does.

    Bars beside an Axes are as long as a part of it, so the room for them and its size depend on each other, and one
    round of the layout engine leaves labels cut off at the edge. The larger the part, the more rounds it takes.
    """
    engine = ax.figure.get_layout_engine()
    if engine is not None and ax.figure is ax.get_figure(root=True):
        for _ in range(n_rounds):
            engine.execute(ax.figure)


def shorten(label: str, limit: int = 32) -> str:
    """``label`` without its middle where it is longer than ``limit`` characters: long names often differ at the end."""
    if len(label) <= limit:
        return label
    n_last = (limit - 1) // 2
    return f"{label[: limit - 1 - n_last]}…{label[-n_last:]}"


def text_colour(image: AxesImage, value: float) -> str:
    """Choose a colour that can be read on an entry of a heat map, whatever its colour map."""
    red, green, blue, _ = image.to_rgba(value)
    # Weights and power of sRGB, near enough; .25 is where white and dark grey differ as much from it.
    return "white" if 0.21 * red**2.2 + 0.72 * green**2.2 + 0.07 * blue**2.2 < 0.25 else "0.2"


def stored_order(result: Mapping[str, Any], key: str) -> list[str]:
    """Names of the categories in the order that ``tl.order_categories`` wrote, which has those with cells only."""
    if "order" not in result:
        raise ValueError(
            f"order='dendrogram' was given but adata.uns[{key!r}]['order'] is missing; "
            f"run cplmixvi.tl.order_categories(adata, {key!r}) first or pass another order."
        )
    return [str(name) for name in result["order"]]
