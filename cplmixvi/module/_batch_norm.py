"""Batch normalisation over the minibatches of all processes that train together."""

from __future__ import annotations

import torch
from torch import nn

from cplmixvi._processes import averaged, n_processes


class SyncedBatchNorm(nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` whose mean and variance are those of the minibatches of all processes.

    :class:`torch.nn.SyncBatchNorm` does this on GPUs only. The minibatches must all have the same size.

    Parameters
    ----------
    *args, **kwargs
        Of :class:`torch.nn.BatchNorm1d`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x``, ``(n_cells, n_features)``."""
        if not self.training or n_processes() == 1:
            return super().forward(x)
        mean = averaged(x.mean(0))
        variance = averaged((x - mean).square().mean(0))
        with torch.no_grad():
            n_cells = n_processes() * len(x)
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n_cells / (n_cells - 1), self.momentum)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def synced(module: nn.Module) -> None:
    """Replace the batch normalisations in a module by :class:`SyncedBatchNorm`, keeping their weights.

    Parameters
    ----------
    module
        Changed in place, at any depth. The module itself is not replaced.
    """
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm1d:
            other = SyncedBatchNorm(child.num_features, child.eps, child.momentum)
            other.load_state_dict(child.state_dict())
            setattr(module, name, other.to(child.weight.device).train(child.training))
        else:
            synced(child)
