"""Augmenters by name."""

from __future__ import annotations

from collections.abc import Sequence

from cplmixvi._constants import COUNT_LIKELIHOODS

from ._base import Augmenter, Compose, Identity
from ._masking import GeneMasking
from ._noise import GaussianNoise
from ._thinning import CountThinning

NAMED: dict[str, type[Augmenter]] = {
    "thin": CountThinning,
    "mask": GeneMasking,
    "noise": GaussianNoise,
    "none": Identity,
}


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
    if augment is None:
        augment = "none"
    if isinstance(augment, str) and augment == "auto":
        augment = "thin" if counts else "mask"
    if isinstance(augment, Augmenter):
        augmenter = augment
    elif isinstance(augment, str):
        if augment not in NAMED:
            raise ValueError(
                f"augment={augment!r} is not known; use 'auto', {', '.join(map(repr, NAMED))}, an Augmenter, "
                "or a list of those."
            )
        augmenter = NAMED[augment]()
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
