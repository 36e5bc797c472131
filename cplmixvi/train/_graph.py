"""A mixture that starts from communities of a neighbour graph instead of the likeliest start.

With many types, some of them very large and some very small, the likeliest mixture spends its components on pieces of
the large ones, whose own variation a shared covariance cannot describe. Communities of a graph are found by density, so
that they are small where a type is small.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import igraph
import numpy as np
import torch
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from ._em import Fit, MixtureEM, matched
from ._labels import some_rows

N_NEIGHBORS = 15
#: Points that a graph is made of; the others follow the mixture.
MAX_POINTS = 20_000
#: Resolutions tried until the number of communities fits.
_N_RESOLUTIONS = 16


class GraphMixture(MixtureEM):
    """Fits :class:`~cplmixvi.train._em.Mixture` with one covariance for all, from communities of a neighbour graph.

    Parameters
    ----------
    n_components, shrinkage, dof, generator
        Of :class:`~cplmixvi.train._em.MixtureEM`; one covariance for all types by default.
    n_iterations
        Steps of expectation maximisation from the communities; a single one gives each its mean and covariance.
    join_pieces
        Of :func:`communities`.
    """

    def __init__(
        self,
        n_components: int,
        *,
        shrinkage: float = float("inf"),
        n_iterations: int = 30,
        join_pieces: bool = False,
        **em_options,
    ):
        super().__init__(n_components, shrinkage=shrinkage, **em_options)
        self.n_iterations, self.join_pieces = n_iterations, join_pieces

    def fit(
        self,
        views: Sequence[torch.Tensor],
        starts: Sequence[torch.Tensor] | None = None,
        known: torch.Tensor | None = None,
    ) -> Fit:
        """Mixture near the communities of the view with most coordinates.

        Parameters
        ----------
        views
            Points in every view, each ``(n, d)``.
        starts
            Posteriors ``(n, K)`` of other fits. The fit then starts from that of them, or of the communities, which is
            most like the others by adjusted Rand index.
        known
            Component of the points where that is known and -1 elsewhere, ``(n,)``.

        Returns
        -------
        Fit
        """
        rows = slice(None)
        if len(views[0]) > MAX_POINTS:
            rows = some_rows(len(views[0]), MAX_POINTS, known, generator=self.generator)
        some, of_some = [view[rows] for view in views], None if known is None else known[rows]
        widest = max(some, key=lambda view: view.shape[1])
        seed = int(torch.randint(2**31 - 1, (1,), generator=self.generator))
        labels = communities(widest.numpy(), self.n_components, join_pieces=self.join_pieces, seed=seed)
        own = torch.nn.functional.one_hot(torch.from_numpy(labels), self.n_components).float()
        if of_some is not None:
            # Numbers of communities are arbitrary, and a step or two do not lead from one to another.
            has = of_some >= 0
            own = own[:, matched(torch.nn.functional.one_hot(of_some[has], self.n_components), own[has])]
        begun = own if starts is None else _most_typical([own, *(start[rows] for start in starts)])
        fit = self.maximise(some, begun, n_iterations=self.n_iterations, known=of_some)
        if rows == slice(None):
            return fit
        return self.maximise(views, self.posterior(views, fit), n_iterations=min(10, self.n_iterations), known=known)


def communities(points: np.ndarray, n_communities: int, *, join_pieces: bool = False, seed: int = 0) -> np.ndarray:
    r"""Label points by communities of their neighbour graph.

    Edges join a point to its 15 nearest, weighted by the share of neighbours that both have in common. Communities are
    those of modularity (Leiden), their number found by bisection of the resolution.

    Parameters
    ----------
    points
        ``(n, d)``.
    n_communities
        Their number; there are fewer only where the finest resolution gives fewer. If no resolution gives the number
        wanted, there are more first, and the pairs whose union adds least to the squared distances to the means (Ward's
        criterion) are joined.
    join_pieces
        Whether to look for communities of very unequal sizes too. At any resolution modularity cuts large types in
        pieces before it finds the small ones. So twice as many communities are found as well and joined by what does
        not depend on their sizes, the share of edges that lead out of each, :math:`\phi_c`: of pairs with common edges
        those whose union adds least to :math:`\sum_c\log\phi_c`. Of the two labellings that with the lower sum is
        taken. Where most edges lead out, as between many types of cells, that says nothing.
    seed
        Of the order of moves.

    Returns
    -------
    Codes from 0, ``(n,)``.
    """
    graph, weights = _neighbour_graph(points)
    labels = _leiden(graph, weights, n_communities, seed)
    if join_pieces:
        edges = np.array(graph.get_edgelist(), dtype=np.int64).reshape(-1, 2)
        found = []
        for some in (labels, _leiden(graph, weights, 2 * n_communities, seed)):
            union, openness = _linked(some, edges, weights, n_communities)
            found.append((-union.max(), openness, union[some]))
        labels = min(found, key=lambda entry: entry[:2])[2]
    return _joined(points, labels, n_communities)


def _leiden(graph: igraph.Graph, weights: np.ndarray, n_wanted: int, seed: int) -> np.ndarray:
    """Communities at the lowest resolution tried that gives as many as wanted, or the most; codes from 0."""
    igraph.set_random_number_generator(random.Random(seed))
    try:
        low, high, best = 1e-2, 1e2, np.zeros(graph.vcount(), dtype=np.int64)
        for _ in range(_N_RESOLUTIONS):
            resolution = (low * high) ** 0.5
            found = graph.community_leiden(
                objective_function="modularity", weights=weights, resolution=resolution, n_iterations=2
            )
            labels, n_found = np.asarray(found.membership), len(found)
            # The least that is enough; before there is one, the most that there is.
            n_best = best.max() + 1
            if n_wanted <= n_found < n_best if n_best >= n_wanted else n_found > n_best:
                best = labels
            if n_found == n_wanted:
                break
            low, high = (low, resolution) if n_found > n_wanted else (resolution, high)
    finally:
        igraph.set_random_number_generator(random)
    return best


def _linked(labels: np.ndarray, edges: np.ndarray, weights: np.ndarray, n_wanted: int) -> tuple[np.ndarray, float]:
    r"""Join communities that edges lead between, see :func:`communities`.

    Returns
    -------
    Code of every community's union, and :math:`\sum_c\log\phi_c` of the unions.
    """
    n = int(labels.max()) + 1
    union = np.arange(n)
    between = np.zeros((n, n))
    first, second = labels[edges].T
    np.add.at(between, (first, second), weights)
    between += between.T
    # As if one edge more led out: parts that none leaves would outweigh all others.
    one = float(weights.mean()) if len(weights) else 1.0

    def log_share(inside: np.ndarray, all_: np.ndarray) -> np.ndarray:
        # Never below zero, but by rounding, and of a community with itself.
        return np.log((np.maximum(all_ - inside, 0) + one) / (all_ + one))

    while True:
        all_, inside = between.sum(1), np.diag(between)
        log_phi = log_share(inside, all_)
        if len(between) <= n_wanted:
            break
        joint = log_share(inside[:, None] + inside + 2 * between, all_[:, None] + all_)
        cost = np.where(between > 0, joint - log_phi[:, None] - log_phi, np.inf)
        np.fill_diagonal(cost, np.inf)
        kept, gone = sorted(divmod(int(cost.argmin()), len(cost)))
        if not np.isfinite(cost[kept, gone]):
            break
        between[kept] += between[gone]
        between[:, kept] += between[:, gone]
        between = np.delete(np.delete(between, gone, axis=0), gone, axis=1)
        union[union == gone] = kept
        union[union > gone] -= 1
    return union, float(log_phi.sum())


def _neighbour_graph(points: np.ndarray) -> tuple[igraph.Graph, np.ndarray]:
    """Undirected graph of nearest neighbours, and its weights: the Jaccard index of both ends' neighbourhoods."""
    n = len(points)
    nearest = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, n - 1)).fit(points)
    joined = nearest.kneighbors_graph(mode="connectivity").astype(np.float32)
    around = (joined + sparse.identity(n, dtype=np.float32, format="csr")).tocsr()
    edges = sparse.triu(joined.maximum(joined.T), k=1).tocsr()
    common = edges.multiply(around @ around.T).tocoo()
    size = np.asarray(around.sum(1)).ravel()
    weights = common.data / (size[common.row] + size[common.col] - common.data)
    return igraph.Graph(n=n, edges=np.column_stack([common.row, common.col])), weights


def _joined(points: np.ndarray, labels: np.ndarray, n_wanted: int) -> np.ndarray:
    """Join communities by Ward's criterion until no more than ``n_wanted`` are left; codes from 0."""
    labels = np.unique(labels, return_inverse=True)[1]
    while (n := labels.max() + 1) > n_wanted:
        size = np.bincount(labels).astype(np.float64)
        means = np.stack([np.bincount(labels, weights=column) for column in points.T], axis=1) / size[:, None]
        square = (means**2).sum(1)
        distance2 = square[:, None] + square - 2 * means @ means.T
        cost = distance2 * size[:, None] * size / (size[:, None] + size)
        cost[np.diag_indices(n)] = np.inf
        kept, gone = sorted(divmod(int(cost.argmin()), n))
        labels[labels == gone] = kept
        labels = np.unique(labels, return_inverse=True)[1]
    return labels


def _most_typical(posteriors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The posterior whose labels agree most with those of the others."""
    labels = [posterior.argmax(1).numpy() for posterior in posteriors]
    alike = np.array([[adjusted_rand_score(first, second) for second in labels] for first in labels])
    return posteriors[int(alike.sum(1).argmax())]
