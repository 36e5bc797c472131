"""How long to train and in what portions."""

from __future__ import annotations

import math

#: Optimiser steps of a default run. Mixture models need steps rather than epochs: a small data set takes more epochs.
DEFAULT_STEPS = 2_500
MIN_EPOCHS, MAX_EPOCHS = 10, 1_000
#: The same after a warm start, which leaves less to learn: few steps, but some passes over all cells while these are no
#: more steps than without a start. Many passes over few cells fit these and not others.
STEPS_AFTER_START, PASSES_AFTER_START = 1_250, 20
MAX_EPOCHS_AFTER_START = 200


def default_batch_size(n_cells: int) -> int:
    """Default minibatch size: 128, or less for data sets so small that an epoch would have fewer than four steps.

    Parameters
    ----------
    n_cells
        Number of training cells.

    Returns
    -------
    int
        ``n_cells // 4``, but at least 16 and at most 128.
    """
    return int(min(128, max(16, n_cells // 4)))


def default_max_epochs(n_cells: int, batch_size: int, *, warm_start: bool = True) -> int:
    """Number of epochs for about 2,500 optimiser steps; fewer after a warm start.

    After a warm start, the number is that of 1,250 steps, or 20 epochs if those take more steps (up to 2,500 steps).

    Parameters
    ----------
    n_cells
        Number of training cells.
    batch_size
        Minibatch size.
    warm_start
        Whether arms and decoders start from the categories of a guide.

    Returns
    -------
    int
        Between 10 and 1,000; at most 200 after a warm start.
    """
    steps_per_epoch = max(1, math.ceil(n_cells / batch_size))
    n_steps, most = DEFAULT_STEPS, MAX_EPOCHS
    if warm_start:
        n_steps = min(n_steps, max(STEPS_AFTER_START, PASSES_AFTER_START * steps_per_epoch))
        most = MAX_EPOCHS_AFTER_START
    return int(min(most, max(MIN_EPOCHS, round(n_steps / steps_per_epoch))))
