"""Augmenters as a name and arguments: a file may name only classes that are there, and reading it imports nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from cplmixvi.augment import Augmenter

from ._errors import ModelFileError

Kind = TypeVar("Kind")

_PACKAGE = __name__.partition(".")[0]


def _name(kind: type[Augmenter]) -> str:
    """Name of a class in files; those of the package go without their module, which may change."""
    if kind.__module__.partition(".")[0] == _PACKAGE:
        return kind.__qualname__
    return f"{kind.__module__}:{kind.__qualname__}"


def describe(augmenter: Augmenter) -> tuple[str, dict[str, object]]:
    """Name of an augmenter's class, and the arguments that make it again.

    Parameters
    ----------
    augmenter
        Keeps each argument of its constructor in an attribute of the same name.

    Raises
    ------
    ModelFileError
        If an argument is in no attribute.
    """
    arguments = {}
    for name, parameter in inspect.signature(type(augmenter).__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(augmenter, name):
            raise ModelFileError(
                f"{type(augmenter).__name__} cannot be saved: its argument {name!r} is in no attribute of that name; "
                f"keep it with self.{name} = {name}."
            )
        value = getattr(augmenter, name)
        arguments[name] = list(value) if isinstance(value, nn.ModuleList) else value
    return _name(type(augmenter)), arguments


def augmenter_of(name: str, arguments: dict[str, object]) -> Augmenter:
    """Make the augmenter that :func:`describe` described.

    Raises
    ------
    ModelFileError
        If there is no class of that name, or it does not take the arguments.
    """
    known = {_name(kind): kind for kind in _subclasses(Augmenter)}
    if name not in known:
        raise ModelFileError(
            f"The model has an augmenter of the class {name!r}, which is not there; import the module that defines it, "
            "then load the model."
        )
    try:
        return known[name](**arguments)
    except TypeError as error:
        raise ModelFileError(
            f"The augmenter {name!r} does not take the arguments it was saved with ({error}); load the model with the "
            "version that saved it."
        ) from error


def _subclasses(kind: type[Kind]) -> Iterator[type[Kind]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
