"""What ties the arms together: the distance between their categories and the weight it gets."""

from __future__ import annotations

import math

import torch
from torch import nn

from ._simplex import category_variance, clr, pairwise_distance2, perturbed_coordinates

DISTANCES = ("perturbed", "aitchison")


class Coupling(nn.Module):
    r"""Distance between the arms' categorical posteriors and the coupling :math:`\lambda`.

    Parameters
    ----------
    n_arms, n_categories
        Number of arms and categories.
    distance
        ``"perturbed"``: :math:`d_\sigma^2` (paper, section 3.2); ``"aitchison"``: the plain clr distance.
    lam
        :math:`\lambda`; the paper uses 1 throughout. With ``epsilon`` it is the starting value.
    epsilon
        Tolerated disagreement of Remark 1 / Eq. 9, as a mean squared distance per pair and category. `None`
        keeps :math:`\lambda` constant (Eq. 8).
    dual_rate
        Step of the dual ascent on :math:`\log\lambda`.
    momentum
        Weight of the newest minibatch in the running variances of :math:`d_\sigma`.

    Notes
    -----
    The reference takes :math:`\sigma_k^2` from the minibatch alone, so a type with a handful of cells per batch
    gets a variance that is mostly noise. Here the value is a running average over minibatches while the gradient
    is that of the minibatch variance, which is what keeps categories from collapsing.

    Raises
    ------
    ValueError
        For an unknown distance or a negative ``lam`` or ``epsilon``.
    """

    def __init__(
        self,
        n_arms: int,
        n_categories: int,
        *,
        distance: str = "perturbed",
        lam: float = 1.0,
        epsilon: float | None = None,
        dual_rate: float = 0.05,
        momentum: float = 0.1,
    ):
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(f"distance={distance!r} is not known; use one of {', '.join(map(repr, DISTANCES))}.")
        if lam < 0 or not math.isfinite(lam):
            raise ValueError(f"lam={lam!r} must be a finite number of at least 0; the paper uses 1.")
        if epsilon is not None and not epsilon > 0:
            raise ValueError(f"epsilon={epsilon!r} must be positive, or None for a constant lam.")
        self.distance = distance
        self.epsilon = epsilon
        self.dual_rate = dual_rate
        self.momentum = momentum
        self.n_pairs = n_arms * (n_arms - 1) // 2
        self.register_buffer("lam", torch.tensor(float(lam)))
        # A uniform simplex point has no variance; the variance of a fair K-way choice is the natural start.
        start = (1 / n_categories) * (1 - 1 / n_categories)
        self.register_buffer("running_variance", torch.full((n_arms, n_categories), start))

    @property
    def constrained(self) -> bool:
        """Whether the weight is found by dual ascent (Eq. 9)."""
        return self.epsilon is not None

    def forward(self, log_q: torch.Tensor) -> torch.Tensor:
        """Squared distance summed over pairs of arms.

        Parameters
        ----------
        log_q
            Log-probabilities of the arms, shape ``(n_arms, n_cells, K)``.

        Returns
        -------
        torch.Tensor
            Shape ``(n_cells,)``; zeros for one arm.
        """
        if self.n_pairs == 0:
            return log_q.new_zeros(log_q.shape[1])
        if self.distance == "aitchison":
            return pairwise_distance2(clr(log_q))
        return pairwise_distance2(perturbed_coordinates(log_q, self._variance(log_q)))

    def _variance(self, log_q: torch.Tensor) -> torch.Tensor:
        running = self.running_variance
        if not self.training or log_q.shape[1] < 2:
            return running
        batch = category_variance(log_q.exp())
        with torch.no_grad():
            running.lerp_(batch.detach(), self.momentum)
        return batch + (running - batch).detach()

    @torch.no_grad()
    def dual_step(self, mean_distance2: torch.Tensor) -> None:
        r"""Raise :math:`\lambda` where the arms disagree by more than ``epsilon``, lower it where by less.

        Parameters
        ----------
        mean_distance2
            Mean over cells and pairs of the squared distance.
        """
        if self.epsilon is None or self.n_pairs == 0:
            return
        mean = mean_distance2 / self.running_variance.shape[1]
        # The log ratio is scale-free: early distances are orders of magnitude above any sensible epsilon.
        step = torch.log(mean.clamp_min(1e-12) / self.epsilon).clamp(-1, 1)
        self.lam.mul_(torch.exp(self.dual_rate * step)).clamp_(1e-8, 1e4)
