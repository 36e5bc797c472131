"""Simulated counts whose types and states are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import brentq

if TYPE_CHECKING:
    from anndata import AnnData

# Dense rates are made for this many entries at a time: about 100 MB in flight, whatever the size of the result.
_CHUNK_ENTRIES = 2**21


def imbalanced_sizes(n_obs: int, n_types: int, *, smallest: int, largest: int) -> np.ndarray:
    """Sizes of cell types, from ``smallest`` to ``largest``, that add up to ``n_obs``.

    Size ``i`` is :math:`a (b / a)^{u_i^p}` with :math:`u_i = i / (T - 1)` and ``p`` chosen to give the right sum,
    rounded to whole cells.

    Parameters
    ----------
    n_obs
        Sum of the sizes.
    n_types
        Number of types T, at least 2.
    smallest
        First size, a.
    largest
        Last size, b.

    Returns
    -------
    numpy.ndarray
        Integers in ascending order, ``(n_types,)``.

    Raises
    ------
    ValueError
        If there are no such sizes.

    Examples
    --------
    >>> sizes = imbalanced_sizes(22_365, 115, smallest=16, largest=1_404)
    >>> int(sizes.sum()), int(sizes[0]), int(sizes[-1])
    (22365, 16, 1404)
    """
    position = np.linspace(0, 1, max(n_types, 2))

    def sizes(exponent: float) -> np.ndarray:
        return smallest * (largest / smallest) ** (position**exponent)

    if not (n_types >= 2 and 1 <= smallest < largest and sizes(1e3).sum() <= n_obs <= sizes(1e-3).sum()):
        raise ValueError(
            f"n_obs={n_obs}, n_types={n_types}, smallest={smallest}, largest={largest} given; n_types >= 2, "
            f"1 <= smallest < largest and a sum between all small and all large are needed: change one of them"
        )
    exact = sizes(brentq(lambda exponent: sizes(exponent).sum() - n_obs, 1e-3, 1e3))
    whole = np.floor(exact).astype(int)
    whole[0], whole[-1] = smallest, largest
    inner = 1 + np.argsort(-(exact - whole)[1:-1], kind="stable")
    whole[inner[: n_obs - whole.sum()]] += 1
    return whole


def _checked_sizes(n_obs: int, n_types: int, type_sizes: Sequence[int] | None) -> np.ndarray:
    if type_sizes is None:
        return np.full(n_types, n_obs // n_types) + (np.arange(n_types) < n_obs % n_types)
    sizes = np.asarray(type_sizes)
    if sizes.shape != (n_types,) or (sizes < 1).any() or sizes.sum() != n_obs:
        raise ValueError(
            f"type_sizes has {sizes.size} entries that add up to {sizes.sum()}; {n_types} positive entries that add up "
            f"to n_obs={n_obs} are needed: change type_sizes, n_types or n_obs"
        )
    return sizes.astype(int)


def _type_log_fold(rng: np.random.Generator, n_types: int, n_vars: int, n_markers: int, fold: float) -> np.ndarray:
    """Log fold of every gene in every type, ``(n_types, n_vars)``; no gene marks two types while there are enough."""
    log_fold = np.zeros((n_types, n_vars), dtype=np.float32)
    if n_types * n_markers <= n_vars:
        markers = rng.permutation(n_vars)[: n_types * n_markers].reshape(n_types, n_markers)
    else:
        markers = np.argsort(rng.random((n_types, n_vars)), axis=1)[:, :n_markers]
    # Markers differ in strength, so that types are not equally far from each other.
    strength = np.log(fold) * rng.uniform(0.6, 1.4, size=markers.shape)
    np.put_along_axis(log_fold, markers, strength.astype(np.float32), axis=1)
    return log_fold


def _state_loadings(rng: np.random.Generator, n_rows: int, n_vars: int, n_genes: int, scale: float):
    """CSR ``(n_rows, n_vars)``: every row moves its own ``n_genes`` genes, up or down."""
    genes = np.argsort(rng.random((n_rows, n_vars)), axis=1)[:, :n_genes]
    values = rng.choice([-1.0, 1.0], size=genes.shape) * scale * rng.uniform(0.5, 1.5, size=genes.shape)
    pointers = np.arange(n_rows + 1) * genes.shape[1]
    return sparse.csr_matrix((values.ravel().astype(np.float32), genes.ravel(), pointers), shape=(n_rows, n_vars))


def _draw(rng, rates: np.ndarray, library: np.ndarray, inverse_dispersion: float) -> sparse.csr_matrix:
    """Negative binomial counts, as Poisson counts with gamma distributed rates."""
    rates *= (library / rates.sum(axis=1))[:, None]
    rates *= rng.standard_gamma(inverse_dispersion, size=rates.shape, dtype=np.float32) / np.float32(inverse_dispersion)
    return sparse.csr_matrix(rng.poisson(rates).astype(np.float32))


def simulate(
    n_obs: int = 1_000,
    n_vars: int = 500,
    n_types: int = 5,
    *,
    type_sizes: Sequence[int] | None = None,
    n_state: int = 2,
    n_markers: int = 20,
    marker_fold: float = 4.0,
    n_state_genes: int = 20,
    state_scale: float = 0.5,
    n_batches: int = 1,
    batch_scale: float = 0.2,
    mean_counts: float = 3_000.0,
    library_sigma: float = 0.3,
    inverse_dispersion: float = 5.0,
    seed: int = 0,
) -> AnnData:
    r"""Simulate counts of cells with types, type-dependent states and batches.

    For cell n of type t with state :math:`s_n \sim N(0, I)`, in batch b, and gene g

    .. math::
        \eta_{ng} = \beta_g + \delta_{tg} + \sum_j s_{nj} W_{tjg} + \gamma_{bg}, \quad
        x_{ng} \sim NB(l_n\,\mathrm{softmax}(\eta_n)_g, \theta)

    where the loadings W of the states depend on the type: the same state value changes different genes in another type.

    Parameters
    ----------
    n_obs
        Number of cells.
    n_vars
        Number of genes.
    n_types
        Number of types.
    type_sizes
        Number of cells of each type, see :func:`imbalanced_sizes`. Default: equal sizes.
    n_state
        Number of state dimensions.
    n_markers
        Number of genes raised in each type; no gene is raised in two types if there are enough genes.
    marker_fold
        Typical fold change of a marker.
    n_state_genes
        Number of genes that each state dimension changes in each type.
    state_scale
        Typical change in log rate per unit of state.
    n_batches
        Number of batches, drawn independently of the type.
    batch_scale
        Standard deviation over genes of the log fold change of a batch; not used for a single batch.
    mean_counts
        Mean of the library size l (counts per cell), which is log-normal.
    library_sigma
        Standard deviation of the logarithm of the library size.
    inverse_dispersion
        :math:`\theta`; the variance is :math:`\mu + \mu^2 / \theta`.
    seed
        Seed; the same arguments give the same data.

    Returns
    -------
    anndata.AnnData
        Counts as CSR float32 in ``X``; the truth in ``obs["type"]``, ``obs["batch"]``, ``obsm["state"]`` ``(n_obs,
        n_state)``, ``varm["type_log_fold"]`` ``(n_vars, n_types)`` and ``uns["state_loadings"]``, CSR ``(n_types *
        n_state, n_vars)`` with row ``t * n_state + j``.

    Raises
    ------
    ValueError
        If a number is out of range, or ``type_sizes`` does not fit.
    """
    minimum = {"n_obs": n_types, "n_vars": max(n_markers, n_state_genes, 1), "n_types": 1, "n_state": 0, "n_batches": 1}
    minimum |= {"n_markers": 0, "n_state_genes": 0}
    given = {"n_obs": n_obs, "n_vars": n_vars, "n_types": n_types, "n_state": n_state, "n_batches": n_batches}
    given |= {"n_markers": n_markers, "n_state_genes": n_state_genes}
    for name, least in minimum.items():
        if given[name] < least:
            raise ValueError(f"{name}={given[name]} given, at least {least} needed: raise {name}")
    for name, value in {"state_scale": state_scale, "batch_scale": batch_scale, "library_sigma": library_sigma}.items():
        if not 0 <= value < np.inf:
            raise ValueError(f"{name}={value} given, a number of at least 0 is needed: change {name}")
    for name, value in {
        "marker_fold": marker_fold,
        "mean_counts": mean_counts,
        "inverse_dispersion": inverse_dispersion,
    }.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name}={value} given, a positive number is needed: change {name}")
    rng = np.random.default_rng(seed)
    types = rng.permutation(np.repeat(np.arange(n_types), _checked_sizes(n_obs, n_types, type_sizes)))
    batches = rng.integers(n_batches, size=n_obs)
    states = rng.standard_normal((n_obs, n_state)).astype(np.float32)
    library = mean_counts * np.exp(library_sigma * rng.standard_normal(n_obs) - library_sigma**2 / 2)

    base = rng.normal(0, 1.2, size=n_vars).astype(np.float32)
    log_fold = _type_log_fold(rng, n_types, n_vars, n_markers, marker_fold)
    loadings = _state_loadings(rng, n_types * n_state, n_vars, n_state_genes, state_scale)
    batch_fold = rng.normal(0, batch_scale if n_batches > 1 else 0, size=(n_batches, n_vars)).astype(np.float32)

    # Row n of the design holds the state of cell n in the columns of its type.
    columns = types[:, None] * n_state + np.arange(n_state)
    design = sparse.csr_matrix(
        (states.ravel(), columns.ravel(), np.arange(n_obs + 1) * n_state), shape=(n_obs, n_types * n_state)
    )
    blocks = []
    step = max(1, _CHUNK_ENTRIES // n_vars)
    for start in range(0, n_obs, step):
        rows = slice(start, start + step)
        rates = base + log_fold[types[rows]] + batch_fold[batches[rows]]
        rates += (design[rows] @ loadings).toarray()
        np.exp(rates, out=rates)
        blocks.append(_draw(rng, rates, library[rows].astype(np.float32), inverse_dispersion))
    counts = sparse.vstack(blocks, format="csr")
    return _as_anndata(counts, types, batches, states, log_fold, loadings)


def _as_anndata(counts, types, batches, states, log_fold, loadings) -> AnnData:
    from anndata import AnnData

    def names(prefix: str, codes: np.ndarray, n: int) -> pd.Categorical:
        width = len(str(n - 1))
        return pd.Categorical.from_codes(codes, [f"{prefix}{i:0{width}d}" for i in range(n)])

    obs = pd.DataFrame(
        {"type": names("type", types, len(log_fold)), "batch": names("batch", batches, int(batches.max()) + 1)},
        index=[f"cell{i}" for i in range(counts.shape[0])],
    )
    adata = AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{j}" for j in range(counts.shape[1])]))
    adata.obsm["state"] = states
    adata.varm["type_log_fold"] = np.ascontiguousarray(log_fold.T)
    adata.uns["state_loadings"] = loadings
    adata.uns["source"] = "simulated"
    adata.uns["X_is"] = "raw counts"
    return adata
