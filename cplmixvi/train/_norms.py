"""Running statistics of batch normalisation that are right after a few steps too."""

from __future__ import annotations

from torch import nn

#: Statistics are those of the last so-and-so-many parts of the steps: a tenth.
_PARTS = 10


class WarmNorms:
    r"""Momentum of batch normalisations while they have seen few minibatches.

    scvi-tools' momentum :math:`m = 0.01` makes running means and variances those of the last hundred minibatches, and
    of where they start, 0 and 1. In a training of a hundred steps that is neither what the networks have become nor
    what they were, and what they have learned can be lost at inference. With :math:`\max(m, 10 / (n + 9))` for
    minibatch :math:`n` statistics are those of the last tenth of the steps, until these are a thousand.

    Parameters
    ----------
    module
        Whose batch normalisations, at any depth, are about to be trained.
    """

    def __init__(self, module: nn.Module):
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d) and part.momentum is not None]
        # Minibatches that a training before this one has seen count as well.
        self._norms = [(norm, norm.momentum, int(norm.num_batches_tracked)) for norm in norms]
        self._n_steps = 0

    def step(self) -> None:
        """Set the momentum of the next minibatch."""
        self._n_steps += 1
        for norm, momentum, n_seen in self._norms:
            norm.momentum = max(momentum, _PARTS / (n_seen + self._n_steps + _PARTS - 1))

    def release(self) -> None:
        """Give each its own momentum back."""
        for norm, momentum, _ in self._norms:
            norm.momentum = momentum
