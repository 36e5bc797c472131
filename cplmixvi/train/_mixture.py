"""A mixture whose types differ in mean and share most of their covariance: the linear limit of the model.

Types that are decoded linearly, ``x = m_c + W s + noise`` with Gaussian states, are a mixture of Gaussians with one
covariance for all types. States whose size depends on the type let each covariance differ a little. The likeliest
such mixture does not split a type along a direction in which all types vary (a treatment, a cycle), which is what
clusterings by distance do; but expectation maximisation finds it only from many starts and with merge-and-split moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

#: Rows per block of the E-step: bounds the memory of ``(rows, K * d)`` products.
_BLOCK = 4096
#: Points per component that a search looks at, so that rare types are among them.
_POINTS_PER_COMPONENT = 60


@dataclass(frozen=True)
class Mixture:
    """Parameters of a Student-t mixture.

    Attributes
    ----------
    mean
        ``(K, d)``.
    covariance
        Scale matrices, ``(K, d, d)``, or ``(1, d, d)`` where all are the same.
    shared
        What they are shrunk to, ``(d, d)``.
    weight
        ``(K,)``, sums to one.
    log_likelihood
        Mean penalised log-likelihood per point of the data it was fitted to, nats.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    shared: torch.Tensor
    weight: torch.Tensor
    log_likelihood: float = -math.inf

    def whitening(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inverse Cholesky factors ``(K, d, d)`` (``z = (x - m) @ w``) and log-determinants ``(K,)``."""
        factor = torch.linalg.cholesky(self.covariance)
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        return inverse.mT.contiguous(), 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class SharedCovarianceMixture:
    r"""Fits :class:`Mixture` by expectation maximisation with restarts and merge-and-split moves.

    .. math::
        x\mid c=k\sim t_\nu(\mu_k, \Sigma_k),\qquad
        \Sigma_k = \frac{n_k S_k + \kappa\Sigma_0}{n_k + \kappa},\qquad
        \Sigma_0 = \Big(\tfrac1K\sum_k\Sigma_k^{-1}\Big)^{-1},\qquad \kappa = r N / K

    :math:`S_k` is type ``k``'s own scatter. The prior's weight in cells, :math:`\kappa`, is ``r`` times the size of
    an average type, so that rare types use the shared covariance and large ones add their own.

    Parameters
    ----------
    n_components
        ``K``.
    shrinkage
        ``r``; infinity gives one covariance for all.
    dof
        Degrees of freedom :math:`\nu`, small enough that a few outlying cells do not get a type of their own.
    n_starts
        Restarts of the fit with one covariance, which is cheap.
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
        n_starts: int = 10,
        n_moves: int = 20,
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

    def fit(self, x: torch.Tensor) -> Mixture:
        """Likeliest mixture found.

        Parameters
        ----------
        x
            Points, ``(n, d)``.

        Returns
        -------
        Mixture
        """
        centre = x.mean(0)
        x = x - centre
        subset = x
        n_search = max(self.n_search, _POINTS_PER_COMPONENT * self.n_components)
        if len(x) > 1.3 * n_search:
            subset = x[torch.randperm(len(x), generator=self.generator)[:n_search]]
        mixture = self._search(subset)
        mixture = self._maximise(x, self.posterior(x, mixture), n_iterations=60, tolerance=1e-5)
        return replace(mixture, mean=mixture.mean + centre)

    def refine(self, x: torch.Tensor, posterior: torch.Tensor) -> Mixture:
        """Mixture that a given posterior ``(n, K)`` of the points leads to."""
        centre = x.mean(0)
        mixture = self._maximise(x - centre, posterior, n_iterations=30, tolerance=1e-4)
        return replace(mixture, mean=mixture.mean + centre)

    def posterior(self, x: torch.Tensor, mixture: Mixture) -> torch.Tensor:
        """Probability of every component, ``(n, K)``."""
        return self._expect(x, mixture)[0]

    def _search(self, x: torch.Tensor) -> Mixture:
        metric = _inverse_root(torch.cov(x.T.double()).reshape(x.shape[1], -1) + 1e-6 * torch.eye(x.shape[1])).float()
        starts = []
        for _ in range(self.n_starts):
            start = self._maximise(x, self._seeded(x @ metric), n_iterations=60, tolerance=1e-4, shrinkage=math.inf)
            if not starts or start.log_likelihood > max(other.log_likelihood for other in starts):
                # Later starts spread their seeds in the metric in which types are round.
                metric = _inverse_root(start.shared).float()
            starts.append(start)
        starts.sort(key=lambda start: -start.log_likelihood)
        best = max(
            (self._maximise(x, self.posterior(x, start), n_iterations=40) for start in starts[:4]),
            key=lambda found: found.log_likelihood,
        )
        if self.n_components > 1:
            for _ in range(self.n_moves):
                moved = self._maximise(x, self._merge_and_split(x, best), n_iterations=15, tolerance=1e-4)
                if moved.log_likelihood > best.log_likelihood + 1e-4:
                    best = moved
        return best

    def _maximise(
        self,
        x: torch.Tensor,
        posterior: torch.Tensor,
        *,
        n_iterations: int,
        tolerance: float = 1e-5,
        shrinkage: float | None = None,
    ) -> Mixture:
        shrinkage = self.shrinkage if shrinkage is None else shrinkage
        precision, shared, previous = torch.ones_like(posterior), None, -math.inf
        for iteration in range(n_iterations):
            mixture, penalty = self._update(x, posterior, precision, shared, shrinkage)
            shared = mixture.shared
            posterior, precision, log_likelihood = self._expect(x, mixture)
            mixture = replace(mixture, log_likelihood=log_likelihood + penalty)
            if iteration > 3 and mixture.log_likelihood - previous < tolerance:
                break
            previous = mixture.log_likelihood
        return mixture

    # --------------------------------------------------------------------- steps

    def _update(
        self,
        x: torch.Tensor,
        posterior: torch.Tensor,
        precision: torch.Tensor,
        shared: torch.Tensor | None,
        shrinkage: float,
    ) -> tuple[Mixture, float]:
        n, d = x.shape
        weighted = posterior * precision
        mass = weighted.sum(0).double() + 1e-8
        size = posterior.sum(0).double() + 1e-8
        mean = (weighted.T @ x).double() / mass[:, None]
        weight = (size / size.sum()).float()
        # The second part is for data that do not vary at all, such as a single gene's share of itself.
        ridge = (1e-5 * x.double().square().mean() + 1e-8) * torch.eye(d, dtype=torch.float64)
        if math.isinf(shrinkage) or shared is None:
            # All scatters at once: the weights of a point's components add up.
            pooled = ((x.T * weighted.sum(1)) @ x).double() - (mean.T * mass) @ mean
            shared = pooled / n + ridge
        if math.isinf(shrinkage):
            return Mixture(mean.float(), shared[None], shared, weight), 0.0
        scatter = torch.stack([_scatter(x, weighted[:, k], mean[k], mass[k]) for k in range(self.n_components)])
        kappa = shrinkage * n / self.n_components
        for step in range(3):
            covariance = (scatter + kappa * shared) / (size + kappa)[:, None, None] + ridge
            if step < 2:
                shared = torch.cholesky_inverse(_mean_precision(covariance))
        # Kullback-Leibler divergences from the shared covariance: what shrinking maximises beside the fit.
        factor = torch.linalg.cholesky(covariance)
        trace = torch.einsum("kij,ji->k", torch.cholesky_inverse(factor), shared)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        divergence = log_det - torch.logdet(shared) + trace - d
        penalty = float(-0.5 * kappa * divergence.sum() / n)
        return Mixture(mean.float(), covariance, shared, weight), penalty

    def _expect(self, x: torch.Tensor, mixture: Mixture) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Posterior ``(n, K)``, precision weights of the t-distribution ``(n, K)``, mean log-likelihood."""
        d = x.shape[1]
        distance2 = _mahalanobis2(x, mixture)
        log_p = -0.5 * (self.dof + d) * torch.log1p(distance2 / self.dof)
        log_p += torch.log(mixture.weight) - 0.5 * mixture.whitening()[1].float()
        total = torch.logsumexp(log_p, dim=1)
        constant = math.lgamma((self.dof + d) / 2) - math.lgamma(self.dof / 2) - 0.5 * d * math.log(self.dof * math.pi)
        precision = (self.dof + d) / (self.dof + distance2)
        return torch.exp(log_p - total[:, None]), precision, float(total.double().mean()) + constant

    def _merge_and_split(self, x: torch.Tensor, mixture: Mixture) -> torch.Tensor:
        """Posterior in which one component's cells went to the others and another component was cut in two."""
        posterior = self.posterior(x, mixture)
        cost = -torch.log1p(-posterior.clamp(max=1 - 1e-6)).sum(0).clamp_min(1e-3)
        # Mostly components whose cells others explain almost as well; sometimes any.
        chance = 0.5 * (1 / cost) / (1 / cost).sum() + 0.5 / self.n_components
        gone = int(torch.multinomial(chance, 1, generator=self.generator))
        size = posterior.sum(0)
        size[gone] = 0
        cut = int(torch.multinomial(size, 1, generator=self.generator))
        left = posterior.clone()
        left[:, gone] = 0
        orphans = left.sum(1) < 1e-4
        if orphans.any():
            distance2 = _mahalanobis2(x[orphans], mixture)
            distance2[:, gone] = math.inf
            left[orphans] = torch.softmax(-0.5 * distance2, dim=1)
        left /= left.sum(1, keepdim=True)
        half = self._halve(x @ _inverse_root(mixture.shared).float(), left[:, cut])
        left[:, gone] = left[:, cut] * half
        left[:, cut] = left[:, cut] * ~half
        return left

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

    def _seeded(self, z: torch.Tensor) -> torch.Tensor:
        """One-hot assignment from greedy k-means++ seeds and ten Lloyd steps, ``(n, K)``."""
        n = len(z)
        centres = [z[int(torch.randint(n, (1,), generator=self.generator))]]
        nearest = (z - centres[0]).square().sum(1)
        for _ in range(self.n_components - 1):
            tried = torch.multinomial(nearest + 1e-12, min(4, n), generator=self.generator)
            distances = torch.minimum(nearest, torch.cdist(z[tried], z).square())
            best = int(distances.sum(1).argmin())
            nearest = distances[best]
            centres.append(z[tried[best]])
        centres = torch.stack(centres)
        for _ in range(10):
            labels = torch.cdist(z, centres).argmin(1)
            members = torch.nn.functional.one_hot(labels, self.n_components).to(z.dtype)
            size = members.sum(0)
            centres = torch.where(size[:, None] > 0, members.T @ z / size.clamp_min(1)[:, None], centres)
        return members


def _mean_precision(covariance: torch.Tensor) -> torch.Tensor:
    """Cholesky factor of the mean of the inverses of ``(K, d, d)`` covariances, ``(d, d)``."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(covariance)).mean(0))


def _mahalanobis2(x: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    """Squared Mahalanobis distances to every component, ``(n, K)``."""
    whitening = mixture.whitening()[0].float()
    if len(whitening) == 1:
        z, centres = x @ whitening[0], mixture.mean @ whitening[0]
        return (z.square().sum(1, keepdim=True) - 2 * z @ centres.T + centres.square().sum(1)).clamp_min(0)
    n_components, d, _ = whitening.shape
    joint = whitening.permute(1, 0, 2).reshape(d, -1)
    offset = torch.einsum("ki,kij->kj", mixture.mean, whitening)
    blocks = []
    for block in x.split(_BLOCK):
        z = (block @ joint).view(len(block), n_components, d) - offset
        blocks.append(z.square().sum(-1))
    return torch.cat(blocks)


def _scatter(x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Weighted scatter matrix about ``mean``, ``(d, d)``, float64; rows of no weight are skipped."""
    rows = (weight > 1e-4).nonzero().squeeze(1)
    points, row_weight = x[rows], weight[rows]
    return ((points.T * row_weight) @ points).double() - mass * torch.outer(mean, mean)


def _inverse_root(covariance: torch.Tensor) -> torch.Tensor:
    """``w`` with ``w.T @ covariance @ w`` the identity, ``(d, d)``."""
    factor = torch.linalg.cholesky(covariance)
    eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, eye, upper=False).T
