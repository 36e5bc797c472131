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
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
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
    if not path.exists():
        os.replace(new, path)
        return
    os.replace(path, aside)
    moved: list[Path] = []
    try:
        for item in aside.iterdir():
            if item.name not in names:
                os.replace(item, new / item.name)
                moved.append(item)
        os.replace(new, path)
    except BaseException:
        for item in moved:
            os.replace(new / item.name, item)
        os.replace(aside, path)
        raise
