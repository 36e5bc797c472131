"""Images as AnnData: pixels are variables, row by row, for ``likelihood="bernoulli"``."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from cplmixvi.datasets._fetch import DATA_DIR_VARIABLE, retrieve
from cplmixvi.datasets._sprites import FACTORS, SHAPES, factor_values, render_sprites

if TYPE_CHECKING:
    from anndata import AnnData

_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist"
#: Published files with their md5: images and labels of the training and the test set.
_MNIST = {
    "train": (
        ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        ("train-labels-idx1-ubyte.gz", "d53e105ee54ea41749a09fcbcd1e9432"),
    ),
    "test": (
        ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
}
DSPRITES_FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"


def mnist() -> AnnData:
    """Handwritten digits.

    LeCun, Bottou, Bengio and Haffner 1998, Proceedings of the IEEE 86:2278.

    Returns
    -------
    anndata.AnnData
        Grey levels in ``[0, 1]`` (CSR float32), 70,000 images x 784 pixels (28 x 28, row by row), with the 60,000
        images of the training set first. ``obs``: ``digit`` ("0" .. "9") and ``split`` (train, test).

    Raises
    ------
    FileNotFoundError
        If a file is neither in the folder ``CPLMIXVI_DATA_DIR/mnist`` nor available for download.
    ValueError
        If a file is not in the published format.
    """
    images, digits, split = [], [], []
    for name, files in _MNIST.items():
        some, labels = (read_idx(_mnist_file(file, md5)) for file, md5 in files)
        if some.ndim != 3 or labels.shape != some.shape[:1]:
            raise ValueError(
                f"{files[0][0]} and {files[1][0]} hold {some.shape} and {labels.shape}, expected images and as many "
                "labels: replace both files."
            )
        images.append(some)
        digits.append(labels)
        split += [name] * len(labels)
    obs = {"digit": np.concatenate(digits).astype(str), "split": split}
    adata = _of_images(np.concatenate(images), obs, scale=255)
    adata.uns["source"] = f"MNIST, {_MNIST_URL}"
    adata.uns["X_is"] = "grey levels in [0, 1]"
    return adata


def _mnist_file(name: str, md5: str) -> Path:
    """Path of a published file, in the folder of prepared files or the cache."""
    folder = os.environ.get(DATA_DIR_VARIABLE)
    path = Path(folder).expanduser() / "mnist" / name if folder else None
    if path is not None and path.is_file():
        return path
    return retrieve(f"{_MNIST_URL}/{name}", dataset="mnist", file=f"mnist/{name}", known_hash=f"md5:{md5}")


def read_idx(path: str | Path) -> np.ndarray:
    """Array of unsigned bytes from a gzipped file in the IDX format.

    Raises
    ------
    ValueError
        If the file is of another format, or shorter or longer than its header says.
    """
    with gzip.open(path) as file:
        content = file.read()
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{Path(path).name} is not an IDX file of unsigned bytes: delete it and load again.")
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    start = 4 + 4 * content[3]
    if len(content) != start + int(np.prod(shape)):
        raise ValueError(f"{Path(path).name} does not hold the {tuple(shape.tolist())} values that its header says.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def dsprites(n_obs: int = 10_000, *, seed: int = 0, path: str | Path | None = None) -> AnnData:
    """Sprites of three shapes whose position, size and orientation are known.

    Matthey, Higgins, Hassabis and Lerchner 2017, dSprites: Disentanglement testing Sprites dataset. Images come from
    the published file if it is given or is in the folder ``CPLMIXVI_DATA_DIR``; otherwise they are redrawn from the
    published factors. ``uns["source"]`` says which of the two; report results on redrawn images as "re-rendered
    dSprites".

    Parameters
    ----------
    n_obs
        Number of images, drawn at random without replacement from the 737,280.
    seed
        Seed of the draw.
    path
        The published ``dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz``.

    Returns
    -------
    anndata.AnnData
        Binary pixels (CSR float32), ``n_obs`` x 4,096 (64 x 64, row by row). ``obs``: ``shape`` (square, ellipse,
        heart), ``scale`` (0.5 to 1), ``orientation`` (radians), ``x`` and ``y`` (0 to 1). ``uns["rerendered"]``:
        whether the images were redrawn.

    Raises
    ------
    ValueError
        If ``n_obs`` is out of range, or the file is not the published one.
    FileNotFoundError
        If there is no file at ``path``.
    """
    n_all = int(np.prod(FACTORS))
    if not 1 <= n_obs <= n_all:
        raise ValueError(f"n_obs={n_obs!r} is out of range: there are {n_all} images.")
    rows = np.sort(np.random.default_rng(seed).choice(n_all, n_obs, replace=False))
    classes = np.column_stack(np.unravel_index(rows, FACTORS))
    if path is None:
        folder = os.environ.get(DATA_DIR_VARIABLE)
        beside = Path(folder).expanduser() / DSPRITES_FILE if folder else None
        path = beside if beside is not None and beside.is_file() else None
    elif not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file: leave path out to draw the sprites anew.")
    images = render_sprites(classes) if path is None else _published_sprites(Path(path), rows, classes)
    values = factor_values(classes)
    adata = _of_images(images, {"shape": np.array(SHAPES)[classes[:, 0]], **values})
    adata.uns["rerendered"] = path is None
    adata.uns["source"] = "re-rendered dSprites, from the published factors" if path is None else f"dSprites, {path}"
    adata.uns["X_is"] = "binary pixels"
    return adata


def _published_sprites(path: Path, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Images in ``rows`` of the published file, whose factors must be ``classes``."""
    with np.load(path, allow_pickle=False) as file:
        missing = sorted({"imgs", "latents_classes"} - set(file.files))
        if missing:
            raise ValueError(f"{path.name} lacks {', '.join(missing)}: it is not the published file.")
        published = file["latents_classes"]
        # The first factor is the colour, which is always white.
        if len(published) != np.prod(FACTORS) or (published[rows, 1:] != classes).any():
            raise ValueError(f"{path.name} has other factors than the published file.")
        return file["imgs"][rows]


def _of_images(images: np.ndarray, obs: dict[str, object], *, scale: float = 1.0) -> AnnData:
    """AnnData of images ``(n_obs, rows, columns)``, values divided by ``scale``."""
    from anndata import AnnData

    n, rows, columns = images.shape
    X = sparse.csr_matrix(images.reshape(n, -1)).astype(np.float32)
    X.data /= np.float32(scale)
    names = [f"pixel_{row}_{column}" for row in range(rows) for column in range(columns)]
    table = pd.DataFrame(obs, index=[f"image{index}" for index in range(n)])
    for column in table.columns[table.dtypes.map(pd.api.types.is_string_dtype)]:
        table[column] = table[column].astype("category")
    adata = AnnData(X, obs=table, var=pd.DataFrame(index=names))
    adata.uns["image_shape"] = np.array([rows, columns])
    return adata
