"""Log-likelihoods straight from a decoder's hidden layer, with derivatives that are made together with the value."""

from __future__ import annotations

from types import ModuleType

import torch
from torch.autograd.function import once_differentiable

from cplmixvi._compiled import in_parts, kernels

from ._dense import outer, product
from ._simplex import EPS


def digamma(z: torch.Tensor) -> torch.Tensor:
    r""":math:`\psi(z)` of positive numbers, by its series at :math:`z + 8`. Torch's takes ten times longer."""
    shifted = z + 8
    inverse2 = shifted.square().reciprocal()
    series = shifted.log() - 0.5 / shifted - inverse2 * (1 / 12 - inverse2 * (1 / 120 - inverse2 / 252))
    return series - sum((z + step).reciprocal() for step in range(8))


def precise(x: torch.Tensor) -> torch.dtype:
    """Double precision where the device has it, for differences of large numbers."""
    return x.dtype if x.device.type == "mps" else torch.float64


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

    The derivatives are made together with the value. Compiled loops put the first in the place of the logits and sum
    the second over cells, so that one matrix of cells by genes is kept.
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
        logits = product(hidden, weight, bias)
        ctx.loops = kernels(logits, x)
        if ctx.loops is None:
            score, to_logits, to_genes = _by_torch(logits, theta, library, x)
        else:
            score, to_logits, to_genes = _by_loops(ctx.loops, logits, theta, library, x, torch.ones_like(x[:, 0]))
        ctx.save_for_backward(hidden, weight, bias, theta, library, x, to_logits, to_genes)
        return score

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``hidden``, ``weight``, ``bias`` and ``log_theta``."""
        hidden, weight, bias, theta, library, x, to_logits, to_genes = ctx.saved_tensors
        if ctx.loops is None:
            to_theta, to_bias = gradient @ to_genes, gradient @ to_logits
        elif (gradient == gradient[0]).all():
            to_theta, to_bias = gradient[0] * to_genes
        else:
            # Not in training, where all cells count alike.
            _, _, (to_theta, to_bias) = _by_loops(ctx.loops, product(hidden, weight, bias), theta, library, x, gradient)
        weights = gradient[:, None]
        return (
            product(to_logits, weight.t()) * weights,
            outer(to_logits, hidden * weights),
            to_bias,
            to_theta * (theta - EPS),
            None,
            None,
        )


class SquaresScore(torch.autograd.Function):
    r"""Minus half the sum over genes of squared residuals, each in units of its gene's scale.

    With means :math:`\mu = W h + b` and :math:`z_g = (x_g - \mu_g)/\sigma_g`

    .. math::
        f = -\tfrac12\sum_g z_g^2, \qquad \frac{\partial f}{\partial\mu_g} = \frac{z_g}{\sigma_g}, \qquad
        \frac{\partial f}{\partial\sigma_g^{-1}} = -\sigma_g z_g^2,

    which is the logarithm of a normal density but for what does not depend on the cell. One matrix of cells by genes is
    kept, in the place of the means.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        inverse_scale: torch.Tensor | None,
        x: torch.Tensor,
    ) -> torch.Tensor:
        r"""Shape ``(n_cells,)``.

        Parameters
        ----------
        hidden
            Last hidden layer of the decoder, ``(n_cells, n_hidden)``.
        weight, bias
            Of its output, ``(n_genes, n_hidden)`` and ``(n_genes,)``.
        inverse_scale
            :math:`1/\sigma_g`, ``(n_genes,)``; 1 for all if `None`.
        x
            Values, ``(n_cells, n_genes)``.
        """
        mean = product(hidden, weight, bias)
        z = torch.sub(x, mean, out=mean)
        if inverse_scale is not None:
            z.mul_(inverse_scale)
        ctx.save_for_backward(hidden, weight, inverse_scale, z)
        return torch.linalg.vector_norm(z, dim=-1).square().mul_(-0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``hidden``, ``weight``, ``bias`` and ``inverse_scale``."""
        hidden, weight, inverse_scale, z = ctx.saved_tensors
        to_scale, weights = None, gradient[:, None]
        if inverse_scale is None:
            to_mean = z * weights
        else:
            to_scale = -(gradient @ z.square()) / inverse_scale
            to_mean = (z * inverse_scale).mul_(weights)
        return product(to_mean, weight.t()), outer(to_mean, hidden), to_mean.sum(0), to_scale, None


def _by_torch(
    logits: torch.Tensor, theta: torch.Tensor, library: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score ``(n_cells,)`` and its derivatives by logits and by theta, ``(n_cells, n_genes)`` each."""
    inverse = theta.reciprocal()
    log_share = torch.log_softmax(logits, -1)
    share = log_share.exp()
    mu = share * library
    ratio = mu * inverse
    log_r = ratio.log1p()
    score = (x * (log_share + library.log() - theta.log() - log_r) - theta * log_r).sum(-1)
    # Differences of numbers that are large where theta is.
    count, size = x.to(precise(x)), theta.to(precise(x))
    score += (torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1)).sum(-1).to(x.dtype)
    u = (x - mu).div_(ratio.add_(1))
    to_theta = (digamma(count + size) - digamma(size)).to(x.dtype).sub_(log_r).addcmul_(u, inverse, value=-1)
    return score, torch.addcmul(u, share, u.sum(-1, keepdim=True), value=-1), to_theta


def _by_loops(
    loops: ModuleType,
    logits: torch.Tensor,
    theta: torch.Tensor,
    library: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`_by_torch`, with the derivatives by logits in their place, and the others summed over cells.

    Those are the derivatives by theta and bias, ``(2, n_genes)``, of the sum of scores times ``weights``.
    """
    cells = [values.contiguous().numpy() for values in (logits, x, library.view(-1), weights)]
    score = torch.empty_like(weights)

    def part(rows: slice) -> torch.Tensor:
        to_genes = theta.new_empty(2, len(theta))
        loops.score(*(values[rows] for values in cells), theta.numpy(), score.numpy()[rows], to_genes.numpy())
        return to_genes

    return score, logits, torch.stack(in_parts(part, len(x))).sum(0)
