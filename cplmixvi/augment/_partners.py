"""Augmenters whose copy of a cell is another cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse

from cplmixvi._constants import CELL_KEY

from ._base import Augmenter
from ._cells import Cells, CellStore


class Partners:
    """The cells that may stand in for each cell, and their values.

    Parameters
    ----------
    pairs
        Sparse, each ``(n_obs, n_obs)``, one for every condition that partners may be of. An entry in row ``i`` and
        column ``j`` means that ``j`` may stand in for ``i``. A cell without any stands for itself.
    values
        Values of all cells, dense or CSR, ``(n_obs, n_genes)``.
    device
        Where to keep all of it.
    """

    def __init__(
        self,
        pairs: Sequence[sparse.csr_matrix],
        values: np.ndarray | sparse.csr_matrix,
        device: torch.device | str = "cpu",
    ):
        # One after the other, as tables would need space for as many partners of every cell as one has.
        before = np.cumsum([0, *(some.nnz for some in pairs)])
        bounds = np.stack([some.indptr + first for some, first in zip(pairs, before[:-1], strict=True)])
        self.bounds = torch.from_numpy(bounds.astype(np.int64)).to(device)
        # The last is of nobody: where the last cells have no partners, their bounds are behind all.
        partner = np.concatenate([*(some.indices for some in pairs), [0]])
        self.partner = torch.from_numpy(partner.astype(np.int32)).to(device)
        self.store = CellStore(values, device)

    def draw(self, cell: torch.Tensor) -> torch.Tensor:
        """Values ``(n, n_genes)`` of a partner of each cell in ``cell`` ``(n,)``: of any condition, then any of it."""
        condition = torch.randint(len(self.bounds), cell.shape, device=cell.device)
        return self._of(condition, cell)

    def draw_each(self, cell: torch.Tensor) -> torch.Tensor:
        """Values of a partner from every condition, ``(n_conditions, n, n_genes)``."""
        conditions = torch.arange(len(self.bounds), device=cell.device)
        return torch.stack([self._of(condition.expand_as(cell), cell) for condition in conditions])

    def _of(self, condition: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        first = self.bounds[condition, cell]
        count = self.bounds[condition, cell + 1] - first
        # The product may round up to the count itself.
        drawn = torch.minimum((torch.rand(cell.shape, device=cell.device) * count).long(), (count - 1).clamp_min(0))
        return self.store.read(torch.where(count > 0, self.partner[first + drawn].long(), cell))


class PartnerAugmenter(Augmenter):
    """Base of augmenters that let another training cell stand in for a cell.

    Subclasses implement :meth:`find`. Partners are known for the cells that a model is trained on, from
    :meth:`prepare` at the start of training to :meth:`release` at its end; other cells are never augmented.
    """

    needs_cells = True
    replaces = True

    def __init__(self):
        super().__init__()
        self.partners: Partners | None = None
        #: Whether every cell stands for itself: where a model learns batches, which nobody knows to have partners.
        self.keeps_cells = False

    def find(self, cells: Cells) -> list[sparse.csr_matrix]:
        """Which cells may stand in for which, see :class:`Partners`."""
        raise NotImplementedError

    def prepare(self, cells: Cells, device: torch.device | str) -> None:
        """Find the partners of the training cells and keep them on ``device``."""
        if not self.keeps_cells:
            self.partners = Partners(self.find(cells), cells.values, device)

    def release(self) -> None:
        """Let go of the training cells."""
        self.partners = None

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Draw another cell for each, or the cell itself, shape ``(n_cells, n_genes)``.

        Raises
        ------
        ValueError
            If the augmenter was not prepared, or the minibatch does not say which cells it holds.
        """
        if self.keeps_cells:
            return x
        if self.partners is None or tensors is None or CELL_KEY not in tensors:
            raise ValueError(
                f"{type(self).__name__} replaces cells by others that it is trained with: it draws copies in "
                "CplMixVI.train() on an AnnData only."
            )
        return self.partners.draw(tensors[CELL_KEY].to(x.device))


def as_pairs(first: np.ndarray, second: np.ndarray, n_obs: int) -> sparse.csr_matrix:
    """Pairs ``(first[i], second[i])`` as a CSR matrix ``(n_obs, n_obs)``; none counts twice."""
    pairs = sparse.csr_matrix((np.ones(len(first), dtype=np.float32), (first, second)), shape=(n_obs, n_obs))
    pairs.sum_duplicates()
    return pairs
