"""Starts that are quick and not as good, for tests of what is done with them; of other processes too."""

from contextlib import contextmanager

import pytest

from cplmixvi.train import _mixture, _repeat, _views
from cplmixvi.train._mixture import SharedCovarianceMixture


@contextmanager
def quick_start(members: int = 2):
    """Guides are searched for less and have two members in place of ten; one pair of halves is fitted, not three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SharedCovarianceMixture.__init__.__kwdefaults__, "n_moves", 2)
        patch.setattr(_mixture, "_BEST", 1)
        patch.setitem(_views.MEMBERS, "mixture", members)
        patch.setattr(_repeat, "N_SPLITS", 1)
        yield
