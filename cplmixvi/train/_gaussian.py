"""Means, covariances and distances of many Gaussian components at once."""

from __future__ import annotations

import torch

#: Components whose own covariance is looked at for a point; the shared covariance says which are near enough.
_N_NEAREST = 12
#: Points, such as those of a minibatch, for which all components at once take less time than one after the other.
_FEW_POINTS = 1_000


def mahalanobis2(
    x: torch.Tensor, mean: torch.Tensor, whitening: torch.Tensor, root: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared Mahalanobis distances to every component, ``(n, K)``.

    Where components are many, those that are not among a point's nearest by the shared covariance get their distance by
    that, or that of the farthest near one if it is larger: they get no say in the posterior, and cost no time.

    Parameters
    ----------
    x
        Points, ``(n, d)``.
    mean
        ``(K, d)``.
    whitening
        Of every component, ``(K, d, d)``, or ``(1, d, d)`` where all have the same.
    root
        Whitening of the shared covariance, ``(d, d)``; read only if :func:`are_many`.
    """
    if len(whitening) == 1:
        return _distances2(x, mean, whitening[0])
    rough = is_near = None
    if are_many(len(whitening)):
        rough = _distances2(x, mean, root)
        nearest = rough.topk(_N_NEAREST, dim=1, largest=False).indices
        is_near = torch.zeros_like(rough, dtype=torch.bool).scatter_(1, nearest, True)
    if len(x) <= _FEW_POINTS:
        distance2 = ((x - mean[:, None]) @ whitening).square().sum(-1).T
        distance2 = distance2 if is_near is None else distance2.where(is_near, -1.0)
    else:
        distance2 = x.new_full((len(x), len(mean)), -1.0)
        for k, factor in enumerate(whitening):
            rows = slice(None) if is_near is None else is_near[:, k].nonzero().squeeze(1)
            distance2[rows, k] = ((x[rows] - mean[k]) @ factor).square().sum(1)
    if is_near is not None:
        distance2 = torch.where(is_near, distance2, torch.maximum(rough, distance2.amax(1, keepdim=True)))
    return distance2


def are_many(n_components: int) -> bool:
    """Whether a point is compared with its nearest components only, which the shared covariance says."""
    return n_components > 2 * _N_NEAREST


def _distances2(x: torch.Tensor, mean: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """Squared distances where all components have one covariance, ``(n, K)``."""
    z, centres = x @ root, mean @ root
    return (z.square().sum(1, keepdim=True) - 2 * z @ centres.T + centres.square().sum(1)).clamp_min(0)


def moments(x: torch.Tensor, weighted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted means ``(K, d)`` and scatter about them ``(K, d, d)``, float64.

    Of many points those of no weight are skipped.
    """
    mass = weighted.sum(0).double() + 1e-8
    mean = (weighted.T @ x).double() / mass[:, None]
    # Centred first: a difference of squares in single precision can have a negative eigenvalue.
    if len(x) <= _FEW_POINTS:
        points = x - mean.float()[:, None]
        return mean, ((points.mT * weighted.T[:, None]) @ points).double()
    scatter = []
    for centre, weight in zip(mean.float(), weighted.T, strict=True):
        rows = (weight > 1e-4).nonzero().squeeze(1)
        points = x[rows] - centre
        scatter.append(((points.T * weight[rows]) @ points).double())
    return mean, torch.stack(scatter)


def mean_precision(covariance: torch.Tensor) -> torch.Tensor:
    """Cholesky factor of the mean of the inverses of ``(K, d, d)`` covariances, ``(d, d)``."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(covariance)).mean(0))


def ridge_of(x: torch.Tensor) -> torch.Tensor:
    """What is added to every covariance of points ``x``, ``(d, d)``, float64."""
    # The second part is for data that do not vary at all, such as a single gene's share of itself.
    return (1e-5 * x.double().square().mean() + 1e-8) * torch.eye(x.shape[1], dtype=torch.float64)


def inverse_root(covariance: torch.Tensor) -> torch.Tensor:
    """``w`` with ``w.T @ covariance @ w`` the identity, ``(..., d, d)``."""
    factor = torch.linalg.cholesky(covariance)
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).mT.contiguous()
