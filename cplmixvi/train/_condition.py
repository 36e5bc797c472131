"""A condition that nobody named: two levels of one programme that cells of every type have alike.

A treatment, a donor or a technology shifts cells of all types in about the same direction. Where the shift is strong,
a type that responds more than the others is split by it, though its halves are cells of one type. Such a shift can be
told from a difference between types without labels: it cuts most categories in two, in about the same proportion, and
one threshold cuts all of them.

Batches are such a condition where they change some types much more than others, so that categories follow them.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from sklearn.metrics import adjusted_mutual_info_score

from cplmixvi.augment import AcrossBatches, AcrossLevels, Augmenter
from cplmixvi.module import CplMixVAE

from ._gaussian import ridge_of
from ._offsets import RESPONSE, one_hot, response, shifts
from ._views import Opinion, batches_respond, fit_committee

logger = logging.getLogger(__name__)

#: Distance of the levels in standard deviations inside a level: so far apart that hardly a cell is in doubt.
MIN_SEPARATION = 4.0
#: Cells that a category needs to be looked at, and share of them that must be on either level for it to have both.
MIN_CELLS, MIN_SHARE = 20, 0.1
#: Categories that must have both levels: so many, and so much of all categories and of all cells.
MIN_MIXED, MIN_MIXED_SHARE = 3, 0.5
#: Members of a committee that must see the condition.
MIN_SEEN = 0.5
#: Cells on which a member must agree with the majority, and one threshold for all categories with one for each.
MIN_AGREEMENT = 0.97
#: Largest standard deviation of a level's place over categories, as a share of the way between levels.
MAX_SPREAD = 0.1
#: Largest standard deviation, over cells, of the proportion of levels in the cell's category.
MAX_DEVIATION = 0.15
#: Cells and coordinates that are looked at: a shift of most cells needs no more.
MAX_CELLS, MAX_DIMENSIONS = 5_000, 25
#: Categories with which a condition is looked for where their number is not known, few enough that it does not cut all
#: of them and enough to tell it from a type; and cells that each must have on average.
_FEW_CATEGORIES, _CELLS_PER_CATEGORY = 8, 20
#: Adjusted mutual information with batches above which a member's categories follow them.
_MIN_FOLLOWING = 0.02
_N_STARTS = 6
_N_ITERATIONS = 60


#: Maps log values ``(n, n_genes)`` and codes of batches ``(n,)`` of cells to their levels in a condition, ``(n,)``.
LevelOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Levels:
    r"""Two levels of one shift inside given categories.

    .. math::
        z_n = \mu_{c_n} + h_n w + \varepsilon_n,\qquad \varepsilon\sim\mathcal N(0, \Sigma),\qquad
        P(h_n = 1) = \rho_{c_n}

    Attributes
    ----------
    axis
        :math:`\Sigma^{-1}w`, ``(d,)``, in which the levels are :math:`D^2` apart.
    separation
        :math:`D = (w^\top\Sigma^{-1}w)^{1/2}`.
    origin
        Place of the lower level on the axis, in each category, ``(K,)``; in those without both levels that of all.
    share
        :math:`\rho`, ``(K,)``.
    is_mixed
        Which categories have both levels, ``(K,)``.
    problem
        Why this is no condition; empty if it is one.
    """

    axis: torch.Tensor
    separation: float
    origin: torch.Tensor
    share: torch.Tensor
    is_mixed: torch.Tensor
    problem: str

    def of(self, z: torch.Tensor, category: torch.Tensor) -> torch.Tensor:
        """Whether cells at ``z`` ``(n, d)`` of categories ``(n,)`` are on the upper level, ``(n,)``."""
        return z.double() @ self.axis > self.origin[category] + 0.5 * self.separation**2


class Condition:
    """What most members of a committee see: the level of any cell, by their majority.

    Parameters
    ----------
    members
        Of the committee.
    levels
        In each member's projection and categories.
    is_turned
        Whether a member's upper level is the first one's lower.
    """

    def __init__(self, members: Sequence[Opinion], levels: Sequence[Levels], is_turned: Sequence[bool]):
        self.members, self.levels, self.is_turned = list(members), list(levels), list(is_turned)

    def __call__(self, x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Whether cells are on the upper level, ``(n,)``, for log values ``(n, n_genes)`` of batches ``(n,)``."""
        votes = [
            levels.of(*_place(member, x, batch)) != is_turned
            for member, levels, is_turned in zip(self.members, self.levels, self.is_turned, strict=True)
        ]
        return torch.stack(votes).double().mean(0) > 0.5


def its_batch(x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Level of each cell where batches themselves are a condition: its batch, ``(n,)``."""
    return batch


def may_cross(augmenter: Augmenter) -> bool:
    """Whether copies could be of both levels of a condition, and the user has not named one."""
    return not (augmenter.replaces or augmenter.nuisance_keys or augmenter.on_images)


def crossing(
    module: CplMixVAE, values: torch.Tensor, batch: torch.Tensor, *, n_known: int = 0, seed: int = 0
) -> AcrossLevels | None:
    """What compares cells at the levels of a condition that types should not follow, if there is one.

    For use before the number of categories is known: a condition that nobody named is looked for with eight. With as
    many as there are types at each level, it would cut every type, and none would have both levels.

    Parameters
    ----------
    module
        What encoders read, and how copies are made.
    values
        Values of cells in random order, ``(n, n_genes)``.
    batch
        Codes of their batches, ``(n,)``.
    n_known
        Number of categories that there are at least.
    seed
        Source of all randomness.

    Returns
    -------
    AcrossLevels or None
        Of the batches, if these change some types much more than others, or of what was found; `None` if there is no
        condition, fewer than 160 cells to look at, or the augmenter names a condition or replaces cells.
    """
    n_categories = max(_FEW_CATEGORIES, n_known)
    if len(values) < _CELLS_PER_CATEGORY * n_categories or not may_cross(module.augmenter):
        return None
    x = module.encoder_input(values.to(module.device)).cpu()
    if batches_respond(x, batch):
        logger.info("Batches change some types much more than others: types are looked for across batches.")
        return AcrossBatches(batch.numpy())
    committee = fit_committee(x[:MAX_CELLS], n_categories, batch[:MAX_CELLS], seed=seed, plain_seeds=True)
    condition = _find_levels(x[:MAX_CELLS], batch[:MAX_CELLS], committee)
    if condition is None:
        return None
    logger.info("A condition shifts cells of all types alike: its levels are not counted as categories.")
    return AcrossLevels(condition(x, batch).long().numpy())


@torch.no_grad()
def find_condition(x: torch.Tensor, batch: torch.Tensor, committee: Sequence[Opinion]) -> LevelOf | None:
    """Look for a condition that most members of a committee see alike.

    That is the batches themselves, if they change some types much more than others and the categories of most members
    follow them along what they add.

    Parameters
    ----------
    x
        Log values of cells in random order, ``(n, n_genes)``; the first 5,000 are looked at.
    batch
        Codes, ``(n,)``.
    committee
        Each with a projection and categories of its own, fitted to cells of its own.

    Returns
    -------
    Callable or None
        Tells levels: :func:`its_batch`, or a :class:`Condition`; `None` if fewer than half of the members see one and
        agree with the majority on the cells' levels, or no batch has cells on both.
    """
    x, batch = x[:MAX_CELLS], batch[:MAX_CELLS]
    if batches_respond(x, batch) and _follow(committee, x, batch):
        return its_batch
    return _find_levels(x, batch, committee)


@torch.no_grad()
def _find_levels(x: torch.Tensor, batch: torch.Tensor, committee: Sequence[Opinion]) -> Condition | None:
    """Levels that most members see alike, of a condition that no batch stands for; see :func:`find_condition`."""
    members, found, votes = [], [], []
    for member in committee:
        place = _place(member, x, batch)
        levels = two_levels(*place, len(member.order))
        if not levels.problem:
            members.append(member)
            found.append(levels)
            votes.append(levels.of(*place))
    if not votes:
        return None
    # Which level is the upper one is arbitrary.
    is_turned = [float((vote == votes[0]).double().mean()) < 0.5 for vote in votes]
    turned = torch.stack([vote != turn for vote, turn in zip(votes, is_turned, strict=True)])
    majority = turned.double().mean(0) > 0.5
    agree = [bool(share >= MIN_AGREEMENT) for share in (turned == majority).double().mean(1)]
    # Levels of which every batch has one are the batches', and none of their cells has a counterpart.
    shares = torch.stack([majority[batch == code].double().mean() for code in batch.unique()])
    if sum(agree) < MIN_SEEN * len(committee) or (torch.minimum(shares, 1 - shares) < MIN_SHARE).all():
        return None
    return Condition(*(list(itertools.compress(part, agree)) for part in (members, found, is_turned)))


def _follow(committee: Sequence[Opinion], x: torch.Tensor, batch: torch.Tensor) -> bool:
    """Whether categories of most members follow batches, and differ along what batches add where they do."""
    centred, members = x - x.mean(0), one_hot(batch, int(batch.max()) + 1, x)
    n_following = 0
    for member in committee:
        posterior = member(x, batch)
        if adjusted_mutual_info_score(batch.numpy(), posterior.argmax(1).numpy()) > _MIN_FOLLOWING:
            offsets = shifts(centred, posterior, members)
            n_following += response(centred, posterior, members, offsets, member.projection.scale) > RESPONSE
    return n_following > 0.5 * len(committee)


def _place(member: Opinion, x: torch.Tensor, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Leading coordinates of cells in a member's projection, and their categories."""
    return member.projection(x, batch)[:, :MAX_DIMENSIONS], member(x, batch).argmax(1)


def two_levels(z: torch.Tensor, category: torch.Tensor, n_categories: int) -> Levels:
    """Fit :class:`Levels` by expectation maximisation from the main axes of the variation inside categories.

    Parameters
    ----------
    z
        Coordinates, ``(n, d)``.
    category
        ``(n,)``.
    n_categories
        ``K``.
    """
    z = z.double()
    members = torch.nn.functional.one_hot(category, n_categories).double()
    size = members.sum(0).clamp_min(1e-9)
    centre = members.T @ z / size[:, None]
    inside = z - centre[category]
    total = inside.T @ inside / len(z) + ridge_of(z)
    starts = torch.linalg.eigh(total)[1][:, -_N_STARTS:].T
    fits = sorted(
        (_maximise(inside, category, members, total, (inside @ start > 0).double()) for start in starts),
        key=lambda fit: fit[0],
    )
    judged = [_judged(z, category, centre, size, *fit[1:]) for fit in reversed(fits)]
    # A cut through one large category can be likelier than a condition that all categories have.
    return next((levels for levels in judged if not levels.problem), judged[0])


def _judged(
    z: torch.Tensor,
    category: torch.Tensor,
    centre: torch.Tensor,
    size: torch.Tensor,
    separation: float,
    axis: torch.Tensor,
    share: torch.Tensor,
) -> Levels:
    """Whether a shift is a condition."""
    place = centre @ axis - share * separation**2
    is_mixed = (torch.minimum(share, 1 - share) >= MIN_SHARE) & (size >= MIN_CELLS)
    weight = size * is_mixed / (size * is_mixed).sum().clamp_min(1e-9)
    origin = torch.where(is_mixed, place, weight @ place)
    levels = Levels(axis, separation, origin, share, is_mixed, "")
    one_threshold = replace(levels, origin=(weight @ place).expand_as(origin))
    looked_at = is_mixed[category]
    agreement = (levels.of(z, category) == one_threshold.of(z, category))[looked_at].double().mean()
    # A category of one level is half of a type that was split: it lies where a level lies.
    upper = levels.of(centre, torch.arange(len(size)))
    off = torch.where(is_mixed, place, centre @ axis - upper * separation**2) - weight @ place
    spread = float((size @ off.square() / size.sum()).sqrt()) / max(separation**2, 1e-9)
    deviation = float((weight @ (share - weight @ share).square()).sqrt())
    n_large, n_mixed = int((size >= MIN_CELLS).sum()), int(is_mixed.sum())
    problem = ""
    if separation < MIN_SEPARATION:
        problem = f"levels are {separation:.1f} standard deviations apart"
    elif n_mixed < max(MIN_MIXED, MIN_MIXED_SHARE * n_large) or looked_at.double().mean() < MIN_MIXED_SHARE:
        problem = f"{n_mixed} of {n_large} categories, with {looked_at.double().mean():.0%} of the cells, have both"
    elif agreement < MIN_AGREEMENT:
        problem = f"one threshold is right for {agreement:.0%} of the cells"
    elif spread > MAX_SPREAD:
        problem = f"levels of categories are off by {spread:.2f} of the way between levels"
    elif deviation > MAX_DEVIATION:
        problem = f"proportions deviate by {deviation:.2f}"
    return replace(levels, problem=problem)


def _maximise(
    inside: torch.Tensor, category: torch.Tensor, members: torch.Tensor, total: torch.Tensor, level: torch.Tensor
) -> tuple[float, float, torch.Tensor, torch.Tensor]:
    """Log-likelihood, :math:`D`, the axis and the proportions, from levels ``(n,)``."""
    size = members.sum(0).clamp_min(1e-9)
    previous = -torch.inf
    for iteration in range(_N_ITERATIONS):
        share = members.T @ level / size
        variance = (level.sum() - (size * share.square()).sum()).clamp_min(1e-9)
        shift = (level - share[category]) @ inside / variance
        within = total - variance / len(inside) * torch.outer(shift, shift) + ridge_of(inside)
        factor = torch.linalg.cholesky(within)
        axis = torch.cholesky_solve(shift[:, None], factor)[:, 0]
        # Kept off 0 and 1, from which no step would lead away.
        prior = ((share * size + 1) / (size + 2))[category]
        lower = inside + share[category, None] * shift
        log_odds = lower @ axis - 0.5 * (shift @ axis) + torch.logit(prior)
        distance2 = torch.linalg.solve_triangular(factor, lower.T, upper=False).square().sum(0)
        log_lower = torch.log1p(-prior) - 0.5 * distance2 - factor.diagonal().log().sum()
        log_likelihood = float((log_lower + torch.nn.functional.softplus(log_odds)).mean())
        level = torch.sigmoid(log_odds)
        if iteration > 5 and log_likelihood - previous < 1e-5:
            break
        previous = log_likelihood
    return log_likelihood, float((shift @ axis).clamp_min(0).sqrt()), axis, members.T @ level / size
