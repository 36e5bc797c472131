"""Categories of a minibatch at the least cost, where each more cell in a category costs more."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def assign_categories(cost: np.ndarray, congestion: float) -> np.ndarray:
    r"""Minimise :math:`\sum_n \text{cost}_{n c_n} + \sum_k \text{congestion}\cdot n_k(n_k - 1)/2` over categories.

    This minimum-cost flow from cells through categories, whose ``j``-th cell costs ``j - 1`` times the congestion, is
    an assignment of cells to places in categories.

    Parameters
    ----------
    cost
        Of every cell in every category, ``(n_cells, K)``.
    congestion
        At least 0.

    Returns
    -------
    Categories, ``(n_cells,)``.

    Examples
    --------
    >>> assign_categories(np.array([[0.0, 1.0], [0.0, 3.0]]), congestion=2.0)
    array([1, 0])
    """
    n, k = cost.shape
    if congestion == 0:
        return cost.argmin(1)
    # Congestion only moves cells to less crowded categories, so none gets more than the largest has without it.
    places = int(np.bincount(cost.argmin(1), minlength=k).max())
    crowded = cost[:, :, None] + congestion * np.arange(places)
    return linear_sum_assignment(crowded.reshape(n, -1))[1] // places
