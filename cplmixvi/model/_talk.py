"""Training without what Lightning says each time that no user can act on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: How such messages begin: advertisements, devices that are not there, and that a training ended where it should.
_MESSAGES = ("💡 Tip", "TPU available", "`Trainer.fit` stopped: `max_epochs")
#: Patterns of such warnings: what Lightning and torch settle with each other, and an interval at which nothing of ours
#: is logged.
_WARNINGS = (
    ".*LeafSpec",
    "The number of training batches",
    # Batch normalisation of a query, which is not to learn; and cells in a file, which one process reads.
    r"Found \d+ module\(s\) in eval mode",
    "Your `IterableDataset` has `__len__` defined",
)


@contextmanager
def without_talk() -> Iterator[None]:
    """Leave such messages and warnings out; which device is used, and all that may matter, is said as before."""
    speaker = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    speaker.addFilter(_matters)
    try:
        with warnings.catch_warnings():
            for pattern in _WARNINGS:
                warnings.filterwarnings("ignore", message=pattern)
            yield
    finally:
        speaker.removeFilter(_matters)


def _matters(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_MESSAGES)
