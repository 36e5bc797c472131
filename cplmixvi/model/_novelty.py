"""Cells of types that a model has not seen: how far they are from all of its categories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass

#: Training cells that distances are compared with, at most.
MAX_CELLS = 20_000
#: Share of the mean variance that is added to every variance, so that the covariance can be inverted.
_RIDGE = 1e-3
#: Parts of the training cells whose distances are those to a fit to the others.
_N_FOLDS = 5


class NoveltyMixin:
    """Says of cells how unlike the training cells they are; probabilities do not, because they must sum to one."""

    module: BaseModuleClass
    #: Mean of every category and inverse of the covariance within categories in the coordinates of every arm, and the
    #: distances of the training cells in ascending order; kept with the model when it is saved.
    novelty_: dict[str, list[np.ndarray] | np.ndarray] | None = None

    def get_novelty(
        self, adata: AnnData | None = None, *, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> np.ndarray:
        r"""Share of the training cells that are nearer to their category than a cell is to any.

        The distance is :math:`\min_k (z - \mu_k)^\top\Sigma^{-1}(z - \mu_k)`, averaged over arms, with :math:`z` the
        coordinates of the arm's linear path, :math:`\mu_k` the mean of a category's training cells and :math:`\Sigma`
        their covariance within categories. Of other cells of the types that were trained on, 5 % or fewer have more
        than .95: fewer, because the coordinates were fitted to the training cells, which vary most in them.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_posterior`.

        Returns
        -------
        numpy.ndarray
            From 0 to 1, shape ``(n_cells,)``; near 1 for cells unlike any that were trained on.

        Raises
        ------
        ValueError
            If the model was not trained on an AnnData with the warm start, which gives arms their coordinates.
        """
        self._check_if_trained(warn=False)
        if self.novelty_ is None:
            raise ValueError(
                "The model does not know how far its training cells are from its categories: train it on an AnnData "
                "with the warm start."
            )
        coordinates, _ = self._coordinates(self._validate_anndata(adata), indices, batch_size)
        means, precisions = self.novelty_["means"], self.novelty_["precisions"]
        distance = _distance(coordinates, means, precisions)
        reference = self.novelty_["distances"]
        return np.searchsorted(reference, distance) / len(reference)

    def _learn_novelty(self) -> None:
        """Look at the training cells; nothing is kept where arms have no coordinates."""
        self.novelty_ = None
        if self.adata is None or not all(bool(arm.path.axes.any()) for arm in self.module.arms):
            return
        rows = np.arange(self.adata.n_obs) if self.train_indices is None else np.sort(self.train_indices)
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_CELLS)).astype(int)]
        coordinates, category = self._coordinates(self.adata, rows, None)
        means, precisions = _fit(coordinates, category)
        distances = np.sort(_held_out_distance(coordinates, category))
        self.novelty_ = {"means": means, "precisions": precisions, "distances": distances}

    @torch.inference_mode()
    def _coordinates(
        self, adata: AnnData, indices: Sequence[int] | None, batch_size: int | None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Coordinates of cells in every arm, each ``(n_cells, d)``, and their categories, ``(n_cells,)``."""
        parts: list[list[torch.Tensor]] = [[] for _ in self.module.arms]
        category = []
        for tensors in self._make_data_loader(adata=adata, indices=indices, batch_size=batch_size):
            batch = tensors[REGISTRY_KEYS.BATCH_KEY].view(-1).long().to(self.module.device)
            values = self.module.encoder_input(tensors[REGISTRY_KEYS.X_KEY].to(self.module.device).float())
            for arm, kept in zip(self.module.arms, parts, strict=True):
                # Axes that the arm does not use are zero.
                kept.append(arm.path.coordinates(values, batch)[:, arm.path.axes.any(0)].cpu())
            category.append(self._infer_jointly(tensors).log_qc.exp().mean(0).argmax(-1).cpu())
        return [torch.cat(part).double().numpy() for part in parts], torch.cat(category).numpy()


def _fit(coordinates: Sequence[np.ndarray], category: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Means ``(K_used, d)`` of categories and inverse covariance ``(d, d)`` within them, for every arm."""
    _, codes = np.unique(category, return_inverse=True)
    size = np.bincount(codes)
    means, precisions = [], []
    for z in coordinates:
        mean = np.stack([np.bincount(codes, column) / size for column in z.T], axis=1)
        residual = z - mean[codes]
        covariance = residual.T @ residual / len(z)
        # Every point a category of its own leaves no variance.
        ridge = _RIDGE * np.trace(covariance) / len(covariance) or 1.0
        means.append(mean)
        precisions.append(np.linalg.inv(covariance + ridge * np.eye(len(covariance))))
    return means, precisions


def _held_out_distance(coordinates: Sequence[np.ndarray], category: np.ndarray) -> np.ndarray:
    """Distance of every cell to categories that were fitted without it, ``(n_cells,)``.

    Cells are nearer to a fit that they are a part of than new cells of the same types.
    """
    fold = np.arange(len(category)) % min(_N_FOLDS, len(category))
    distance = np.empty(len(category))
    for index in range(fold.max() + 1):
        rest = fold != index
        fitted = _fit([z[rest] for z in coordinates], category[rest])
        distance[~rest] = _distance([z[~rest] for z in coordinates], *fitted)
    return distance


def _distance(
    coordinates: Sequence[np.ndarray], means: Sequence[np.ndarray], precisions: Sequence[np.ndarray]
) -> np.ndarray:
    """Squared distance of cells to the nearest category, as a mean over arms, ``(n_cells,)``."""
    nearest = []
    for z, mean, precision in zip(coordinates, means, precisions, strict=True):
        root = np.linalg.cholesky(precision)
        points, centres = z @ root, mean @ root
        squared = (points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)
        nearest.append(squared.min(1))
    return np.mean(nearest, axis=0)
