"""Minibatches that say which cells they hold, and whose last one is never too small for batch normalisation."""

from __future__ import annotations

import numpy as np
import torch
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Dataset

from cplmixvi._constants import CELL_KEY


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
    """scvi-tools' splitter with a training set of known cells that never ends in a batch of one.

    A batch of one cell has no variance, on which batch normalisation raises in training. Where the training cells
    would leave one over, the batch size is raised until they do not (by one, as a rule).

    Parameters
    ----------
    *args, **kwargs
        Of :class:`scvi.dataloaders.DataSplitter`.

    Raises
    ------
    ValueError
        If ``batch_size`` or the number of training cells is below two.
    """

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
        self.data_loader_kwargs["batch_size"] = without_single_tail(self.n_train, batch_size)

    def train_dataloader(self) -> DataLoader:
        """Load the training cells with their rows in the AnnData."""
        loader = super().train_dataloader()
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


def without_single_tail(n_obs: int, batch_size: int) -> int:
    """Smallest batch size from ``batch_size`` on that does not leave a last batch of one."""
    while n_obs % batch_size == 1:
        batch_size += 1
    return batch_size
