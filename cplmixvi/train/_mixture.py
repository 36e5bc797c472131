"""The likeliest mixture that a search finds: cheap restarts, then components merged and split.

Expectation maximisation (:class:`~cplmixvi.train._em.MixtureEM`) finds the likeliest mixture only from many starts and
with merge-and-split moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ._em import Fit, Mixture, MixtureEM
from ._gaussian import inverse_root, moments, ridge_of
from ._labels import certain, importance, some_rows

#: Points per component that a search looks at, so that rare types are among them.
_POINTS_PER_COMPONENT = 60
#: Pairs that a round of moves tries before it gives up.
_TRIES = 12
#: Nearest components that one may be merged with.
_NEAREST = 2
#: Starts that moves are made from.
_BEST = 3


class SharedCovarianceMixture(MixtureEM):
    """Fits :class:`~cplmixvi.train._em.Mixture` with restarts and merge-and-split moves, chosen by likelihood.

    Parameters
    ----------
    n_components, shrinkage, dof, generator
        Of :class:`~cplmixvi.train._em.MixtureEM`.
    n_starts
        Restarts of the fit with one covariance in one view, which is cheap.
    n_moves
        Merge-and-split moves tried from the best start.
    n_search
        Points that starts and moves look at, at least (more for many components); the final fit uses all.
    plain_seeds
        Whether seeds are spread in the coordinates as they are as well, where what lies between types is large. A
        single search misses fewer types with them; the likeliest of many finds them without.
    """

    def __init__(
        self,
        n_components: int,
        *,
        n_starts: int = 4,
        n_moves: int = 40,
        n_search: int = 4_000,
        plain_seeds: bool = False,
        **em_options,
    ):
        super().__init__(n_components, **em_options)
        self.n_starts = n_starts
        self.plain_seeds = plain_seeds
        self.n_moves = n_moves
        self.n_search = n_search

    def fit(
        self,
        views: Sequence[torch.Tensor],
        starts: Sequence[torch.Tensor] | None = None,
        known: torch.Tensor | None = None,
    ) -> Fit:
        """Likeliest mixture found.

        Parameters
        ----------
        views
            Points in every view, each ``(n, d)``.
        starts
            Posteriors ``(n, K)`` to start from; searched for if `None`.
        known
            Component of the points where that is known and -1 elsewhere, ``(n,)``.

        Returns
        -------
        Fit
        """
        n = len(views[0])
        n_search = max(self.n_search, _POINTS_PER_COMPONENT * self.n_components)
        rows = slice(None)
        if n > 1.3 * n_search:
            rows = some_rows(n, n_search, known, generator=self.generator)
        some, of_some = [view[rows] for view in views], None if known is None else known[rows]
        begun = self._starts(some, of_some) if starts is None else [start[rows] for start in starts]
        found: list[Fit] = []
        for start in begun:
            worst = found[0].log_likelihood if len(found) == _BEST else -math.inf
            found.append(self.maximise(some, start, n_iterations=30, known=of_some, above=worst))
            found = sorted(found, key=lambda fit: fit.log_likelihood)[-_BEST:]
        # Moves change one pair at a time, which does not lead out of every optimum: so from several, and on from the
        # best of what they reach.
        few = self.n_moves // (_BEST + 1)
        best = max((self._move(some, fit, few, of_some) for fit in found), key=lambda fit: fit.log_likelihood)
        best = self._move(some, best, self.n_moves - few * len(found), of_some)
        return self.maximise(views, self.posterior(views, best), n_iterations=30, known=known)

    def _starts(self, views: Sequence[torch.Tensor], known: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Posterior of the likeliest fit with one covariance in every view, for as many views as there are starts."""
        found = []
        for index in range(self.n_starts):
            x = views[index % len(views)]
            covariance = torch.cov(x.T.double(), correction=0).reshape(x.shape[1], -1) + 1e-6 * torch.eye(x.shape[1])
            fits = [self._from_seeds(x, x, known)] if self.plain_seeds else []
            # The second time seeds are spread in the metric in which the first fit's types are round.
            for _ in range(2):
                fits.append(self._from_seeds(x, x @ inverse_root(covariance).float(), known))
                covariance = fits[-1].mixtures[0].shared
            start = max(fits, key=lambda fit: fit.log_likelihood)
            found.append((start.log_likelihood, index % len(views), start.posterior))
        best = []
        # Likelihoods of different views cannot be compared: the best of each.
        for index in range(len(views)):
            own = [entry for entry in found if entry[1] == index]
            best += [max(own, key=lambda entry: entry[0])[2]] if own else []
        return best

    def _from_seeds(self, x: torch.Tensor, metric: torch.Tensor, known: torch.Tensor | None) -> Fit:
        """Fit with one covariance in one view ``x``, from seeds that are spread in coordinates ``metric``."""
        seeded = self._seeded(metric, known)
        return self.maximise([x], seeded, n_iterations=60, shrinkage=math.inf, known=known)

    def improved(
        self,
        views: Sequence[torch.Tensor],
        fit: Fit,
        starts: Sequence[torch.Tensor],
        known: torch.Tensor | None = None,
    ) -> Fit:
        """Likeliest of a fit and of those from other posteriors, see :meth:`MixtureEM.improved`."""
        for start in starts:
            better = fit.log_likelihood + 1e-4
            other = self.maximise(views, start, n_iterations=30, known=known, above=better)
            fit = other if other.log_likelihood > better else fit
        return fit

    def _move(self, views: Sequence[torch.Tensor], fit: Fit, budget: int, known: torch.Tensor | None = None) -> Fit:
        """Take a component away and cut another in two while that makes the fit likelier.

        What a cut would gain is found by expectation maximisation on the component's own points. What taking away would
        lose is found by giving its points to the others, or by merging it with a near one, whichever loses less. The
        most promising pairs are tried on all points. Components that are known for some point stay, and of their halves
        that with most of these points keeps their name.
        """
        tried: set[tuple[int, ...]] = set()
        while budget > 0 and self.n_components > 1:
            log_p, precision = self._log_joint(views, fit.mixtures, fit.weight)
            log_p = certain(log_p, known)
            loss, heir = self._losses(views, fit, log_p, precision)
            cuts = [self._cut(views, fit, log_p, k) for k in range(self.n_components)]
            score = torch.tensor([gain for gain, _, _ in cuts])[:, None] - loss[None]
            score.fill_diagonal_(-math.inf)
            if known is not None:
                score[:, known[known >= 0]] = -math.inf
            improved = False
            for pair in score.flatten().argsort(descending=True)[:_TRIES].tolist():
                cut, gone = divmod(pair, self.n_components)
                # Minus infinity: the same component twice, or one too small to cut.
                if budget == 0 or (cut, gone) in tried or score[cut, gone] == -math.inf:
                    continue
                budget -= 1
                _, rows, halves = cuts[cut]
                halves = halves if known is None else _named_first(halves, known[rows] == cut)
                posterior = _without(log_p, gone, int(heir[gone]))
                share = posterior[rows, cut]
                posterior[rows, gone] = share * halves[:, 1]
                posterior[rows, cut] = share * halves[:, 0]
                better = fit.log_likelihood + 1e-4
                moved = self.maximise(views, posterior, n_iterations=15, known=known, above=better)
                if moved.log_likelihood > better:
                    fit, improved = moved, True
                    tried.clear()
                    break
                tried.add((cut, gone))
            if not improved:
                break
        return fit

    def _cut(
        self, views: Sequence[torch.Tensor], fit: Fit, log_p: torch.Tensor, k: int
    ) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Cut component ``k``: gain in log-likelihood over all points, its points, and their shares of both halves."""
        weight = fit.posterior[:, k]
        rows = (weight > 0.05).nonzero().squeeze(1)
        if len(rows) < 4:
            return -math.inf, rows, torch.full((len(rows), 2), 0.5)
        points = [view[rows] for view in views]
        index = int(torch.randint(len(views), (1,), generator=self.generator))
        root = inverse_root(fit.mixtures[index].shared).float()
        first = self._halve(points[index] @ root, weight[rows])
        halves = torch.stack([first, ~first], dim=1).float()
        others = log_p[rows].index_fill(1, torch.tensor([k]), -math.inf).logsumexp(1, keepdim=True)
        kappa = self.shrinkage * len(log_p) / self.n_components
        precision, ridges = [torch.ones_like(halves)] * len(views), [ridge_of(x) for x in points]
        posterior = weight[rows, None] * halves
        for _ in range(8):
            size = posterior.sum(0) + 1e-8
            parts = [
                _shrunk(x, posterior * p, size, kappa, mixture.shared, ridge)
                for x, p, ridge, mixture in zip(points, precision, ridges, fit.mixtures, strict=True)
            ]
            log_two, precision = self._log_joint(points, parts, size / len(log_p))
            total = torch.cat([others, log_two], dim=1).logsumexp(1, keepdim=True)
            posterior = torch.exp(log_two - total)
        gain = (total[:, 0] - log_p[rows].logsumexp(1)).sum() / len(log_p)
        return float(gain), rows, posterior / posterior.sum(1, keepdim=True).clamp_min(1e-12)

    def _losses(
        self, views: Sequence[torch.Tensor], fit: Fit, log_p: torch.Tensor, precision: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the mean log-likelihood loses without each component, ``(K,)``, and which other takes its points.

        That is -1 where all do and stay as they are. Two pieces of one type are far apart for what they are, so that to
        take one away seems to cost much; it costs nearly nothing if the other is fitted to the points of both.
        """
        loss = _removal_loss(log_p)
        heir = torch.full(loss.shape, -1)
        total, kappa = log_p.logsumexp(1), self.shrinkage * len(log_p) / self.n_components
        apart = torch.stack([torch.cdist(m.mean @ m.root(), m.mean @ m.root()) for m in fit.mixtures]).mean(0)
        nearest = apart.fill_diagonal_(math.inf).argsort(1)[:, :_NEAREST].tolist()
        pairs = {(min(k, near), max(k, near)) for k in range(self.n_components) for near in nearest[k] if near != k}
        for pair in sorted(pairs):
            both = torch.tensor(pair)
            rows = (fit.posterior[:, both].sum(1) > 0.05).nonzero().squeeze(1)
            if len(rows) < 4:
                continue
            points, share = [view[rows] for view in views], fit.posterior[rows][:, both]
            size = share.sum()[None]
            merged = [
                _shrunk(x, (share * p[rows][:, both]).sum(1, keepdim=True), size, kappa, mixture.shared, ridge_of(x))
                for x, p, mixture in zip(points, precision, fit.mixtures, strict=True)
            ]
            log_one = self._log_joint(points, merged, size / len(log_p))[0]
            others = log_p[rows].index_fill(1, both, -math.inf)
            lost = float((total[rows] - torch.cat([others, log_one], dim=1).logsumexp(1)).sum() / len(log_p))
            for gone, other in (pair, pair[::-1]):
                if lost < loss[gone]:
                    loss[gone], heir[gone] = lost, other
        return loss, heir

    def _halve(self, z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Two-means of weighted points from two of them, in whitened coordinates: members of the first half."""
        centres = z[torch.multinomial(weight, 2, generator=self.generator)].clone()
        for _ in range(3):
            first = (z - centres[0]).square().sum(1) < (z - centres[1]).square().sum(1)
            for index, member in enumerate((first, ~first)):
                mass = weight * member
                if mass.sum() > 1:
                    centres[index] = mass @ z / mass.sum()
        return first

    def _seeded(self, z: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """One-hot assignment from greedy k-means++ seeds and ten Lloyd steps, ``(n, K)``.

        The seed of a component that is known for some points is their mean, and Lloyd steps leave these to it.
        """
        n = len(z)
        given = [] if known is None else known[known >= 0].unique().tolist()
        centres = [z[known == k].mean(0) for k in given] or [z[int(torch.randint(n, (1,), generator=self.generator))]]
        nearest = torch.stack([(z - centre).square().sum(1) for centre in centres]).amin(0)
        for _ in range(self.n_components - len(centres)):
            tried = torch.multinomial(nearest + 1e-12, min(4, n), generator=self.generator)
            distances = torch.minimum(nearest, torch.cdist(z[tried], z).square())
            best = int(distances.sum(1).argmin())
            nearest = distances[best]
            centres.append(z[tried[best]])
        others = [k for k in range(self.n_components) if k not in given]
        centres = torch.stack(centres)[torch.tensor([*given, *others]).argsort()]
        counts = importance(known, self.n_components)
        for _ in range(10):
            labels = torch.cdist(z, centres).argmin(1)
            labels = labels if known is None else torch.where(known >= 0, known, labels)
            members = torch.nn.functional.one_hot(labels, self.n_components).to(z.dtype)
            weighted = members if counts is None else members * counts[:, None]
            size = weighted.sum(0)
            # A weight below one is no reason to pull a centre towards zero.
            mean = weighted.T @ z / size.clamp_min(1 if counts is None else 1e-6)[:, None]
            centres = torch.where(size[:, None] > 0, mean, centres)
        return members


def _named_first(halves: torch.Tensor, named: torch.Tensor) -> torch.Tensor:
    """Shares of points in two halves ``(n, 2)``, the half with most of the points ``named`` ``(n,)`` first."""
    in_first, in_second = halves[named].sum(0)
    return halves.flip(1) if in_second > in_first else halves


def _shrunk(
    x: torch.Tensor,
    weighted: torch.Tensor,
    size: torch.Tensor,
    kappa: float,
    shared: torch.Tensor,
    ridge: torch.Tensor,
) -> Mixture:
    """Components of points ``x`` ``(n, d)`` by weights ``(n, K)``, their covariances shrunk to one that is given."""
    mean, scatter = moments(x, weighted)
    if math.isinf(kappa):
        return Mixture(mean.float(), shared[None], shared)
    return Mixture(mean.float(), (scatter + kappa * shared) / (size.double() + kappa)[:, None, None] + ridge, shared)


def _without(log_p: torch.Tensor, gone: int, heir: int) -> torch.Tensor:
    """Posterior ``(n, K)`` if component ``gone`` did not exist, or, where that is not -1, its heir had its points."""
    if heir < 0:
        return torch.softmax(log_p.index_fill(1, torch.tensor([gone]), -math.inf), dim=1)
    posterior = torch.softmax(log_p, dim=1)
    posterior[:, heir] += posterior[:, gone]
    posterior[:, gone] = 0
    return posterior


def _removal_loss(log_p: torch.Tensor) -> torch.Tensor:
    """What the mean log-likelihood loses when a component is taken away and the others stay as they are, ``(K,)``."""
    posterior = torch.softmax(log_p, dim=1).double()
    return -torch.log1p(-posterior.clamp(max=1 - 1e-12)).mean(0).float()
