"""Moments of the values in every category, from one pass over the cells: where decoders start."""

from __future__ import annotations

import torch


class CategoryMoments:
    r"""Sums over cells by the probabilities :math:`R_{nk}` of their categories.

    Parameters
    ----------
    n_categories, n_genes
        ``K`` and number of genes.
    on_counts
        Whether values are molecules, whose expectation is proportional to the cell's library.
    device
        Where sums are kept.
    """

    def __init__(self, n_categories: int, n_genes: int, on_counts: bool, device: torch.device | str = "cpu"):
        self.on_counts = on_counts
        # A value counts by the cell's size: its library in molecules, or one.
        self._size = torch.zeros(n_categories, 1, device=device)
        self._size_squares = torch.zeros(n_categories, 1, device=device)
        self._sums = torch.zeros(n_categories, n_genes, device=device)
        self._sized_sums = torch.zeros(n_categories, n_genes, device=device) if on_counts else self._sums
        self._squares = torch.zeros(n_genes, device=device)
        self._n_cells = 0
        #: Values that are not counts are summed from here: squares of large ones would leave no digits for a variance.
        self._origin: torch.Tensor | float = 0.0

    def add(self, x: torch.Tensor, answer: torch.Tensor) -> None:
        """Add cells with values ``(n_cells, n_genes)`` and probabilities ``(n_cells, K)``."""
        if not self.on_counts:
            self._origin = self._origin if self._n_cells else x.mean(0)
            x = x - self._origin
        size = x.sum(1, keepdim=True) if self.on_counts else x.new_ones(len(x), 1)
        self._size += answer.T @ size
        self._size_squares += answer.T @ size.square()
        self._sums += answer.T @ x
        if self.on_counts:
            self._sized_sums += answer.T @ (size * x)
        self._squares += x.square().sum(0)
        self._n_cells += len(x)

    @property
    def rates(self) -> torch.Tensor:
        """Mean values, or shares of the molecules, ``(K, n_genes)``."""
        return self._rates() + self._origin

    def _rates(self) -> torch.Tensor:
        # One mean cell is added: a gene that a category's few cells do not show is not impossible.
        overall = self._sums.sum(0) / self._n_cells
        return (self._sums + overall) / (self._size + self._size.sum() / self._n_cells)

    def variance(self) -> torch.Tensor:
        """Mean squared deviation of values from what their categories expect, ``(n_genes,)``."""
        rates = self._rates()
        crossed = (rates * self._sized_sums).sum(0)
        # Rounding can leave less than nothing of a gene that is constant.
        return ((self._squares - 2 * crossed + self._expected_squares(rates)) / self._n_cells).clamp_min(0)

    def inverse_dispersion(self) -> torch.Tensor:
        r""":math:`\theta_g` at which negative binomial counts have this :meth:`variance`, ``(n_genes,)``.

        :math:`\theta_g=\sum_n\mu_{ng}^2\big/\sum_n\big((x_{ng}-\mu_{ng})^2-\mu_{ng}\big)`; infinite for a gene that
        does not vary more than Poisson counts.
        """
        rates = self._rates()
        excess = self.variance() * self._n_cells - (rates * self._size).sum(0)
        return torch.where(excess > 0, self._expected_squares(rates) / excess, torch.inf)

    def _expected_squares(self, rates: torch.Tensor) -> torch.Tensor:
        """Sum over cells of the squares of what is expected of them, ``(n_genes,)``."""
        return (self._size_squares * rates.square()).sum(0)
