"""A model's files: weights and arrays as safetensors, the rest as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.numpy
import safetensors.torch

from cplmixvi._constants import CELLS_FILE, LEGACY_MODEL_FILE, MODEL_FILE

from ._errors import ModelFileError
from ._format import FORMAT_VERSION, Saved, check_version, migrate

FORMAT = "cplmixvi model"
WEIGHTS, ARRAYS, CARD, ANNDATA = "weights.safetensors", "arrays.safetensors", "model_card.md", CELLS_FILE
#: All files of a model; a prefix may go before each of them.
NAMES = (MODEL_FILE, WEIGHTS, ARRAYS, CARD, ANNDATA, LEGACY_MODEL_FILE)
#: First bytes of a pickle and of a zip archive, which PyTorch puts its pickles into.
_PICKLES = (b"\x80", b"PK\x03\x04")


def owned(folder: Path, prefix: str = "") -> set[str]:
    """Names of files in a folder that go when a model is saved there.

    Cells and pickles have names that other files may have as well: they go only if a model with cells is there, or any.

    Parameters
    ----------
    folder
        May be missing.
    prefix
        What comes before the name of each file, here and not in what is returned. Default: nothing.

    Returns
    -------
    set of str
        Of :data:`NAMES`.

    Examples
    --------
    >>> "adata.h5ad" in owned(Path("."))
    False
    """
    try:
        meta = read_meta(folder, prefix)
    except ModelFileError:
        return set(NAMES) - {ANNDATA, LEGACY_MODEL_FILE}
    return set(NAMES) - (set() if meta.get("with_anndata") else {ANNDATA})


def write_files(folder: Path, saved: Saved, prefix: str = "") -> None:
    """Write the files of a model into an existing folder.

    Parameters
    ----------
    folder
        Where to write them.
    saved
        The model. The format, its version and the hashes of the files are added to ``meta`` in the JSON file.
    prefix
        Put before the name of each file.

    Raises
    ------
    OSError
        If a file cannot be written.

    Examples
    --------
    >>> model.save("model", overwrite=True)
    >>> Path("copy").mkdir()
    >>> write_files(Path("copy"), read_files(Path("model")))
    """
    weights, arrays = folder / f"{prefix}{WEIGHTS}", folder / f"{prefix}{ARRAYS}"
    # Copies: two names may share memory in a module, not in a file. Written by us, because safetensors would make
    # files that only their owner may read, and say nothing of a full disk that others understand.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in saved.weights.items()}
    weights.write_bytes(safetensors.torch.save(tensors))
    arrays.write_bytes(safetensors.numpy.save(saved.arrays))
    digests = {WEIGHTS: _digest(weights), ARRAYS: _digest(arrays)}
    meta = {"format": FORMAT, "format_version": FORMAT_VERSION, **saved.meta, "sha256": digests}
    text = json.dumps(meta, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / f"{prefix}{MODEL_FILE}").write_text(text + "\n", encoding="utf-8")


def read_files(folder: Path, prefix: str = "") -> Saved:
    """Read the files of a model and convert them to the current version of the format.

    Hashes of the weights and arrays are verified, and no code in the files is executed.

    Parameters
    ----------
    folder
        Folder with the files.
    prefix
        What comes before the name of each file. Default: nothing.

    Returns
    -------
    Saved
        The model, in the format version ``FORMAT_VERSION``.

    Raises
    ------
    ModelFileError
        If there is no model, or a file is missing, damaged, a pickle, or of a newer version.

    Examples
    --------
    >>> model.save("model", overwrite=True)
    >>> saved = read_files(Path("model"))
    >>> saved.weights.keys() == model.module.state_dict().keys()
    True
    """
    meta = read_meta(folder, prefix)
    weights = _read_tensors(folder / f"{prefix}{WEIGHTS}", meta, WEIGHTS, safetensors.torch.load_file)
    arrays = _read_tensors(folder / f"{prefix}{ARRAYS}", meta, ARRAYS, safetensors.numpy.load_file)
    return migrate(Saved(meta, weights, arrays))


def read_meta(folder: Path, prefix: str = "") -> dict[str, object]:
    """Read the JSON file of a model as it is, in any version of the format up to the current one.

    Weights and arrays are not read.

    Parameters
    ----------
    folder
        Folder with the files.
    prefix
        What comes before the name of each file. Default: nothing.

    Returns
    -------
    dict
        Contents of the file: values that :func:`encode` made, for :func:`decode`.

    Raises
    ------
    ModelFileError
        If there is no model, or the JSON file is missing, damaged, not that of a model of cplmixvi, or of a newer
        version; also if there is only a pickle in its place.

    Examples
    --------
    >>> model.save("model", overwrite=True)
    >>> len(read_meta(Path("model"))["genes"]) == adata.n_vars
    True
    """
    path = folder / f"{prefix}{MODEL_FILE}"
    if not folder.is_dir():
        raise ModelFileError(f"There is no folder {str(folder)!r}; check the path.")
    if not path.is_file():
        legacy = folder / f"{prefix}{LEGACY_MODEL_FILE}"
        if legacy.is_file():
            raise ModelFileError(
                f"{str(legacy)!r} is a pickle, which may run code when it is read, and is not loaded; if you trust it, "
                "convert it: CplMixVI.convert_legacy_save(folder, new_folder, trusted=True)."
            )
        raise ModelFileError(f"{str(folder)!r} has no model: {path.name} is missing; check the path and the prefix.")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{str(path)!r} is truncated or no JSON; copy or save the model again.") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ModelFileError(f"{str(path)!r} is not the JSON file of a model of cplmixvi; check the path.")
    check_version(meta.get("format_version"))
    return meta


def _read_tensors(path: Path, meta: dict, name: str, load: Callable[[Path], dict]) -> dict:
    if not path.is_file():
        raise ModelFileError(f"{str(path)!r} is missing; copy or save the whole folder again.")
    with path.open("rb") as file:
        head = file.read(9)
        # Safetensors begin with the length of a header, which may have a pickle's first byte, and the header's brace.
        if head.startswith(_PICKLES) and head[8:] != b"{":
            raise ModelFileError(
                f"{str(path)!r} is a pickle in place of safetensors and is not loaded; get the model from its source."
            )
    damaged = f"{str(path)!r} is truncated or damaged; copy or save the model again."
    digests = meta.get("sha256")
    if not isinstance(digests, dict) or _digest(path) != digests.get(name):
        raise ModelFileError(damaged)
    try:
        return load(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ModelFileError(damaged) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
