"""Counterparts across conditions: the copy of a cell is a cell like it under another condition."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from cplmixvi import pp
from cplmixvi._constants import CELL_KEY

from ._cells import Cells, codes_of
from ._embedding import check_obsm, embedding
from ._partners import PartnerAugmenter, as_pairs

logger = logging.getLogger(__name__)

#: Rounds in which counterparts are found, conditions are moved onto each other by them, and they are found anew.
_ROUNDS = 3


class AcrossCondition(PartnerAugmenter):
    """Let the copies of a cell come from any condition: the cell itself, or its counterpart in another condition.

    For users who know a condition (a treatment, a donor, a technology) by which types should not split. Every arm and
    step draws a condition for each cell and sees a counterpart of the cell there; the start of training sees the mean
    of the cell and its counterparts.

    Two cells of different conditions are counterparts if each is among the nearest neighbours of the other by angle,
    after the coordinates of each condition are centred (mutual nearest neighbours: Haghverdi et al. 2018, Nature
    Biotechnology 36:421). Because not all types respond alike, the conditions are then moved towards each other by the
    local mean of the differences between counterparts, and counterparts are determined anew. A cell without
    counterparts borrows those of the nearest cell that has some, if that cell is near; otherwise it stands for itself.

    Parameters
    ----------
    key
        Column of ``obs`` with the condition. With a ``batch_key``, counterparts are sought within the cell's own batch.
    n_neighbors
        Number of nearest cells of the other condition among which two counterparts must have each other.
    use_rep
        Entry of ``obsm`` with the coordinates in which cells are compared; `None` for 30 principal components of log
        values.

    Raises
    ------
    ValueError
        If ``n_neighbors`` is out of range.
    """

    def __init__(self, key: str, n_neighbors: int = 20, *, use_rep: str | None = None):
        super().__init__()
        if not pp.is_whole(n_neighbors) or n_neighbors < 1:
            raise ValueError(f"n_neighbors={n_neighbors!r} must be a whole number of at least 1.")
        self.key, self.n_neighbors, self.use_rep = key, n_neighbors, use_rep
        self.nuisance_keys = (key,)

    def check(self, adata: AnnData) -> None:
        """Reject a condition that is missing or has the same value for all cells; see :meth:`Augmenter.check`."""
        check_obsm(adata, self.use_rep)
        if self.key not in adata.obs:
            raise ValueError(
                f"across={self.key!r} is not a column of obs; columns there: "
                f"{', '.join(map(str, adata.obs.columns[:12])) or 'none'}; name one of these."
            )
        if codes_of(adata, [self.key]).max(initial=0) == 0:
            raise ValueError(
                f"obs[{self.key!r}] has one value only, {adata.obs[self.key].iloc[0]!r}: counterparts need a second "
                "condition; leave the augmenter out."
            )

    def conditions(self, cells: Cells) -> np.ndarray:
        """Code of each cell's condition, ``(n_obs,)``."""
        return codes_of(cells.adata, [self.key])

    def find(self, cells: Cells) -> list[sparse.csr_matrix]:
        """Counterparts of each cell in every condition; see :class:`PartnerAugmenter`.

        Raises
        ------
        ValueError
            If no batch has cells of two conditions.
        """
        group, condition = cells.group[cells.rows], self.conditions(cells)
        points = embedding(cells, self.use_rep)
        first, second, compared = [], [], 0
        for code in np.unique(group):
            inside = np.flatnonzero(group == code)
            rows = cells.rows[inside]
            if len(np.unique(condition[rows])) > 1:
                compared += len(inside)
                pairs = mutual_pairs(points[inside], condition[rows], self.n_neighbors).tocoo()
                first.append(rows[pairs.row])
                second.append(rows[pairs.col])
        if compared == 0:
            raise ValueError(
                f"No training cells of one batch differ in obs[{self.key!r}], so that none has a counterpart: batches "
                "and conditions are the same. Give the condition as batch_key or to the augmenter, not both."
            )
        first, second = np.concatenate(first), np.concatenate(second)
        logger.info(
            "%.0f%% of the training cells have a counterpart across obs[%r].",
            100 * len(np.unique(first)) / len(cells.rows),
            self.key,
        )
        return [
            as_pairs(first[condition[second] == code], second[condition[second] == code], cells.values.shape[0])
            for code in np.unique(condition)
        ]

    def neutral(self, x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """A counterpart of each cell from every condition, or the cell itself; see :meth:`Augmenter.neutral`."""
        if self.partners is None:
            return x[None]
        return self.partners.draw_each(tensors[CELL_KEY].to(x.device))


class AcrossLevels(AcrossCondition):
    """Let the copies of a cell come from either level of a condition that is not a column of ``obs``.

    Parameters
    ----------
    level
        Code of each cell's level, ``(n_obs,)``; the codes of cells outside the training set do not matter.
    n_neighbors, use_rep
        See :class:`AcrossCondition`.

    Raises
    ------
    ValueError
        If ``n_neighbors`` is out of range.
    """

    def __init__(self, level: np.ndarray, n_neighbors: int = 20, *, use_rep: str | None = None):
        super().__init__("the level found", n_neighbors, use_rep=use_rep)
        self.level = np.asarray(level)

    def check(self, adata: AnnData) -> None:
        """Require no column of ``obs``; see :meth:`Augmenter.check`."""
        check_obsm(adata, self.use_rep)

    def conditions(self, cells: Cells) -> np.ndarray:
        """Level of each cell, ``(n_obs,)``."""
        return self.level


class AcrossBatches(AcrossLevels):
    """Compare each cell with its counterparts in other batches, where copies remain those of the cell itself.

    For batches that change some types more than others: types are looked for in the mean of a cell and its
    counterparts. Copies are not of other batches, because decoders are given the batch of the cell.

    Parameters
    ----------
    level
        Code of each cell's batch, ``(n_obs,)``; the codes of cells outside the training set do not matter.
    n_neighbors, use_rep
        See :class:`AcrossCondition`.

    Raises
    ------
    ValueError
        If ``n_neighbors`` is out of range.
    """

    replaces = False

    def find(self, cells: Cells) -> list[sparse.csr_matrix]:
        """Counterparts of each cell in every batch; see :class:`PartnerAugmenter`."""
        return super().find(replace(cells, group=np.zeros_like(cells.group)))

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return ``x``."""
        return x


def mutual_pairs(points: np.ndarray, condition: np.ndarray, n_neighbors: int) -> sparse.csr_matrix:
    """Counterparts of different conditions, after moving conditions onto each other.

    Parameters
    ----------
    points
        Coordinates, ``(n, n_dimensions)``.
    condition
        Codes of at least two conditions, ``(n,)``.
    n_neighbors
        Neighbours in the other condition, at most as many as it has cells.

    Returns
    -------
    scipy.sparse.csr_matrix
        ``(n, n)``; the row of a cell has its counterparts of all other conditions.
    """
    points = points.astype(np.float64)
    members = [np.flatnonzero(condition == code) for code in np.unique(condition)]
    for inside in members:
        points[inside] -= points[inside].mean(0)
    for remaining in reversed(range(_ROUNDS)):
        # By angle: a response of a few genes must not take a type farther away than other types are.
        directions = points / np.linalg.norm(points, axis=1, keepdims=True).clip(1e-12)
        found = _mutual(directions, members, n_neighbors)
        if remaining:
            points = points + _moves(points, members, found, n_neighbors)
    return _lent(points, members, found, n_neighbors)


def _mutual(points: np.ndarray, members: list[np.ndarray], n_neighbors: int) -> sparse.csr_matrix:
    """Ones where two cells of different conditions are each among the nearest of the other, ``(n, n)``."""
    n, named = len(points), []
    for inside in members:
        k = min(n_neighbors, len(inside))
        outside = np.setdiff1d(np.arange(n), inside)
        near = NearestNeighbors(n_neighbors=k).fit(points[inside]).kneighbors(points[outside], return_distance=False)
        first, second = np.repeat(outside, k), inside[near.ravel()]
        # One number for a pair, whichever of its cells is the first.
        named.append(np.minimum(first, second) * n + np.maximum(first, second))
    pairs = np.sort(np.concatenate(named))
    first, second = np.divmod(pairs[1:][pairs[1:] == pairs[:-1]], n)
    return as_pairs(np.concatenate([first, second]), np.concatenate([second, first]), n)


def _lent(
    points: np.ndarray, members: list[np.ndarray], pairs: sparse.csr_matrix, n_neighbors: int
) -> sparse.csr_matrix:
    """Give cells without counterparts those of the nearest cell of their condition that has, if that is near."""
    lender = np.arange(len(points))
    paired = np.diff(pairs.indptr) > 0
    for inside in members:
        k = min(n_neighbors, len(inside) - 1)
        if k > 0:
            near = inside[NearestNeighbors(n_neighbors=k).fit(points[inside]).kneighbors(return_distance=False)]
            some = ~paired[inside] & paired[near].any(1)
            lender[inside[some]] = near[some, paired[near[some]].argmax(1)]
    return pairs[lender]


def _moves(points: np.ndarray, members: list[np.ndarray], pairs: sparse.csr_matrix, n_neighbors: int) -> np.ndarray:
    """Half of the way of every cell to the other conditions: the mean way of the paired cells around it."""
    count = np.diff(pairs.indptr)
    way = pairs @ points / np.maximum(count, 1)[:, None] - points
    moves = np.zeros_like(points)
    for inside in members:
        paired = inside[count[inside] > 0]
        if len(paired):
            k = min(n_neighbors, len(paired))
            near = NearestNeighbors(n_neighbors=k).fit(points[paired]).kneighbors(points[inside], return_distance=False)
            moves[inside] = 0.5 * way[paired[near]].mean(1)
    return moves
