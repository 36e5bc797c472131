"""A condition that nobody named: two levels of one programme that cells of every type have alike.

A treatment, a donor or a technology shifts cells of all types in about the same direction. Where the shift is strong,
a type that responds more than the others is split by it, though its halves are cells of one type. Such a shift can be
told from a difference between types without labels: it cuts most categories in two, in about the same proportion and in
the same direction.

Batches are such a condition where they change some types much more than others, so that categories follow them.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Sequence

import torch
from sklearn.metrics import adjusted_mutual_info_score

from cplmixvi.augment import AcrossBatches, AcrossLevels, Augmenter
from cplmixvi.module import CplMixVAE

from ._levels import Levels, two_levels
from ._offsets import RESPONSE, one_hot, response, shifts
from ._views import Opinion, batches_respond, fit_committee

logger = logging.getLogger(__name__)

#: Members of a committee that must see the same condition.
MIN_SEEN = 0.6
#: Share of the cells of which a member is sure whose levels must be those of the majority, and how sure that is.
_MIN_AGREEMENT, _SURE = 0.9, 0.95
#: Cells on the rarer level of their type and batch, as a share of those on the rarer level of their type.
_MIN_RARER = 0.5
#: Answers of members from which all others begin once more, and agreement above which two answers are one.
_N_ANSWERS, _ONE_ANSWER = 3, 0.9
#: Cells and coordinates that are looked at: a shift of most cells needs no more.
MAX_CELLS, MAX_DIMENSIONS = 5_000, 25
#: Categories with which a condition is looked for where their number is not known, or all of them follow it: few enough
#: that it does not cut all of them and enough to tell it from a type; and cells that each must have on average
#: at each level.
_FEW_CATEGORIES, _CELLS_PER_CATEGORY = 8, 20
#: Where these follow it as well, still fewer may not; but what so few have in common is more often a pair of types, so
#: that more members must see it.
_FEWEST_CATEGORIES, _MIN_SEEN_OF_FEWEST = 5, 0.8
#: Adjusted mutual information with batches, and with levels, above which a member's categories follow them.
_MIN_FOLLOWING, _MIN_FOLLOWING_LEVELS = 0.02, 0.01


#: Maps log values ``(n, n_genes)`` and codes of batches ``(n,)`` of cells to their levels in a condition, ``(n,)``.
LevelOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Condition:
    """What most members of a committee see: the level of any cell, by their votes.

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
            _vote(levels.of(*_place(member, x, batch))) * (-1 if is_turned else 1)
            for member, levels, is_turned in zip(self.members, self.levels, self.is_turned, strict=True)
        ]
        return torch.stack(votes).mean(0) > 0

    def is_followed(self, x: torch.Tensor, batch: torch.Tensor) -> bool:
        """Whether categories of most members follow it, among those that have both levels or are halves of such."""
        n_following = 0
        for member, levels in zip(self.members, self.levels, strict=True):
            z, category = _place(member, x, batch)
            inside = levels.is_mixed[category]
            level = levels.of(z, category)[inside] > 0.5
            n_following += adjusted_mutual_info_score(level.numpy(), category[inside].numpy()) > _MIN_FOLLOWING_LEVELS
        return n_following > 0.5 * len(self.members)


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

    For use before the number of categories is known: a condition that nobody named is looked for with eight, then
    with five. With as many as there are types at each level, it would cut every type, and none would have both levels.

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
        condition, fewer than 320 cells to look at, or the augmenter names a condition or replaces cells.
    """
    if len(values) < 2 * _CELLS_PER_CATEGORY * max(_FEW_CATEGORIES, n_known) or not may_cross(module.augmenter):
        return None
    x = module.encoder_input(values.to(module.device)).cpu()
    if batches_respond(x, batch):
        logger.info("Batches change some types much more than others: types are looked for across batches.")
        return AcrossBatches(batch.numpy())
    condition = _find_with_few(x, batch, n_known, seed)
    if condition is None:
        return None
    logger.info("A condition shifts cells of most types alike: its levels are not counted as categories.")
    return AcrossLevels(condition(x, batch).long().numpy())


@torch.no_grad()
def find_condition(
    x: torch.Tensor, batch: torch.Tensor, committee: Sequence[Opinion], *, n_known: int = 0, seed: int = 0
) -> tuple[LevelOf, bool] | None:
    """Look for a condition that most members of a committee see alike.

    That is the batches themselves, if they change some types much more than others and the categories of most members
    follow them along what they add. Where all categories follow a strong condition, none has both of its levels: if
    there are more than eight, a second committee with eight is asked, and a third one with five.

    Parameters
    ----------
    x
        Log values of cells in random order, ``(n, n_genes)``; the first 5,000 are looked at.
    batch
        Codes, ``(n,)``.
    committee
        Each with a projection and categories of its own, fitted to cells of its own.
    n_known
        Number of categories that there are at least.
    seed
        Source of all randomness.

    Returns
    -------
    tuple or None
        What tells levels, :func:`its_batch` or a :class:`Condition`, and whether categories of most members follow it;
        `None` if fewer than six in ten of the members see the same one, if cells of one type and batch have one level,
        or if there are fewer than 20 cells per category and level, of which too few are counterparts of each other.
    """
    n_categories = max((len(member.order) for member in committee), default=0)
    is_small = len(x) < 2 * _CELLS_PER_CATEGORY * n_categories
    x, batch = x[:MAX_CELLS], batch[:MAX_CELLS]
    if batches_respond(x, batch) and _follow(committee, x, batch):
        return its_batch, True
    if is_small:
        return None
    condition = _find_levels(x, batch, committee)
    if condition is not None:
        return condition, condition.is_followed(x, batch)
    if n_categories <= max(_FEW_CATEGORIES, n_known):
        return None
    condition = _find_with_few(x, batch, n_known, seed)
    # As all of more categories follow it: none had both levels.
    return None if condition is None else (condition, True)


def _find_with_few(x: torch.Tensor, batch: torch.Tensor, n_known: int, seed: int) -> Condition | None:
    """Levels that members of a committee with eight categories (or as many as are known) see alike, or with five."""
    x, batch = x[:MAX_CELLS], batch[:MAX_CELLS]
    tries = [(max(_FEW_CATEGORIES, n_known), MIN_SEEN)]
    if n_known <= _FEWEST_CATEGORIES:
        tries.append((_FEWEST_CATEGORIES, _MIN_SEEN_OF_FEWEST))
    for n_categories, min_seen in tries:
        committee = fit_committee(x, n_categories, batch, seed=seed, plain_seeds=True)
        condition = _find_levels(x, batch, committee, min_seen)
        if condition is not None:
            return condition
    return None


@torch.no_grad()
def _find_levels(
    x: torch.Tensor, batch: torch.Tensor, committee: Sequence[Opinion], min_seen: float = MIN_SEEN
) -> Condition | None:
    """Levels that most members see alike, of a condition that no batch stands for; see :func:`find_condition`."""
    places = [(*_place(member, x, batch), len(member.order)) for member in committee]
    found = _seen(places)
    sees = [not levels.problem for levels in found]
    if sum(sees) < min_seen * len(committee):
        return None
    members, found, places = (list(itertools.compress(part, sees)) for part in (committee, found, places))
    votes = torch.stack([_vote(levels.of(*place[:2])) for levels, place in zip(found, places, strict=True)])
    # Which level is the upper one is arbitrary.
    alike = votes @ votes.T
    is_turned = alike[alike.abs().sum(1).argmax()] < 0
    votes = torch.where(is_turned[:, None], -votes, votes)
    majority = votes.mean(0) > 0
    agree = [
        bool(((vote > 0) == majority)[vote.abs() > 2 * _SURE - 1].double().mean() >= _MIN_AGREEMENT) for vote in votes
    ]
    if sum(agree) < min_seen * len(committee):
        return None
    members, found, places, turns = (
        list(itertools.compress(part, agree)) for part in (members, found, places, is_turned.tolist())
    )
    of_batches = [
        _are_of_batches(levels, place[1], majority, batch) for levels, place in zip(found, places, strict=True)
    ]
    return None if sum(of_batches) > 0.5 * len(found) else Condition(members, found, turns)


def _are_of_batches(levels: Levels, category: torch.Tensor, level: torch.Tensor, batch: torch.Tensor) -> bool:
    """Whether cells of a batch and type have one level, so that none has a counterpart in its batch."""
    inside = levels.is_mixed[category]
    return bool(inside.any()) and are_of_groups(level[inside], batch[inside], levels.group[category][inside])


def are_of_groups(level: torch.Tensor, group: torch.Tensor, kind: torch.Tensor | None = None) -> bool:
    """Whether most cells of a group have one level, so that few have counterparts in their group.

    Parameters
    ----------
    level
        Of two, ``(n,)``.
    group
        Codes, ``(n,)``.
    kind
        Codes of what cells are compared inside of, ``(n,)``; all cells are of one kind if `None`.
    """
    kind = torch.zeros_like(group) if kind is None else kind

    def rarer(of: torch.Tensor) -> float:
        """Share of the cells that are not on the level of most cells with the same code."""
        n_upper = torch.zeros(int(of.max()) + 1, dtype=torch.double).index_add_(0, of, level.double())
        return float(torch.minimum(n_upper, torch.bincount(of) - n_upper).sum() / len(level))

    return rarer(kind * (int(group.max()) + 1) + group) < _MIN_RARER * rarer(kind)


def _seen(places: Sequence[tuple[torch.Tensor, torch.Tensor, int]]) -> list[Levels]:
    """Levels in coordinates and categories of each member, who begin once more from answers of others."""
    found = [two_levels(*place) for place in places]
    votes = [_vote(levels.of(*place[:2])) for levels, place in zip(found, places, strict=True) if not levels.problem]
    starts = [(answer + 1) / 2 for answer in _answers(votes)]
    if not starts:
        return found
    again = [two_levels(*place, starts=starts) for place in places]
    # What is likelier is better, but for a cut of one category only.
    best = functools.partial(max, key=lambda levels: (not levels.problem, levels.log_likelihood))
    return [best(both) for both in zip(found, again, strict=True)]


def _answers(votes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Different ones of members' votes ``(n,)``, those first to which most others are close."""
    if not votes:
        return []
    stacked = torch.stack(list(votes))
    alike = (stacked @ stacked.T).abs() / stacked.shape[1]
    left = torch.ones(len(votes), dtype=torch.bool)
    answers: list[torch.Tensor] = []
    while left.any() and len(answers) < _N_ANSWERS:
        best = int(torch.where(left, alike.sum(1), -1.0).argmax())
        answers.append(votes[best])
        left &= alike[best] < _ONE_ANSWER
        left[best] = False
    return answers


def _vote(probability: torch.Tensor) -> torch.Tensor:
    """From -1, surely the lower level, to 1, surely the upper one."""
    return 2 * probability - 1


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
