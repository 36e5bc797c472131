"""The one interface of all augmenters, their composition, and their names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from cplmixvi._constants import COUNT_LIKELIHOODS


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


def _named() -> dict[str, type[Augmenter]]:
    # Imported here because the concrete augmenters derive from this file's base class.
    from ._masking import GeneMasking
    from ._noise import GaussianNoise
    from ._thinning import CountThinning

    return {"thin": CountThinning, "mask": GeneMasking, "noise": GaussianNoise, "none": Identity}


def resolve(augment: str | Augmenter | Sequence[str | Augmenter] | None, likelihood: str) -> Augmenter:
    """Turn the model's ``augment`` argument into an augmenter.

    Parameters
    ----------
    augment
        ``"auto"`` (thinning on counts, masking otherwise), ``"thin"``, ``"mask"``, ``"noise"``,
        ``"none"`` or `None`, an :class:`Augmenter`, or a sequence of those, applied in order.
    likelihood
        The model's likelihood: augmenters that need counts are refused on other values.

    Returns
    -------
    Augmenter

    Raises
    ------
    ValueError
        If the name is unknown or the augmenter does not fit the likelihood.
    """
    counts = likelihood in COUNT_LIKELIHOODS
    named = _named()
    if augment is None:
        augment = "none"
    if isinstance(augment, str) and augment == "auto":
        augment = "thin" if counts else "mask"
    if isinstance(augment, Augmenter):
        augmenter = augment
    elif isinstance(augment, str):
        if augment not in named:
            raise ValueError(
                f"augment={augment!r} is not known; use 'auto', {', '.join(map(repr, named))}, an Augmenter, "
                "or a list of those."
            )
        augmenter = named[augment]()
    elif isinstance(augment, Sequence) and len(augment) > 0:
        augmenter = Compose([resolve(part, likelihood) for part in augment])
    else:
        raise ValueError(
            f"augment={augment!r} is neither a name, an Augmenter nor a non-empty list of those; use augment='auto'."
        )
    if augmenter.needs_counts and not counts:
        raise ValueError(
            f"augment={augment!r} thins counts, but likelihood={likelihood!r} is for values that are not counts; "
            "use augment='mask' or 'noise', or a count likelihood."
        )
    return augmenter
