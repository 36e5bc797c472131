"""What ties the arms together: the distance between their categories and the weight it gets."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from cplmixvi._processes import averaged, summed

from ._dual import DualWeight
from ._simplex import category_variance, clr, pairwise_distance2, perturbed_coordinates, safe_log

DISTANCES = ("perturbed", "aitchison")


class Disagreement(NamedTuple):
    """Distances between arms.

    Attributes
    ----------
    distance2
        Squared distance summed over pairs of arms, shape ``(n_cells,)``.
    share
        Half of the mean squared distance between two arms on a cell, as a share of that between any arms on any cells,
        0-d: 0 where arms agree, one half where a cell's arms are as far apart as those of different cells.
    """

    distance2: torch.Tensor
    share: torch.Tensor


class Coupling(nn.Module):
    r"""Distance between the arms' categorical posteriors and the coupling :math:`\lambda`.

    Parameters
    ----------
    n_arms, n_categories
        Number of arms and categories.
    distance
        ``"perturbed"``: :math:`d_\sigma^2` (paper, section 3.2); ``"aitchison"``: the plain clr distance.
    lam
        :math:`\lambda`; the paper uses 1 throughout. With ``epsilon`` it is the starting value. By default 1, or 0.001
        with ``epsilon``: a strong coupling at the start would undo what the arms have just learnt from a guide.
    epsilon
        Tolerated disagreement of Remark 1 / Eq. 9, met by dual ascent on :math:`\lambda`; `None` keeps :math:`\lambda`
        constant (Eq. 8). It is a share (see :class:`Disagreement`) and not a distance, so that one value serves any
        number of categories and arms.
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
        distance: str = "aitchison",
        lam: float | None = None,
        epsilon: float | None = 0.05,
        dual_rate: float = 0.05,
        momentum: float = 0.1,
    ):
        super().__init__()
        if lam is None:
            lam = 1.0 if epsilon is None else 1e-3
        if distance not in DISTANCES:
            raise ValueError(f"distance={distance!r} is not known; use one of {', '.join(map(repr, DISTANCES))}.")
        if lam < 0 or not math.isfinite(lam):
            raise ValueError(f"lam={lam!r} must be a finite number of at least 0; the paper uses 1.")
        if epsilon is not None and not 0 < epsilon < 1:
            raise ValueError(f"epsilon={epsilon!r} must lie between 0 and 1, or be None for a constant lam.")
        self.distance = distance
        self.momentum = momentum
        self.n_arms, self.n_pairs = n_arms, n_arms * (n_arms - 1) // 2
        self.lam = DualWeight(lam, epsilon if self.n_pairs else None, rate=dual_rate)
        # A uniform simplex point has no variance; the variance of a fair K-way choice is the natural start.
        start = (1 / n_categories) * (1 - 1 / n_categories)
        self.register_buffer("running_variance", torch.full((n_arms, n_categories), start))

    @property
    def constrained(self) -> bool:
        """Whether the weight is found by dual ascent (Eq. 9)."""
        return self.lam.tolerance is not None

    def forward(self, log_q: torch.Tensor) -> Disagreement:
        """Distances between the arms.

        Parameters
        ----------
        log_q
            Log-probabilities of the arms, shape ``(n_arms, n_cells, K)``.

        Returns
        -------
        Disagreement
            Zeros for one arm.
        """
        if self.n_pairs == 0:
            return Disagreement(log_q.new_zeros(log_q.shape[1]), log_q.new_zeros(()))
        if self.distance == "aitchison":
            coordinates = clr(log_q)
        else:
            # With the reference's floor: without one, what is next to impossible decides over all else.
            coordinates = perturbed_coordinates(safe_log(log_q.exp()), self._variance(log_q))
        fixed = coordinates.detach()
        within = (fixed - fixed.mean(0, keepdim=True)).square().sum()
        mean = fixed.mean((0, 1), keepdim=True)
        total = (fixed - (averaged(mean) if self.training else mean)).square().sum()
        if self.training:
            within, total = summed(torch.stack([within, total]))
        # The variance about the mean of few arms is too small.
        unbiased = self.n_arms / (self.n_arms - 1)
        return Disagreement(pairwise_distance2(coordinates), 0.5 * unbiased * within / total.clamp_min(1e-12))

    def _variance(self, log_q: torch.Tensor) -> torch.Tensor:
        running: torch.Tensor = self.running_variance
        if not self.training or log_q.shape[1] < 2:
            return running
        batch = category_variance(log_q.exp())
        with torch.no_grad():
            running.lerp_(batch.detach().to(running), self.momentum)
        return batch + (running - batch).detach()


def pairwise_agreement(labels: torch.Tensor) -> torch.Tensor:
    """Share of arm pairs that give a cell the same label; ``nan`` with one arm.

    Parameters
    ----------
    labels
        Integer labels, shape ``(n_arms, n_cells)``.

    Returns
    -------
    torch.Tensor
        Shape ``(n_cells,)``.
    """
    n_arms = len(labels)
    if n_arms < 2:
        return torch.full(labels.shape[1:], torch.nan, device=labels.device)
    pairs = [labels[a] == labels[b] for a in range(n_arms) for b in range(a + 1, n_arms)]
    return torch.stack(pairs).float().mean(0)
