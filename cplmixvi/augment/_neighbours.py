"""Nearest neighbours: the copy of a cell is a cell much like it."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from cplmixvi import pp

from ._cells import Cells
from ._embedding import check_obsm, embedding
from ._partners import PartnerAugmenter, as_pairs


class Neighbours(PartnerAugmenter):
    """Replace each cell by one of its nearest neighbours, drawn afresh for every arm and step.

    Neighbours are sought among training cells with the same batch and categorical covariates. A cell without any such
    neighbour stands for itself.

    Parameters
    ----------
    n_neighbors
        Number of neighbours per cell, at least 1; fewer if there are not enough cells.
    use_rep
        Entry of ``obsm`` with the coordinates in which cells are compared; `None` for 30 principal components of log
        values.
    graph
        Entry of ``obsp`` with a graph in which a larger weight means nearer, such as ``"connectivities"`` of
        :func:`scanpy.pp.neighbors`. Its edges are then used instead of coordinates, the ``n_neighbors`` strongest of
        each cell.

    Raises
    ------
    ValueError
        If ``n_neighbors`` is out of range, or both coordinates and a graph are given.
    """

    def __init__(self, n_neighbors: int = 5, *, use_rep: str | None = None, graph: str | None = None):
        super().__init__()
        if not pp.is_whole(n_neighbors) or n_neighbors < 1:
            raise ValueError(f"n_neighbors={n_neighbors!r} must be a whole number of at least 1.")
        if use_rep is not None and graph is not None:
            raise ValueError(f"use_rep={use_rep!r} and graph={graph!r} both say which cells are near; give one.")
        self.n_neighbors, self.use_rep, self.graph = n_neighbors, use_rep, graph

    def check(self, adata: AnnData) -> None:
        """Reject coordinates or a graph that do not exist; see :meth:`Augmenter.check`."""
        check_obsm(adata, self.use_rep)
        if self.graph is not None and self.graph not in adata.obsp:
            raise ValueError(
                f"graph={self.graph!r} is not in adata.obsp (there: {', '.join(adata.obsp) or 'nothing'}); run "
                "scanpy.pp.neighbors first, or leave it out."
            )

    def find(self, cells: Cells) -> list[sparse.csr_matrix]:
        """Neighbours of each cell; see :class:`PartnerAugmenter`."""
        return [self._from_coordinates(cells) if self.graph is None else self._from_graph(cells)]

    def _from_coordinates(self, cells: Cells) -> sparse.csr_matrix:
        """The nearest training cells of one group."""
        points = embedding(cells, self.use_rep)
        group = cells.group[cells.rows]
        first, second = [], []
        for code in np.unique(group):
            inside = np.flatnonzero(group == code)
            k = min(self.n_neighbors, len(inside) - 1)
            if k > 0:
                # Without an argument, a cell is not counted among its own neighbours.
                near = NearestNeighbors(n_neighbors=k).fit(points[inside]).kneighbors(return_distance=False)
                first.append(np.repeat(cells.rows[inside], k))
                second.append(cells.rows[inside[near.ravel()]])
        empty = [np.zeros(0, dtype=np.int64)]
        return as_pairs(np.concatenate(first or empty), np.concatenate(second or empty), cells.adata.n_obs)

    def _from_graph(self, cells: Cells) -> sparse.csr_matrix:
        """The strongest edges between training cells of one group."""
        edges = sparse.coo_matrix(cells.adata.obsp[self.graph])
        trained = np.zeros(cells.adata.n_obs, dtype=bool)
        trained[cells.rows] = True
        first, second = edges.row, edges.col
        keep = (edges.data > 0) & (first != second) & trained[first] & trained[second]
        keep &= cells.group[first] == cells.group[second]
        first, second, weight = first[keep], second[keep], edges.data[keep]
        order = np.lexsort((-weight, first))
        first, second = first[order], second[order]
        # Rank of every edge among those of its cell, strongest first.
        rank = np.arange(len(first)) - np.searchsorted(first, first)
        return as_pairs(first[rank < self.n_neighbors], second[rank < self.n_neighbors], cells.adata.n_obs)
