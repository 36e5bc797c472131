"""One set of coordinates for the states of all arms."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from ._procrustes import nearest_rotations, with_average
from ._programs import common_turns, likeness

#: Cells of the average category that every category's covariance is mixed with, so that a handful of cells cannot
#: turn an arm on its head.
PSEUDO_CELLS = 100.0

#: A state that an arm does not use has hardly any spread; without a bound its noise would be blown up.
SCALE_RANGE = (0.1, 10.0)

#: Cells that the axes are found on, sweeps over pairs of dimensions, and angles per pair (an odd number has 0 in it).
AXES_CELLS, N_SWEEPS, N_ANGLES = 10_000, 3, 91


class StateAlignment(nn.Module):
    r"""Maps each arm's state to common coordinates, category by category, and back.

    Sign, scale, rotation and origin of an arm's state are arbitrary, and since encoder and decoder see the category,
    they may differ from category to category. For arm :math:`a` and category :math:`k`

    .. math::
        z = B^\top R_k^\top \big( m_{0k} + r_{ak}\, Q_{ak}^\top (s_a - m_{ak}) \big), \qquad
        Q_{ak} = U V^\top, \quad U D V^\top = C_{ak} + n_0 \bar C_a, \qquad
        r_{ak}^2 = \frac{E_{0k} + n_0 \bar E_0}{E_{ak} + n_0 \bar E_a}

    with :math:`m_{ak}` the mean over the category's cells, :math:`C_{ak} = \sum_i (s_{ai} - m_{ak})(s_{0i} -
    m_{0k})^\top` and :math:`E_{ak} = \sum_i \|s_{ai} - m_{ak}\|^2`; bars are sums over all categories divided by the
    number of cells. This is orthogonal Procrustes analysis onto arm 0 (reflections allowed), shrunk to the rotation
    that all categories share. The scale equates the spread of the arms: that of least squares would shrink an arm that
    agrees little, and could not be inverted where it agrees not at all.

    The standard normal prior leaves the rotation of arm 0 arbitrary too, in every category. The :math:`R_k` turn it so
    that the same genes go with a dimension in all categories, as far as there are such genes (:func:`common_turns`).
    The columns of :math:`B` are the orthogonal axes along which the mean over arms, centred within categories and
    turned so, shares the least information,

    .. math::
        B = \arg\min \sum_d H(u_d) = \arg\min \sum_d \big(\log\sigma_d - J(u_d / \sigma_d)\big)

    with the negentropy :math:`J` in Hyvarinen's approximation (1998). For Gaussian states these are the principal axes;
    where cells of a type fall into groups, such as stimulated and control ones, it is the direction between them. The
    first dimension is the one with the largest variance, and signs make third moments positive.

    Until :meth:`fit` is called the map is the identity; categories without a cell then get the shared rotation.

    On kang2018 (13 categories, 2 arms, 2 dimensions) the arms' aligned states share 92 to 96 % of their variance. Where
    arm 0 is not turned, interferon is the first dimension in some types and the second in others there.

    Parameters
    ----------
    n_arms, n_categories, n_state
        ``A``, ``K`` and ``S``.
    """

    def __init__(self, n_arms: int, n_categories: int, n_state: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_arms, n_categories, n_state))
        self.register_buffer("origin", torch.zeros(n_categories, n_state))
        self.register_buffer("scale", torch.ones(n_arms, n_categories))
        self.register_buffer("rotation", torch.eye(n_state).expand(n_arms, n_categories, -1, -1).clone())
        #: Of every category's genes to those of the others, see :func:`likeness`.
        self.register_buffer("likeness", torch.zeros(n_categories, n_state))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Models that were saved before there was an alignment have none: they keep the identity.
        for name, buffer in self.named_buffers():
            state_dict.setdefault(prefix + name, buffer)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def fit(self, state: torch.Tensor, category: torch.Tensor, programs: torch.Tensor | None = None) -> None:
        """Find the maps.

        Parameters
        ----------
        state
            Posterior means of the training cells, shape ``(n_arms, n_cells, n_state)``.
        category
            The cells' categories, the same for all arms, integer, shape ``(n_cells,)``.
        programs
            Sums over the cells of products of arm 0's states and genes, shape ``(K, n_state, n_genes)``, on the CPU as
            from :class:`StatePrograms`. Without them arm 0 has one rotation for all categories.
        """
        # In double precision, which not every accelerator has.
        state, category = state.cpu().double(), category.cpu()
        member = nn.functional.one_hot(category, self.centre.shape[1]).to(state.dtype)
        centre = torch.einsum("nk,ans->aks", member, state) / member.sum(0).clamp_min(1.0)[:, None]
        centred = state - centre[:, category]
        rotation = _rotations(member, centred)
        if programs is not None:
            rotation = rotation @ common_turns(programs, len(category))
        energy = torch.einsum("nk,ans->ak", member, centred.square())
        energy = with_average(energy, len(category), PSEUDO_CELLS, dim=1) + 1e-12
        scale = (energy[:1] / energy).sqrt().clamp(*SCALE_RANGE)
        aligned = scale[:, category, None] * torch.einsum("anst,ans->ant", rotation[:, category], centred)
        basis = _independent_axes(aligned.mean(0))
        self.centre.copy_(centre)
        rotation = rotation @ basis
        self.origin.copy_(torch.einsum("kst,ks->kt", rotation[0], centre[0]))
        self.scale.copy_(scale)
        self.rotation.copy_(rotation)
        if programs is not None:
            turned = torch.einsum("kst,ksg->ktg", rotation[0].to(programs.dtype), programs)
            self.likeness.copy_(likeness(turned))

    def forward(
        self, mean: torch.Tensor, variance: torch.Tensor, category: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""States of the arms in common coordinates.

        Parameters
        ----------
        mean, variance
            Of :math:`q(s\mid c, x)`, shape ``(n_arms, n_cells, n_state)``.
        category
            Integer, shape ``(n_cells,)``.

        Returns
        -------
        tuple
            Means and the diagonals of the covariances, shaped as given.
        """
        scale, rotation = self.scale[:, category, None], self.rotation[:, category]
        centred = mean - self.centre[:, category]
        aligned = self.origin[category] + scale * torch.einsum("anst,ans->ant", rotation, centred)
        return aligned, scale.square() * torch.einsum("anst,ans->ant", rotation.square(), variance)

    def inverse(self, z: torch.Tensor, category: torch.Tensor) -> torch.Tensor:
        """States of every arm ``(n_arms, n_cells, n_state)`` from common ones ``(n_cells, n_state)``."""
        scale, rotation = self.scale[:, category, None], self.rotation[:, category]
        centred = (z - self.origin[category]).expand(len(scale), -1, -1) / scale
        return self.centre[:, category] + torch.einsum("anst,ant->ans", rotation, centred)


def _rotations(member: torch.Tensor, centred: torch.Tensor) -> torch.Tensor:
    """Rotations onto arm 0, shape ``(n_arms, K, n_state, n_state)``, of states that are centred in their category."""
    cross = torch.einsum("nk,ans,nt->akst", member, centred, centred[0])
    rotation = nearest_rotations(with_average(cross, len(member), PSEUDO_CELLS, dim=1))
    # Arm 0 without the noise of the decomposition.
    rotation[0] = torch.eye(centred.shape[-1], dtype=centred.dtype)
    return rotation


def _independent_axes(centred: torch.Tensor) -> torch.Tensor:
    """Orthogonal axes as columns that share the least information, ``(n_state, n_state)``; by turning pair by pair."""
    axes = torch.linalg.eigh(centred.T @ centred)[1].flip(-1)
    some = centred[:: max(1, len(centred) // AXES_CELLS)]
    angles = torch.linspace(-math.pi / 4, math.pi / 4, N_ANGLES, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    turns = torch.stack([torch.stack([cos, sin]), torch.stack([-sin, cos])])
    for _ in range(N_SWEEPS):
        before = axes.clone()
        for i, j in itertools.combinations(range(len(axes)), 2):
            pair = some @ axes[:, [i, j]]
            best = sum(_entropy(pair @ column) for column in turns).argmin()
            axes[:, [i, j]] = axes[:, [i, j]] @ turns[:, :, best].T
        if torch.allclose(axes, before):
            break
    axes = axes[:, (centred @ axes).square().sum(0).argsort(descending=True)]
    skewness = (centred @ axes).pow(3).sum(0)
    return axes * torch.where(skewness < 0, -1.0, 1.0)


def _entropy(values: torch.Tensor) -> torch.Tensor:
    """Entropy of each column up to a constant, nats, ``(n_columns,)``: that of a Gaussian minus the negentropy."""
    deviation = values.square().mean(0).sqrt().clamp_min(1e-8)
    u = values / deviation
    bell = (-u.square() / 2).exp()
    skewed, peaked = (u * bell).mean(0), bell.mean(0) - math.sqrt(0.5)
    root = math.sqrt(3.0)
    return deviation.log() - 36 / (8 * root - 9) * skewed.square() - 24 / (16 * root - 27) * peaked.square()


def mean_over_arms(mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Mean and variance of the even mixture of the arms' posteriors.

    .. math:: \bar\mu = \tfrac1A\sum_a\mu_a, \qquad \bar\sigma^2 = \tfrac1A\sum_a (\sigma_a^2 + (\mu_a - \bar\mu)^2)

    What the arms disagree on is uncertain: it is part of the variance.

    Parameters
    ----------
    mean, variance
        In common coordinates, shape ``(n_arms, n_cells, n_state)``.

    Returns
    -------
    tuple
        Each ``(n_cells, n_state)``.
    """
    combined = mean.mean(0)
    return combined, (variance + (mean - combined).square()).mean(0)
