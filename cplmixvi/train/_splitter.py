"""Minibatches that say which cells they hold, and whose last one is never too small for batch normalisation."""

from __future__ import annotations

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Dataset

from cplmixvi._constants import CELL_KEY
from cplmixvi._processes import n_processes, same_everywhere

from ._labels import some_rows
from ._loader import CellLoader, FileCells, MixedBlocks, is_on_disk


class NumberedCells(Dataset):
    """Minibatches of a data set of scvi-tools, and the rows in the AnnData of the cells in them.

    Parameters
    ----------
    dataset
        Gives a minibatch for a list of positions.
    rows
        Row of the cell at every position, ``(n_cells,)``.
    """

    def __init__(self, dataset: Dataset, rows: np.ndarray):
        self.dataset, self.rows = dataset, torch.as_tensor(np.asarray(rows), dtype=torch.long)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, positions: list[int]) -> dict[str, torch.Tensor]:
        return {**self.dataset[positions], CELL_KEY: self.rows[positions]}


class CplMixSplitter(DataSplitter):
    """Data splitter of scvi-tools whose training cells are known by row and never leave a last minibatch of one cell.

    A minibatch of one cell has no variance, and batch normalisation raises an error on it in training. If the training
    cells would leave one over, the batch size is increased until they do not (usually by one). Cells of a backed
    AnnData are read in blocks, see :class:`~cplmixvi.train._loader.MixedBlocks`.

    Parameters
    ----------
    *args, **kwargs
        Of :class:`scvi.dataloaders.DataSplitter`. If several processes train together, ``batch_size`` is that of one.

    Raises
    ------
    ValueError
        If ``batch_size`` or the number of training cells is below two.
    """

    data_loader_cls = CellLoader
    train_idx: np.ndarray
    val_idx: np.ndarray
    test_idx: np.ndarray

    def __init__(self, *args, batch_size: int = 128, **kwargs):
        if batch_size < 2:
            raise ValueError(
                f"batch_size={batch_size!r} is too small; batch normalisation needs at least 2 cells a batch."
            )
        super().__init__(*args, batch_size=batch_size, **kwargs)
        if self.n_train < 2:
            raise ValueError(
                f"{self.n_train} cell is left for training and at least 2 are needed; give more cells or a larger "
                "train_size."
            )
        if self.drop_last and self.n_train < batch_size:
            raise ValueError(
                f"drop_last=True leaves no minibatch of batch_size={batch_size} of {self.n_train} training cells; give "
                "a smaller batch_size or drop_last=False."
            )
        self.data_loader_kwargs["batch_size"] = self._without_single_tail(self.n_train, batch_size)

    def setup(self, stage: str | None = None) -> None:
        """Split the cells, identically in all processes."""
        super().setup(stage)
        if n_processes() > 1:
            self.train_idx, self.val_idx, self.test_idx = same_everywhere((self.train_idx, self.val_idx, self.test_idx))
            own, batch_size = -(-self.n_train // n_processes()), self.data_loader_kwargs["batch_size"]
            self.data_loader_kwargs["batch_size"] = self._without_single_tail(own, batch_size)

    def _without_single_tail(self, n_obs: int, batch_size: int) -> int:
        # Where the tail is dropped, there is none.
        return batch_size if self.drop_last else without_single_tail(n_obs, batch_size)

    def train_dataloader(self) -> DataLoader:
        """Load the training cells together with their rows in the AnnData."""
        if is_on_disk(self.adata_manager):
            in_parts = bool(self.data_loader_kwargs.get("distributed_sampler"))
            return self._blocks(self.train_idx, in_parts=in_parts, drop_last=self.drop_last)
        return self._numbered(super().train_dataloader())

    def start_dataloader(self, n_cells: int, n_labels: int = 0) -> DataLoader:
        """Load training cells in random order for the fits before training, whichever cells this process trains on.

        Parameters
        ----------
        n_cells
            Minimum number of cells, if there are that many.
        n_labels
            Number of labels; some cells of each are included as well.
        """
        if is_on_disk(self.adata_manager):
            codes = np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY)).reshape(-1)
            known = torch.from_numpy(np.where(codes < n_labels, codes, -1)[self.train_idx])
            some = some_rows(len(known), n_cells, known if n_labels else None).numpy()
            return self._blocks(np.asarray(self.train_idx)[some], n_held=len(some))
        options = {**self.data_loader_kwargs, "distributed_sampler": False}
        return self._numbered(
            self.data_loader_cls(
                self.adata_manager,
                indices=self.train_idx,
                shuffle=True,
                load_sparse_tensor=self.load_sparse_tensor,
                **options,
            )
        )

    def _numbered(self, loader: DataLoader) -> DataLoader:
        """Loader that also gives the rows of the training cells."""
        return DataLoader(
            NumberedCells(loader.dataset, self.train_idx),
            # The sampler gives the positions of whole minibatches.
            sampler=loader.sampler,
            batch_size=None,
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            persistent_workers=loader.persistent_workers,
        )

    def _blocks(self, rows: np.ndarray, **options) -> DataLoader:
        """Loader of cells in a file. Workers would each read all of it, so there are none."""
        cells = FileCells(self.adata_manager, load_sparse_tensor=self.load_sparse_tensor)
        blocks = MixedBlocks(cells, rows, self.data_loader_kwargs["batch_size"], **options)
        return DataLoader(blocks, batch_size=None, num_workers=0, pin_memory=self.pin_memory)


def without_single_tail(n_obs: int, batch_size: int) -> int:
    """Smallest batch size from ``batch_size`` on that does not leave a last batch of one, if there are two cells."""
    while n_obs > 1 and n_obs % batch_size == 1:
        batch_size += 1
    return batch_size
