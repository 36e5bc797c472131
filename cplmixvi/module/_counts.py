"""Log-likelihood of counts straight from a decoder's hidden layer, some cells at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable

from ._dense import outer, product, row_blocks
from ._simplex import EPS

#: Counts up to which what they need of the gamma function is read from a table of all genes.
TABLE_COUNTS = 32


def digamma(z: torch.Tensor) -> torch.Tensor:
    r""":math:`\psi(z)` of positive numbers, by its series at :math:`z + 8`. Torch's takes ten times longer."""
    shifted = z + 8
    inverse2 = shifted.square().reciprocal()
    series = shifted.log() - 0.5 / shifted - inverse2 * (1 / 12 - inverse2 * (1 / 120 - inverse2 / 252))
    return series - sum((z + step).reciprocal() for step in range(8))


def log_gammas(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    r""":math:`\log\Gamma(x+\theta) - \log\Gamma(\theta) - \log\Gamma(x+1)`, what a likelihood of counts needs."""
    return torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)


def digammas(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    r"""Derivative of :func:`log_gammas` by ``theta``, :math:`\psi(x+\theta) - \psi(\theta)`."""
    return digamma(x + theta) - digamma(theta)


class GammaTable:
    r"""What :func:`log_gammas` and :func:`digammas` give, read from tables of small counts by genes.

    With :math:`\log\Gamma(x+\theta) - \log\Gamma(\theta) = \sum_{j<x}\log(\theta+j)` there are as many logarithms as
    entries of a table, whatever the number of cells, and no gamma function but for genes with large counts.

    Parameters
    ----------
    theta
        Inverse dispersions, ``(n_genes,)``.
    x
        All values of at least zero that will be asked for, ``(n_cells, n_genes)``.
    """

    def __init__(self, theta: torch.Tensor, x: torch.Tensor):
        self.theta = theta
        step = torch.arange(TABLE_COUNTS, dtype=theta.dtype)[:, None]
        values, slopes = torch.log((theta + step) / (1 + step)), (theta + step).reciprocal()
        self._tables = {
            function: torch.cat([torch.zeros_like(theta), table.cumsum(0).view(-1)])
            for function, table in ((log_gammas, values), (digammas, slopes))
        }
        self._gene = torch.arange(len(theta), dtype=torch.int32)
        # A learned copy may be off a count by rounding, and a noisy one by more.
        off = torch.zeros_like(theta)
        for rows in row_blocks(len(x), x.shape[1], on_cpu=True):
            small = x[rows].clamp(max=TABLE_COUNTS)
            torch.maximum(off, small.sub_(small.int()).amax(0), out=off)
        self._others = ((off > 0) | (x.amax(0) > TABLE_COUNTS)).nonzero().view(-1)

    def __call__(self, function: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """What ``function`` gives for some of the cells, ``(n, n_genes)``, same shape."""
        key = x.clamp(max=TABLE_COUNTS).int().mul_(len(self.theta)).add_(self._gene)
        # Not gather, which takes three times as long.
        found = self._tables[function].index_select(0, key.view(-1)).view_as(x)
        if len(self._others):
            found[:, self._others] = function(x[:, self._others], self.theta[self._others])
        return found


def gamma_terms(theta: torch.Tensor, x: torch.Tensor) -> Callable[..., torch.Tensor]:
    """A function of :func:`log_gammas` or :func:`digammas` and cells of ``x`` that gives the former of the latter."""
    # Elsewhere than on a CPU gamma functions are cheap, and looking for large counts would wait for the device.
    return GammaTable(theta, x) if theta.device.type == "cpu" else lambda function, some: function(some, theta)


class NegativeBinomialScore(torch.autograd.Function):
    r"""Log-likelihood of a negative binomial whose mean is a softmax over genes, summed over genes.

    With logits :math:`l = W h + b`, :math:`\rho = \mathrm{softmax}(l)`, :math:`\mu = \ell\rho` and
    :math:`r_g = 1 + \mu_g/\theta_g`

    .. math::
        \log p(x) = \sum_g x_g(\log\mu_g - \log\theta_g - \log r_g) - \theta_g\log r_g
        + \log\Gamma(x_g+\theta_g) - \log\Gamma(\theta_g) - \log\Gamma(x_g+1)

    and with :math:`u_g = (x_g - \mu_g)/r_g`

    .. math::
        \frac{\partial\log p}{\partial l_g} = u_g - \rho_g\sum_j u_j, \qquad
        \frac{\partial\log p}{\partial\theta_g} = \psi(x_g+\theta_g) - \psi(\theta_g) - \log r_g - u_g/\theta_g .

    Nothing but :math:`\rho` is kept from one pass to the other, and no other matrix of cells by genes is ever whole.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        log_theta: torch.Tensor,
        library: torch.Tensor,
        x: torch.Tensor,
    ) -> torch.Tensor:
        """Nats, ``(n_cells,)``.

        Parameters
        ----------
        hidden
            Last hidden layer of the decoder, ``(n_cells, n_hidden)``.
        weight, bias
            Of its output, ``(n_genes, n_hidden)`` and ``(n_genes,)``.
        log_theta
            Log inverse dispersions, ``(n_genes,)``.
        library
            Molecules per cell, ``(n_cells, 1)``.
        x
            Counts, ``(n_cells, n_genes)``.
        """
        # Minibatches of values that are stored by genes (CSC) lie in memory so.
        x = x.contiguous()
        theta = log_theta.exp() + EPS
        terms, inverse, log_theta = gamma_terms(theta, x), theta.reciprocal(), theta.log()
        rho = product(hidden, weight, bias)
        score = x.new_empty(len(x))
        for rows in row_blocks(len(x), x.shape[1], x.device.type == "cpu"):
            counts, depth, share = x[rows], library[rows], rho[rows]
            share -= share.amax(-1, keepdim=True)
            value = (counts * share).sum(-1)
            share.copy_(torch.softmax(share, -1))
            # The largest logit is zero now: its share is one over the sum.
            value += counts.sum(-1) * (depth.squeeze(-1) * share.amax(-1)).log()
            log_r = (share * inverse).mul_(depth).log1p_()
            value -= counts @ log_theta + log_r @ theta
            value += terms(log_gammas, counts).addcmul_(counts, log_r, value=-1).sum(-1)
            score[rows] = value
        ctx.save_for_backward(hidden, weight, theta, library, x, rho)
        ctx.terms = terms
        return score

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``hidden``, ``weight``, ``bias`` and ``log_theta``."""
        hidden, weight, theta, library, x, rho = ctx.saved_tensors
        inverse, to_theta, to_logits = theta.reciprocal(), torch.zeros_like(theta), torch.empty_like(x)
        for rows in row_blocks(len(x), x.shape[1], x.device.type == "cpu"):
            counts, share, weights = x[rows], rho[rows], gradient[rows]
            mu = share * library[rows]
            ratio = mu * inverse
            u = torch.sub(counts, mu, out=mu).div_(ratio + 1)
            to_theta += weights @ ctx.terms(digammas, counts).sub_(ratio.log1p_()) - (weights @ u) * inverse
            u.addcmul_(share, u.sum(-1, keepdim=True), value=-1)
            torch.mul(u, weights[:, None], out=to_logits[rows])
        to_hidden = product(to_logits, weight.t())
        return to_hidden, outer(to_logits, hidden), to_logits.sum(0), to_theta * (theta - EPS), None, None
