"""Minibatches of cells that are in memory or in a file, with the rows that were asked for in that order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager, AnnTorchDataset
from scvi.dataloaders import AnnDataLoader
from torch.utils.data import Dataset, IterableDataset

from cplmixvi._constants import CELL_KEY
from cplmixvi._processes import n_processes, process_index, same_everywhere

#: Rows that are read together, because they lie together, and entries of the blocks that are mixed, as if all were
#: dense: 130 MB where they are, a few where they are sparse.
BLOCK_ROWS = 256
BUFFER_ENTRIES = 2**25


def is_on_disk(manager: AnnDataManager) -> bool:
    """Whether the values are read from a file."""
    return bool(manager.adata.isbacked)


class Minibatches:
    """Minibatches of a data module in the form in which training sees them.

    What a loader reads takes this form only in hooks of the data module, which make sparse values dense or convert
    values to tensors, and which Lightning calls only during training.

    Parameters
    ----------
    datamodule
        The data module.
    loader
        One of its loaders.
    """

    def __init__(self, datamodule: LightningDataModule, loader: Iterable[dict]):
        self.datamodule, self.loader = datamodule, loader

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.loader:
            batch = self.datamodule.on_before_batch_transfer(batch, dataloader_idx=0)
            yield self.datamodule.on_after_batch_transfer(batch, dataloader_idx=0)


class FileCells(Dataset):
    """Cells of a backed AnnData by their rows, in any order.

    The data set of scvi-tools gives cells of a file in the order of the file, whatever order was asked for, so that
    they would be taken for each other; and reads rows one by one, though reading them together is many times faster.

    Parameters
    ----------
    manager
        Of the AnnData.
    load_sparse_tensor
        Whether sparse values become sparse tensors.
    **options
        Of :class:`scvi.data.AnnTorchDataset`.
    """

    def __init__(self, manager: AnnDataManager, *, load_sparse_tensor: bool = False, **options):
        inner = AnnTorchDataset(manager, **options)
        self.dtypes, self.load_sparse_tensor = inner.keys_and_dtypes, load_sparse_tensor
        data = inner.data
        self.values = data[REGISTRY_KEYS.X_KEY]
        # Everything else is in memory, and small.
        self.others = {key: np.asarray(value) for key, value in data.items() if key != REGISTRY_KEYS.X_KEY}
        self.n_obs = len(inner)

    def __len__(self) -> int:
        return self.n_obs

    def read(self, rows: np.ndarray) -> np.ndarray | sparse.csr_matrix:
        """Values of cells in ascending order of their rows ``(n,)``, dense or CSR, ``(n, n_genes)``."""
        ends = np.flatnonzero(np.diff(rows) != 1) + 1
        runs = [slice(run[0], run[-1] + 1) for run in np.split(rows, ends)]
        if len(runs) > len(rows) // 4:
            # Scattered rows: the file's own way to many rows at once takes less time than as many slices.
            parts = [self.values[rows]]
        else:
            parts = [self.values[run] for run in runs]
        if not sparse.issparse(parts[0]):
            return np.concatenate(parts)
        return sparse.vstack(parts, format="csr") if len(parts) > 1 else sparse.csr_matrix(parts[0])

    def minibatch(self, values: np.ndarray | sparse.csr_matrix, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Values and all else that is registered of cells ``rows`` ``(n,)``."""
        values = values.astype(self.dtypes[REGISTRY_KEYS.X_KEY], copy=False)
        if sparse.issparse(values) and self.load_sparse_tensor:
            parts = map(torch.from_numpy, (values.indptr, values.indices, values.data))
            values = torch.sparse_csr_tensor(*parts, size=values.shape, check_invariants=False)
        elif sparse.issparse(values):
            values = values.toarray()
        others = {key: value[rows].astype(self.dtypes[key], copy=False) for key, value in self.others.items()}
        return {REGISTRY_KEYS.X_KEY: values, **others}

    def __getitem__(self, rows: list[int] | int) -> dict[str, np.ndarray]:
        rows = np.atleast_1d(np.asarray(rows))
        ascending, place = np.unique(rows, return_inverse=True)
        return self.minibatch(self.read(ascending)[place], rows)


@dataclass(frozen=True)
class _OrderedManager:
    """What a loader of scvi-tools asks of a manager, with cells in the order that is asked for."""

    manager: AnnDataManager

    def __getattr__(self, name: str):
        if name == "manager":
            raise AttributeError(name)
        return getattr(self.manager, name)

    def create_torch_dataset(self, indices=None, data_and_attributes=None, load_sparse_tensor=False) -> Dataset:
        cells = FileCells(self.manager, getitem_tensors=data_and_attributes, load_sparse_tensor=load_sparse_tensor)
        return cells if indices is None else torch.utils.data.Subset(cells, indices)


class CellLoader(AnnDataLoader):
    """Loader of scvi-tools that also preserves the requested order of cells that are read from a file.

    Parameters
    ----------
    adata_manager, *args, **kwargs
        Of :class:`scvi.dataloaders.AnnDataLoader`.
    """

    def __init__(self, adata_manager: AnnDataManager, *args, **kwargs):
        manager = _OrderedManager(adata_manager) if is_on_disk(adata_manager) else adata_manager
        super().__init__(manager, *args, **kwargs)


class MixedBlocks(IterableDataset):
    """Minibatches of cells in a file in an order that is nearly random and quick to read.

    Rows that lie together are read together, in blocks. The order of the blocks is random; so many are held at once as
    fit a buffer, the cells in the buffer are mixed, and minibatches are cut from it.

    Parameters
    ----------
    cells
        All cells.
    rows
        Those to train on, ``(n_cells,)``.
    batch_size
        Cells in a minibatch.
    n_held
        Cells in the buffer; by default so many as have 34 million values.
    in_parts
        Give every process of several a part of the blocks, and as many minibatches as the others.
    drop_last
        Whether a last minibatch that is smaller is left out.
    """

    def __init__(
        self,
        cells: FileCells,
        rows: np.ndarray,
        batch_size: int,
        *,
        n_held: int | None = None,
        in_parts: bool = False,
        drop_last: bool = False,
    ):
        self.cells, self.rows, self.batch_size, self.drop_last = cells, np.sort(rows), batch_size, drop_last
        self.n_held = max(n_held or BUFFER_ENTRIES // cells.values.shape[1], BLOCK_ROWS, batch_size)
        self.n_parts, self.part = (n_processes(), process_index()) if in_parts else (1, 0)
        self.n_own = -(-len(self.rows) // self.n_parts)

    def __len__(self) -> int:
        return self.n_own // self.batch_size if self.drop_last else -(-self.n_own // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        # One seed from the global generator, so that scvi-tools' seed decides, and all processes cut alike.
        seed = int(torch.randint(2**31 - 1, (1,)))
        rng = np.random.default_rng(seed if self.n_parts == 1 else same_everywhere(seed))
        blocks = np.split(self.rows, np.arange(BLOCK_ROWS, len(self.rows), BLOCK_ROWS))
        order = np.concatenate([blocks[index] for index in rng.permutation(len(blocks))])
        # The last process would have fewer cells: it is given some of the first ones again.
        own = np.resize(order, self.n_parts * self.n_own).reshape(self.n_parts, -1)[self.part]
        left = np.empty(0, dtype=own.dtype)
        values = None
        for start in range(0, len(own), self.n_held):
            read = np.unique(own[start : start + self.n_held])
            block = self.cells.read(read)
            # What did not fill a minibatch is held on to.
            values = block if not len(left) else _stacked(values, block)
            held = np.concatenate([left, read])
            mixed = rng.permutation(len(held))
            is_last = start + self.n_held >= len(own)
            n_used = len(held) if is_last and not self.drop_last else len(held) // self.batch_size * self.batch_size
            for begin in range(0, n_used, self.batch_size):
                some = mixed[begin : min(begin + self.batch_size, n_used)]
                yield {**self.cells.minibatch(values[some], held[some]), CELL_KEY: torch.from_numpy(held[some])}
            rest = mixed[n_used:]
            left, values = held[rest], values[rest]


def _stacked(first: np.ndarray | sparse.csr_matrix, second: np.ndarray | sparse.csr_matrix):
    parts = [first, second]
    return sparse.vstack(parts, format="csr") if sparse.issparse(second) else np.concatenate(parts)
