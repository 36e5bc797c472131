"""What a state is expected to be before the cell is seen."""

from __future__ import annotations

import torch
from torch import nn

PRIORS = ("standard", "type")

#: Bounds of the learnt prior's log variance: a category without cells must not drift to zero or infinity.
LOG_VARIANCE_RANGE = (-6.0, 4.0)


class StatePrior(nn.Module):
    r"""Prior :math:`p(s\mid c)` of one arm's state.

    .. math:: p(s\mid c) = \mathcal N(c^\top M, \mathrm{diag}\exp(c^\top V))

    ``"standard"`` has :math:`M = V = 0`: :math:`\mathcal N(0, I)` whatever the category. ``"type"`` learns a mean and a
    variance per category, so that types may vary by different amounts at no cost.

    Parameters
    ----------
    kind
        ``"standard"`` or ``"type"``.
    n_categories, n_state
        ``K`` and ``S``.

    Raises
    ------
    ValueError
        For another ``kind``.
    """

    def __init__(self, kind: str, n_categories: int, n_state: int):
        super().__init__()
        if kind not in PRIORS:
            raise ValueError(f"state_prior={kind!r} is not known; use one of {', '.join(map(repr, PRIORS))}.")
        self.kind, self.n_state = kind, n_state
        if kind == "type":
            self.mean = nn.Parameter(torch.zeros(n_categories, n_state))
            self.log_variance = nn.Parameter(torch.zeros(n_categories, n_state))

    def forward(self, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance given ``c`` ``(..., K)``, each ``(..., n_state)``."""
        if self.kind == "standard":
            shape = (*c.shape[:-1], self.n_state)
            return c.new_zeros(shape), c.new_ones(shape)
        return c @ self.mean, (c @ self.log_variance.clamp(*LOG_VARIANCE_RANGE)).exp()
