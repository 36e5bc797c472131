"""Images as rows of pixels: their sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index


def image_sides(
    n_pixels: int, shape: Sequence[int] | None = None, *, multiple: int = 1, given_as: str = "image_shape={}"
) -> tuple[int, int]:
    """Number of rows and columns of images.

    Parameters
    ----------
    n_pixels
        Number of pixels.
    shape
        Rows and columns; a square if `None`.
    multiple
        Number that rows and columns must both be multiples of.
    given_as
        How users specify the shape; used in error messages, with ``{}`` for the value.

    Returns
    -------
    tuple of int
        Rows and columns.

    Raises
    ------
    ValueError
        If ``shape`` is not a pair of whole numbers, or ``n_pixels`` does not fit such an image.

    Examples
    --------
    >>> image_sides(784), image_sides(96, (8, 12))
    ((28, 28), (8, 12))
    """
    advice = f"give {given_as.format('(rows, columns)')} and all pixels of the image, row by row"
    try:
        rows, columns = (math.isqrt(n_pixels),) * 2 if shape is None else map(index, shape)
    except (TypeError, ValueError):
        raise ValueError(f"{shape!r} are not rows and columns of an image; {advice}.") from None
    if rows < 1 or rows * columns != n_pixels or rows % multiple or columns % multiple:
        image = "a square image" if shape is None else f"an image of shape {rows, columns}"
        sides = f" with sides that are multiples of {multiple}" if multiple > 1 else ""
        margin = ", with a margin if need be" if multiple > 1 else ""
        raise ValueError(f"{n_pixels} values are not the pixels of {image}{sides}; {advice}{margin}.")
    return rows, columns
