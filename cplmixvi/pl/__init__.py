"""Figures: read what :mod:`cplmixvi.tl` wrote, draw it, return the Axes."""

from cplmixvi.pl._confusion import confusion as confusion
from cplmixvi.pl._consensus import consensus as consensus
from cplmixvi.pl._selection import select_categories as select_categories
from cplmixvi.pl._stability import stability as stability
from cplmixvi.pl._states import states as states
from cplmixvi.pl._training import training as training

__all__ = ["confusion", "consensus", "select_categories", "stability", "states", "training"]
