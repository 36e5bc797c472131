"""How the arms are trained: minibatches, training plan and schedules."""

from ._plan import CplMixPlan
from ._schedules import default_batch_size, default_max_epochs
from ._splitter import CplMixSplitter

__all__ = ["CplMixPlan", "CplMixSplitter", "default_batch_size", "default_max_epochs"]
