"""How long to train and in what portions."""

from __future__ import annotations

import math

#: Optimiser steps of a default run. Mixture models need steps rather than epochs: a small data set takes more epochs.
DEFAULT_STEPS = 2_500
MIN_EPOCHS, MAX_EPOCHS = 10, 1_000


def default_batch_size(n_cells: int) -> int:
    """Minibatch size: 128, less on data sets so small that an epoch would have fewer than four steps."""
    return int(min(128, max(16, n_cells // 4)))


def default_max_epochs(n_cells: int, batch_size: int, n_steps: int = DEFAULT_STEPS) -> int:
    """Epochs that give about ``n_steps`` optimiser steps.

    Parameters
    ----------
    n_cells
        Cells in training.
    batch_size
        Minibatch size.
    n_steps
        Steps wanted.

    Returns
    -------
    int
        Between 10 and 1,000.
    """
    steps_per_epoch = max(1, math.ceil(n_cells / batch_size))
    return int(min(MAX_EPOCHS, max(MIN_EPOCHS, round(n_steps / steps_per_epoch))))
