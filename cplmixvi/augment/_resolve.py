"""Augmenters by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

from cplmixvi._constants import COUNT_LIKELIHOODS

from ._across import AcrossCondition
from ._affine import Affine
from ._base import Augmenter, Compose, Identity
from ._learned import LearnedAugmenter
from ._masking import GeneMasking
from ._neighbours import Neighbours
from ._noise import GaussianNoise
from ._thinning import CountThinning

NAMED: dict[str, Callable[[], Augmenter]] = {
    "thin": CountThinning,
    "mask": GeneMasking,
    "noise": GaussianNoise,
    "neighbours": Neighbours,
    "learned": LearnedAugmenter,
    "affine": Affine,
    "none": Identity,
}
#: Names that are followed by "=" and a key of the AnnData.
KEYED: dict[str, Callable[[str], Augmenter]] = {
    "across": AcrossCondition,
    "neighbours": lambda key: Neighbours(use_rep=key),
}

Augment = str | Augmenter | Sequence[str | Augmenter] | None


def resolve(augment: Augment, likelihood: str) -> Augmenter:
    """Convert the model's ``augment`` argument into an augmenter.

    Parameters
    ----------
    augment
        ``"auto"`` (thinning for counts, masking otherwise), ``"thin"``, ``"mask"``, ``"noise"``, ``"neighbours"``,
        ``"neighbours=KEY"`` with coordinates in ``obsm``, ``"across=KEY"`` with a condition in ``obs``, ``"learned"``,
        ``"affine"`` (images), ``"none"`` or `None`; several of these names joined by ``"+"``; an :class:`Augmenter`; or
        a sequence of names and augmenters. If there are several, they are applied in order.
    likelihood
        The model's likelihood; augmenters that need counts are rejected for other values.

    Returns
    -------
    Augmenter
        If an augmenter was given, a copy of it that belongs to the model.

    Raises
    ------
    ValueError
        If a name is unknown, or the augmenter does not suit the likelihood.

    Examples
    --------
    >>> [type(augmenter).__name__ for augmenter in (resolve("auto", "nb"), resolve("auto", "normal"))]
    ['CountThinning', 'GeneMasking']
    """
    counts = likelihood in COUNT_LIKELIHOODS
    if augment is None:
        augment = "none"
    if isinstance(augment, str) and "+" in augment:
        augment = augment.split("+")
    if isinstance(augment, Augmenter):
        augmenter = deepcopy(augment)
    elif isinstance(augment, str):
        augmenter = _named(augment, counts)
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


def _named(augment: str, counts: bool) -> Augmenter:
    """Augmenter of a single name, alone or with a key."""
    if augment == "auto":
        augment = "thin" if counts else "mask"
    name, equals, key = augment.partition("=")
    if equals and name in KEYED and key:
        return KEYED[name](key)
    if not equals and name in NAMED:
        return NAMED[name]()
    raise ValueError(
        f"augment={augment!r} is not known; use 'auto', {', '.join(map(repr, NAMED))}, "
        f"{', '.join(repr(name + '=KEY') for name in KEYED)}, several joined by '+', an Augmenter, or a list of those."
    )
