"""Images of dSprites drawn from the published factors."""

from __future__ import annotations

import numpy as np

#: Sizes of the factors shape, scale, orientation, x and y, in the order in which the published file counts them.
FACTORS = (3, 6, 40, 32, 32)
SHAPES = ("square", "ellipse", "heart")
SIDE = 64
#: Pixels: half of the square's side, and the ellipse's half axes, at scale 1.
_SQUARE, _ELLIPSE = 9.6, (12.8, 7.2)
_HEART_POINTS = 200


def factor_values(classes: np.ndarray) -> dict[str, np.ndarray]:
    """Values of factors, ``scale`` in ``[0.5, 1]``, ``orientation`` in radians, ``x`` and ``y`` in ``[0, 1]``.

    Parameters
    ----------
    classes
        Number of every factor's value, ``(n_obs, 5)``.
    """
    _, scale, orientation, x, y = classes.T
    return {
        "scale": 0.5 + 0.1 * scale,
        "orientation": orientation * (2 * np.pi / (FACTORS[2] - 1)),
        "x": x / (FACTORS[3] - 1),
        "y": y / (FACTORS[4] - 1),
    }


def render_sprites(classes: np.ndarray) -> np.ndarray:
    """Draw sprites: white where a pixel's centre is inside the shape.

    The geometry was fitted to frames of the published file. It gives squares nearly always exactly, other shapes with
    up to four pixels of their rim different.

    Parameters
    ----------
    classes
        Number of every factor's value (shape, scale, orientation, x, y), ``(n_obs, 5)``.

    Returns
    -------
    ``(n_obs, 64, 64)``, uint8 of 0 and 1.
    """
    from matplotlib.path import Path

    heart = Path(_heart())
    pixel = np.arange(SIDE) + 0.5
    values = factor_values(classes)
    images = np.empty((len(classes), SIDE, SIDE), dtype=np.uint8)
    for index, shape in enumerate(classes[:, 0]):
        across = (pixel - 16 - 32 * values["x"][index])[None, :]
        down = (pixel - 16 - 32 * values["y"][index])[:, None]
        cos, sin = np.cos(values["orientation"][index]), np.sin(values["orientation"][index])
        # In the coordinates of an upright sprite of scale 1.
        u = (cos * across + sin * down) / values["scale"][index]
        v = (-sin * across + cos * down) / values["scale"][index]
        if shape == 0:
            inside = (np.abs(u) <= _SQUARE) & (np.abs(v) <= _SQUARE)
        elif shape == 1:
            inside = (u / _ELLIPSE[0]) ** 2 + (v / _ELLIPSE[1]) ** 2 <= 1
        else:
            inside = heart.contains_points(np.column_stack([u.ravel(), v.ravel()])).reshape(SIDE, SIDE)
        images[index] = inside
    return images


def _heart() -> np.ndarray:
    """Corners of the heart at scale 1, pixels from the sprite's centre, ``(n, 2)``."""
    t = np.linspace(0, 2 * np.pi, _HEART_POINTS, endpoint=False)
    x = 0.6 * 16 * np.sin(t) ** 3
    y = -0.663 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 1.42
    return np.column_stack([x, y])
