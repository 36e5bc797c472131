"""How a decoded vector becomes values of a cell, with gradients through the draw."""

from __future__ import annotations

import math

import torch
from torch import nn

from cplmixvi._constants import COUNT_LIKELIHOODS


class Emission(nn.Module):
    r"""Distribution of a cell's values given the decoder's last hidden layer.

    Draws have a gradient: where the distribution is discrete, that of a draw is the gradient of what it is a draw of
    (straight-through: Bengio, Leonard and Courville 2013, arXiv:1308.3432).

    Parameters
    ----------
    n_hidden
        Width of the decoder's last layer.
    n_genes
        Number of genes.
    """

    #: Number of decoder outputs per gene.
    n_outputs: int = 1

    def __init__(self, n_hidden: int, n_genes: int):
        super().__init__()
        self.n_genes = n_genes
        self.output = nn.Linear(n_hidden, n_genes * self.n_outputs)

    def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw values and evaluate the likelihood of ``x``.

        Parameters
        ----------
        hidden
            ``(n_cells, n_hidden)``.
        x
            Values of the cells, ``(n_cells, n_genes)``; their totals are those of the draws' expectation, on counts.

        Returns
        -------
        torch.Tensor
            Draws, ``(n_cells, n_genes)``.
        torch.Tensor
            Log-likelihood of ``x`` in nats, ``(n_cells,)``.
        """
        raise NotImplementedError


class CountEmission(Emission):
    r""":math:`x_g\sim\mathrm{NB}(\ell\,\rho_g, \theta_g)`, :math:`\rho=\mathrm{softmax}(\cdot)`.

    The total :math:`\ell` is the cell's own; a draw is a Poisson count of a gamma distributed rate.
    """

    def __init__(self, n_hidden: int, n_genes: int):
        super().__init__(n_hidden, n_genes)
        # Molecule counts are nearly Poisson: from there, genes that are not find their dispersion sooner than back.
        self.log_theta = nn.Parameter(torch.full((n_genes,), 2.0))

    def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Emission.forward`."""
        total = x.sum(-1, keepdim=True).clamp_min(1.0)
        log_mean = torch.log_softmax(self.output(hidden), dim=-1) + total.log()
        # Beyond these bounds the counts of a gene are as good as Poisson, or as good as always zero.
        log_theta = self.log_theta.clamp(-6, 8)
        theta = log_theta.exp()
        log_sum = torch.logaddexp(log_mean, log_theta)
        log_prob = theta * (log_theta - log_sum) + x * (log_mean - log_sum)
        log_prob = log_prob + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        shape = theta.expand_as(x)
        rate = torch.distributions.Gamma(shape, shape, validate_args=False).rsample() * log_mean.exp()
        return rate + (torch.poisson(rate.detach()) - rate).detach(), log_prob.sum(-1)


class LogValueEmission(Emission):
    r"""Zero with probability :math:`1-\pi_g`, else :math:`\mathcal N(\mu_g, \sigma_g^2)`, as log values are."""

    n_outputs = 2
    #: Smallest standard deviation: a gene that is constant must not have an unbounded likelihood.
    min_scale = 0.05

    def __init__(self, n_hidden: int, n_genes: int):
        super().__init__(n_hidden, n_genes)
        self.log_scale = nn.Parameter(torch.zeros(n_genes))

    def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Emission.forward`."""
        mean, logits = self.output(hidden).split(self.n_genes, dim=-1)
        scale = self.log_scale.exp() + self.min_scale
        detected = (x != 0).to(x.dtype)
        density = -0.5 * ((x - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
        log_prob = detected * density - nn.functional.binary_cross_entropy_with_logits(
            logits, detected, reduction="none"
        )
        draw = _straight_through_bernoulli(logits) * (mean + scale * torch.randn_like(mean))
        return draw, log_prob.sum(-1)


class BinaryEmission(Emission):
    r""":math:`x_g\sim\mathrm{Bernoulli}(\pi_g)`; values between 0 and 1 count as probabilities."""

    def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Emission.forward`."""
        logits = self.output(hidden)
        log_prob = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        return _straight_through_bernoulli(logits), log_prob.sum(-1)


def _straight_through_bernoulli(logits: torch.Tensor) -> torch.Tensor:
    probability = torch.sigmoid(logits)
    return probability + (torch.bernoulli(probability.detach()) - probability).detach()


def emission_class(likelihood: str) -> type[Emission]:
    """What fits the values of a likelihood of the arms."""
    if likelihood in COUNT_LIKELIHOODS:
        return CountEmission
    return BinaryEmission if likelihood == "bernoulli" else LogValueEmission
