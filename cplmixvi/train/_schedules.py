"""How long to train and in what portions."""

from __future__ import annotations

import math

#: Optimiser steps of a default run. Mixture models need steps rather than epochs: a small data set takes more epochs.
DEFAULT_STEPS = 2_500
MIN_EPOCHS, MAX_EPOCHS = 10, 1_000
#: The same after a warm start, which leaves less to learn: more passes over few cells fit these and not others.
STEPS_AFTER_START = 1_250
MAX_EPOCHS_AFTER_START = 200


def default_batch_size(n_cells: int) -> int:
    """Minibatch size: 128, less on data sets so small that an epoch would have fewer than four steps."""
    return int(min(128, max(16, n_cells // 4)))


def default_max_epochs(n_cells: int, batch_size: int, *, warm_start: bool = True) -> int:
    """Epochs that give about 1,250 optimiser steps after a warm start, 2,500 without one.

    Parameters
    ----------
    n_cells
        Cells in training.
    batch_size
        Minibatch size.
    warm_start
        Whether arms and decoders start from the categories of a guide.

    Returns
    -------
    int
        Between 10 and 200, or 1,000 without a warm start.
    """
    n_steps, most = (STEPS_AFTER_START, MAX_EPOCHS_AFTER_START) if warm_start else (DEFAULT_STEPS, MAX_EPOCHS)
    steps_per_epoch = max(1, math.ceil(n_cells / batch_size))
    return int(min(most, max(MIN_EPOCHS, round(n_steps / steps_per_epoch))))
