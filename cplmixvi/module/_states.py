"""Inference with one category for all arms, and decoding of states that are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.distributions import Distribution

from ._arm import Covariates

if TYPE_CHECKING:
    from ._cplmixvae import CplMixVAE


class JointPosterior(NamedTuple):
    r"""Posterior of every arm, with states at the category that the arms choose together.

    Attributes
    ----------
    log_qc
        :math:`\log q_a(c\mid x)`, nats, shape ``(n_arms, n_cells, K)``.
    category
        Most probable category of the arms' average, shape ``(n_cells,)``.
    mean, variance
        Of :math:`q_a(s\mid c, x)` at that category, in the arm's own coordinates, ``(n_arms, n_cells, n_state)``.
    """

    log_qc: torch.Tensor
    category: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor


def infer_jointly(module: CplMixVAE, x: torch.Tensor, covariates: Covariates) -> JointPosterior:
    """Posterior of encoder inputs.

    Parameters
    ----------
    module
        The arms, in evaluation mode.
    x
        Encoder inputs (see :meth:`CplMixVAE.encoder_input`), shape ``(n_cells, n_genes)``.
    covariates
        Of the cells.

    Returns
    -------
    JointPosterior
    """
    hidden, of_arms = zip(*(arm.encode(x, covariates) for arm in module.arms), strict=True)
    log_qc = torch.stack(of_arms)
    category = log_qc.exp().mean(0).argmax(-1)
    c = nn.functional.one_hot(category, module.n_categories).to(x.dtype)
    mean, variance = zip(*(arm.state(h, c) for arm, h in zip(module.arms, hidden, strict=True)), strict=True)
    return JointPosterior(log_qc, category, torch.stack(mean), torch.stack(variance))


def decode_states(
    module: CplMixVAE, z: torch.Tensor, category: torch.Tensor, library: torch.Tensor, covariates: Covariates
) -> Distribution:
    """Values of cells whose states are given in the coordinates that the arms share.

    Every arm decodes the state in its own coordinates, and the decoded parameters, which have common coordinates
    (genes), are averaged.

    Parameters
    ----------
    module
        The arms, in evaluation mode.
    z
        Aligned states, shape ``(n_cells, n_state)``.
    category
        Integer, shape ``(n_cells,)``.
    library
        Molecules per cell, ``(n_cells, 1)``; only count likelihoods use it.
    covariates
        Of the cells.

    Returns
    -------
    torch.distributions.Distribution
        Batch shape ``(n_cells, n_genes)``.
    """
    c = nn.functional.one_hot(category, module.n_categories).to(z.dtype)
    states = module.alignment.inverse(z, category)
    px_arms = [arm.decode(c, s, library, covariates) for arm, s in zip(module.arms, states, strict=True)]
    return module.arms[0].likelihood.mean_over_arms(px_arms)
