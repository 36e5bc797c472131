"""A mixture whose types differ in mean and share most of their covariance: the linear limit of the model.

Types that are decoded linearly, ``x = m_c + W s + noise`` with Gaussian states, are a mixture of Gaussians with one
covariance for all types. States whose size depends on the type let each covariance differ a little. The likeliest
such mixture does not split a type along a direction in which all types vary (a treatment, a cycle), which is what
clusterings by distance do.

Several views of the same cells can be fitted at once: each has parameters of its own and all share each cell's type,
as coupled arms do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ._gaussian import are_many, inverse_root, mahalanobis2, mean_precision, moments, ridge_of
from ._labels import certain, importance, labelled


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

    def whitening(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``w`` with ``w.T @ covariance @ w`` the identity, as many as covariances, and log-determinants of these."""
        whitening = inverse_root(self.covariance)
        log_det = -2 * whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return whitening.float(), log_det.float()

    def root(self) -> torch.Tensor:
        """The same of the shared covariance, ``(d, d)``."""
        return inverse_root(self.shared).float()


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


class MixtureEM:
    r"""Expectation maximisation of :class:`Mixture` in one view or several.

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
    generator
        Source of randomness.
    """

    def __init__(
        self,
        n_components: int,
        *,
        shrinkage: float = 3.0,
        dof: float = 8.0,
        generator: torch.Generator | None = None,
    ):
        self.n_components = n_components
        self.shrinkage = shrinkage
        self.dof = dof
        self.generator = generator or torch.Generator().manual_seed(0)

    def fit(
        self,
        views: Sequence[torch.Tensor],
        starts: Sequence[torch.Tensor] | None = None,
        known: torch.Tensor | None = None,
    ) -> Fit:
        """Find a mixture; those that inherit say from where."""
        raise NotImplementedError

    def improved(
        self,
        views: Sequence[torch.Tensor],
        fit: Fit,
        starts: Sequence[torch.Tensor],
        known: torch.Tensor | None = None,
    ) -> Fit:
        """Try posteriors ``(n, K)`` of other fits as starts, where fits are judged by likelihood; here they are not."""
        return fit

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
        above: float = -math.inf,
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
        above
            Stop as well when what the iterations left would gain, at the last one's pace, does not lead above this:
            most moves of a search are seen to fail after a few. Flat posteriors, from which gains grow at first, are
            given up too early.
        """
        shrinkage = self.shrinkage if shrinkage is None else shrinkage
        precision = [torch.ones_like(posterior)] * len(views)
        ridges = [ridge_of(x) for x in views]
        shared: list[torch.Tensor | None] = [None] * len(views)
        previous = -math.inf
        posterior, counts = labelled(posterior, known), importance(known, self.n_components)
        for iteration in range(n_iterations):
            updates = [
                self._update(x, posterior if counts is None else posterior * counts[:, None], p, s, ridge, shrinkage)
                for x, p, s, ridge in zip(views, precision, shared, ridges, strict=True)
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
            gain, left = log_likelihood - previous, n_iterations - 1 - iteration
            if (iteration > 3 and gain < tolerance) or (iteration > 1 and log_likelihood + left * gain < above):
                break
            previous = log_likelihood
        return Fit(mixtures, weight, posterior, log_likelihood)

    def _update(
        self,
        x: torch.Tensor,
        posterior: torch.Tensor,
        precision: torch.Tensor,
        shared: torch.Tensor | None,
        ridge: torch.Tensor,
        shrinkage: float,
    ) -> tuple[Mixture, float]:
        """Parameters of one view and the penalty of its covariances."""
        n, d = x.shape
        weighted = posterior * precision
        size = posterior.sum(0).double() + 1e-8
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
            whitening, log_det = mixture.whitening()
            root = mixture.root() if are_many(len(whitening)) else None
            distance2 = mahalanobis2(x, mixture.mean, whitening, root)
            constant = math.lgamma((self.dof + d) / 2) - math.lgamma(self.dof / 2)
            constant -= 0.5 * d * math.log(self.dof * math.pi)
            log_t = constant - 0.5 * (self.dof + d) * torch.log1p(distance2 / self.dof)
            log_p = log_p + (log_t - 0.5 * log_det) / len(views)
            precision.append((self.dof + d) / (self.dof + distance2))
        return log_p, precision


def matched(reference: torch.Tensor, posterior: torch.Tensor) -> np.ndarray:
    """Order of ``posterior``'s categories that overlaps most with ``reference``'s."""
    return linear_sum_assignment((reference.double().T @ posterior.double()).numpy(), maximize=True)[1]
