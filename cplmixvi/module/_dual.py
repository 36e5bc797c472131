"""Weights of soft constraints, found by dual ascent instead of being set."""

from __future__ import annotations

import torch
from torch import nn


class DualWeight(nn.Module):
    r"""Multiplier of a constraint "ratio at most tolerance".

    .. math:: \log w \leftarrow \log w + \eta\,\mathrm{clip}\Big(\log\frac{\text{ratio}}{\text{tolerance}}, -1, 1\Big)

    The step is on logarithms because ratios start orders of magnitude from where they end, and clipped so that one odd
    minibatch cannot throw the weight.

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

    @torch.no_grad()
    def step(self, ratio: torch.Tensor) -> None:
        """Raise the weight where ``ratio`` (a 0-d tensor) is above the tolerance, lower it where below."""
        if self.tolerance is None:
            return
        move = torch.log(ratio.clamp_min(1e-12) / self.tolerance).clamp(-1, 1)
        self.value.mul_(torch.exp(self.rate * move)).clamp_(*self.bounds)
