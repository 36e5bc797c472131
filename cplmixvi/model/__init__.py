"""The scvi-tools model class."""

from ._consensus import Consensus
from ._cplmixvi import CplMixVI

__all__ = ["Consensus", "CplMixVI"]
