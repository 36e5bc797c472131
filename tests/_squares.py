"""Small images of three types, for the baselines that have convolutions."""

import numpy as np
from anndata import AnnData

SIDE = 12


def images_of_squares() -> AnnData:
    """Images with a square in one of three places, a little moved, and of any brightness."""
    rng = np.random.default_rng(0)
    types = rng.integers(0, 3, 400)
    x = np.zeros((400, SIDE, SIDE), dtype=np.float32)
    for image, corner in zip(x, np.array([(0, 0), (0, 6), (6, 3)])[types], strict=True):
        top, left = corner + rng.integers(0, 2, size=2)
        image[top : top + 5, left : left + 5] = rng.uniform(0.5, 1)
    return AnnData(x.reshape(400, -1), obs={"type": types.astype(str)})
