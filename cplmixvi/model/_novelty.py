"""Cells of types that a model has not seen: how far they are from all of its categories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from anndata import AnnData
from sklearn.neighbors import NearestNeighbors

from cplmixvi.module import infer_jointly

from ._mixin import Mixin

#: Training cells that are looked at, and new cells that are compared with each other, at most.
MAX_CELLS = 10_000
#: Cells whose mean is taken: the cell and its nearest.
_N_NEAREST = 15
#: Share of the mean variance that is added to every variance, so that the covariance can be inverted.
_RIDGE = 1e-3
#: Distances that are found in sets of 1, 2, 4, ... training cells of one category, of each size.
_N_DISTANCES = 1_000


class NoveltyMixin(Mixin):
    """Says of cells how unlike the training cells they are; probabilities do not, because they must sum to one."""

    #: Mean of every category and inverse of the covariance within categories in the coordinates of every arm, numbers
    #: of cells, and distances in ascending order in sets of so many training cells. Saved with the model.
    novelty_: dict[str, list[np.ndarray] | np.ndarray] | None = None

    def get_novelty(
        self, adata: AnnData | None = None, *, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> np.ndarray:
        r"""Share of training cells that are nearer to their category than a cell and its neighbours are to any.

        .. math::
            d_n = \frac1A\sum_a\min_k\,(\bar z_{an} - \mu_{ak})^\top\Sigma_a^{-1}(\bar z_{an} - \mu_{ak})

        Here :math:`\mu_{ak}` is the mean and :math:`\Sigma_a` the within-category covariance of the training cells in
        the coordinates of the linear path of arm ``a``, and :math:`\bar z_{an}` is the mean of up to 15 cells: the
        nearest among the given cells that have the category of cell ``n``, including the cell itself. A single cell is
        too noisy to be told apart from those of a neighbouring type, but cells of a new type deviate together. The
        result therefore depends on which cells are given: it is best to pass all new cells at once, and a cell passed
        alone is judged alone. The reference distances are those in sets of about as many training cells of one
        category, measured from one half of the training cells to a fit of the other half. Among other cells of the
        trained types, 0 to 14 % score above .95 (mean per data set: 2 to 10 %).

        A value is no p-value. Means and covariances of the reference are fitted to one half of the training cells, but
        the axes of the coordinates to all of them, along which the other half therefore lies further out than new cells
        do. New cells of the trained types that are passed one by one get values that are too low: their mean was .25 to
        .40 in three simulations, in which up to 1 % were above .95 (training cells: .45 to .49 and 3 to 5 %). If 1,200
        such cells were passed at once, the mean was .41 to .64, and 3 to 14 % were above .95. Compare values of one
        call only; a high value of a cell that was passed alone is rarer than it looks.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_posterior`.

        Returns
        -------
        numpy.ndarray
            Values from 0 to 1, shape ``(n_cells,)``; near 1 for cells unlike any training cell.

        Raises
        ------
        ValueError
            If the model was not trained on an AnnData with a warm start, which gives the arms their coordinates, or was
            trained with a version that used another measure.
        """
        self._check_if_trained(warn=False)
        if self.novelty_ is None or "sizes" not in self.novelty_:
            raise ValueError(
                "The model does not know how far its training cells are from its categories: train it on an AnnData "
                "with the warm start, and with this version."
            )
        coordinates, category = self._coordinates(self._validate_anndata(adata), indices, batch_size)
        found, sizes = self.novelty_, np.asarray(self.novelty_["sizes"])
        novelty = np.empty(len(category))
        # Blocks of about the same size, because time grows with the square of it.
        order = np.random.default_rng(0).permutation(len(category))
        for rows in np.array_split(order, -(-len(category) // MAX_CELLS) or 1):
            distance = _distance([z[rows] for z in coordinates], category[rows], found["means"], found["precisions"])
            n_alike = np.bincount(category[rows])[category[rows]]
            nearest = np.abs(np.log(n_alike)[:, None] - np.log(sizes)).argmin(1)
            for index in np.unique(nearest):
                reference, some = found["distances"][index], nearest == index
                novelty[rows[some]] = np.searchsorted(reference, distance[some]) / len(reference)
        return novelty

    def _learn_novelty(self) -> None:
        """Look at the training cells; nothing is kept where arms have no coordinates."""
        self.novelty_ = None
        if self.adata is None or not all(bool(arm.path.axes.any()) for arm in self.module.arms):
            return
        rows = np.arange(self.adata.n_obs) if self.train_indices is None else np.sort(self.train_indices)
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_CELLS)).astype(int)]
        coordinates, category = self._coordinates(self.adata, rows, None)
        means, precisions = _fit(coordinates, category)
        sizes, distances = _held_out_distances(coordinates, category)
        self.novelty_ = {"means": means, "precisions": precisions, "sizes": np.array(sizes), "distances": distances}

    @torch.inference_mode()
    def _coordinates(
        self, adata: AnnData, indices: Sequence[int] | None, batch_size: int | None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Coordinates of cells in every arm, each ``(n_cells, d)``, and their categories, ``(n_cells,)``."""
        parts: list[list[torch.Tensor]] = [[] for _ in self.module.arms]
        category = []
        for tensors in self._make_data_loader(adata=adata, indices=indices, batch_size=batch_size):
            values, covariates = self._encoder_input(tensors)
            batch = covariates.categorical[0].view(-1)
            for arm, kept in zip(self.module.arms, parts, strict=True):
                # Axes that the arm does not use are zero.
                kept.append(arm.path.coordinates(values, batch)[:, arm.path.axes.any(0)].cpu())
            category.append(infer_jointly(self.module, values, covariates).log_qc.exp().mean(0).argmax(-1).cpu())
        return [torch.cat(part).double().numpy() for part in parts], torch.cat(category).numpy()


def _means(points: np.ndarray, codes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Means ``(n_codes, d)`` of points ``(n_cells, d)`` of every code, of which there are ``size``."""
    return np.stack([np.bincount(codes, column) / size for column in points.T], axis=1)


def _fit(coordinates: Sequence[np.ndarray], category: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Means ``(K_used, d)`` of categories and inverse covariance ``(d, d)`` within them, for every arm."""
    _, codes = np.unique(category, return_inverse=True)
    size = np.bincount(codes)
    means, precisions = [], []
    for z in coordinates:
        mean = _means(z, codes, size)
        residual = z - mean[codes]
        covariance = residual.T @ residual / len(z)
        # Every point a category of its own leaves no variance.
        ridge = _RIDGE * np.trace(covariance) / len(covariance) or 1.0
        means.append(mean)
        precisions.append(np.linalg.inv(covariance + ridge * np.eye(len(covariance))))
    return means, precisions


def _held_out_distances(coordinates: Sequence[np.ndarray], category: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Sizes of sets of cells of one category, and the distances of cells in sets of each, in ascending order.

    Those of each half of the cells are to a fit of the other half: cells are nearer to a fit that they are a part of
    than new cells of the same types.
    """
    order = np.random.default_rng(0).permutation(len(category))
    # Beyond the median, only large categories would be compared with.
    largest = np.median(np.bincount(category)[np.unique(category)]) / 2
    sizes = [2**power for power in range(int(np.log2(max(largest, 1))) + 1)]
    distances: list[list[np.ndarray]] = [[] for _ in sizes]
    for side in (0, 1):
        half, other = order[side::2], order[1 - side :: 2]
        # A single cell has no other half.
        fitted = _fit([z[other] for z in coordinates], category[other]) if len(other) else _fit(coordinates, category)
        for size, found in zip(sizes, distances, strict=True):
            members = [half[category[half] == k] for k in np.unique(category)]
            sets = [rows[: len(rows) // size * size].reshape(-1, size) for rows in members]
            some = np.random.default_rng(0).permutation(np.concatenate(sets))[: max(_N_DISTANCES // size, 1)]
            index, rows = np.repeat(np.arange(len(some)), size), some.ravel()
            found.append(_distance([z[rows] for z in coordinates], index, *fitted))
    return sizes, [np.sort(np.concatenate(found)) for found in distances]


def _distance(
    coordinates: Sequence[np.ndarray],
    category: np.ndarray,
    means: Sequence[np.ndarray],
    precisions: Sequence[np.ndarray],
) -> np.ndarray:
    """Squared distance to the nearest category of cells, each with its nearest of its category, as a mean over arms.

    ``(n_cells,)``, for coordinates in every arm, each ``(n_cells, d)``.
    """
    total = np.zeros(len(category))
    for z, mean, precision in zip(coordinates, means, precisions, strict=True):
        root = np.linalg.cholesky(precision)
        points, centres = _with_nearest(z @ root, category), mean @ root
        squared = (points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)
        total += squared.min(1)
    return total / len(coordinates)


def _with_nearest(points: np.ndarray, category: np.ndarray) -> np.ndarray:
    """Means of points with the nearest of their category, ``(n_cells, d)``: those of others would draw them away."""
    _, codes, size = np.unique(category, return_inverse=True, return_counts=True)
    # Of few points all are near.
    smooth = _means(points, codes, size)[codes]
    for k in np.flatnonzero(size > _N_NEAREST):
        rows = np.flatnonzero(codes == k)
        own = points[rows]
        index = NearestNeighbors(n_neighbors=_N_NEAREST).fit(own).kneighbors(own, return_distance=False)
        smooth[rows] = own[index].mean(1)
    return smooth
