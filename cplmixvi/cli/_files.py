"""Paths: checked before any work starts, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from cplmixvi._constants import CELLS_FILE
from cplmixvi.cli._errors import InputError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

_SUFFIXES = (".h5ad", ".zarr")
#: Of a file or folder, in bytes.
_LONGEST_NAME = 255


def check_input(path: Path) -> None:
    """Raise InputError unless there is something at ``path`` that may be an AnnData."""
    _check_suffix(path, "IN")
    if not path.exists():
        raise InputError(f"IN {str(path)!r} does not exist; an .h5ad file is needed; check the path.")
    if path.suffix == ".h5ad" and not path.is_file():
        raise InputError(f"IN {str(path)!r} is a folder; an .h5ad file is needed; name the file.")
    if not os.access(path, os.R_OK):
        raise InputError(f"IN {str(path)!r} may not be read by you; change its permissions.")


def check_output(path: Path, source: Path, *, overwrite: bool) -> None:
    """Raise InputError unless ``path`` can be written without harm to ``source``."""
    _check_suffix(path, "OUT")
    _check_folder(path, "OUT")
    if path.resolve() != source.resolve():
        check_apart(path, "OUT", IN=source)
        check_apart(source, "IN", OUT=path)
    if path.exists() and path.samefile(source) and not overwrite:
        raise InputError(f"OUT {str(path)!r} is the same file as IN; name another file or pass --overwrite.")
    if path.suffix == ".h5ad" and path.is_dir():
        raise InputError(f"OUT {str(path)!r} is a folder; the path of a file is needed; name a file in it.")
    if path.suffix == ".zarr" and path.exists() and not overwrite:
        raise InputError(f"OUT {str(path)!r} exists; a new store is needed; name another one or pass --overwrite.")
    if path.suffix == ".zarr" and path.exists() and not _is_zarr(path):
        raise InputError(f"OUT {str(path)!r} exists and is no zarr store, so it is not replaced; name another path.")


def check_model_dir(path: Path, *, overwrite: bool) -> None:
    """Raise InputError unless a model can be saved in the folder ``path``."""
    _check_folder(path, "--model-dir")
    if path.exists() and not path.is_dir():
        raise InputError(f"--model-dir {str(path)!r} is a file; a folder is needed; name another path.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise InputError(
            f"--model-dir {str(path)!r} is not empty; a new or empty folder is needed; name one or pass --overwrite."
        )


def check_checkpoint_dir(path: Path, *, resume: bool) -> None:
    """Raise InputError unless checkpoints can be written to the folder ``path``, beside those of this training only."""
    _check_folder(path, "--checkpoint-dir")
    if path.exists() and not path.is_dir():
        raise InputError(f"--checkpoint-dir {str(path)!r} is a file; a folder is needed; name another path.")
    if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"--checkpoint-dir {str(path)!r} is read-only for you; name another folder.")
    if has_checkpoints(path) and not resume:
        raise InputError(
            f"--checkpoint-dir {str(path)!r} has checkpoints of a training that did not end; pass --resume to go on, "
            "or name another folder."
        )


def has_checkpoints(path: Path) -> bool:
    """Whether there are checkpoints in the folder ``path``; nothing is imported to find out."""
    return path.is_dir() and any(re.fullmatch(r"epoch_\d+", entry.name) for entry in path.iterdir())


def _check_suffix(path: Path, name: str) -> None:
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{name} {str(path)!r} must end in {' or '.join(_SUFFIXES)}; rename it or name another file.")


def _check_folder(path: Path, name: str) -> None:
    # A link is written to where it leads.
    folder = path.resolve().parent
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise InputError(f"{name} {str(path)!r} has a name of more than {_LONGEST_NAME} bytes; name a shorter one.")
    if not folder.is_dir():
        raise InputError(f"{name} {str(path)!r} lies in {str(folder)!r}, which is no folder; create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{name} {str(path)!r} lies in {str(folder)!r}, which is read-only for you; name another one.")


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in (".zgroup", "zarr.json"))


def read(path: Path) -> AnnData:
    """Read an AnnData from an .h5ad file or a zarr store.

    Raises
    ------
    InputError
        If it cannot be read as one.
    """
    import anndata as ad

    from cplmixvi import pp

    if path.suffix == ".zarr" and not _is_zarr(path):
        raise InputError(f"IN {str(path)!r} is not a zarr store; an AnnData written by write_zarr is needed.")
    with readable(path):
        adata = ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)
        for name, matrix in pp.matrices(adata):
            pp.check_structure(matrix, name)
        return adata


def layers_in(adata: AnnData) -> str:
    """Names of the layers that can be chosen, for a message."""
    from cplmixvi.pp import layer_names

    return ", ".join(layer_names(adata)) or "none"


@contextmanager
def readable(path: Path, *passing: type[Exception]) -> Iterator[None]:
    """Say of what goes wrong while ``path`` is read that it cannot be read as an AnnData.

    Raises
    ------
    InputError
        That says so. One that is raised in the block stays as it is, as do exceptions of the types ``passing``.
    """
    try:
        if path.suffix == ".h5ad":
            _check_h5ad(path)
        yield
    except (InputError, *passing):
        raise
    except MemoryError as error:
        raise InputError(
            f"IN {str(path)!r} needs more memory than there is, or is damaged; free memory, or write it again."
        ) from error
    except Exception as error:
        raise InputError(
            f"IN {str(path)!r} cannot be read as an AnnData ({type(error).__name__}: {one_line(error)[:160]}); "
            "a file written by AnnData.write_h5ad is needed; write it again."
        ) from error


def _check_h5ad(path: Path) -> None:
    import h5py

    if not h5py.is_hdf5(path):
        raise InputError(
            f"IN {str(path)!r} is not an HDF5 file; an .h5ad file is needed; convert it, for example with scanpy.read "
            "and AnnData.write_h5ad."
        )
    with h5py.File(path, "r") as file:
        missing = [name for name in ("X", "obs", "var") if name not in file]
    # An AnnData without X is possible and may hold its counts in a layer.
    if {"obs", "var"} & set(missing):
        raise InputError(
            f"IN {str(path)!r} is an HDF5 file without {' and '.join(missing)}, so it is no .h5ad file; convert it, "
            "for example with scanpy.read_10x_h5 and AnnData.write_h5ad."
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that takes the place of ``path`` if the block ends well.

    Raises
    ------
    InputError
        If there is no space or no permission to write it.
    """
    from cplmixvi.io import swap

    path = path.resolve()
    with writable(path), scratch(path) as folder:
        yield folder / path.name
        swap(folder / path.name, path, aside=folder / "old")


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, which goes when the block ends."""
    path = path.resolve()
    # A folder of its own hides the half-written file from a glob over the output folder.
    with writable(path):
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:32]}.", suffix=".tmp", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Say that ``path`` cannot be written, or its folder, where that is what goes wrong in the block.

    Raises
    ------
    InputError
        If there is no space or no permission.
    """
    try:
        yield
    # HDF5 says of a full disk that it is a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{str(path)!r} cannot be written ({one_line(error)}); check space and permissions, or name another path."
        ) from error


def write(adata: AnnData, path: Path) -> None:
    """Write ``adata`` to an .h5ad file (compressed) or a zarr store."""
    with all_strings():
        if path.suffix == ".h5ad":
            adata.write_h5ad(path, compression="gzip")
        else:
            adata.write_zarr(path)


def all_strings() -> AbstractContextManager:
    """Let what is written have strings that may be missing, which a file that was read may have; as before afterwards.

    AnnData refuses them by default, for the sake of readers that do not know them.
    """
    import anndata as ad

    if hasattr(ad.settings, "allow_write_nullable_strings"):
        return ad.settings.override(allow_write_nullable_strings=True)
    return nullcontext()


def check_names(adata: AnnData, path: Path) -> None:
    """Raise InputError if a name in ``adata`` cannot be one in the file ``path``."""
    if path.suffix != ".zarr":
        return
    for place in ("obs", "var", "layers", "obsm", "varm", "obsp", "varp", "uns"):
        for name in getattr(adata, place):
            if "/" in str(name):
                raise InputError(
                    f"{place}[{str(name)!r}] of IN has a slash in its name, which a zarr store cannot keep; rename it, "
                    "or write an .h5ad file."
                )


def check_not_cells(model_dir: Path, **others: Path) -> None:
    """Raise InputError if one of the ``others`` is where a model's own cells are, which go when one is saved there."""
    for other, path in others.items():
        if path.resolve() == (model_dir / CELLS_FILE).resolve():
            raise InputError(
                f"{other} {str(path)!r} is where a model in --model-dir has its cells; name another folder."
            )


def check_apart(folder: Path, name: str, **others: Path) -> None:
    """Raise InputError if ``folder`` is one of the ``others``, or in it."""
    for other, path in others.items():
        if path.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise InputError(f"{name} {str(folder)!r} is in {other} {str(path)!r}; name another path.")
