"""Binomial count thinning: the copy that a shallower sequencing run would have given."""

from __future__ import annotations

from functools import cache
from numbers import Real
from types import ModuleType

import numpy as np
import torch
from scipy.stats import binom

from cplmixvi._compiled import in_parts, kernels
from cplmixvi._memory import empty_like

from ._base import Augmenter

#: Counts up to which copies are looked up, and numbers that the first bits of a uniform one make.
_TABLE_COUNTS, _N_BINS = 63, 1024


class CountThinning(Augmenter):
    r"""Keep each molecule with probability ``keep``.

    :math:`x_a \mid x \sim \mathrm{Binomial}(x, p)` per gene. A Poisson count thinned in this way is a Poisson count
    with rate :math:`p\lambda`, so a copy is a valid draw from the same cell at lower depth. The library size must be
    recomputed from the copy, which the module does.

    Parameters
    ----------
    keep
        Probability of keeping a molecule, in ``(0, 1]``, or an interval ``(low, high)`` from which each cell's
        probability is drawn uniformly at every call.

    Raises
    ------
    ValueError
        If ``keep`` is outside ``(0, 1]``.
    """

    needs_counts = True

    def __init__(self, keep: float | tuple[float, float] = 0.5):
        super().__init__()
        low, high = (keep, keep) if isinstance(keep, Real) else keep
        if not 0 < low <= high <= 1:
            raise ValueError(f"keep={keep!r} is outside (0, 1]; give a probability or (low, high) with low <= high.")
        self.low, self.high = float(low), float(high)

    @property
    def keep(self) -> tuple[float, float]:
        """Range ``(low, high)`` of the probability of keeping a molecule."""
        return self.low, self.high

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Draw a thinned copy of ``x``, counts, ``(n_cells, n_genes)``."""
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
    count = x.reshape(-1)
    loops = kernels(x)
    copy, undecided, bits = _looked_up(count, table.to(x.dtype)) if loops is None else _by_loops(loops, count, table)
    if len(undecided):
        n = count[undecided]
        large = n > _TABLE_COUNTS
        of_large, of_small = undecided[large], undecided[~large]
        copy[of_large] = torch.binomial(n[large], torch.full_like(n[large], keep))
        # Of small counts, the smallest number whose distribution function is beyond u.
        u = (bits[~large] + torch.rand(len(of_small), dtype=torch.float64)) / _N_BINS
        copy[of_small] = (distribution[n[~large].long()] <= u[:, None]).sum(1).to(x.dtype)
    return copy.view_as(x)


def _looked_up(count: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the first bits of a uniform number give of each count, where they do not decide, and what they are there."""
    # Four numbers of 16 bits from each of 64.
    bits = torch.empty(len(count) // 4 + 1, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    bits = bits[: len(count)].int().bitwise_and_(_N_BINS - 1)
    found = table.index_select(0, count.clamp(max=_TABLE_COUNTS + 1).int().mul_(_N_BINS).add_(bits))
    undecided = (found < 0).nonzero().view(-1)
    return found, undecided, bits[undecided]


def _by_loops(
    loops: ModuleType, count: torch.Tensor, table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`_looked_up`, from one number of torch's generator, whatever the number of threads."""
    seed = np.uint64(torch.randint(2**63 - 1, (1,)).item())
    copy = empty_like(count)

    def part(some: slice) -> tuple[np.ndarray, np.ndarray]:
        own, found = count.numpy()[some], copy.numpy()[some]
        index, bits = np.empty((2, len(own)), dtype=np.int32)
        n = loops.look_up(own, some.start, seed, table.numpy(), _N_BINS, _TABLE_COUNTS, found, index, bits)
        return some.start + index[:n].astype(np.int64), bits[:n].copy()

    parts = in_parts(part, len(count), multiple=4)
    index, bits = (torch.from_numpy(np.concatenate(found)) for found in zip(*parts, strict=True))
    return copy, index, bits


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
