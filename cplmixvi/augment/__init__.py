"""Type-preserving copies of cells: what makes the arms see non-identical views of one cell."""

from ._base import Augmenter, Compose, Identity
from ._masking import GeneMasking
from ._noise import GaussianNoise
from ._resolve import resolve
from ._thinning import CountThinning

__all__ = ["Augmenter", "Compose", "CountThinning", "GaussianNoise", "GeneMasking", "Identity", "resolve"]
