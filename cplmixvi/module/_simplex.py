"""Geometry of the simplex: centred log-ratios, Aitchison distance and the paper's perturbed distance.

All functions take log-probabilities or probabilities as plain tensors whose last axis holds the ``K`` parts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cplmixvi._processes import averaged, n_processes, summed

#: Added inside logarithms and square roots, as in the reference implementation, which has one constant for both.
EPS = 1e-8


def safe_log(p: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    """Logarithm of a probability that may be zero, ``log(p + eps)``, in nats."""
    return torch.log(p + eps)


def clr(log_p: torch.Tensor) -> torch.Tensor:
    r"""Centred log-ratio, :math:`\mathrm{clr}(u)_k = \log u_k - K^{-1}\sum_j \log u_j`.

    Parameters
    ----------
    log_p
        Log-probabilities (any additive constant cancels), shape ``(..., K)``.

    Returns
    -------
    torch.Tensor
        Shape ``(..., K)``; sums to zero over the last axis.
    """
    return log_p - log_p.mean(dim=-1, keepdim=True)


def category_variance(p: torch.Tensor) -> torch.Tensor:
    r"""Unbiased variance :math:`\sigma_k^2` of each category's probability over the cells of a minibatch.

    Parameters
    ----------
    p
        Probabilities, shape ``(..., n_cells, K)``.

    Returns
    -------
    torch.Tensor
        Shape ``(..., K)``, over the minibatches of all processes that train together, which are of one size. A
        minibatch of one cell has no variance: zeros.
    """
    if p.shape[-2] < 2:
        return torch.zeros_like(p[..., 0, :])
    if n_processes() == 1:
        return p.var(dim=-2, unbiased=True)
    mean = averaged(p.mean(dim=-2, keepdim=True))
    return summed((p - mean).square().sum(-2)) / (n_processes() * p.shape[-2] - 1)


def perturbed_coordinates(log_p: torch.Tensor, variance: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    r"""Coordinates in which the perturbed distance is Euclidean, :math:`\log u_k / \sigma_k`.

    Parameters
    ----------
    log_p
        Log-probabilities, shape ``(..., n_cells, K)``.
    variance
        :math:`\sigma_k^2`, shape ``(..., K)``.
    eps
        Added to the variance before the square root.

    Returns
    -------
    torch.Tensor
        Shape ``(..., n_cells, K)``. There is no centring: paper, section 3.2.
    """
    return log_p * torch.rsqrt(variance + eps).unsqueeze(-2)


def pairwise_distance2(coordinates: torch.Tensor) -> torch.Tensor:
    r"""Squared Euclidean distances summed over all pairs of arms, per cell.

    :math:`\sum_{a<b}\|u_a-u_b\|^2 = A\sum_a\|u_a-\bar u\|^2`, so the cost grows with the number of arms and
    not with the number of pairs.

    Parameters
    ----------
    coordinates
        Shape ``(n_arms, n_cells, K)``.

    Returns
    -------
    torch.Tensor
        Shape ``(n_cells,)``.
    """
    centred = coordinates - coordinates.mean(dim=0, keepdim=True)
    return len(coordinates) * centred.square().sum(dim=(0, 2))


class PerturbationBounds(NamedTuple):
    """Bounds in the manner of Proposition 3: ``aitchison2 - rho_lower <= perturbed2 <= aitchison2 + rho_upper``."""

    aitchison2: torch.Tensor
    perturbed2: torch.Tensor
    rho_lower: torch.Tensor
    rho_upper: torch.Tensor


def perturbation_bounds(
    log_p: torch.Tensor, log_q: torch.Tensor, sigma_p: torch.Tensor, sigma_q: torch.Tensor
) -> PerturbationBounds:
    r"""Distances between two simplex points and how far the perturbed one can be from the plain one.

    With :math:`\delta_k = \log p_k - \log q_k` and
    :math:`g_k = (\sigma_{p,k}^{-1} - 1)\log p_k - (\sigma_{q,k}^{-1} - 1)\log q_k`,

    .. math::
        d_\sigma^2 - d_{S^K}^2 = \tfrac1K\Big(\sum_k\delta_k\Big)^2 + 2\sum_k\delta_k g_k + \sum_k g_k^2,

    which gives :math:`\rho_u = K(\tau_g^2 + \tau_c^2) + 2\tau_c\sum_k|g_k|` and
    :math:`\rho_l = 2\tau_c\sum_k|g_k|` for :math:`\tau_c = \max_k|\delta_k|`, :math:`\tau_g = \max_k|g_k|`.

    Notes
    -----
    The paper's Proposition 3 has the same form with signed maxima and :math:`\sum_k g_k` in place of absolute values.
    Read literally it does not hold for all arguments (``tests/test_simplex.py`` has a counterexample for each
    side); it is the upper bound here when all :math:`g_k \ge 0` and the largest :math:`|\delta_k|` is a positive
    :math:`\delta_k`.

    Parameters
    ----------
    log_p, log_q
        Log-probabilities, shape ``(..., K)``.
    sigma_p, sigma_q
        Standard deviations, broadcastable to ``(..., K)``.

    Returns
    -------
    PerturbationBounds
        Each field has shape ``(...)``.
    """
    delta = log_p - log_q
    g = (1 / sigma_p - 1) * log_p - (1 / sigma_q - 1) * log_q
    tau_c, tau_g = delta.abs().amax(-1), g.abs().amax(-1)
    cross = 2 * tau_c * g.abs().sum(-1)
    return PerturbationBounds(
        aitchison2=(clr(log_p) - clr(log_q)).square().sum(-1),
        perturbed2=(log_p / sigma_p - log_q / sigma_q).square().sum(-1),
        rho_lower=cross,
        rho_upper=log_p.shape[-1] * (tau_g.square() + tau_c.square()) + cross,
    )
