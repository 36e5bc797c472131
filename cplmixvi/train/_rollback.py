"""Going back to the last good state when a training diverges."""

from __future__ import annotations

import math
import warnings

import torch
from torch import nn

#: What the learning rate is multiplied by, and how often, before the training is given up.
RATE_FACTOR = 0.3
MAX_ROLLBACKS = 10
#: No weight of a network that works is larger; products of larger ones are not finite.
_LARGEST = 1e8


class LastGood:
    """Copy of the weights and optimisers of a training from the start of its last epoch that went well.

    Parameters
    ----------
    module
        What is trained.
    n_genes
        A reconstruction that is worse than the best by more than one nat per gene, and more than twice as bad, has
        diverged.

    Attributes
    ----------
    n_rollbacks
        How often the training went back.
    best
        Lowest mean reconstruction loss of an epoch, or of the first minibatch, so far, nats per cell.
    """

    def __init__(self, module: nn.Module, n_genes: int):
        self.module, self.n_genes = module, n_genes
        self.n_rollbacks, self.best = 0, math.inf
        self._weights: dict[str, object] = {}
        self._optimizers: list[dict] = []

    def take(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Copy the state as it is."""
        self._weights = _copied(self.module.state_dict())
        self._optimizers = [_copied(optimizer.state_dict()) for optimizer in optimizers]

    def is_bad(self, reconstruction: float) -> bool:
        """Whether an epoch with this mean reconstruction loss (nats per cell) has diverged, or left no usable weights.

        Otherwise the loss is remembered.
        """
        if not reconstruction <= self.best + max(abs(self.best), self.n_genes) or not self.is_finite():
            return True
        self.best = min(self.best, reconstruction)
        return False

    def is_finite(self) -> bool:
        """Whether all weights are finite, and small enough for what is computed from them to be."""
        return all(bool((parameter.abs() < _LARGEST).all()) for parameter in self.module.parameters())

    def go_back(self, optimizers: list[torch.optim.Optimizer], epoch: int) -> None:
        """Put the copy back, and lower the learning rates.

        Parameters
        ----------
        optimizers
            Of the training.
        epoch
            Epochs that were done, for the message.

        Raises
        ------
        ValueError
            If that has been done ten times: lower rates do not help.

        Warns
        -----
        UserWarning
            That says so, with the new rate.
        """
        self.n_rollbacks += 1
        rates = [[RATE_FACTOR * group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        rate = max(max(some) for some in rates)
        if self.n_rollbacks > MAX_ROLLBACKS:
            raise ValueError(
                f"The training diverges in epoch {epoch + 1} even with a learning rate of {rate / RATE_FACTOR:.2g}: "
                "check the values for extreme cells, or train with plan_kwargs={'lr': ...} of your own or another "
                "likelihood."
            )
        self.module.load_state_dict(self._weights)
        for optimizer, state, some in zip(optimizers, self._optimizers, rates, strict=True):
            # A copy, because the optimiser would go on with the tensors that it is given.
            optimizer.load_state_dict(_copied(state))
            for group, lr in zip(optimizer.param_groups, some, strict=True):
                group["lr"] = lr
        warnings.warn(
            f"The training diverged in epoch {epoch + 1}; it goes on from the last good state with a learning rate of "
            f"{rate:.2g}.",
            UserWarning,
            stacklevel=2,
        )


def _copied(value: object) -> object:
    """Nested dicts, lists and tuples with copies of all tensors in them, on their devices."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
