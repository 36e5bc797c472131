"""Training that leaves the process as it was: random numbers, warnings, loggers."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

#: Loggers that say which devices there are, what is trained, and more.
_CHATTY = ("cplmixvi", "lightning", "lightning.fabric", "lightning.pytorch", "scvi")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all global generators, and set them back afterwards.

    ``scvi.settings.seed`` would not do: it is for the whole process, and cannot be set back without an effect.

    Parameters
    ----------
    seed
        From 0 to 2**32 - 1.
    """
    python, numpy = random.getstate(), np.random.get_state()
    benchmark = torch.backends.cudnn.benchmark
    # All devices by name: without, torch warns where there are several.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            # Lightning sets it for the whole process.
            torch.backends.cudnn.benchmark = benchmark


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Hold back what libraries log and warn of; yields a list that gets the model's own warnings at the end."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    ours: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        # Each time: a warning that was shown before is one that this fit has too.
        warnings.simplefilter("always")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield ours
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            ours += [str(entry.message) for entry in caught if _is_ours(entry.filename) and _is_advice(entry.category)]


def _is_ours(filename: str) -> bool:
    return "cplmixvi" in filename


def _is_advice(category: type[Warning]) -> bool:
    return not issubclass(category, DeprecationWarning | FutureWarning | PendingDeprecationWarning)
