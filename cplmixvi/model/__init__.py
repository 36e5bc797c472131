"""The scvi-tools model class."""

from ._consensus import Consensus
from ._cplmixvi import CplMixVI
from ._report import Report

__all__ = ["Consensus", "CplMixVI", "Report"]
