"""Categories of a minibatch at the least cost, where each more cell in a category costs more."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def assign_categories(cost: np.ndarray, congestion: float) -> np.ndarray:
    r"""Minimise :math:`\sum_n \text{cost}_{n c_n} + \sum_k \text{congestion}\cdot n_k(n_k - 1)/2` over categories.

    This is a minimum-cost flow from cells through categories, in which the ``j``-th cell of a category costs ``j - 1``
    times the congestion. It is solved as an assignment of cells to places in categories.

    Parameters
    ----------
    cost
        Cost of each cell in each category, ``(n_cells, K)``.
    congestion
        At least 0, in the units of ``cost``.

    Returns
    -------
    numpy.ndarray
        Category of each cell, ``(n_cells,)``.

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
