"""Binomial count thinning: the copy that a shallower sequencing run would have given."""

from __future__ import annotations

import torch

from ._base import Augmenter


class CountThinning(Augmenter):
    r"""Keep every molecule with probability ``keep``.

    :math:`x_a \mid x \sim \mathrm{Binomial}(x, p)` per gene. A Poisson count thinned this way is a
    Poisson count of rate :math:`p\lambda`, so a copy is a valid draw from the same cell at lower depth.
    The library size must be recomputed from the copy, which the module does.

    Parameters
    ----------
    keep
        Probability of keeping a molecule, in ``(0, 1]``, or an interval ``(low, high)`` from which each
        cell's probability is drawn uniformly at every call.

    Raises
    ------
    ValueError
        If ``keep`` is outside ``(0, 1]``.
    """

    needs_counts = True

    def __init__(self, keep: float | tuple[float, float] = 0.5):
        super().__init__()
        low, high = (keep, keep) if isinstance(keep, int | float) else keep
        if not 0 < low <= high <= 1:
            raise ValueError(f"keep={keep!r} is outside (0, 1]; give a probability or (low, high) with low <= high.")
        self.low, self.high = float(low), float(high)

    @property
    def keep(self) -> tuple[float, float]:
        """Range of the probability of keeping a molecule, as given."""
        return self.low, self.high

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Draw a thinned copy of ``x``, shape ``(n_cells, n_genes)``, counts."""
        # Only non-zero entries can change and they are few: drawing for them alone is several times faster.
        index = x.nonzero(as_tuple=True)
        counts = x[index]
        keep = torch.full((len(x),), self.high, device=x.device, dtype=x.dtype)
        if self.low < self.high:
            keep = self.low + (self.high - self.low) * torch.rand(len(x), device=x.device, dtype=x.dtype)
        copy = torch.zeros_like(x)
        copy[index] = torch.binomial(counts, keep[index[0]])
        return copy
