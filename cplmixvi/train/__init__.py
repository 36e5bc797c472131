"""Training of the arms: minibatches, training plan and schedules."""

from ._augmenter import AugmenterPlan
from ._checkpoints import Checkpoints, usual_interval
from ._condition import crossing
from ._guide import half_encoder
from ._halves import some_levels
from ._loader import CellLoader, Minibatches, is_on_disk
from ._plan import CplMixPlan
from ._repeat import HalfFits
from ._schedules import default_batch_size, default_max_epochs
from ._selection import MAX_CELLS as MAX_SELECTION_CELLS
from ._selection import Selection, select_n_categories
from ._splitter import CplMixSplitter

__all__ = [
    "MAX_SELECTION_CELLS",
    "AugmenterPlan",
    "CellLoader",
    "Checkpoints",
    "CplMixPlan",
    "CplMixSplitter",
    "HalfFits",
    "Minibatches",
    "Selection",
    "crossing",
    "default_batch_size",
    "default_max_epochs",
    "half_encoder",
    "is_on_disk",
    "select_n_categories",
    "some_levels",
    "usual_interval",
]
