"""The format's version, and how models of older versions become models of the present one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ._errors import ModelFileError

#: Raise it whenever older code cannot read what is written, and add the step from the version before to MIGRATIONS.
FORMAT_VERSION = 2


@dataclass
class Saved:
    """Contents of a saved model.

    Attributes
    ----------
    meta
        Contents of the JSON file: values produced by :func:`cplmixvi.io.encode`.
    weights
        State of the module, by name.
    arrays
        Arrays that ``meta`` refers to, by name.
    """

    meta: dict[str, object]
    weights: dict[str, torch.Tensor]
    arrays: dict[str, np.ndarray]


def _with_likeness(saved: Saved) -> Saved:
    """In version 1 it is not known how far categories share what their states are."""
    origin = saved.weights.get("alignment.origin")
    if origin is not None:
        saved.weights["alignment.likeness"] = torch.full_like(origin, torch.nan)
    return saved


#: From a version of the format to the step that makes the next one of it. A step may change all that is in ``Saved``
#: (a weight has another name, an argument a new meaning); the version itself is counted up by ``migrate``.
MIGRATIONS: dict[int, Callable[[Saved], Saved]] = {1: _with_likeness}


def check_version(version: object) -> int:
    """Version of a file.

    Raises
    ------
    ModelFileError
        If it is none, or newer than this code.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelFileError(f"model.json has format_version={version!r}, which is none; save the model again.")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"The model has format version {version} and this cplmixvi reads up to {FORMAT_VERSION}; upgrade cplmixvi."
        )
    return version


def migrate(saved: Saved) -> Saved:
    """Bring a model of an older version to the present one, step by step.

    Raises
    ------
    ModelFileError
        If a step is missing.
    """
    for version in range(check_version(saved.meta.get("format_version")), FORMAT_VERSION):
        if version not in MIGRATIONS:
            raise ModelFileError(
                f"Models of format version {version} are no longer read; load and save it with an older cplmixvi first."
            )
        saved = MIGRATIONS[version](saved)
        saved.meta["format_version"] = version + 1
    return saved
