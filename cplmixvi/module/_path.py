"""A linear path from a cell's values to its category, beside the encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from cplmixvi._compiled import standardised

from ._dense import linear

#: Coordinates that a path has at least and, for many categories, at most.
MIN_COORDINATES, MAX_COORDINATES = 25, 128


class LinearPath(nn.Module):
    r"""Adds :math:`V^\top U^\top\mathrm{clip}\big((x - m_b)/s\big)` to the logits of the categories.

    The posterior of a mixture with a shared covariance is linear in the coordinates :math:`U^\top(\cdot)`, so that an
    arm can start as good as a guide of that kind. The encoder would need thousands of steps to learn as much, and more
    for types that are in few minibatches. Until :meth:`follow` sets the coordinates, the path adds nothing and learns
    nothing.

    Parameters
    ----------
    n_input
        Number of genes.
    n_categories
        ``K``.
    n_batch
        Number of batches, whose means :math:`m_b` are taken out.
    normal_form
        What cells are replaced by, so that the path sees them as the guide does; nothing if `None`.
    """

    def __init__(
        self,
        n_input: int,
        n_categories: int,
        n_batch: int = 1,
        normal_form: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        super().__init__()
        self.normal_form = normal_form
        self.n_coordinates = min(n_input, max(MIN_COORDINATES, min(n_categories, MAX_COORDINATES)))
        # The last row is for cells of no known batch.
        self.register_buffer("mean", torch.zeros(n_batch + 1, n_input))
        self.register_buffer("inverse_scale", torch.ones(n_input))
        self.register_buffer("clip", torch.tensor(torch.inf))
        self.register_buffer("axes", torch.zeros(n_input, self.n_coordinates))
        self.weight = nn.Parameter(torch.zeros(self.n_coordinates, n_categories))

    @torch.no_grad()
    def follow(self, mean: torch.Tensor, scale: torch.Tensor, axes: torch.Tensor, clip: float) -> None:
        """Set the coordinates.

        Parameters
        ----------
        mean
            Of some batches and, last, of all cells, ``(at most n_batch + 1, n_genes)``.
        scale
            Of every gene, ``(n_genes,)``.
        axes
            ``(n_genes, d)``; those beyond the path's number of coordinates are left out.
        clip
            Largest absolute value of a standardised value.
        """
        self.mean[:] = mean[-1]
        self.mean[: len(mean) - 1] = mean[:-1]
        self.inverse_scale[:] = 1 / scale
        self.clip.fill_(clip)
        width = min(self.n_coordinates, axes.shape[1])
        self.axes.zero_()
        self.axes[:, :width] = axes[:, :width]

    def coordinates(self, x: torch.Tensor, batch: torch.Tensor | None = None) -> torch.Tensor:
        """``(n_cells, n_coordinates)`` for encoder inputs ``(n_cells, n_genes)`` of batches ``(n_cells,)``."""
        x = x if self.normal_form is None else self.normal_form(x)
        # Of one batch there is one mean.
        rows = self.mean[-1:] if batch is None else self.mean[:1] if len(self.mean) == 2 else self.mean
        rows_of = None if len(rows) == 1 else batch
        # Clipped at a number: torch takes several times as long to clip at a tensor. Before a guide sets the clip it is
        # infinite, and the axes are zero.
        clip = self.clip.clamp_max(1e6)
        return linear(standardised(x, rows, rows_of, self.inverse_scale / clip), (self.axes * clip).t())

    def forward(self, x: torch.Tensor, batch: torch.Tensor | None = None) -> torch.Tensor:
        """What is added to the logits, ``(n_cells, K)``."""
        return self.coordinates(x, batch) @ self.weight
