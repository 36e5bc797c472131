"""Copies of cells that preserve the cell type, so that the arms see non-identical views of each cell."""

from ._across import AcrossBatches, AcrossCondition, AcrossLevels
from ._affine import Affine
from ._base import Augmenter, Compose, Identity
from ._cells import Cells, codes_of, combined
from ._generator import Discriminator
from ._learned import LearnedAugmenter, learned_parts
from ._masking import GeneMasking
from ._neighbours import Neighbours
from ._noise import GaussianNoise
from ._resolve import Augment, resolve
from ._thinning import CountThinning

__all__ = [
    "AcrossBatches",
    "AcrossCondition",
    "AcrossLevels",
    "Affine",
    "Augment",
    "Augmenter",
    "Cells",
    "Compose",
    "CountThinning",
    "Discriminator",
    "GaussianNoise",
    "GeneMasking",
    "Identity",
    "LearnedAugmenter",
    "Neighbours",
    "codes_of",
    "combined",
    "learned_parts",
    "resolve",
]
