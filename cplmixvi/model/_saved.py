"""What a saved model consists of, checked before a model takes it over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from scvi.model.base import BaseModelClass

from cplmixvi import io


def is_kept(name: str) -> bool:
    """Whether an attribute is kept with the model: those whose name ends in an underscore, as in scvi-tools."""
    return name.endswith("_") and not name.startswith("_")


def part(saved: io.Saved, name: str) -> dict:
    """Entry of the JSON file that is a dict, decoded.

    Raises
    ------
    ModelFileError
        If there is none of that name.
    """
    value = io.decode(saved.meta.get(name), saved.arrays)
    if not isinstance(value, dict):
        raise io.ModelFileError(f"model.json has no {name}; copy or save the model again.")
    return value


def take_over(model: BaseModelClass, saved: io.Saved) -> None:
    """Give a model of the same settings the attributes and weights of a saved one.

    Raises
    ------
    ModelFileError
        If the weights are not those of the model's module.
    """
    for name, value in part(saved, "attributes").items():
        if is_kept(name):
            setattr(model, name, value)
    state = {**saved.weights, **part(saved, "extra_state")}
    _check_weights(state, model.module.state_dict())
    model.module.on_load(model)
    model.module.load_state_dict(state)


def _check_weights(given: dict[str, object], expected: dict[str, object]) -> None:
    """Refuse weights that are not those of the module.

    Raises
    ------
    ModelFileError
        If some are missing, unknown, or of another shape or type.
    """
    mend = "copy or save the model again, or load it with the version that saved it."
    for names, what in ((expected.keys() - given.keys(), "lacks"), (given.keys() - expected.keys(), "has the unknown")):
        if names:
            raise io.ModelFileError(f"The model {what} weights {', '.join(sorted(names)[:3])} ({len(names)}); {mend}")
    for name, value in expected.items():
        found = given[name]
        if not isinstance(value, torch.Tensor):
            continue
        if not isinstance(found, torch.Tensor) or found.shape != value.shape or found.dtype != value.dtype:
            shown = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            raise io.ModelFileError(
                f"Weights {name} are {shown}; the model needs {value.dtype} {tuple(value.shape)}; {mend}"
            )


def checked_prefix(prefix: str | None) -> str:
    """Beginning of the names of the files of a model; ValueError if it is that of a path."""
    if prefix and Path(prefix).name != prefix:
        raise ValueError(f"prefix={prefix!r} must be the beginning of the names of files, and not of a path.")
    return prefix or ""


@contextmanager
def fitting_together(path: Path) -> Iterator[None]:
    """Say of what Python says about arguments and entries of a file that it is the file that is wrong."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        said = " ".join(str(error).split())
        raise io.ModelFileError(
            f"What is in {str(path)!r} does not fit together ({type(error).__name__}: {said}); copy or save the model "
            "again, or load it with the version that saved it."
        ) from error
