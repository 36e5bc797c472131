"""Two levels of one shift inside given categories, as a condition has them that changes some types more than others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ._gaussian import ridge_of

#: Distance of the levels in standard deviations inside a level: the mean of all categories that have both, and the
#: least that one of them must have. The likeliest cut of normal cells is 3 to 4 apart.
MIN_SEPARATION, _MIN_ITS_SEPARATION = 4.0, 3.0
#: Cells that a category needs to be looked at, and share of them that must be on either level for it to have both.
_MIN_CELLS, _MIN_SHARE = 20, 0.1
#: Categories that must have both levels: so many, and so much of all categories and of all cells.
_MIN_MIXED, _MIN_MIXED_SHARE = 3, 0.5
#: Cosine of what a category's levels differ by with the common shift, mean over those that have both.
_MIN_COSINE = 0.75
#: Largest standard deviation, over cells, of the proportion of levels in the cell's category.
_MAX_DEVIATION = 0.15
#: Cosine with the shift of the difference of two categories that are the halves of a type.
_TWIN_COSINE = 0.6
#: Cells at an even split by which a category's strength is drawn towards that of all, and the largest.
_STRENGTH_CELLS, _MAX_STRENGTH = 40, 5.0
_N_STARTS = 6
_N_ITERATIONS = 60


@dataclass(frozen=True)
class Levels:
    r"""Two levels of one shift inside given categories, which it moves by different lengths.

    .. math::
        z_n = \mu_{c_n} + h_n a_{c_n} w + \varepsilon_n,\qquad \varepsilon\sim\mathcal N(0, \Sigma),\qquad
        P(h_n = 1) = \rho_{c_n}

    Attributes
    ----------
    shift
        :math:`w`, ``(d,)``.
    factor
        Lower triangular :math:`L` with :math:`\Sigma = LL^\top`, ``(d, d)``.
    strength
        :math:`a`, ``(K,)``.
    offset
        Logarithmic odds of the upper level of a cell of each category at the origin, ``(K,)``.
    middle
        Where the axis passes the mean of each category, ``(K,)``.
    share
        :math:`\rho`, ``(K,)``.
    is_mixed
        Which categories have both levels, ``(K,)``.
    group
        Lowest number of the categories that are halves of the same type as this one, or itself, ``(K,)``.
    log_likelihood
        Per cell, in nats.
    problem
        Why this is no condition; empty if it is one.
    """

    shift: torch.Tensor
    factor: torch.Tensor
    strength: torch.Tensor
    offset: torch.Tensor
    middle: torch.Tensor
    share: torch.Tensor
    is_mixed: torch.Tensor
    group: torch.Tensor
    log_likelihood: float
    problem: str

    @property
    def axis(self) -> torch.Tensor:
        r""":math:`\Sigma^{-1}w`, along which levels are told apart, ``(d,)``."""
        return torch.cholesky_solve(self.shift[:, None], self.factor)[:, 0]

    @property
    def separation(self) -> torch.Tensor:
        r"""Distance of the levels in standard deviations, :math:`a_c (w^\top\Sigma^{-1}w)^{1/2}`, ``(K,)``."""
        return self.strength * (self.shift @ self.axis).clamp_min(0).sqrt()

    @property
    def direction(self) -> torch.Tensor:
        """Unit vector of the shift where coordinates vary by one inside a level, ``(d,)``."""
        return torch.nn.functional.normalize(self.whiten(self.shift[None])[0], dim=0)

    def whiten(self, rows: torch.Tensor) -> torch.Tensor:
        r"""Rows :math:`L^{-1}x`, ``(n, d)``, whose coordinates vary by one inside a level."""
        return torch.linalg.solve_triangular(self.factor, rows.double().T, upper=False).T

    def of(self, z: torch.Tensor, category: torch.Tensor) -> torch.Tensor:
        """Probability that cells at ``z`` ``(n, d)`` of categories ``(n,)`` are on the upper level, ``(n,)``.

        Cells of a category without both levels are on either side of its middle and never sure: they may not have the
        shift at all, and then cells of the same category, not of another, are to be compared with them.
        """
        place = z.double() @ self.axis
        log_odds = self.strength[category] * place + self.offset[category]
        unsure = (place - self.middle[category]) / (self.shift @ self.axis).clamp_min(1e-9).sqrt()
        return torch.sigmoid(torch.where(self.is_mixed[category], log_odds, unsure))


def two_levels(
    z: torch.Tensor, category: torch.Tensor, n_categories: int, starts: Sequence[torch.Tensor] | None = None
) -> Levels:
    """Fit :class:`Levels` by expectation maximisation: the likeliest that are a condition, or those closest to one.

    Categories without both levels that differ from each other as levels do are taken for halves of a type, unless there
    is a condition only without that.

    Parameters
    ----------
    z
        Coordinates, ``(n, d)``.
    category
        ``(n,)``.
    n_categories
        ``K``.
    starts
        Probabilities of the upper level to begin with, ``(n,)`` each; `None` for cuts along the main axes of the
        variation inside categories.
    """
    z = z.double()
    group = torch.arange(n_categories)
    if starts is None:
        inside, total = _inside(z, category, n_categories)
        starts = [(inside @ axis > 0).double() for axis in torch.linalg.eigh(total)[1][:, -_N_STARTS:].T]
    fits = [_fit(z, category, group, start) for start in starts]
    fits.sort(key=lambda levels: -levels.log_likelihood)
    # A cut through one large category can be likelier than a condition that all categories have.
    for levels in fits:
        tried = [levels]
        # The shift is better known with each pair of twins, and leads to others.
        while (joined := _with_twins_joined(z, category, tried[-1])) is not None:
            tried.append(joined)
        for candidate in reversed(tried):
            if not candidate.problem:
                return candidate
    return fits[0]


def _inside(z: torch.Tensor, category: torch.Tensor, n_categories: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates from the centres of categories, ``(n, d)``, and their covariance."""
    size = torch.bincount(category, minlength=n_categories).double()
    inside = z - (_sums(z, category, size) / size.clamp_min(1e-9)[:, None])[category]
    return inside, inside.T @ inside / len(z) + ridge_of(z)


def _sums(values: torch.Tensor, category: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Sums of values ``(n, ...)`` over the cells of each category, of sizes ``(K,)``: ``(K, ...)``."""
    return values.new_zeros(len(size), *values.shape[1:]).index_add_(0, category, values)


def _fit(z: torch.Tensor, category: torch.Tensor, group: torch.Tensor, level: torch.Tensor) -> Levels:
    """Levels from those to begin with, ``(n,)``, where categories of a group are one."""
    joined = group[category]
    inside, total = _inside(z, joined, len(group))
    size = torch.bincount(joined, minlength=len(group)).double()
    strength, shift, within, previous = torch.ones(len(group), dtype=torch.double), None, total, -torch.inf
    for iteration in range(_N_ITERATIONS):
        share = _sums(level, joined, size) / size.clamp_min(1e-9)
        weight = size * share * (1 - share)
        # What levels of each category differ by, times its weight.
        difference = _sums((level - share[joined])[:, None] * inside, joined, size)
        if shift is None:
            shift = difference.sum(0) / weight.sum().clamp_min(1e-9)
        axis = torch.linalg.solve(within, shift)
        length2 = (shift @ axis).clamp_min(1e-9)
        # An even split of n cells has the weight n / 4.
        strength = (difference @ axis / length2 + _STRENGTH_CELLS / 4) / (weight + _STRENGTH_CELLS / 4)
        strength = strength.clamp(0, _MAX_STRENGTH)
        along, norm = strength @ difference, weight @ strength.square()
        shift = along / norm.clamp_min(1e-9)
        within = total - (norm / len(z)) * torch.outer(shift, shift) + ridge_of(z)
        factor = torch.linalg.cholesky(within)
        axis = torch.cholesky_solve(shift[:, None], factor)[:, 0]
        length2 = shift @ axis
        # Kept off 0 and 1, from which no step would lead away.
        prior = ((share * size + 1) / (size + 2)).clamp(1e-6, 1 - 1e-6)
        its_strength, its_prior = strength[joined], prior[joined]
        lower = inside + (share[joined] * its_strength)[:, None] * shift
        log_odds = its_strength * (lower @ axis) - 0.5 * its_strength.square() * length2 + torch.logit(its_prior)
        distance2 = torch.linalg.solve_triangular(factor, lower.T, upper=False).square().sum(0)
        log_lower = torch.log1p(-its_prior) - 0.5 * distance2 - factor.diagonal().log().sum()
        log_likelihood = float((log_lower + torch.nn.functional.softplus(log_odds)).mean())
        level = torch.sigmoid(log_odds)
        if iteration > 5 and log_likelihood - previous < 1e-5:
            break
        previous = log_likelihood
    centre = _sums(z, joined, size) / size.clamp_min(1e-9)[:, None]
    middle = centre @ axis
    offset = strength * (strength * length2 * (share - 0.5) - middle) + torch.logit(prior)
    share = _sums(level, joined, size) / size.clamp_min(1e-9)
    is_mixed = (torch.minimum(share, 1 - share) >= _MIN_SHARE) & (size >= _MIN_CELLS)
    levels = Levels(
        shift=shift,
        factor=factor,
        strength=strength[group],
        offset=offset[group],
        middle=middle[group],
        share=share[group],
        is_mixed=is_mixed[group],
        group=group,
        log_likelihood=log_likelihood,
        problem="",
    )
    levels = replace(levels, is_mixed=levels.is_mixed & (levels.separation >= _MIN_ITS_SEPARATION))
    return replace(levels, problem=_problem(levels, size, weight, difference, total))


def _problem(
    levels: Levels, size: torch.Tensor, weight: torch.Tensor, difference: torch.Tensor, total: torch.Tensor
) -> str:
    """Why levels are no condition.

    By sizes of groups, their weight ``n rho (1 - rho)``, what levels of each differ by times that, ``(K, d)``, and the
    covariance inside groups.
    """
    is_one = levels.group == torch.arange(len(size))
    mixed = levels.is_mixed & is_one
    n_large, n_mixed = int(((size >= _MIN_CELLS) & is_one).sum()), int(mixed.sum())
    n_joined = int((torch.bincount(levels.group, minlength=len(size)) > 1).sum())
    if n_joined and n_mixed < n_joined + max(_MIN_MIXED, n_joined):
        return f"{n_joined} of {n_mixed} categories with both levels are two that were joined"
    part = size * mixed / (size * mixed).sum().clamp_min(1e-9)
    cells, separation = float((size * mixed).sum() / size.sum()), float(part @ levels.separation)
    if n_mixed < max(_MIN_MIXED, _MIN_MIXED_SHARE * n_large) or cells < _MIN_MIXED_SHARE:
        return f"{n_mixed} of {n_large} categories, with {cells:.0%} of the cells, have both"
    if separation < MIN_SEPARATION:
        return f"levels are {separation:.1f} standard deviations apart"
    # In the metric of what varies inside the levels of each category, whatever these differ by.
    differences = difference / weight.clamp_min(1e-9)[:, None]
    its_own = replace(levels, factor=torch.linalg.cholesky(total - difference.T @ differences / size.sum()))
    direction = its_own.direction
    differences = its_own.whiten(differences)
    along = differences @ direction
    # What differences of few cells have of noise is taken off.
    noise = (len(direction) - 1) / weight.clamp_min(1e-9)
    across2 = (differences.square().sum(1) - along.square() - noise).clamp_min(0)
    cosine = float(part @ (along.clamp_min(0) / (along.square() + across2).sqrt().clamp_min(1e-9)))
    if cosine < _MIN_COSINE:
        return f"what levels differ by has a cosine of {cosine:.2f} with the shift"
    deviation = float((part @ (levels.share - part @ levels.share).square()).sqrt())
    return f"proportions deviate by {deviation:.2f}" if deviation > _MAX_DEVIATION else ""


def _with_twins_joined(z: torch.Tensor, category: torch.Tensor, levels: Levels) -> Levels | None:
    """Levels with categories joined that seem to be the two halves of a type; `None` if there are none."""
    size = torch.bincount(category, minlength=len(levels.group)).double()
    centre = levels.whiten(_sums(z, category, size) / size.clamp_min(1e-9)[:, None])
    is_alone = torch.bincount(levels.group, minlength=len(size))[levels.group] == 1
    single = torch.nonzero((size >= _MIN_CELLS) & ~levels.is_mixed & is_alone).view(-1)
    place = centre[single] @ levels.direction
    cosine = ((place - place[:, None]) / torch.cdist(centre[single], centre[single]).clamp_min(1e-9)).triu(1)
    pairs = torch.nonzero(cosine.abs() > _TWIN_COSINE)
    found = cosine[tuple(pairs.T)]
    group, level = levels.group.clone(), levels.of(z, category)
    taken: set[int] = set()
    for index in found.abs().argsort(descending=True).tolist():
        first, second = single[pairs[index]].tolist()
        if taken.isdisjoint((first, second)):
            taken |= {first, second}
            second_is_upper = bool(found[index] > 0)
            group[second] = first
            level[category == first], level[category == second] = float(not second_is_upper), float(second_is_upper)
    return _fit(z, category, group, level) if taken else None
