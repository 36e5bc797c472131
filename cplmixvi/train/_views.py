"""Where the arms start: one labelling on which several views of the data agree.

A view is the cells in a few leading principal components of their standardised log values; views differ in how many
components they keep. No view is right alone: the likeliest mixture in one number of dimensions may follow a handful of
genes that another number ignores. So
:class:`~cplmixvi.train._mixture.SharedCovarianceMixture` is fitted to several at once.

That answer is over-confident: it says how certain a cell is, given the categories, and not whether other cells would
have led to the same categories. So a committee is fitted as well: each member sees a part of the cells, standardises
genes in a way of its own, starts anew, and votes. The guide is the mean of the answer and of its committee. All of it
is a function of a cell's values, so that it can be evaluated on the device for any minibatch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d, median_filter
from sklearn.decomposition import PCA
from torch import nn

from ._em import Fit, Mixture, MixtureEM, matched
from ._gaussian import mahalanobis2
from ._graph import GraphMixture
from ._labels import some_rows
from ._mixture import SharedCovarianceMixture
from ._offsets import batch_levels, batch_means

#: Standardised values are clipped here, so that one cell with a rare gene does not make a component.
CLIP = 10.0
DIMENSIONS = (10, 15, 20, 25)
#: Coordinates in which what batches add is told from what types they have.
OFFSET_DIMENSIONS = 15
#: Cells that are asked whether batches change some types more than others, and batches that are compared, at most.
MAX_RESPONSE_CELLS, MAX_COMPARED = 5_000, 8
#: How much of the usual standard deviation, rather than its own, a gene is divided by: the first in the answer, and all
#: by the members of its committee in turn.
SCALINGS = (0.5, 0.0, 1.0)
#: Members of the committee, by where they start; share of the cells that each sees; and at most so many, altogether and
#: per category.
MEMBERS = {"mixture": 10, "graph": 6, "images": 3}
MEMBER_SHARE = 0.8
MEMBER_CELLS = {"mixture": 4_000, "graph": 4_000, "images": 16_000}
MEMBER_CELLS_PER_CATEGORY = {"mixture": 40, "graph": 100, "images": 100}
#: Coordinates of images: a type has a shape of its own there, which takes more of them than where it is.
IMAGE_DIMENSIONS = (20, 30, 40)
#: Categories up to which the usual dimensions tell types apart, and a search finds the likeliest mixture.
FEW_CATEGORIES = 25
#: Above, principal components are approximated.
MAX_GENES_EXACT = 2_500


class Projection(nn.Module):
    r"""Principal coordinates :math:`z = U^\top\mathrm{clip}\big((x - m)/s\big)` of log values.

    The scale :math:`s = s_\text{own}^{1-\gamma} s_\text{usual}^\gamma` mixes each gene's own standard deviation with
    the one that is usual at its mean. Dividing by the gene's own gives noise as much say as markers; dividing by the
    usual one lets the few most variable genes decide. Neither is better on all data. Pixels have one unit, and those
    that are seldom lit no say beyond it: :math:`s = 1`. :math:`m` is the mean that each batch would have if
    its types had the shares that they have in all (:mod:`._offsets`), or the mean of all cells for a batch that was not
    among them.

    Parameters
    ----------
    x
        Log values to learn from, ``(n_cells, n_genes)``.
    batch
        Batch codes, ``(n_cells,)``.
    n_components
        Coordinates.
    scaling
        :math:`\gamma` in ``[0, 1]``; `None` for :math:`s = 1`.

    Attributes
    ----------
    responds
        Whether batches change some types much more than others, so that their own means are subtracted.
    """

    mean: torch.Tensor
    axes: torch.Tensor

    def __init__(self, x: torch.Tensor, batch: torch.Tensor, n_components: int, scaling: float | None):
        super().__init__()
        # The last row has no cells, so it is the mean of all: for batches that these cells do not reach.
        n_batches = int(batch.max()) + 2
        self.register_buffer("mean", batch_means(x, batch, n_batches))
        self.register_buffer("scale", torch.ones(x.shape[1]) if scaling is None else _scale(x, scaling))
        self.register_buffer("axes", self._principal(x, batch, n_components))
        self.responds = False
        # Clusters of images are not Gaussian.
        if scaling is not None and len(batch.unique()) > 1:
            levels = batch_levels(x, batch, n_batches, self.scale, self.axes[:, :OFFSET_DIMENSIONS])
            self.responds = levels is None
            if levels is not None:
                self.mean = levels
                self.axes = self._principal(x, batch, n_components)

    def _principal(self, x: torch.Tensor, batch: torch.Tensor, n_components: int) -> torch.Tensor:
        """Principal axes of standardised values, ``(n_genes, n_components)``."""
        # Exact where that is cheap: randomised components beyond the first ten differ from seed to seed, and so would
        # the optimum of a mixture in them.
        exact = x.shape[1] <= MAX_GENES_EXACT and len(x) > 1
        pca = PCA(n_components, svd_solver="covariance_eigh" if exact else "randomized", random_state=0)
        # Shares of a variance of zero.
        with np.errstate(invalid="ignore"):
            pca.fit(self._standardise(x, batch).numpy())
        return torch.from_numpy(np.ascontiguousarray(pca.components_.T, dtype=np.float32))

    def _standardise(self, x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        mean = self.mean[batch.clamp_max(len(self.mean) - 1)]
        return ((x - mean) / self.scale).clamp_(-CLIP, CLIP)

    def forward(self, x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Coordinates ``(n_cells, n_components)`` of log values ``(n_cells, n_genes)`` of batches ``(n_cells,)``."""
        return self._standardise(x, batch) @ self.axes


class View(nn.Module):
    """Log-density of one mixture's components on the leading coordinates of a projection, up to a constant.

    Parameters
    ----------
    mixture
        Fitted mixture.
    dof
        Its degrees of freedom.
    """

    def __init__(self, mixture: Mixture, dof: float):
        super().__init__()
        whitening, log_det = mixture.whitening()
        self.dof, self.dimension = dof, mixture.mean.shape[1]
        found = {"mean": mixture.mean, "whitening": whitening, "root": mixture.root(), "log_det": log_det}
        for name, value in found.items():
            self.register_buffer(name, value)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """``(n_cells, K)`` at coordinates ``z`` ``(n_cells, at least self.dimension)``."""
        distance2 = mahalanobis2(z[:, : self.dimension], self.mean, self.whitening, self.root)
        return -0.5 * (self.dof + self.dimension) * torch.log1p(distance2 / self.dof) - 0.5 * self.log_det


class Opinion(nn.Module):
    r"""Posterior of one fit to several views, :math:`p(c\mid x)\propto\pi_c\prod_v t_v(z_v(x)\mid c)^{1/V}`.

    Parameters
    ----------
    projection
        The projection whose leading coordinates the views are.
    fit
        Fitted mixtures, one per view.
    dof
        Degrees of freedom.
    """

    def __init__(self, projection: Projection, fit: Fit, dof: float):
        super().__init__()
        self.projection = projection
        self.views = nn.ModuleList(View(mixture, dof) for mixture in fit.mixtures)
        self.register_buffer("log_weight", fit.weight.log())
        #: Position of the fit's category that is each category here.
        self.register_buffer("order", torch.arange(len(fit.weight)))

    def forward(self, log_values: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Probabilities ``(n_cells, K)``."""
        coordinates = self.projection(log_values, batch)
        log_t = torch.stack([view(coordinates) for view in self.views]).mean(0)
        return torch.softmax(self.log_weight + log_t, dim=-1)[:, self.order]


class ViewConsensus(nn.Module):
    r"""Mean of an answer and its committee.

    .. math:: R(c\mid x) = \tfrac12 p_0(c\mid x) + \tfrac1{2M}\sum_{m=1}^M p_m(c\mid x)

    Parameters
    ----------
    answer
        Fit to all cells.
    committee
        Fits to parts of the cells, their categories in the order of the answer's.
    start
        Where both started, see :func:`fit_views`.
    """

    def __init__(self, answer: Opinion, committee: Sequence[Opinion], start: str = "mixture"):
        super().__init__()
        self.start = start
        self.answer, self.committee = answer, nn.ModuleList(committee)

    @torch.no_grad()
    def opinions(self, log_values: torch.Tensor, batch: torch.Tensor | None = None) -> torch.Tensor:
        """Posterior of the answer, then of every member, ``(1 + M, n_cells, K)``."""
        batch = no_batch(log_values) if batch is None else batch
        return torch.stack([opinion(log_values, batch) for opinion in (self.answer, *self.committee)])

    def forward(self, log_values: torch.Tensor, batch: torch.Tensor | None = None) -> torch.Tensor:
        """``R``, ``(n_cells, K)``, for log values ``(n_cells, n_genes)``."""
        opinions = self.opinions(log_values, batch)
        return 0.5 * opinions[0] + 0.5 * opinions[1:].mean(0)


def fit_views(
    log_values: torch.Tensor,
    n_categories: int,
    *,
    batch: torch.Tensor | None = None,
    known: torch.Tensor | None = None,
    start: str = "mixture",
    dimensions: Sequence[int] | None = None,
    seed: int = 0,
    committee: Sequence[Opinion] | None = None,
    begin: tuple[torch.Tensor, torch.Tensor] | None = None,
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
    known
        Category of the cells that have a label and -1 for the others, ``(n_cells,)``; categories of labels come first.
        The answer and all members are fitted under the condition that these cells are of these categories.
    start
        ``"mixture"``: the likeliest start (:class:`~cplmixvi.train._mixture.SharedCovarianceMixture`); ``"graph"``:
        communities of a neighbour graph (:class:`~cplmixvi.train._graph.GraphMixture`); ``"images"``: communities, each
        with a covariance of its own, of pixels as they are.
    dimensions
        Views of the answer, by their number of coordinates; see :func:`usual_dimensions` if `None`.
    seed
        Source of all randomness.
    committee
        Of :func:`fit_committee` with the same arguments, where it was fitted before.
    begin
        Rows of some cells and their posteriors, ``(n,)`` and ``(n, K)``: the answer is the nearest likely mixture, and
        none that is likelier is searched for. Not used with communities or labels. `None`: search from the committee's
        votes.
    **mixture_options
        Of the class that ``start`` names.

    Returns
    -------
    ViewConsensus
    """
    x = torch.as_tensor(log_values, dtype=torch.float32)
    batch = no_batch(x) if batch is None else batch
    if known is not None and not (known >= 0).any():
        known = None
    dimensions = usual_dimensions(start, n_categories) if dimensions is None else dimensions
    if committee is None:
        options = {"known": known, "start": start, "dimensions": dimensions, **mixture_options}
        committee = fit_committee(x, n_categories, batch, seed=seed, **options)
    votes = [member(x, batch) for member in committee]
    dimensions = possible(dimensions, len(x), x.shape[1])
    projection = Projection(x, batch, max(dimensions), usual_scalings(start)[0])
    fitter = fitter_for(start, n_categories, generator=torch.Generator().manual_seed(seed), **mixture_options)
    z = projection(x, batch)
    views = [z[:, :d] for d in dimensions]
    if begin is None or known is not None or start != "mixture":
        fit = fitter.fit(views, starts=votes, known=known)
    else:
        rows, posterior = begin
        fit = fitter.maximise([view[rows] for view in views], posterior, n_iterations=30)
        fit = fitter.maximise(views, fitter.posterior(views, fit), n_iterations=60)
    # Categories of labels are the same everywhere: only the others need partners.
    others = np.setdiff1d(np.arange(n_categories), [] if known is None else known.numpy())
    for member, vote in zip(committee, votes, strict=True):
        member.order = torch.arange(n_categories)
        member.order[others] = torch.from_numpy(others[matched(fit.posterior[:, others], vote[:, others])])
    return ViewConsensus(Opinion(projection, fit, fitter.dof), committee, start)


def fit_committee(
    x: torch.Tensor,
    n_categories: int,
    batch: torch.Tensor,
    *,
    start: str = "mixture",
    **member_options,
) -> list[Opinion]:
    """Fit the members of a committee, see :func:`fit_member`."""
    return [
        fit_member(x, n_categories, batch, index=index, start=start, **member_options)
        for index in range(MEMBERS[start])
    ]


def fit_member(
    x: torch.Tensor,
    n_categories: int,
    batch: torch.Tensor,
    *,
    index: int,
    seed: int,
    known: torch.Tensor | None = None,
    start: str = "mixture",
    dimensions: Sequence[int] | None = None,
    n_seen: int | None = None,
    **mixture_options,
) -> Opinion:
    """Fit one member of a committee: some of the cells, one projection, every other number of coordinates.

    Parameters
    ----------
    x
        Log values, ``(n_cells, n_genes)``.
    n_categories
        ``K``.
    batch
        Batch codes, ``(n_cells,)``.
    index, seed
        Decide what the member sees.
    known, start, dimensions, **mixture_options
        See :func:`fit_views`.
    n_seen
        Number of cells to see; by default four fifths, but no more than 4,000 or 40 per category (100 where a graph is
        made of them, which is quick; 16,000 images, of whose rarest type there must be a community). Some cells of
        every label are seen besides.

    Returns
    -------
    Opinion
        Its categories have an order of their own, but those of labels come first.
    """
    generator = torch.Generator().manual_seed(1_000 * (seed % 2**20) + index)
    n = len(x)
    if n_seen is None:
        n_seen = min(round(MEMBER_SHARE * n), max(MEMBER_CELLS[start], MEMBER_CELLS_PER_CATEGORY[start] * n_categories))
    # Cells that are very few must all be seen: half of a type of five is not the type.
    n_seen = min(n, max(n_seen, 20))
    dimensions = usual_dimensions(start, n_categories) if dimensions is None else dimensions
    rows = some_rows(n, n_seen, known, generator=generator)
    some = possible(dimensions, len(rows), x.shape[1])
    some = some[index % 2 :: 2] or some
    scalings = usual_scalings(start)
    projection = Projection(x[rows], batch[rows], max(some), scalings[index % len(scalings)])
    fitter = fitter_for(start, n_categories, generator=generator, few_moves=5, **mixture_options)
    z = projection(x[rows], batch[rows])
    fit = fitter.fit([z[:, :d] for d in some], known=None if known is None else known[rows])
    return Opinion(projection, fit, fitter.dof)


def fitter_for(
    start: str, n_categories: int, *, few_moves: int | None = None, plain_seeds: bool = False, **options
) -> MixtureEM:
    """What fits mixtures from ``start``, see :func:`fit_views`.

    ``few_moves`` and ``plain_seeds`` are for a search for the likeliest, see
    :class:`~cplmixvi.train._mixture.SharedCovarianceMixture`.
    """
    if start == "mixture":
        options = {"plain_seeds": plain_seeds, **({} if few_moves is None else {"n_moves": few_moves}), **options}
    if start == "images":
        # Communities of images are not Gaussian, and a mixture that is improved from them moves away from them: it
        # only says to which of them another image belongs, by the shape that each has. They are far apart, so that
        # small types can be told from pieces of large ones.
        options = {"shrinkage": 0.1, "n_iterations": 1, "join_pieces": True, **options}
    return {"mixture": SharedCovarianceMixture}.get(start, GraphMixture)(n_categories, **options)


def usual_dimensions(start: str, n_categories: int) -> tuple[int, ...]:
    """Numbers of coordinates of views. Communities of many types need more; likely mixtures get worse with more."""
    if start == "images":
        return IMAGE_DIMENSIONS
    factor = max(1.0, n_categories / FEW_CATEGORIES) if start == "graph" else 1.0
    return tuple(round(factor * d) for d in DIMENSIONS)


def usual_scalings(start: str) -> list[float | None]:
    """How genes are scaled in different projections, see :class:`Projection`; images need one only."""
    return [None] if start == "images" else list(SCALINGS)


def possible(dimensions: Sequence[int], n_cells: int, n_genes: int) -> list[int]:
    """Numbers of coordinates that so many cells and genes can tell apart, ascending."""
    limit = max(1, min(n_cells // 8, n_genes - 1))
    return sorted({min(d, limit) for d in dimensions})


def batches_respond(x: torch.Tensor, batch: torch.Tensor) -> bool:
    """Whether batches change some types much more than others, as a treatment does; see :mod:`._offsets`.

    Parameters
    ----------
    x
        Log values of cells in random order, ``(n_cells, n_genes)``; the first 5,000 are looked at.
    batch
        Codes of their batches, ``(n_cells,)``; of more than eight, which are not compared, none is said to.
    """
    x, batch = x[:MAX_RESPONSE_CELLS], batch[:MAX_RESPONSE_CELLS]
    if not 1 < len(batch.unique()) <= MAX_COMPARED:
        return False
    return Projection(x, batch, max(possible([OFFSET_DIMENSIONS], *x.shape)), SCALINGS[0]).responds


def no_batch(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(x), dtype=torch.long, device=x.device)


def _scale(x: torch.Tensor, scaling: float) -> torch.Tensor:
    """Scale of every gene, see :class:`Projection`, ``(n_genes,)``."""
    deviation, average = x.std(0, unbiased=False).numpy(), x.mean(0).numpy()
    scale = np.ones_like(deviation)
    # A gene that does not vary says nothing, and nothing of what is usual among its neighbours.
    varies = deviation > 1e-6
    if varies.any():
        own = np.log(deviation[varies])
        order = np.argsort(average[varies], kind="stable")
        width = 2 * max(len(own) // 20, 1) + 1
        usual = np.empty_like(own)
        usual[order] = gaussian_filter1d(median_filter(own[order], width, mode="nearest"), width / 7)
        scale[varies] = np.exp((1 - scaling) * own + scaling * usual)
    return torch.from_numpy(scale).float()
