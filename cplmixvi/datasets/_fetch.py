"""Where files come from: the folder of prepared files first, the public source otherwise."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cplmixvi.datasets import _readers
from cplmixvi.datasets._registry import DatasetInfo

if TYPE_CHECKING:
    from anndata import AnnData

DATA_DIR_VARIABLE = "CPLMIXVI_DATA_DIR"


def prepared_file(info: DatasetInfo) -> Path | None:
    """Path of the prepared file of a data set, None where the folder or the file is not there."""
    folder = os.environ.get(DATA_DIR_VARIABLE)
    if not folder:
        return None
    path = Path(folder).expanduser() / info.file
    return path if path.is_file() else None


def download(info: DatasetInfo) -> list[Path]:
    """Public files of a data set, from the cache or the network.

    Raises
    ------
    FileNotFoundError
        When a file cannot be had; the message says which file to put where instead.
    """
    return [retrieve(url, dataset=info.name, file=info.file) for url in info.urls]


def retrieve(url: str, *, dataset: str, file: str, known_hash: str | None = None) -> Path:
    """Public file of a data set, from the cache or the network.

    Parameters
    ----------
    url
        Its address.
    dataset
        Name of the data set and of its folder in the cache.
    file
        What may lie in the folder of prepared files instead.
    known_hash
        Of the file's content, as ``"md5:..."``; anything is taken if `None`.

    Raises
    ------
    FileNotFoundError
        When the file cannot be had; the message says which file to put where instead.
    """
    import pooch

    folder = Path(pooch.os_cache("cplmixvi")) / dataset
    name = url.rsplit("/", 1)[-1]
    try:
        return Path(pooch.retrieve(url, known_hash=known_hash, fname=name, path=folder))
    # requests' errors are OSErrors; pooch raises ValueError for an address that it cannot use, or another hash.
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{dataset}: no {file} in {DATA_DIR_VARIABLE}={os.environ.get(DATA_DIR_VARIABLE, '')!r} and "
            f"{url} could not be downloaded ({type(error).__name__}); put {file} into a folder and point "
            f"{DATA_DIR_VARIABLE} at it, or put {name} into {folder}"
        ) from error


def read(info: DatasetInfo) -> AnnData:
    """Read a data set from its prepared file, or from its public files.

    Raises
    ------
    ValueError
        When a file cannot be read, or the prepared one has another shape than the registry says.
    FileNotFoundError
        When neither the prepared file nor the public files can be had.

    Warns
    -----
    UserWarning
        When public files have another shape than expected: the publisher may have changed them.
    """
    path = prepared_file(info)
    if path is not None:
        import anndata

        with _reading(str(path), ": replace the file, or move it away to download from the public source"):
            adata = anndata.read_h5ad(path)
        if adata.shape != info.shape:
            raise ValueError(
                f"{path} has shape {adata.shape}, {info.name} has {info.shape}: replace the file, or move it away to "
                f"download from the public source"
            )
        return adata
    files = download(info)
    downloaded = f"{info.name}: what was downloaded, {', '.join(map(str, files))},"
    with _reading(downloaded, "; delete it, and load again"):
        adata = getattr(_readers, info.reader)(*files)
    expected = tuple(known or given for known, given in zip(info.public_shape, adata.shape, strict=True))
    if adata.shape != expected:
        warnings.warn(
            f"{info.name} from its public source has shape {adata.shape}, expected {expected}: check the files in the "
            f"cache before comparing results",
            stacklevel=3,
        )
    adata.uns["source"] = " ".join(info.urls)
    adata.uns["X_is"] = info.values
    return adata


@contextmanager
def _reading(what: str, mend: str) -> Iterator[None]:
    """Raise ValueError that ``what`` cannot be read, and what to do, for whatever goes wrong in the block."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:160]
        raise ValueError(f"{what} cannot be read ({type(error).__name__}: {said}){mend}") from error
