"""Where the arms start: one labelling on which several views of the data agree.

A view is the cells in a few leading principal components of their standardised log values; views differ in how genes
are standardised and in how many components they keep. In each,
:class:`~cplmixvi.train._mixture.SharedCovarianceMixture` finds types. No view is right alone: the likeliest mixture in
one number of dimensions may follow a handful of genes that another number ignores. Views exchange what they found and
their aligned posteriors are averaged. All of it is a function of a cell's values, so that it can be evaluated on the
device for any minibatch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d, median_filter
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from torch import nn

from ._mixture import Mixture, SharedCovarianceMixture

#: Standardised values are clipped here, so that one cell with a rare gene does not make a component.
CLIP = 10.0
DIMENSIONS = (10, 15, 20, 25)
#: How much of the usual standard deviation, rather than its own, a gene is divided by; one entry per arm, in turn.
SCALINGS = (0.5, 0.0, 1.0)


class Projection(nn.Module):
    r"""Principal coordinates :math:`z = U^\top\mathrm{clip}\big((x - m)/s\big)` of log values.

    The scale :math:`s = s_\text{own}^{1-\gamma} s_\text{usual}^\gamma` mixes each gene's own standard deviation with
    the one that is usual at its mean. Dividing by the gene's own gives noise as much say as markers; dividing by the
    usual one lets the few most variable genes decide. Neither is better on all data. :math:`m` is each batch's mean.

    Parameters
    ----------
    x
        Log values to learn from, ``(n_cells, n_genes)``.
    batch
        Batch codes, ``(n_cells,)``.
    n_components
        Coordinates.
    scaling
        :math:`\gamma` in ``[0, 1]``.
    seed
        Of the randomised decomposition.
    """

    def __init__(self, x: torch.Tensor, batch: torch.Tensor, n_components: int, scaling: float, seed: int):
        super().__init__()
        self.register_buffer("mean", _batch_means(x, batch))
        self.register_buffer("scale", _scale(x, scaling))
        pca = PCA(n_components, svd_solver="randomized", random_state=seed).fit(self._standardise(x, batch).numpy())
        self.register_buffer("axes", torch.from_numpy(np.ascontiguousarray(pca.components_.T, dtype=np.float32)))

    def _standardise(self, x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return ((x - self.mean[batch]) / self.scale).clamp_(-CLIP, CLIP)

    def forward(self, x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Coordinates ``(n_cells, n_components)`` of log values ``(n_cells, n_genes)`` of batches ``(n_cells,)``."""
        return self._standardise(x, batch) @ self.axes


class View(nn.Module):
    """Posterior of one mixture on the leading coordinates of one projection.

    Parameters
    ----------
    mixture
        Fitted mixture, with covariances of its own for every component.
    dof
        Its degrees of freedom.
    """

    def __init__(self, mixture: Mixture, dof: float):
        super().__init__()
        whitening, log_det = mixture.whitening()
        self.dof, self.dimension = dof, whitening.shape[1]
        self.register_buffer("whitening", whitening.float().permute(1, 0, 2).reshape(self.dimension, -1))
        self.register_buffer("offset", torch.einsum("ki,kij->kj", mixture.mean.double(), whitening).float())
        self.register_buffer("log_weight", mixture.weight.log() - 0.5 * log_det.float())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Probabilities ``(n_cells, K)`` at coordinates ``z`` ``(n_cells, at least self.dimension)``."""
        d = self.dimension
        distance2 = ((z[:, :d] @ self.whitening).view(len(z), *self.offset.shape) - self.offset).square().sum(-1)
        return torch.softmax(self.log_weight - 0.5 * (self.dof + d) * torch.log1p(distance2 / self.dof), dim=-1)


class ViewConsensus(nn.Module):
    r"""Average of the views' posteriors, :math:`R(c\mid x) = V^{-1}\sum_v p_v(c\mid z_v(x))`.

    Parameters
    ----------
    projections
        The projections.
    views
        Pairs of a projection's index and a view whose categories are aligned with the others'.
    """

    def __init__(self, projections: Sequence[Projection], views: Sequence[tuple[int, View]]):
        super().__init__()
        self.projections = nn.ModuleList(projections)
        self.views = nn.ModuleList(view for _, view in views)
        self.source = [index for index, _ in views]

    @torch.no_grad()
    def by_view(self, log_values: torch.Tensor, batch: torch.Tensor | None = None) -> torch.Tensor:
        """Posterior of every view, ``(n_views, n_cells, K)``, for log values ``(n_cells, n_genes)``."""
        batch = _no_batch(log_values) if batch is None else batch
        coordinates = [projection(log_values, batch) for projection in self.projections]
        return torch.stack([view(coordinates[i]) for i, view in zip(self.source, self.views, strict=True)])

    def forward(self, log_values: torch.Tensor, batch: torch.Tensor | None = None) -> torch.Tensor:
        """Average of the views' posteriors, ``(n_cells, K)``."""
        return self.by_view(log_values, batch).mean(0)


def fit_views(
    log_values: torch.Tensor,
    n_categories: int,
    *,
    batch: torch.Tensor | None = None,
    scalings: Sequence[float] = SCALINGS[:2],
    dimensions: Sequence[int] = DIMENSIONS,
    seed: int = 0,
    **mixture_options,
) -> ViewConsensus:
    """Find the categories on which views agree.

    Parameters
    ----------
    log_values
        Log values of the cells to learn from, ``(n_cells, n_genes)``.
    n_categories
        ``K``.
    batch
        Batch codes, ``(n_cells,)``; one batch if `None`.
    scalings
        One projection each, see :class:`Projection`.
    dimensions
        Views per projection, by their number of coordinates.
    seed
        Source of all randomness.
    **mixture_options
        Of :class:`~cplmixvi.train._mixture.SharedCovarianceMixture`.

    Returns
    -------
    ViewConsensus
    """
    x = torch.as_tensor(log_values, dtype=torch.float32)
    batch = _no_batch(x) if batch is None else batch
    limit = max(1, min(len(x) // 8, x.shape[1] - 1))
    dimensions = sorted({min(d, limit) for d in dimensions})
    projections = [Projection(x, batch, max(dimensions), scaling, seed) for scaling in scalings]
    generator = torch.Generator().manual_seed(seed)
    fitter = SharedCovarianceMixture(n_categories, generator=generator, **mixture_options)
    source = [index for index in range(len(projections)) for _ in dimensions]
    points = [projection(x, batch)[:, :d] for projection in projections for d in dimensions]
    own = [fitter.fit(z) for z in points]
    # The views' own answers stay in the average: where they differ, the certainty of the exchanged ones is not earned.
    mixtures = [*_exchange(fitter, points, own), *own]
    posteriors = [fitter.posterior(z, mixture) for z, mixture in zip([*points, *points], mixtures, strict=True)]
    views = [View(mixture, fitter.dof) for mixture in _aligned(mixtures, posteriors)]
    return ViewConsensus(projections, list(zip([*source, *source], views, strict=True)))


def _no_batch(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(x), dtype=torch.long, device=x.device)


def _batch_means(x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Mean of every batch ``(n_batches, n_genes)``; that of all cells where a batch has none here."""
    members = torch.nn.functional.one_hot(batch).to(x.dtype)
    size = members.sum(0)[:, None]
    return torch.where(size > 0, members.T @ x / size.clamp_min(1), x.mean(0))


def _scale(x: torch.Tensor, scaling: float) -> torch.Tensor:
    """Scale of every gene, see :class:`Projection`, ``(n_genes,)``."""
    own = np.log(x.std(0, unbiased=False).clamp_min(1e-6).numpy())
    order = np.argsort(x.mean(0).numpy(), kind="stable")
    width = 2 * max(len(own) // 20, 1) + 1
    usual = np.empty_like(own)
    usual[order] = gaussian_filter1d(median_filter(own[order], width, mode="nearest"), width / 7)
    return torch.from_numpy(np.exp((1 - scaling) * own + scaling * usual)).float()


def _exchange(
    fitter: SharedCovarianceMixture, points: Sequence[torch.Tensor], mixtures: Sequence[Mixture]
) -> list[Mixture]:
    """Give every view what the others found as a start and keep what is likelier there.

    A good optimum that one view's starts reached is out of reach of another's by chance only.
    """
    found = [fitter.posterior(z, mixture) for z, mixture in zip(points, mixtures, strict=True)]
    improved = []
    for index, (z, own) in enumerate(zip(points, mixtures, strict=True)):
        offers = (fitter.refine(z, posterior) for other, posterior in enumerate(found) if other != index)
        improved.append(max([own, *offers], key=lambda mixture: mixture.log_likelihood))
    return improved


def _aligned(mixtures: list[Mixture], posteriors: list[torch.Tensor]) -> list[Mixture]:
    """Permute each view's categories to match the average of all, starting from the most typical view."""
    posteriors = [posterior.double() for posterior in posteriors]
    overlap = [[_matched(a, b)[1] for b in posteriors] for a in posteriors]
    reference = posteriors[int(np.argmax(np.sum(overlap, axis=1)))]
    for _ in range(10):
        orders = [_matched(reference, posterior)[0] for posterior in posteriors]
        average = torch.stack([p[:, order] for p, order in zip(posteriors, orders, strict=True)]).mean(0)
        if torch.allclose(average, reference, atol=1e-6):
            break
        reference = average
    return [
        Mixture(m.mean[order], m.covariance[order], m.shared, m.weight[order], m.log_likelihood)
        for m, order in zip(mixtures, orders, strict=True)
    ]


def _matched(reference: torch.Tensor, posterior: torch.Tensor) -> tuple[np.ndarray, float]:
    """Order of ``posterior``'s categories that overlaps most with ``reference``'s, and the overlap in cells."""
    shared = (reference.T @ posterior).numpy()
    rows, columns = linear_sum_assignment(-shared)
    return columns, float(shared[rows, columns].sum())
