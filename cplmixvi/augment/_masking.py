"""Gene masking: the copy in which some genes were not measured."""

from __future__ import annotations

import torch

from ._base import Augmenter


class GeneMasking(Augmenter):
    r"""Set each value to zero with probability ``rate``, independently.

    :math:`x_a = x \odot m`, :math:`m_g \sim \mathrm{Bernoulli}(1 - \text{rate})`. For log values and counts alike, a
    zero means "not detected", which is also how dropout appears in single-cell data. Arms reconstruct the cell without
    the mask.

    Parameters
    ----------
    rate
        Probability of masking a value, in ``[0, 1)``.

    Raises
    ------
    ValueError
        If ``rate`` is outside ``[0, 1)``.
    """

    corrupts = True

    def __init__(self, rate: float = 0.2):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate!r} is outside [0, 1); give the probability of masking a value.")
        self.rate = float(rate)

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Draw a masked copy of ``x``, ``(n_cells, n_genes)``."""
        return x * (torch.rand_like(x) >= self.rate).to(x.dtype)
