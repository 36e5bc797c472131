"""Binomial count thinning: the copy that a shallower sequencing run would have given."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from scipy.stats import binom

from ._base import Augmenter

#: Counts up to which copies are looked up, and numbers that the first bits of a uniform one make.
_TABLE_COUNTS, _N_BINS = 63, 1024
#: Entries that are drawn at a time, so that they stay in a core's cache.
_BLOCK = 2**18


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
        if x.device.type == "cpu" and self.low == self.high:
            return thinned(x, self.high)
        keep = torch.full((len(x), 1), self.high, device=x.device, dtype=x.dtype)
        if self.low < self.high:
            keep = self.low + (self.high - self.low) * torch.rand_like(keep)
        if x.device.type != "cpu":
            return torch.binomial(x, keep.expand_as(x))
        # Only non-zero entries can change and they are few: drawing for them alone is several times faster.
        index = x.nonzero(as_tuple=True)
        copy = torch.zeros_like(x)
        copy[index] = torch.binomial(x[index], keep[index[0], 0])
        return copy


def thinned(x: torch.Tensor, keep: float) -> torch.Tensor:
    r"""Draw from :math:`\mathrm{Binomial}(x, p)` on a CPU.

    Small counts by inversion: the distribution function :math:`F_n` at a uniform number :math:`u` is looked up by
    :math:`n` and the first bits of :math:`u`. Where these do not decide, because :math:`F_n` has a step among the
    numbers that begin with them, the rest of :math:`u` is drawn as well, so that nothing is approximated. Torch's own
    sampler, which large counts are left to, takes twenty times longer for small ones.

    Parameters
    ----------
    x
        Counts, ``(n_cells, n_genes)``.
    keep
        :math:`p` in ``(0, 1]``.

    Returns
    -------
    torch.Tensor
        Same shape.
    """
    table, distribution = _tables(keep)
    table = table.to(x.dtype)
    copy = torch.empty_like(x)
    n_rows = max(_BLOCK // x.shape[1], 1)
    for cells, drawn in zip(x.split(n_rows), copy.split(n_rows), strict=True):
        count = cells.reshape(-1)
        # Four numbers of 16 bits from each of 64.
        bits = torch.empty(len(count) // 4 + 1, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        bits = bits[: len(count)].int().bitwise_and_(_N_BINS - 1)
        found = table.index_select(0, count.clamp(max=_TABLE_COUNTS + 1).int().mul_(_N_BINS).add_(bits))
        # NumPy finds few among many several times faster than torch.
        undecided = torch.from_numpy(np.flatnonzero(found.numpy() < 0))
        n = count[undecided]
        large = n > _TABLE_COUNTS
        # Of small counts, the smallest number whose distribution function is beyond u.
        u = (bits[undecided] + torch.rand(len(n), dtype=torch.float64)) / _N_BINS
        value = (distribution[n.clamp(max=_TABLE_COUNTS).long()] <= u[:, None]).sum(1).to(x.dtype)
        value[large] = torch.binomial(n[large], torch.full_like(n[large], keep))
        found[undecided] = value
        drawn.copy_(found.view_as(drawn))
    return copy


@cache
def _tables(keep: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What is drawn, by count and first bits, -1 where they do not decide; and distribution functions, by count."""
    count = np.arange(_TABLE_COUNTS + 1)
    distribution = binom.cdf(count, count[:, None], keep)
    edges = np.arange(_N_BINS + 1) / _N_BINS
    # Number of steps up to each edge. A step at an edge belongs to the numbers that begin there.
    low = np.stack([np.searchsorted(row, edges[:-1], side="right") for row in distribution])
    high = np.stack([np.searchsorted(row, edges[1:], side="left") for row in distribution])
    table = np.where(low == high, low, -1)
    table = np.concatenate([table, np.full((1, _N_BINS), -1)])
    return torch.from_numpy(table.astype(np.float32).ravel()), torch.from_numpy(distribution)
