"""Checkpoints of a training in a folder: each is there whole or not at all, whatever kills the process."""

from __future__ import annotations

import shutil
import warnings
from contextlib import suppress
from pathlib import Path

from ._errors import ModelFileError
from ._folder import whole_folder
from ._format import Saved
from ._store import NAMES, read_files, write_files

_NAME = "epoch_"
#: The last is enough, unless the disk has damaged it.
KEPT = 2


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder.

    Parameters
    ----------
    folder
        Folder of checkpoints; may be missing.

    Returns
    -------
    list of pathlib.Path
        One folder per checkpoint, the earliest first; empty if ``folder`` does not exist.
    """
    found = folder.glob(f"{_NAME}*") if folder.is_dir() else ()
    return sorted(path for path in found if path.is_dir() and path.name[len(_NAME) :].isdecimal())


def write_checkpoint(folder: Path, epoch: int, saved: Saved) -> None:
    """Write a checkpoint next to earlier ones, of which only the latest is kept.

    Parameters
    ----------
    folder
        Where to write it; created if it does not exist.
    epoch
        Number of completed epochs.
    saved
        The model and the state of its training.

    Raises
    ------
    OSError
        If it cannot be written; earlier checkpoints are left as they were.

    Examples
    --------
    >>> model.save("model", overwrite=True)
    >>> Path("run").mkdir()
    >>> write_checkpoint(Path("run"), 3, cplmixvi.io.read_files(Path("model")))
    >>> [path.name for path in list_checkpoints(Path("run"))]
    ['epoch_000003']
    >>> saved = read_checkpoint(Path("run"))
    >>> remove_checkpoints(Path("run"))
    """
    with whole_folder(folder / f"{_NAME}{epoch:06d}", set(NAMES)) as new:
        write_files(new, saved)
    for old in list_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def read_checkpoint(folder: Path) -> Saved:
    """Read the latest intact checkpoint.

    Parameters
    ----------
    folder
        Folder of checkpoints.

    Returns
    -------
    Saved
        The model and the state of its training.

    Raises
    ------
    ModelFileError
        If there is no intact checkpoint.

    Warns
    -----
    UserWarning
        If a later checkpoint is damaged.
    """
    paths = list_checkpoints(folder)
    if not paths:
        raise ModelFileError(f"{str(folder)!r} has no checkpoint; check the path, or train from the start.")
    errors: list[ModelFileError] = []
    for path in reversed(paths):
        try:
            saved = read_files(path)
        except ModelFileError as error:
            errors.append(error)
            continue
        if errors:
            warnings.warn(f"{errors[0]} The training goes on from {path.name}.", UserWarning, stacklevel=2)
        return saved
    raise errors[0]


def remove_checkpoints(folder: Path, *, with_folder: bool = True) -> None:
    """Remove the checkpoints in a folder, and what is left of any that a killed process did not finish.

    Parameters
    ----------
    folder
        Folder of checkpoints; may be missing.
    with_folder
        Whether to remove the folder too if nothing else is in it, and that is possible.
    """
    for path in (*list_checkpoints(folder), *folder.glob(f".{_NAME}*.tmp")):
        shutil.rmtree(path, ignore_errors=True)
    if with_folder and folder.is_dir() and not any(folder.iterdir()):
        # A folder that something is mounted on stays.
        with suppress(OSError):
            folder.rmdir()
