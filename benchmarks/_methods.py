"""Methods of the type benchmark. Each takes cells, a number of types and a seed and returns a :class:`Result`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scvi
from _data import log_values
from anndata import AnnData

import cplmixvi as cpl
from cplmixvi import baselines

CACHE = Path(__file__).parent / "cache"
QUIET = {"enable_progress_bar": False, "logger": False}


@dataclass
class Result:
    """Labels of a method and what it says of their certainty."""

    labels: np.ndarray
    proba: np.ndarray | None = None
    categories: np.ndarray | None = None
    extra: dict[str, float] = field(default_factory=dict)


Method = Callable[[AnnData, int, int, str], Result]


def cplmixvi_method(*, own_k: bool = False, train: dict | None = None, **options) -> Method:
    """The package itself with constructor ``options``."""

    def run(adata: AnnData, n_types: int, seed: int, likelihood: str) -> Result:
        scvi.settings.seed = seed
        cpl.CplMixVI.setup_anndata(adata)
        model = cpl.CplMixVI(adata, n_categories=None if own_k else n_types, likelihood=likelihood, **options)
        model.train(**QUIET, **(train or {}))
        posterior = model.get_posterior()
        categories = model.get_consensus().categories
        extra = {
            "consensus": model.get_consensus().mean,
            "elbo": float(model.get_elbo()),
            "entropy": float(-(posterior.proba * np.log(posterior.proba + 1e-12)).sum(1).mean()),
        }
        return Result(categories[posterior.proba.argmax(1)], posterior.proba, categories, extra)

    return run


def clustered(embed: Callable, cluster: Callable) -> Method:
    """A clustering of an embedding."""

    def run(adata: AnnData, n_types: int, seed: int, likelihood: str) -> Result:
        return Result(cluster(embed(adata, seed, likelihood), n_types, seed))

    return run


def pca(scale: bool):
    """30 principal components of log values, genes scaled (clipped at 10) or not."""

    def embed(adata: AnnData, seed: int, likelihood: str) -> np.ndarray:
        values = log_values(adata, likelihood)
        if scale:
            values = np.clip((values - values.mean(0)) / np.maximum(values.std(0), 1e-3), -10, 10)
        return baselines.principal_components(values, 30, seed=seed)

    return embed


def scvi_latent(adata: AnnData, seed: int, likelihood: str) -> np.ndarray:
    """Latent space of scVI with its defaults (10 dimensions); kept, because four clusterings read the same one."""
    kept = CACHE / f"scvi_{adata.uns['benchmark']}_{adata.n_vars}_{seed}.npy"
    if kept.exists():
        return np.load(kept)
    scvi.settings.seed = seed
    adata = adata.copy()
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata, gene_likelihood="normal" if likelihood == "normal" else "nb")
    model.train(**QUIET)
    latent = model.get_latent_representation()
    CACHE.mkdir(exist_ok=True)
    np.save(kept, latent)
    return latent


def kmeans(components: np.ndarray, n_types: int, seed: int) -> np.ndarray:
    """K-means, best of ten starts."""
    return baselines.kmeans(components, n_types, seed=seed)


def gmm(components: np.ndarray, n_types: int, seed: int) -> np.ndarray:
    """Gaussian mixture with full covariances."""
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(n_types, reg_covar=1e-3, n_init=3, random_state=seed).fit_predict(components).astype(str)


def leiden_at_1(components: np.ndarray, n_types: int, seed: int) -> np.ndarray:
    """Leiden at resolution 1."""
    return baselines.leiden(baselines.neighbour_graph(components, seed=seed), seed=seed)


def leiden_at_k(components: np.ndarray, n_types: int, seed: int) -> np.ndarray:
    """Leiden at the resolution, found by bisection, that gives the number of types (or the nearest number)."""
    graph = baselines.neighbour_graph(components, seed=seed)
    low, high, best = 0.01, 8.0, None
    for _ in range(20):
        middle = np.sqrt(low * high)
        labels = baselines.leiden(graph, resolution=middle, seed=seed)
        found = len(set(labels))
        if best is None or abs(found - n_types) < abs(len(set(best)) - n_types):
            best = labels
        if found == n_types:
            break
        low, high = (middle, high) if found < n_types else (low, middle)
    return best


CLUSTERERS = {"kmeans": kmeans, "gmm": gmm, "leiden": leiden_at_k, "leiden1": leiden_at_1}
EMBEDDINGS = {"pca": pca(False), "pca_scaled": pca(True), "scvi": scvi_latent}

#: The paper's objective alone: Eq. 8 with the perturbed distance, lambda 1, no start and no guide.
PAPER = {"distance": "perturbed", "epsilon": None}

METHODS: dict[str, Method] = {
    "cplmixvi": cplmixvi_method(),
    "cplmixvi_own_k": cplmixvi_method(own_k=True),
    "cplmixvi_1arm": cplmixvi_method(n_arms=1),
    "cplmixvi_3arms": cplmixvi_method(n_arms=3),
    "paper": cplmixvi_method(train={"warm_start": False}, **PAPER),
    "paper_1arm": cplmixvi_method(train={"warm_start": False}, n_arms=1, **PAPER),
    "cplmixvi_5arms": cplmixvi_method(n_arms=5),
    **{f"{e}_{c}": clustered(EMBEDDINGS[e], CLUSTERERS[c]) for e in EMBEDDINGS for c in CLUSTERERS},
}
