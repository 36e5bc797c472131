"""Gaussian noise on values that are not counts."""

from __future__ import annotations

import math

import torch

from ._base import Augmenter


class GaussianNoise(Augmenter):
    r"""Add noise to the detected values: :math:`x_a = \max(x + \sigma\epsilon, 0)` where :math:`x > 0`.

    Zeros remain zeros: noise does not turn an undetected gene into a detected one. Arms reconstruct the cell without
    the noise.

    Parameters
    ----------
    sd
        Standard deviation :math:`\sigma` in the units of ``x`` (log values), at least 0.

    Raises
    ------
    ValueError
        If ``sd`` is negative or not finite.
    """

    corrupts = True

    def __init__(self, sd: float = 0.2):
        super().__init__()
        if not 0 <= sd < math.inf:
            raise ValueError(f"sd={sd!r} is no standard deviation; give a number of at least 0.")
        self.sd = float(sd)

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Draw a noisy copy of ``x``, ``(n_cells, n_genes)``."""
        noisy = (x + self.sd * torch.randn_like(x)).clamp_min(0)
        return torch.where(x > 0, noisy, x)
