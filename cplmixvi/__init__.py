"""cpl-mixVAE for scverse: cell types and the continuous states inside each type, jointly and without labels."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import augment, baselines, datasets, metrics, pl, pp, sklearn, tl
    from .model import Consensus, CplMixVI

__version__ = version("cplmixvi")

__all__ = ["Consensus", "CplMixVI", "augment", "baselines", "datasets", "metrics", "pl", "pp", "sklearn", "tl"]


def __getattr__(name: str):
    # Loaded on first use: importing scvi-tools takes seconds, which `cplmixvi --help` must not.
    if name in ("Consensus", "CplMixVI"):
        return getattr(import_module(".model", __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
