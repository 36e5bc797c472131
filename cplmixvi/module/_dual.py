"""Weights of soft constraints, found by dual ascent instead of being set."""

from __future__ import annotations

import torch
from torch import nn

#: Weight of the newest minibatch in what was observed.
_MOMENTUM = 0.02


class DualWeight(nn.Module):
    r"""Multiplier of a constraint "ratio at most tolerance".

    .. math:: \log w \leftarrow \log w + \eta\,\mathrm{clip}\Big(\log\frac{\text{ratio}}{\text{tolerance}}, -1, 1\Big)

    The step is on logarithms because ratios start orders of magnitude from where they end, and clipped so that one odd
    minibatch cannot throw the weight. A tolerance below what the ratio was while it was observed (:meth:`observe`)
    cannot be met, and a weight that grows without end would crush everything else: that level is tolerated then.

    Parameters
    ----------
    start
        First value.
    tolerance
        What the ratio may be; `None` keeps ``start``.
    rate
        :math:`\eta`.
    bounds
        Smallest and largest weight.
    """

    def __init__(
        self,
        start: float,
        tolerance: float | None = None,
        *,
        rate: float = 0.05,
        bounds: tuple[float, float] = (1e-6, 1e4),
    ):
        super().__init__()
        self.tolerance, self.rate, self.bounds = tolerance, rate, bounds
        self.register_buffer("value", torch.tensor(float(start)))
        self.register_buffer("level", torch.tensor(0.0))

    @torch.no_grad()
    def observe(self, ratio: torch.Tensor) -> None:
        """Note what the ratio (a 0-d tensor) is where nothing holds it down; a running average."""
        ratio = ratio.to(self.level)
        self.level.copy_(torch.where(self.level > 0, torch.lerp(self.level, ratio, _MOMENTUM), ratio))

    @torch.no_grad()
    def step(self, ratio: torch.Tensor) -> None:
        """Raise the weight where ``ratio`` (a 0-d tensor) is above what is tolerated, lower it where below."""
        if self.tolerance is None:
            return
        tolerance = self.level.clamp_min(self.tolerance)
        move = torch.log(ratio.clamp_min(1e-12) / tolerance).clamp(-1, 1)
        self.value.mul_(torch.exp(self.rate * move)).clamp_(*self.bounds)
