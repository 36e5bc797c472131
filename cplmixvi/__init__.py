"""cpl-mixVAE for scverse: cell types and the continuous states inside each type, jointly and without labels."""

from importlib.metadata import version

from . import augment, datasets, metrics, pl, pp, tl
from .model import Consensus, CplMixVI

__version__ = version("cplmixvi")

__all__ = ["Consensus", "CplMixVI", "augment", "datasets", "metrics", "pl", "pp", "tl"]
