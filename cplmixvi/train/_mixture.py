"""A mixture whose types differ in mean and share most of their covariance: the linear limit of the model.

Types that are decoded linearly, ``x = m_c + W s + noise`` with Gaussian states, are a mixture of Gaussians with one
covariance for all types. States whose size depends on the type let each covariance differ a little. The likeliest
such mixture does not split a type along a direction in which all types vary (a treatment, a cycle), which is what
clusterings by distance do; but expectation maximisation finds it only from many starts and with merge-and-split moves.

Several views of the same cells can be fitted at once: each has parameters of its own and all share each cell's type,
as coupled arms do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ._gaussian import inverse_root, mahalanobis2, mean_precision, moments, ridge_of
from ._labels import certain, importance, labelled, some_rows

#: Points per component that a search looks at, so that rare types are among them.
_POINTS_PER_COMPONENT = 60
#: Pairs that a round of moves tries before it gives up.
_TRIES = 12
#: Starts that moves are made from.
_BEST = 3


@dataclass(frozen=True)
class Mixture:
    """Parameters of a Student-t mixture in one view.

    Attributes
    ----------
    mean
        ``(K, d)``.
    covariance
        Scale matrices, ``(K, d, d)``, or ``(1, d, d)`` where all are the same.
    shared
        What they are shrunk to, ``(d, d)``.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    shared: torch.Tensor

    def whitening(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``w`` with ``w.T @ covariance @ w`` the identity, ``(K, d, d)``, that of the shared one, log-determinants."""
        whitening = inverse_root(self.covariance)
        log_det = -2 * whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return whitening.float(), inverse_root(self.shared).float(), log_det.float()


@dataclass(frozen=True)
class Fit:
    """What a search found.

    Attributes
    ----------
    mixtures
        One per view.
    weight
        Of the components, ``(K,)``, sums to one.
    posterior
        Of the points, ``(n, K)``.
    log_likelihood
        Mean over points of the penalised log-likelihood, itself the mean over views, nats.
    """

    mixtures: tuple[Mixture, ...]
    weight: torch.Tensor
    posterior: torch.Tensor
    log_likelihood: float


class SharedCovarianceMixture:
    r"""Fits :class:`Mixture` by expectation maximisation with restarts and merge-and-split moves.

    .. math::
        p(z_1, \dots, z_V, c) = \pi_c \prod_v t_\nu(z_v \mid \mu_{vc}, \Sigma_{vc})^{1/V},\qquad
        \Sigma_k = \frac{n_k S_k + \kappa\Sigma_0}{n_k + \kappa},\qquad
        \Sigma_0 = \Big(\tfrac1K\sum_k\Sigma_k^{-1}\Big)^{-1},\qquad \kappa = r N / K

    :math:`S_k` is type ``k``'s own scatter in a view. The prior's weight in cells, :math:`\kappa`, is ``r`` times the
    size of an average type, so that rare types use the shared covariance and large ones add their own. The power
    :math:`1/V` (a logarithmic opinion pool) is there because views are not independent evidence: they are made from the
    same genes.

    Parameters
    ----------
    n_components
        ``K``.
    shrinkage
        ``r``; infinity gives one covariance for all.
    dof
        Degrees of freedom :math:`\nu`, small enough that a few outlying cells do not get a type of their own.
    n_starts
        Restarts of the fit with one covariance in one view, which is cheap.
    n_moves
        Merge-and-split moves tried from the best start.
    n_search
        Points that starts and moves look at, at least (more for many components); the final fit uses all.
    generator
        Source of randomness.
    """

    def __init__(
        self,
        n_components: int,
        *,
        shrinkage: float = 3.0,
        dof: float = 8.0,
        n_starts: int = 4,
        n_moves: int = 40,
        n_search: int = 4_000,
        generator: torch.Generator | None = None,
    ):
        self.n_components = n_components
        self.shrinkage = shrinkage
        self.dof = dof
        self.n_starts = n_starts
        self.n_moves = n_moves
        self.n_search = n_search
        self.generator = generator or torch.Generator().manual_seed(0)

    # ------------------------------------------------------------------ fitting

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
        found = [self.maximise(some, start, n_iterations=30, known=of_some) for start in begun]
        found = sorted(found, key=lambda fit: fit.log_likelihood)[-_BEST:]
        # Moves change one pair at a time, which does not lead out of every optimum: so from several, and on from the
        # best of what they reach.
        few = self.n_moves // (_BEST + 1)
        best = max((self._move(some, fit, few, of_some) for fit in found), key=lambda fit: fit.log_likelihood)
        best = self._move(some, best, self.n_moves - few * len(found), of_some)
        return self.maximise(views, self.posterior(views, best), n_iterations=30, known=known)

    def posterior(self, views: Sequence[torch.Tensor], fit: Fit) -> torch.Tensor:
        """Probability of every component at points ``views``, ``(n, K)``."""
        return torch.softmax(self._log_joint(views, fit.mixtures, fit.weight)[0], dim=1)

    def maximise(
        self,
        views: Sequence[torch.Tensor],
        posterior: torch.Tensor,
        *,
        n_iterations: int,
        tolerance: float = 1e-4,
        shrinkage: float | None = None,
        known: torch.Tensor | None = None,
    ) -> Fit:
        """Expectation maximisation from a posterior.

        Parameters
        ----------
        views
            Points in every view, each ``(n, d)``.
        posterior
            ``(n, K)``.
        n_iterations, tolerance
            Stop after so many, or when the log-likelihood grows by less.
        shrinkage
            Instead of the fitter's own.
        known
            Component of the points where that is known and -1 elsewhere, ``(n,)``.
        """
        shrinkage = self.shrinkage if shrinkage is None else shrinkage
        precision = [torch.ones_like(posterior)] * len(views)
        shared: list[torch.Tensor | None] = [None] * len(views)
        previous = -math.inf
        posterior, counts = labelled(posterior, known), importance(known, self.n_components)
        for iteration in range(n_iterations):
            updates = [
                self._update(x, posterior if counts is None else posterior * counts[:, None], p, s, shrinkage)
                for x, p, s in zip(views, precision, shared, strict=True)
            ]
            mixtures = tuple(mixture for mixture, _ in updates)
            shared = [mixture.shared for mixture in mixtures]
            weight = posterior.sum(0) + 1e-8
            weight = weight / weight.sum()
            log_p, precision = self._log_joint(views, mixtures, weight)
            # The likelihood counts labels too, so that a search prefers fits that explain them.
            log_p = certain(log_p, known)
            total = log_p.logsumexp(1, keepdim=True)
            posterior = torch.exp(log_p - total)
            log_likelihood = float((total if counts is None else total * counts[:, None]).double().mean()) + sum(
                penalty for _, penalty in updates
            ) / len(views)
            if iteration > 3 and log_likelihood - previous < tolerance:
                break
            previous = log_likelihood
        return Fit(mixtures, weight, posterior, log_likelihood)

    def _starts(self, views: Sequence[torch.Tensor], known: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Posterior of the likeliest fit with one covariance in every view, for as many views as there are starts."""
        found = []
        for index in range(self.n_starts):
            x = views[index % len(views)]
            covariance = torch.cov(x.T.double(), correction=0).reshape(x.shape[1], -1) + 1e-6 * torch.eye(x.shape[1])
            start = None
            # The second time seeds are spread in the metric in which the first fit's types are round.
            for _ in range(2):
                seeded = self._seeded(x @ inverse_root(covariance).float(), known)
                fit = self.maximise([x], seeded, n_iterations=60, shrinkage=math.inf, known=known)
                covariance = fit.mixtures[0].shared
                if start is None or fit.log_likelihood > start.log_likelihood:
                    start = fit
            found.append((start.log_likelihood, index % len(views), start.posterior))
        best = []
        # Likelihoods of different views cannot be compared: the best of each.
        for index in range(len(views)):
            own = [entry for entry in found if entry[1] == index]
            best += [max(own, key=lambda entry: entry[0])[2]] if own else []
        return best

    # --------------------------------------------------------------------- steps

    def _update(
        self,
        x: torch.Tensor,
        posterior: torch.Tensor,
        precision: torch.Tensor,
        shared: torch.Tensor | None,
        shrinkage: float,
    ) -> tuple[Mixture, float]:
        """Parameters of one view and the penalty of its covariances."""
        n, d = x.shape
        weighted = posterior * precision
        size = posterior.sum(0).double() + 1e-8
        ridge = ridge_of(x)
        if math.isinf(shrinkage):
            # All scatters at once: the weights of a point's components add up.
            mass = weighted.sum(0).double() + 1e-8
            mean = (weighted.T @ x).double() / mass[:, None]
            pooled = ((x.T * weighted.sum(1)) @ x).double() - (mean.T * mass) @ mean
            shared = pooled / n + ridge
            return Mixture(mean.float(), shared[None], shared), 0.0
        mean, scatter = moments(x, weighted)
        if shared is None:
            shared = scatter.sum(0) / n + ridge
        kappa = shrinkage * n / self.n_components
        for step in range(3):
            covariance = (scatter + kappa * shared) / (size + kappa)[:, None, None] + ridge
            if step < 2:
                shared = torch.cholesky_inverse(mean_precision(covariance))
        # Kullback-Leibler divergences from the shared covariance: what shrinking maximises beside the fit.
        factor = torch.linalg.cholesky(covariance)
        trace = torch.einsum("kij,ji->k", torch.cholesky_inverse(factor), shared)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        divergence = log_det - torch.logdet(shared) + trace - d
        penalty = float(-0.5 * kappa * divergence.sum() / n)
        return Mixture(mean.float(), covariance, shared), penalty

    def _log_joint(
        self, views: Sequence[torch.Tensor], mixtures: Sequence[Mixture], weight: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logarithm of the joint density of points and components ``(n, K)``, and every view's precision weights."""
        log_p, precision = torch.log(weight).expand(len(views[0]), -1), []
        for x, mixture in zip(views, mixtures, strict=True):
            d = x.shape[1]
            whitening, root, log_det = mixture.whitening()
            distance2 = mahalanobis2(x, mixture.mean, whitening, root)
            constant = math.lgamma((self.dof + d) / 2) - math.lgamma(self.dof / 2)
            constant -= 0.5 * d * math.log(self.dof * math.pi)
            log_t = constant - 0.5 * (self.dof + d) * torch.log1p(distance2 / self.dof)
            log_p = log_p + (log_t - 0.5 * log_det) / len(views)
            precision.append((self.dof + d) / (self.dof + distance2))
        return log_p, precision

    def _move(self, views: Sequence[torch.Tensor], fit: Fit, budget: int, known: torch.Tensor | None = None) -> Fit:
        """Take a component away and cut another in two while that makes the fit likelier.

        What a cut would gain is found by expectation maximisation on the component's own points, what taking away would
        lose by giving its points to the others. The most promising pairs are tried on all points. Components that are
        known for some point stay, and of their halves that with most of these points keeps their name.
        """
        tried = set()
        while budget > 0 and self.n_components > 1:
            log_p = certain(self._log_joint(views, fit.mixtures, fit.weight)[0], known)
            loss = _removal_loss(log_p)
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
                posterior = _without(log_p, gone)
                share = posterior[rows, cut]
                posterior[rows, gone] = share * halves[:, 1]
                posterior[rows, cut] = share * halves[:, 0]
                moved = self.maximise(views, posterior, n_iterations=15, known=known)
                if moved.log_likelihood > fit.log_likelihood + 1e-4:
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
        precision = [torch.ones_like(halves)] * len(views)
        posterior = weight[rows, None] * halves
        for _ in range(8):
            size = posterior.sum(0) + 1e-8
            parts = []
            for x, p, mixture in zip(points, precision, fit.mixtures, strict=True):
                mean, scatter = moments(x, posterior * p)
                if math.isinf(kappa):
                    covariance = mixture.shared[None]
                else:
                    covariance = (scatter + kappa * mixture.shared) / (size.double() + kappa)[:, None, None] + ridge_of(
                        x
                    )
                parts.append(Mixture(mean.float(), covariance, mixture.shared))
            log_two, precision = self._log_joint(points, parts, size / len(log_p))
            total = torch.cat([others, log_two], dim=1).logsumexp(1, keepdim=True)
            posterior = torch.exp(log_two - total)
        gain = (total[:, 0] - log_p[rows].logsumexp(1)).sum() / len(log_p)
        return float(gain), rows, posterior / posterior.sum(1, keepdim=True).clamp_min(1e-12)

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


def _without(log_p: torch.Tensor, gone: int) -> torch.Tensor:
    """Posterior ``(n, K)`` if component ``gone`` did not exist."""
    return torch.softmax(log_p.index_fill(1, torch.tensor([gone]), -math.inf), dim=1)


def _removal_loss(log_p: torch.Tensor) -> torch.Tensor:
    """What the mean log-likelihood loses when a component is taken away and the others stay as they are, ``(K,)``."""
    posterior = torch.softmax(log_p, dim=1).double()
    return -torch.log1p(-posterior.clamp(max=1 - 1e-12)).mean(0).float()
