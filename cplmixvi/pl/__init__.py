"""Figures: read what :mod:`cplmixvi.tl` wrote, draw it, return the Axes."""

from cplmixvi.pl._confusion import confusion as confusion
from cplmixvi.pl._consensus import consensus as consensus
from cplmixvi.pl._images import image_traversal as image_traversal
from cplmixvi.pl._selection import select_categories as select_categories
from cplmixvi.pl._stability import stability as stability
from cplmixvi.pl._state_panels import state as state
from cplmixvi.pl._state_panels import state_histograms as state_histograms
from cplmixvi.pl._states import states as states
from cplmixvi.pl._training import training as training
from cplmixvi.pl._traversal import state_genes as state_genes
from cplmixvi.pl._traversal import traversal as traversal

__all__ = [
    "confusion",
    "consensus",
    "image_traversal",
    "select_categories",
    "stability",
    "state",
    "state_genes",
    "state_histograms",
    "states",
    "training",
    "traversal",
]
