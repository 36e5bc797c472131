"""The scvi-tools model class, and what its getters return."""

from ._consensus import Consensus
from ._cplmixvi import CplMixVI
from ._getters import Posterior
from ._report import Report
from ._states import Decoded

__all__ = ["Consensus", "CplMixVI", "Decoded", "Posterior", "Report"]
