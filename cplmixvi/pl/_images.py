"""Images decoded along paths through the states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cplmixvi import pp
from cplmixvi.pl._common import check_choice, listed, new_or_given, shorten, style
from cplmixvi.pl._traversal import read_traversal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

_IMAGE_INCHES = 0.4


def image_traversal(
    adata: AnnData,
    key: str = "cplmixvi",
    *,
    categories: Sequence[str] | None = None,
    path: str = "main",
    shape: tuple[int, int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot images decoded along a path through the states: one row per category, one column per step (paper, Fig. 3).

    Parameters
    ----------
    adata
        Images, annotated and traversed by :func:`cplmixvi.tl.traverse`.
    key
        The ``key_added`` of the annotation.
    categories
        Categories to draw; all that were traversed by default.
    path
        ``"main"`` or a dimension, ``"1"``, ``"2"``, ...
    shape
        Numbers of rows and columns of an image; those in ``uns["image_shape"]`` by default, else a square.
    ax
        Axes to draw on; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Axes with one picture of ``(n_types * rows, n_steps * columns)`` pixels.

    Raises
    ------
    ValueError
        If the traversal, a category or the path is missing, or the number of pixels does not match the shape.
    """
    result = read_traversal(adata, key)
    there, paths = ([str(name) for name in names] for names in (result.categories, result.paths))
    chosen = there if categories is None else [str(name) for name in listed(categories)]
    for name in chosen:
        check_choice(name, there, argument="categories")
    if path == "main" and "main" not in paths:
        path = "1"
    check_choice(path, paths, argument="path")
    images = result.expression[[there.index(name) for name in chosen], paths.index(path)]
    n_types, n_steps, n_pixels = images.shape
    shape = adata.uns.get("image_shape") if shape is None else shape
    rows, columns = pp.image_sides(n_pixels, shape, given_as="shape={}")
    picture = images.reshape(n_types, n_steps, rows, columns).transpose(0, 2, 1, 3).reshape(n_types * rows, -1)
    with style():
        ax = new_or_given(ax, (n_steps * _IMAGE_INCHES + 0.8, n_types * _IMAGE_INCHES * rows / columns + 0.5))
        ax.imshow(picture, cmap="gray", vmin=0, vmax=max(float(picture.max()), 1e-12), interpolation="nearest")
        ax.set_yticks((np.arange(n_types) + 0.5) * rows - 0.5, [shorten(name, 18) for name in chosen])
        ax.set_xticks([columns / 2 - 0.5, (n_steps - 0.5) * columns - 0.5], ["low", "high"])
        ax.set_xlabel("state" if path == "main" else f"state {path}")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return ax
