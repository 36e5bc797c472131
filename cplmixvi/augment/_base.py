"""The one interface of all augmenters, and their composition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Augmenter(nn.Module):
    """A random map from cells to copies of the same type.

    Subclasses implement :meth:`forward`. One call draws one copy of every cell; the module calls it
    once per arm and step, so that the arms' copies are independent given the cell (paper, section 3,
    "Arms observe non-identical copies of samples"). Augmenters are :class:`~torch.nn.Module` so that
    their buffers move to the device with the model and are saved with it.
    """

    #: Whether the augmenter is only meaningful on counts.
    needs_counts: bool = False

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Draw a copy of every cell.

        Parameters
        ----------
        x
            Values as registered (counts or log values), shape ``(n_cells, n_genes)``. Never modified.
        tensors
            The whole minibatch, for augmenters that need more than the values (a cell's index, batch).

        Returns
        -------
        torch.Tensor
            Copies, same shape and scale as ``x``.
        """
        raise NotImplementedError


class Identity(Augmenter):
    """Every arm sees the cell itself (``augment="none"``)."""

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return ``x``."""
        return x


class Compose(Augmenter):
    """Apply several augmenters one after the other.

    Parameters
    ----------
    augmenters
        Applied from first to last.
    """

    def __init__(self, augmenters: Sequence[Augmenter]):
        super().__init__()
        self.augmenters = nn.ModuleList(augmenters)
        self.needs_counts = any(augmenter.needs_counts for augmenter in augmenters)

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Draw from each augmenter in turn."""
        for augmenter in self.augmenters:
            x = augmenter(x, tensors)
        return x
