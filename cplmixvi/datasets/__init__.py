"""Data sets with reference cell types, and simulated data whose truth is known.

Files are taken from the folder named by the environment variable ``CPLMIXVI_DATA_DIR``, or downloaded once from their
public source into the user's cache. A ``UserWarning`` is given if public files do not have the expected shape.
"""

from cplmixvi.datasets._images import dsprites, mnist
from cplmixvi.datasets._loaders import (
    available,
    cbmc,
    human_kidney,
    kang2018,
    load,
    mouse_bladder,
    paul2015,
    pbmc4k,
    pbmc68k,
    scmix,
    scmix_rna,
    tasic2016,
    tasic2018,
    worm_neurons,
    zeisel2015,
)
from cplmixvi.datasets._registry import REGISTRY, DatasetInfo
from cplmixvi.datasets._simulate import imbalanced_sizes, simulate

__all__ = [
    "REGISTRY",
    "DatasetInfo",
    "available",
    "cbmc",
    "dsprites",
    "human_kidney",
    "imbalanced_sizes",
    "kang2018",
    "load",
    "mnist",
    "mouse_bladder",
    "paul2015",
    "pbmc4k",
    "pbmc68k",
    "scmix",
    "scmix_rna",
    "simulate",
    "tasic2016",
    "tasic2018",
    "worm_neurons",
    "zeisel2015",
]
