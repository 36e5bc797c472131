"""How well the arms agree, per category, per pair of arms and per cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cplmixvi import metrics

from ._labels import category_names


@dataclass(frozen=True)
class Consensus:
    """Agreement of the arms on a set of cells.

    Attributes
    ----------
    categories
        Names of all categories, shape ``(K,)``.
    counts
        Number of cells per category of the averaged posterior, shape ``(K,)``.
    matrix
        Shape ``(K, K)``; entry ``ij`` is the number of cells that one arm assigns to ``i`` and the other to ``j``,
        divided by the larger of the two totals, as a mean over pairs of arms. ``nan`` with one arm.
    by_category
        Diagonal of ``matrix``: 1 if the arms always agree. ``nan`` for categories that no arm uses.
    by_arm
        Fraction of cells with equal labels, shape ``(n_arms, n_arms)``.
    by_cell
        Fraction of arm pairs that agree on the cell, shape ``(n_cells,)``; ``nan`` with one arm.
    labels
        Integer label from each arm, shape ``(n_cells, n_arms)``.
    """

    categories: np.ndarray
    counts: np.ndarray
    matrix: np.ndarray
    by_category: np.ndarray
    by_arm: np.ndarray
    by_cell: np.ndarray
    labels: np.ndarray

    @property
    def mean(self) -> float:
        """Fraction of equal labels over all cells and arm pairs; ``nan`` with one arm."""
        return float(np.mean(self.by_cell))

    @classmethod
    def from_labels(
        cls, labels: np.ndarray, final: np.ndarray, n_categories: int, names: np.ndarray | None = None
    ) -> Consensus:
        """Compute all measures of agreement from labels.

        Parameters
        ----------
        labels
            Integer labels of the arms, shape ``(n_cells, n_arms)``.
        final
            Integer labels of the averaged posterior, shape ``(n_cells,)``.
        n_categories
            ``K``.
        names
            Names of the categories, shape ``(K,)``; their indices if `None`.

        Returns
        -------
        Consensus
        """
        n_arms = labels.shape[1]
        # One arm has nobody to agree with: its agreement is unknown rather than perfect.
        matrix = np.full((n_categories, n_categories), np.nan)
        if n_arms > 1:
            matrix = metrics.consensus_matrix(labels.T, n_categories)
        used = np.zeros(n_categories, dtype=bool)
        used[np.unique(labels)] = True
        pairs = [(a, b) for a in range(n_arms) for b in range(a + 1, n_arms)]
        by_cell = np.full(len(labels), np.nan, dtype=np.float32)
        if pairs:
            by_cell = np.mean([labels[:, a] == labels[:, b] for a, b in pairs], axis=0, dtype=np.float32)
        return cls(
            categories=category_names(n_categories) if names is None else names,
            counts=np.bincount(final, minlength=n_categories),
            matrix=matrix,
            by_category=np.where(used, np.diag(matrix), np.nan),
            by_arm=metrics.agreement(labels.T),
            by_cell=by_cell,
            labels=labels,
        )
