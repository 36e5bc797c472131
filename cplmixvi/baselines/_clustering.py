"""What a cell type model is compared with: principal components, k-means and Leiden."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

N_NEIGHBORS = 15


def principal_components(values, n_components: int = 50, *, seed: int = 0) -> np.ndarray:
    """Leading principal components of log values.

    Parameters
    ----------
    values
        Log-normalised values of the genes to use, ``(n_obs, n_vars)``, dense or sparse. Genes are centred but not
        scaled.
    n_components
        Maximum number of components.
    seed
        Seed of the randomised solver.

    Returns
    -------
    numpy.ndarray
        Float32, ``(n_obs, min(n_components, n_obs - 1, n_vars - 1))``.

    Examples
    --------
    >>> principal_components(cplmixvi.pp.log_normalize(adata.X), 10).shape == (adata.n_obs, 10)
    True
    """
    from scipy import sparse
    from sklearn.decomposition import PCA

    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    n_components = max(1, min(n_components, min(dense.shape) - 1))
    solver = PCA(n_components, svd_solver="randomized", random_state=seed)
    return solver.fit_transform(dense.astype(np.float32)).astype(np.float32)


def kmeans(components: np.ndarray, n_clusters: int, *, seed: int = 0) -> np.ndarray:
    """K-means labels of the cells, the best of ten starts.

    Parameters
    ----------
    components
        Coordinates, ``(n_obs, n_components)``.
    n_clusters
        Number of clusters.
    seed
        Seed of the starts.

    Returns
    -------
    numpy.ndarray
        Labels as strings, ``(n_obs,)``.

    Examples
    --------
    >>> components = principal_components(cplmixvi.pp.log_normalize(adata.X), 10)
    >>> len(set(kmeans(components, 3)))
    3
    """
    from sklearn.cluster import KMeans

    labels = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(components)
    return labels.astype(str).astype(object)


def neighbour_graph(components: np.ndarray, *, seed: int = 0) -> AnnData:
    """Create an AnnData without genes that holds ``components`` and their neighbour graph, for Leiden and UMAP.

    Neighbours are exact and found by scikit-learn: approximate search with PyNNDescent fails for some combinations of
    its version and that of scikit-learn.

    Parameters
    ----------
    components
        Coordinates, ``(n_obs, n_components)``.
    seed
        Seed passed to scanpy.

    Returns
    -------
    anndata.AnnData
        With ``obsm["X_pca"]``, ``obsp["connectivities"]`` and ``uns["neighbors"]``.

    Examples
    --------
    >>> components = principal_components(cplmixvi.pp.log_normalize(adata.X), 10)
    >>> clusters = leiden(neighbour_graph(components))
    """
    import scanpy as sc
    from anndata import AnnData

    graph = AnnData(np.zeros((len(components), 0), dtype=np.float32), obsm={"X_pca": components})
    n_neighbors = min(N_NEIGHBORS, len(components) - 1)
    sc.pp.neighbors(graph, n_neighbors, use_rep="X_pca", transformer="sklearn", random_state=seed)
    return graph


def leiden(graph: AnnData, *, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    """Leiden labels of the cells on a neighbour graph.

    Parameters
    ----------
    graph
        From :func:`neighbour_graph`.
    resolution
        Higher values give more clusters.
    seed
        Seed of the order of moves.

    Returns
    -------
    numpy.ndarray
        Labels as strings, ``(n_obs,)``.
    """
    import scanpy as sc

    sc.tl.leiden(graph, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    return graph.obs["leiden"].astype(str).to_numpy(dtype=object)
