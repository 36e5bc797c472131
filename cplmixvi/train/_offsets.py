"""What batches add to the values of all their cells, whatever types these are of.

The mean of a batch is what it adds and what its types are: a batch with more neurons than another has more of what
neurons express. Where types are unequal, subtracting means moves the same type apart, so that it is found once per
batch, and different types together. So offsets and clusters are fitted at once: an offset is what the cells of one
batch differ by from those of another in the same cluster.

A batch that changes some types much more than others (a treatment) has no such offset: types that change most are one
cluster per batch. These differ along what the batch adds to the others, as types that only one batch has do not. There
cells can be compared with their counterparts in other batches (:class:`~cplmixvi.augment.AcrossBatches`); where that is
not possible, means are better than offsets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ._gaussian import inverse_root, ridge_of
from ._labels import some_rows
from ._mixture import SharedCovarianceMixture

#: Clusters, more than most data have types, so that a batch can lack one and shares others; cells per cluster.
N_CLUSTERS, _CELLS_PER_CLUSTER = 20, 40
#: Cells that offsets are fitted to, at most, with some of every batch.
MAX_CELLS = 5_000
_N_STARTS, _N_ITERATIONS, _TOLERANCE = 3, 40, 1e-4
#: Cosine above which clusters of one batch differ from others along its offset (interferon .15 to .3, batches to .06).
RESPONSE = 0.1


@dataclass(frozen=True)
class OffsetFit:
    """Clusters of cells, apart from what their batches add.

    Attributes
    ----------
    posterior
        Of the clusters, ``(n, K)``.
    offsets
        Of the batches, ``(n_batches, d)``.
    log_likelihood
        Mean over cells, nats.
    """

    posterior: torch.Tensor
    offsets: torch.Tensor
    log_likelihood: float


class OffsetMixture(SharedCovarianceMixture):
    r"""Mixture with one covariance whose points are shifted by batch, :math:`z = \mu_c + \delta_b + \text{noise}`.

    Means and offsets are maximised together: with one covariance for all clusters, by least squares. Such mixtures have
    two kinds of optima, in which clusters are of one batch each and in which they are not, so that searches start from
    no offsets and from the differences of batches' means, and the likeliest is taken.
    """

    def fit_offsets(self, z: torch.Tensor, members: torch.Tensor) -> OffsetFit:
        """Likeliest of a few starts.

        Parameters
        ----------
        z
            Coordinates of cells that are not corrected for batches, ``(n, d)``.
        members
            Batches of the cells, one-hot, ``(n, n_batches)``.

        Returns
        -------
        OffsetFit
        """
        means = members.T @ z / members.sum(0).clamp_min(1)[:, None]
        fits = []
        for offsets in (means, torch.zeros_like(means)):
            y = z - members @ offsets
            covariance = torch.cov(y.T.double(), correction=0).reshape(y.shape[1], -1) + ridge_of(y)
            for metric in (y, y @ inverse_root(covariance).float()):
                fits += [self._from_clusters(z, members, self._seeded(metric)) for _ in range(_N_STARTS)]
        return max(fits, key=lambda fit: fit.log_likelihood)

    def _from_clusters(self, z: torch.Tensor, members: torch.Tensor, posterior: torch.Tensor) -> OffsetFit:
        """Expectation maximisation from clusters, ``(n, K)``."""
        precision, ridge, previous = torch.ones_like(posterior), ridge_of(z), -math.inf
        for iteration in range(_N_ITERATIONS):
            offsets = shifts(z, posterior * precision, members)
            y = z - members @ offsets
            mixture, _ = self._update(y, posterior, precision, None, ridge, math.inf)
            weight = posterior.sum(0) + 1e-8
            log_p, (precision,) = self._log_joint([y], [mixture], weight / weight.sum())
            total = log_p.logsumexp(1, keepdim=True)
            posterior = torch.exp(log_p - total)
            log_likelihood = float(total.double().mean())
            if iteration > 5 and log_likelihood - previous < _TOLERANCE:
                break
            previous = log_likelihood
        return OffsetFit(posterior, offsets, log_likelihood)


def shifts(values: torch.Tensor, weighted: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Offsets of batches by weighted least squares on clusters and batches.

    Each is shrunk to zero with the weight of a single cell, which decides where batches share no cluster.

    Parameters
    ----------
    values
        ``(n, d)``.
    weighted
        Weights of the cells in their clusters, ``(n, K)``.
    members
        Batches of the cells, one-hot, ``(n, n_batches)``.

    Returns
    -------
    torch.Tensor
        ``(n_batches, d)``.
    """
    of_cell = weighted.sum(1, keepdim=True)
    in_batch = members * of_cell
    size, both = weighted.sum(0).double() + 1e-6, (weighted.T @ members).double()
    # Clusters' means are eliminated: what remains is as large as there are batches.
    left = torch.diag(in_batch.sum(0).double() + 1) - both.T @ (both / size[:, None])
    right = (in_batch.T @ values).double() - both.T @ ((weighted.T @ values).double() / size[:, None])
    return torch.linalg.solve(left, right).float()


def response(
    values: torch.Tensor, posterior: torch.Tensor, members: torch.Tensor, offsets: torch.Tensor, scale: torch.Tensor
) -> float:
    """How far clusters that have more of a batch differ from the others along what the batch adds.

    Parameters
    ----------
    values
        ``(n, d)``.
    posterior
        Of clusters, ``(n, K)``.
    members
        Batches of the cells, one-hot, ``(n, n_batches)``.
    offsets
        Of the batches, ``(n_batches, d)``.
    scale
        By which values are divided, ``(d,)``.

    Returns
    -------
    float
        Cosine of a batch's offset from the other batches' with the slope of clusters' means on its share in them, mean
        over batches by their cells.
    """
    rest, offsets = (values - members @ offsets) / scale, offsets / scale
    size = posterior.sum(0).clamp_min(1e-6)
    means = posterior.T @ rest / size[:, None]
    share = members.mean(0)
    excess = posterior.T @ members / size[:, None] - share
    slopes = (size[:, None] * excess).T @ means
    return float(share @ torch.cosine_similarity(slopes, offsets - share @ offsets, dim=1))


def batch_levels(
    x: torch.Tensor, batch: torch.Tensor, n_batches: int, scale: torch.Tensor, axes: torch.Tensor
) -> torch.Tensor | None:
    """Mean that every batch would have if types were as frequent in it as in all.

    Parameters
    ----------
    x
        Log values, ``(n, n_genes)``.
    batch
        Codes of batches, ``(n,)``.
    n_batches
        Their number.
    scale
        Of the genes, ``(n_genes,)``.
    axes
        Directions in which types are told apart, ``(n_genes, d)``.

    Returns
    -------
    torch.Tensor
        ``(n_batches, n_genes)``, the mean of all cells for a batch that has none; the batches' own means where cells
        are too few to be told apart, and `None` where batches change some types much more than others.
    """
    n_clusters = min(N_CLUSTERS, len(x) // _CELLS_PER_CLUSTER)
    if n_clusters < 2:
        return batch_means(x, batch, n_batches)
    generator = torch.Generator().manual_seed(0)
    rows = some_rows(len(x), MAX_CELLS, batch, generator=generator)
    members = one_hot(batch[rows], n_batches, x)
    centred = x[rows] - x.mean(0)
    found = OffsetMixture(n_clusters, generator=generator).fit_offsets((centred / scale) @ axes, members)
    offsets = shifts(centred, found.posterior, members)
    if response(centred, found.posterior, members, offsets, scale) > RESPONSE:
        return None
    share = torch.bincount(batch, minlength=n_batches).to(x.dtype) / len(x)
    levels = x.mean(0) + offsets - share @ offsets
    return torch.where((share > 0)[:, None], levels, x.mean(0))


def batch_means(x: torch.Tensor, batch: torch.Tensor, n_batches: int) -> torch.Tensor:
    """Mean of every batch ``(n_batches, n_genes)``; that of all cells where a batch has none here."""
    members = one_hot(batch, n_batches, x)
    size = members.sum(0)[:, None]
    return torch.where(size > 0, members.T @ x / size.clamp_min(1), x.mean(0))


def one_hot(batch: torch.Tensor, n_batches: int, like: torch.Tensor) -> torch.Tensor:
    """Batches of cells ``(n, n_batches)``, of the type of ``like``."""
    return torch.nn.functional.one_hot(batch, n_batches).to(like.dtype)
