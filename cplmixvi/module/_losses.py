"""Terms of the objective as pure functions of tensors; every one returns one value per cell."""

from __future__ import annotations

import torch

from cplmixvi._processes import averaged

from ._simplex import EPS, safe_log


def kl_normal(
    mean: torch.Tensor,
    variance: torch.Tensor,
    prior_mean: torch.Tensor | float = 0.0,
    prior_variance: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    r"""Divergence of a diagonal Gaussian from its prior, summed over dimensions.

    .. math:: \tfrac12\sum_d \left(\frac{\sigma_d^2 + (\mu_d-m_d)^2}{v_d} - 1 - \log\frac{\sigma_d^2}{v_d}\right)

    Parameters
    ----------
    mean, variance
        Of :math:`q(s\mid c, x)`, shape ``(..., n_state)``.
    prior_mean, prior_variance
        Of :math:`p(s\mid c)`, broadcastable; the standard normal by default.

    Returns
    -------
    torch.Tensor
        Nats, shape ``(...)``.
    """
    ratio = variance / prior_variance
    return 0.5 * (ratio + (mean - prior_mean).square() / prior_variance - 1 - torch.log(ratio)).sum(-1)


def negative_entropy(p: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    r""":math:`-H(p) = \sum_k p_k \log(p_k + \epsilon)` in nats, shape ``(...)`` for ``(..., K)``."""
    return (p * safe_log(p, eps)).sum(-1)


def half_squared_error(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    r""":math:`\tfrac12\sum_g (x_g - \hat x_g)^2`, shape ``(...)`` for ``(..., n_genes)``."""
    return 0.5 * (x - mean).square().sum(-1)


def guide_divergence(log_q: torch.Tensor, guide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Divergence of the arms' categories from a guide, and how much the guide says.

    Parameters
    ----------
    log_q
        :math:`\log q_a(c\mid x_a)`, shape ``(n_arms, n_cells, K)``.
    guide
        :math:`R(c\mid x)`, shape ``(n_cells, K)``.

    Returns
    -------
    tuple
        :math:`\mathrm{KL}(R\,\|\,q_a)`, nats, shape ``(n_arms, n_cells)``; and the mean over cells of
        :math:`\mathrm{KL}(R\,\|\,\bar R)` for the mean :math:`\bar R` over cells, of all processes that train together,
        0-d.
    """
    negentropy = negative_entropy(guide)
    information = averaged((negentropy - (guide * safe_log(averaged(guide.mean(0)))).sum(-1)).mean())
    return negentropy - (guide * log_q).sum(-1), information


def label_divergence(log_q: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    r"""Divergence of the arms' categories from the labels that are known.

    Parameters
    ----------
    log_q
        :math:`\log q_a(c\mid x_a)`, shape ``(n_arms, n_cells, K)``.
    known
        Category of the cells that have a label and -1 for the others, shape ``(n_cells,)``.

    Returns
    -------
    torch.Tensor
        :math:`-\log q_a(c = \text{label}\mid x_a)`, zero for cells without a label, nats, ``(n_arms, n_cells)``.
    """
    index = known.clamp_min(0).expand(len(log_q), -1)[..., None]
    return torch.where(known >= 0, -log_q.gather(-1, index).squeeze(-1), 0.0)


def coupled_objective(
    reconstruction: torch.Tensor,
    kl_state: torch.Tensor,
    neg_entropy: torch.Tensor,
    distance2: torch.Tensor,
    *,
    lam: torch.Tensor | float,
    beta: torch.Tensor | float,
    constrained: bool = False,
) -> torch.Tensor:
    r"""Negative of the paper's Eq. 8, or of the Lagrangian of its Eq. 9, per cell.

    Eq. 8: :math:`\sum_a (A-1)(\mathrm{rec}_a + \beta\,\mathrm{KL}_a - H_a) + \lambda\sum_{a<b} d^2_{ab}`, because
    each arm takes part in :math:`A-1` pairs and every pair carries both entropies. Eq. 9 has weight 1 in front
    of each arm and bounds each arm's distances, so its multiplier meets the mean over pairs.
    With one arm both are the evidence lower bound of Eq. 3 under a uniform prior over categories (up to
    :math:`\log K`).

    Parameters
    ----------
    reconstruction, kl_state, neg_entropy
        Per arm and cell, shape ``(n_arms, n_cells)``, nats.
    distance2
        Sum over pairs, shape ``(n_cells,)``.
    lam
        Coupling :math:`\lambda \ge 0`.
    beta
        Weight of the states' divergence.
    constrained
        Use the weights of Eq. 9.

    Returns
    -------
    torch.Tensor
        To be minimised, shape ``(n_cells,)``.
    """
    n_arms = len(reconstruction)
    per_arm = (reconstruction + beta * kl_state + neg_entropy).sum(0)
    if constrained:
        n_pairs = max(n_arms * (n_arms - 1) // 2, 1)
        return per_arm + lam * distance2 / n_pairs
    return max(n_arms - 1, 1) * per_arm + lam * distance2
