"""Minibatches whose last one is never too small for batch normalisation."""

from __future__ import annotations

from scvi.dataloaders import DataSplitter


class CplMixSplitter(DataSplitter):
    """scvi-tools' splitter with a training set that never ends in a batch of one cell.

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


def without_single_tail(n_obs: int, batch_size: int) -> int:
    """Smallest batch size from ``batch_size`` on that does not leave a last batch of one."""
    while n_obs % batch_size == 1:
        batch_size += 1
    return batch_size
