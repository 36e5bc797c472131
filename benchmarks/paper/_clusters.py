"""Clusters of images without any training: what it is worth by itself to free images of how they stand."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from cplmixvi.augment import Affine

N_COMPONENTS, N_NEIGHBORS = 50, 15
#: Images of which the normal form is made at a time.
PIECE = 1_000


@dataclass
class Clusters:
    """Clusters of images, and of others the clusters of the most of their nearest neighbours among these.

    Attributes
    ----------
    components
        Makes principal components ``(n_images, n_components)`` of images, fitted to those that were clustered.
    nearest
        Names the clusters of components.
    n_used
        Number of clusters.
    """

    components: Callable[[AnnData], np.ndarray]
    nearest: KNeighborsClassifier
    n_used: int

    def predict(self, adata: AnnData) -> np.ndarray:
        """Cluster of each image, ``(n_images,)``."""
        return self.nearest.predict(self.components(adata))


def pixels(adata: AnnData, copies: Affine | None) -> np.ndarray:
    """Pixels, or those of the normal form in which ``copies`` are all alike, ``(n_images, n_pixels)``."""
    x = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    x = x.astype(np.float32)
    if copies is None:
        return x
    copies = deepcopy(copies)
    copies.build(adata.n_vars, "bernoulli", 1.0)
    return np.vstack([copies.normal_form(piece).numpy() for piece in torch.from_numpy(x).split(PIECE)])


def clustered(
    adata: AnnData,
    cluster: Callable[[np.ndarray, int, int], np.ndarray],
    n_types: int,
    seed: int,
    copies: Affine | None,
) -> Clusters:
    """Cluster the principal components of images, or of their normal forms; see :func:`pixels`.

    Parameters
    ----------
    adata
        Images.
    cluster
        Names clusters of components, given their number and a seed.
    n_types, seed
        Passed to it.
    copies
        What the normal form is free of; pixels as they are if `None`.
    """
    values = pixels(adata, copies)
    pca = PCA(N_COMPONENTS, svd_solver="randomized", random_state=seed).fit(values)
    found = pca.transform(values)
    labels = cluster(found, n_types, seed)
    nearest = KNeighborsClassifier(N_NEIGHBORS).fit(found, labels)
    return Clusters(lambda images: pca.transform(pixels(images, copies)), nearest, len(set(labels)))
