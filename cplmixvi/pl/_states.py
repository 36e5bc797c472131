"""Scatter of two dimensions of an embedding, coloured by type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from cplmixvi import pp
from cplmixvi._constants import UNASSIGNED
from cplmixvi.pl._common import dress, inches_of, new_or_given, read_obs, shorten, style

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ON_DATA_CHARACTERS, _ON_DATA_NAMES = 4, 50
MAX_LEGEND_ROWS = 18
_NO_TYPE_GREY = (0.85, 0.85, 0.85)


def states(
    adata: AnnData,
    key: str = "cplmixvi",
    *,
    color: str | None = None,
    basis: str | None = None,
    dims: tuple[int, int] = (0, 1),
    ax: Axes | None = None,
) -> Axes:
    """Scatter plot of the cells by state, coloured by category or by any other column.

    Parameters
    ----------
    adata
        Cells annotated by :func:`cplmixvi.tl.annotate`.
    key
        The ``key_added`` of the annotation.
    color
        Column of ``adata.obs``: numbers get a colour bar, anything else one colour per value, with light grey for
        missing numbers or values and ``"unassigned"``; the categories of the annotation by default.
    basis
        Entry of ``adata.obsm``; the states ``"X_" + key`` by default.
    dims
        The two columns of ``basis``, counted from 0.
    ax
        Axes to draw on; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the embedding, one of its dimensions or the column is missing.
    """
    basis = f"X_{key}" if basis is None else basis
    points = read_points(adata, basis, dims)
    column = key if color is None else color
    values = read_obs(adata, column, argument="key" if color is None else "color")
    with style():
        is_number = values.dtype.kind in "fiu"
        ax = new_or_given(ax, (3.6 + (0.6 if is_number else _legend_width(values)), 3.4))
        if is_number:
            _by_number(ax, points, numbers_of(values, column), column)
        else:
            values = values.astype("category")
            _by_category(ax, points, values, palette_of(adata, column, values))
        name = "state" if basis == f"X_{key}" else basis.removeprefix("X_").upper()
        # A state of one dimension has a column of zeros beside it.
        second = f"{name} {dims[1] + 1}" if points[:, 1].any() else ""
        ax.set(xlabel=f"{name} {dims[0] + 1}", ylabel=second, xticks=[], yticks=[])
        dress(ax)
        ax.set_title(column, loc="left")
    return ax


def read_points(adata: AnnData, basis: str, dims: tuple[int, int]) -> np.ndarray:
    """Get the two chosen columns, shape ``(n_obs, 2)``."""
    pp.check_adata(adata)
    if not isinstance(basis, str) or basis not in adata.obsm:
        raise ValueError(
            f"basis={basis!r} was given but adata.obsm[{basis!r}] is missing; there are: "
            f"{', '.join(adata.obsm.keys()) or 'none'}; pass one of these or run cplmixvi.tl.annotate first."
        )
    entry = adata.obsm[basis]
    embedding = entry.toarray() if sparse.issparse(entry) else np.asarray(entry)
    if embedding.ndim != 2 or embedding.dtype.kind not in "fiub":
        raise ValueError(
            f"basis={basis!r} was given but adata.obsm[{basis!r}] holds {embedding.dtype} of shape {embedding.shape}; "
            "numbers in columns are needed."
        )
    given, n_dims = list(dims) if np.iterable(dims) else [], embedding.shape[1]
    if len(given) != 2 or not all(pp.is_whole(dim) and 0 <= dim < n_dims for dim in given):
        raise ValueError(
            f"dims={dims!r} was given but adata.obsm[{basis!r}] has {n_dims} columns; "
            f"two whole numbers from 0 to {n_dims - 1} are needed."
        )
    return embedding[:, given]


def _needs_legend(names: Sequence[str]) -> bool:
    """Whether names are too long, or too many, to be written on the cells."""
    return max(map(len, names), default=0) > _ON_DATA_CHARACTERS or len(names) > _ON_DATA_NAMES


def _legend_width(values: pd.Series) -> float:
    """Inches that the legend takes, if there is one."""
    names = [shorten(str(name)) for name in values.astype("category").cat.categories]
    return legend_inches(names, MAX_LEGEND_ROWS) if _needs_legend(names) else 0.0


def legend_inches(names: Sequence[str], most_rows: int) -> float:
    """Width of a legend of dots in columns of at most so many rows."""
    names = [shorten(name) for name in names]
    n_rows = -(-len(names) // -(-len(names) // most_rows))
    columns = [names[start : start + n_rows] for start in range(0, len(names), n_rows)]
    return sum(0.3 + inches_of(column) for column in columns)


def _dot_size(n_points: int) -> float:
    """Area of a dot in points^2: large enough to see few cells, small enough not to hide many."""
    return float(np.clip(9_000 / max(n_points, 1), 1.5, 12.0))


def numbers_of(values: pd.Series, name: str) -> np.ndarray:
    """Numbers of a column, ``(n_obs,)``, missing where they are not finite.

    Raises
    ------
    ValueError
        If no cell has one.
    """
    numbers = values.to_numpy(dtype=float, na_value=np.nan)
    if not np.isfinite(numbers).any():
        raise ValueError(f"color={name!r} has no number for any cell; pass another column.")
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _by_number(ax: Axes, points: np.ndarray, values: np.ndarray, name: str) -> None:
    dots = {"s": _dot_size(len(points)), "linewidths": 0, "rasterized": True}
    has_one = np.isfinite(values)
    ax.scatter(*points[~has_one].T, color=_NO_TYPE_GREY, **dots)
    drawn = ax.scatter(*points[has_one].T, c=values[has_one], cmap="viridis", **dots)
    ax.figure.colorbar(drawn, ax=ax, label=name, shrink=0.7, aspect=25).outline.set_linewidth(0.6)


def _by_category(ax: Axes, points: np.ndarray, values: pd.Series, colours: np.ndarray) -> None:
    """One colour per value, named on the cells where names are short and in a legend where they are not."""
    names = [str(name) for name in values.cat.categories]
    codes = values.cat.codes.to_numpy()
    is_type = np.array([name != UNASSIGNED for name in names], dtype=bool)
    # A code of -1 is a missing value.
    has_type = np.append(is_type, False)[codes]
    ax.scatter(*points[~has_type].T, s=_dot_size(len(points)), color=_NO_TYPE_GREY, linewidths=0, rasterized=True)
    # Shuffled, so that no category lies on top of the others only because it comes last.
    shown = np.random.default_rng(0).permutation(np.flatnonzero(has_type))
    ax.scatter(*points[shown].T, s=_dot_size(len(points)), c=colours[codes[shown]], linewidths=0, rasterized=True)
    if _needs_legend(names):
        draw_legend(ax, names, colours)
    else:
        _names_on_data(ax, points, codes, names)


def palette_of(adata: AnnData, column: str, values: pd.Series) -> np.ndarray:
    """Colours of the values of a column, ``(n_values, 3)``: scanpy's where it has drawn them; grey if unassigned."""
    from matplotlib.colors import to_rgb

    is_type = np.array([str(name) != UNASSIGNED for name in values.cat.categories], dtype=bool)
    stored = adata.uns.get(f"{column}_colors", ())
    # Also those of other values, if the column has changed since.
    if adata.obs[column].dtype == "category" and len(stored) == len(is_type):
        colours = np.array([to_rgb(colour) for colour in stored]).reshape(-1, 3)
    else:
        colours = np.empty((len(is_type), 3))
        colours[is_type] = colours_of(int(is_type.sum()))
    colours[~is_type] = _NO_TYPE_GREY
    return colours


def colours_of(n_colours: int) -> np.ndarray:
    """Distinct colours, shape ``(n_colours, 3)``."""
    import seaborn as sns

    if n_colours <= 10:
        return np.array(sns.color_palette("colorblind", 10))[:n_colours]
    # Neighbouring hues get different lightness, which tells more categories apart than hue alone.
    hues = np.array(sns.husl_palette(n_colours, s=0.85, l=0.6))
    light = np.array(sns.husl_palette(n_colours, s=0.75, l=0.78))
    dark = np.array(sns.husl_palette(n_colours, s=0.9, l=0.42))
    return np.stack([hues, light, dark])[np.arange(n_colours) % 3, np.arange(n_colours)]


def _names_on_data(ax: Axes, points: np.ndarray, codes: np.ndarray, names: list[str]) -> None:
    from matplotlib.patheffects import withStroke

    size = 7.0 if len(names) <= 30 else 5.5
    halo = [withStroke(linewidth=1.8, foreground="white")]
    for code in np.unique(codes[codes >= 0]):
        x, y = np.median(points[codes == code], axis=0)
        ax.text(x, y, names[code], ha="center", va="center", fontsize=size, fontweight="bold", path_effects=halo)


def draw_legend(ax: Axes, names: list[str], colours: np.ndarray) -> None:
    """Draw a legend of dots to the right of an Axes."""
    n_columns = -(-len(names) // MAX_LEGEND_ROWS)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=n_columns, **_of_dots(names, colours))


def draw_figure_legend(figure: Figure, names: list[str], colours: np.ndarray, n_rows: int) -> None:
    """Draw a legend of dots to the right of all that a figure has, in columns of so many rows."""
    figure.legend(loc="outside right center", ncols=-(-len(names) // n_rows), **_of_dots(names, colours))


def _of_dots(names: list[str], colours: np.ndarray) -> dict:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4, color=colour, label=shorten(name))
        for name, colour in zip(names, colours, strict=True)
    ]
    return {"handles": handles, "frameon": False, "handletextpad": 0.2}
