"""Python values as JSON and arrays, and back, by an explicit list of types: reading can run no code."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import pandas as pd
import torch

from cplmixvi.augment import Augmenter

from ._augmenters import augmenter_of, describe
from ._errors import ModelFileError

#: Key that marks a JSON object as a value of a type that JSON lacks.
TAG = "@"
#: From so many floats on, a list is kept as an array.
LONG = 16
#: Kinds of numbers and truth values that arrays of a file may have; all of at most 8 bytes.
_KINDS = "biuf"


def encode(value: Any, where: str, arrays: dict[str, np.ndarray]) -> object:
    """Convert a value to something that JSON can hold; numeric arrays are put into ``arrays`` instead.

    Parameters
    ----------
    value
        `None`, a Boolean, number, string, list, tuple, dict, array, tensor, data type, index, table or augmenter, or
        anything composed of these.
    where
        Name of the value in error messages, and of its arrays in ``arrays``.
    arrays
        Receives the arrays, by name.

    Returns
    -------
    object
        What :func:`decode` turns into an equal value of the same type (a ``defaultdict`` becomes a dict).

    Raises
    ------
    ModelFileError
        If the value, or a part of it, is of any other type.

    Examples
    --------
    >>> arrays = {}
    >>> encode({"epochs": 3, "mean": np.zeros(2)}, "settings", arrays)
    {'epochs': 3, 'mean': {'@': 'array', 'name': 'settings/mean'}}
    >>> arrays["settings/mean"]
    array([0., 0.])
    """
    if isinstance(value, np.generic):
        return _encode_scalar(value, where)
    # Exactly these: an Enum, say, would come back as what it is made of.
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}
    if type(value) in (dict, defaultdict, OrderedDict):
        return _encode_dict(value, where, arrays)
    if type(value) is list and len(value) >= LONG and all(type(item) is float for item in value):
        return {TAG: "floats", "values": _encode_array(np.array(value), where, arrays)}
    if type(value) in (list, tuple):
        items = [encode(item, f"{where}/{i}", arrays) for i, item in enumerate(value)]
        return items if type(value) is list else {TAG: "tuple", "items": items}
    if isinstance(value, np.ndarray):
        return _encode_array(value, where, arrays)
    if isinstance(value, torch.Tensor):
        return {TAG: "tensor", "values": _encode_array(value.detach().cpu().numpy(), where, arrays)}
    if isinstance(value, Augmenter):
        name, arguments = describe(value)
        return {TAG: "augmenter", "class": name, "arguments": encode(arguments, where, arrays)}
    return _encode_labelled(value, where, arrays)


def _encode_labelled(value: object, where: str, arrays: dict[str, np.ndarray]) -> object:
    """Types of pandas, and data types."""
    if isinstance(value, pd.CategoricalDtype) and value.categories is not None:
        categories = encode(value.categories, where, arrays)
        return {TAG: "categories", "categories": categories, "ordered": bool(value.ordered)}
    if isinstance(value, np.dtype) and value.kind in _KINDS + "OUMm":
        return {TAG: "dtype", "name": value.str}
    if isinstance(value, pd.Index) and not isinstance(value, pd.MultiIndex):
        name = encode(value.name, f"{where}/name", arrays)
        return {TAG: "index", "values": encode(value.to_numpy(), f"{where}/values", arrays), "name": name}
    if isinstance(value, pd.DataFrame) and all(map(_is_plain, value.dtypes)):
        columns = [encode(value.iloc[:, i].to_numpy(), f"{where}/{i}", arrays) for i in range(value.shape[1])]
        index, names = (encode(axis, f"{where}/axis{i}", arrays) for i, axis in enumerate(value.axes))
        return {TAG: "frame", "index": index, "names": names, "columns": columns}
    raise ModelFileError(
        f"{where.replace('/', '.')} is of type {type(value).__module__}.{type(value).__qualname__}, which a model file "
        "cannot hold; use numbers, strings, lists, tuples, dicts or arrays."
    )


def _is_plain(dtype: object) -> bool:
    """Whether a column is an array of NumPy, or of strings with nan for what is missing (the default from pandas 3)."""
    return isinstance(dtype, np.dtype) or (isinstance(dtype, pd.StringDtype) and dtype.na_value is np.nan)


def _encode_scalar(value: np.generic, where: str) -> object:
    if isinstance(value, np.str_):
        return str(value)
    if value.dtype.kind not in _KINDS or value.dtype.itemsize > 8:
        raise ModelFileError(f"{where.replace('/', '.')} is a number of type {value.dtype}, which a file cannot hold.")
    plain = value.item()
    return {TAG: "scalar", "dtype": value.dtype.str, "value": repr(plain) if isinstance(plain, float) else plain}


def _encode_dict(value: dict, where: str, arrays: dict[str, np.ndarray]) -> dict:
    if all(type(key) is str for key in value) and TAG not in value:
        return {key: encode(item, f"{where}/{key}", arrays) for key, item in value.items()}
    items = [
        [encode(key, f"{where}/key{i}", arrays), encode(item, f"{where}/{i}", arrays)]
        for i, (key, item) in enumerate(value.items())
    ]
    return {TAG: "dict", "items": items}


def _encode_array(value: np.ndarray, where: str, arrays: dict[str, np.ndarray]) -> dict:
    kind, shape = value.dtype.kind, list(value.shape)
    if kind in _KINDS and value.dtype.itemsize <= 8:
        name = where
        while name in arrays:
            name += "_"
        # A copy in native byte order: files have one order, and two names may not share memory.
        arrays[name] = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        return {TAG: "array", "name": name}
    if kind == "O":
        return {TAG: "objects", "shape": shape, "items": encode(list(value.ravel()), where, arrays)}
    if kind == "U":
        return {TAG: "strings", "dtype": value.dtype.str, "shape": shape, "items": value.ravel().tolist()}
    if kind in "Mm":
        return {TAG: "times", "dtype": value.dtype.str, "shape": shape, "items": value.ravel().view("i8").tolist()}
    raise ModelFileError(f"{where.replace('/', '.')} is an array of type {value.dtype}, which a file cannot hold.")


def decode(value: object, arrays: dict[str, np.ndarray]) -> object:
    """Restore a value that :func:`encode` converted, after it was read from JSON.

    Parameters
    ----------
    value
        As read from JSON.
    arrays
        Arrays, by name.

    Returns
    -------
    object
        The original value.

    Raises
    ------
    ModelFileError
        If :func:`encode` cannot have produced ``value``, or the class of an augmenter is not known.

    Examples
    --------
    >>> arrays = {}
    >>> decode(encode((1, "x"), "settings", arrays), arrays)
    (1, 'x')
    """
    try:
        return _decode(value, arrays)
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"A value is damaged ({type(error).__name__}: {error}); save the model again.") from error


def _decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: _decode(item, arrays) for key, item in value.items()}
    decoder = _DECODERS.get(value[TAG]) if isinstance(value[TAG], str) else None
    if decoder is None:
        raise ModelFileError(f"A value has the unknown type {value[TAG]!r}; upgrade cplmixvi, or save the model again.")
    return decoder(value, arrays)


def _dtype(name: object, kinds: str) -> np.dtype:
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in kinds:
        raise ModelFileError(f"A value has the data type {name!r}, which it cannot have; save the model again.")
    return dtype


def _decode_scalar(value: dict, arrays: dict[str, np.ndarray]) -> np.generic:
    dtype, given = _dtype(value["dtype"], _KINDS), value["value"]
    return dtype.type(float(given) if dtype.kind == "f" else given)


def _decode_objects(value: dict, arrays: dict[str, np.ndarray]) -> np.ndarray:
    items = _decode(value["items"], arrays)
    decoded = np.empty(len(items), dtype=object)
    # One by one: a list of lists would become an array of more dimensions.
    for i, item in enumerate(items):
        decoded[i] = item
    return decoded.reshape(value["shape"])


def _decode_frame(value: dict, arrays: dict[str, np.ndarray]) -> pd.DataFrame:
    names = _decode(value["names"], arrays)
    columns = dict(enumerate(_decode(column, arrays) for column in value["columns"]))
    frame = pd.DataFrame(columns, index=_decode(value["index"], arrays))
    frame.columns = names
    return frame


def _decode_index(value: dict, arrays: dict[str, np.ndarray]) -> pd.Index:
    return pd.Index(_decode(value["values"], arrays), name=_decode(value["name"], arrays))


def _decode_categories(value: dict, arrays: dict[str, np.ndarray]) -> pd.CategoricalDtype:
    return pd.CategoricalDtype(_decode(value["categories"], arrays), ordered=bool(value["ordered"]))


_DECODERS = {
    "float": lambda value, arrays: float(value["value"]),
    "floats": lambda value, arrays: _decode(value["values"], arrays).tolist(),
    "tuple": lambda value, arrays: tuple(_decode(value["items"], arrays)),
    "dict": lambda value, arrays: {_decode(key, arrays): _decode(item, arrays) for key, item in value["items"]},
    "array": lambda value, arrays: arrays[value["name"]],
    "tensor": lambda value, arrays: torch.from_numpy(_decode(value["values"], arrays)),
    "objects": _decode_objects,
    "strings": lambda value, arrays: np.array(value["items"], _dtype(value["dtype"], "U")).reshape(value["shape"]),
    "times": lambda value, arrays: (
        np.array(value["items"], "i8").view(_dtype(value["dtype"], "Mm")).reshape(value["shape"])
    ),
    "scalar": _decode_scalar,
    "dtype": lambda value, arrays: _dtype(value["name"], _KINDS + "OUMm"),
    "categories": _decode_categories,
    "index": _decode_index,
    "frame": _decode_frame,
    "augmenter": lambda value, arrays: augmenter_of(value["class"], _decode(value["arguments"], arrays)),
}
