"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: Path, names: set[str]) -> Iterator[Path]:
    """Provide an empty folder that replaces ``path`` if the ``with`` block ends without an error.

    Parameters
    ----------
    path
        The folder; may exist.
    names
        Files of an existing folder to be replaced or dropped; all other files in it are kept.

    Yields
    ------
    pathlib.Path
        The empty folder, inside a temporary one beside ``path``.

    Raises
    ------
    OSError
        If space or permission is lacking; an existing folder is then left as it was.

    Examples
    --------
    >>> with whole_folder(Path("new"), {"a.txt"}) as folder:
    ...     _ = (folder / "a.txt").write_text("all of it")
    """
    path = path.resolve()
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name[:32]}.", suffix=".tmp", dir=path.parent))
        new = scratch / "new"
        # Not the temporary folder itself, which only its owner may read.
        new.mkdir()
        yield new
        _put(new, path, scratch / "old", names)
    except OSError as error:
        raise OSError(
            error.errno or 0,
            f"The model cannot be written to {str(path)!r} ({error.strerror or error}); check space and permissions, "
            "or name another folder",
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _put(new: Path, path: Path, aside: Path, names: set[str]) -> None:
    """Put a folder at ``path``; what has one of the ``names`` there goes ``aside``, and back again if that fails.

    A folder that is there stays, with what others have in it, and whoever works in it.
    """
    if not path.exists():
        os.replace(new, path)
        return
    aside.mkdir()
    added = {item.name for item in new.iterdir()} - {item.name for item in path.iterdir()}
    try:
        for name in names:
            if (path / name).exists():
                os.replace(path / name, aside / name)
        for item in list(new.iterdir()):
            os.replace(item, path / item.name)
    except BaseException:
        # Also a signal, which may come between any two lines.
        for name in added:
            (path / name).unlink(missing_ok=True)
        for item in aside.iterdir():
            os.replace(item, path / item.name)
        raise


def swap(new: Path, path: Path, *, aside: Path) -> None:
    """Put a file or folder at ``path``; a folder there is moved ``aside``, and back again if that fails.

    Parameters
    ----------
    new, aside
        In a temporary folder beside ``path``.
    path
        May exist.

    Raises
    ------
    OSError
        If that is not possible; what was there is there still.

    Examples
    --------
    >>> _ = Path("new").write_text("all of it")
    >>> swap(Path("new"), Path("there"), aside=Path("old"))
    """
    try:
        if path.is_dir():
            os.replace(path, aside)
        os.replace(new, path)
    except BaseException:
        # Also a signal, which may come between any two lines.
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        raise
