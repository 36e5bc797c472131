"""Which genes go with the state of a type?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.stats import false_discovery_control, rankdata, t

from cplmixvi import pp
from cplmixvi._constants import DEFAULT_KEY, ResultKeys
from cplmixvi.tl._annotate import add_entries, read_labels
from cplmixvi.tl._markers import check_finite, log_values

#: Types with fewer cells are left out: no correlation of so few could be told from chance.
MIN_CELLS = 10

#: Genes whose ranks are in memory at a time, for a type of 10,000 cells.
_ENTRIES = 10_000_000


def state_genes(
    adata: AnnData,
    key: str = DEFAULT_KEY,
    *,
    layer: str | None = None,
    n_genes: int | None = 100,
    n_permutations: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Rank genes by how strongly they correlate with the state among the cells of each category.

    The statistic is Spearman's correlation :math:`\rho` of log-normalised expression with a dimension of the state. The
    null hypothesis is that, within the category, the state is unrelated to the gene: states are permuted among the
    category's cells. The p-value is the usual approximation to that permutation distribution,
    :math:`\rho\sqrt{(n - 2) / (1 - \rho^2)}` against Student's t with :math:`n - 2` degrees of freedom. Because the
    state was inferred from the same genes, p-values of genes that the model has seen rank these genes but prove little;
    those of other genes are valid as usual.

    Parameters
    ----------
    adata
        Annotated cells. Their values are not changed.
    key
        Name of the annotation.
    layer
        Layer with log values, or with counts, which are log-normalised in a copy; `None` for ``adata.X``.
    n_genes
        Number of top genes to keep per category and dimension; all if `None`.
    n_permutations
        Number of permutations of the states. Each correlation is compared with the largest one of any gene, which
        controls the probability of a single false discovery per category and dimension. With 0, this is skipped.
    seed
        Seed of the permutations.

    Returns
    -------
    pandas.DataFrame
        One row per category, dimension and gene: ``category``, ``dimension`` (from 1), ``rank`` (from 1, by absolute
        correlation), ``gene``, ``correlation`` (its sign is the direction), ``pvalue`` and ``pvalue_adjusted``
        (Benjamini-Hochberg over the genes of the category and dimension), and, with permutations, ``pvalue_max``.
        Categories with fewer than 10 cells are left out.

        Also writes ``uns[key]["state_genes"]``, the same table as arrays.

    Raises
    ------
    ValueError
        If there is no result under ``key``, no category has 10 cells, an option is out of range, or values are not
        finite, or neither counts nor logarithms.
    """
    for name, value, least in (("n_genes", n_genes, 1), ("n_permutations", n_permutations, 0)):
        if value is not None and (not pp.is_whole(value) or value < least):
            raise ValueError(f"{name}={value!r} was given; give a whole number of at least {least}.")
    if not (pp.is_whole(seed) and seed >= 0):
        raise ValueError(f"seed={seed!r} was given; give a whole number of at least 0.")
    labels = read_labels(adata, key)
    state = read_state(adata, key)
    values, _ = log_values(adata, layer)
    sizes = labels.value_counts()
    large = [name for name in labels.categories if sizes[name] >= MIN_CELLS]
    if not large:
        raise ValueError(f"No category of {key!r} has the {MIN_CELLS} cells that a correlation needs.")
    rng = np.random.default_rng(seed)
    names = np.asarray(adata.var_names, dtype=object)
    parts = []
    for name in large:
        member = np.flatnonzero(labels == name)
        correlation, largest = _correlations(values[member], state[member], n_permutations, rng)
        parts += [
            _table(name, j, names, correlation[j], len(member), largest[j], n_genes) for j in range(state.shape[1])
        ]
    table = pd.concat(parts, ignore_index=True)
    entry = {column: column_values.to_numpy() for column, column_values in table.items()}
    entry |= {column: entry[column].astype(object) for column in ("category", "gene")}
    add_entries(adata, key, state_genes=entry)
    return table


def read_state(adata: AnnData, key: str) -> np.ndarray:
    """States as :func:`annotate` wrote them, without the column of zeros beside a single dimension.

    Raises
    ------
    ValueError
        If they are missing or not finite.
    """
    name = ResultKeys(key).state
    if name not in adata.obsm:
        raise ValueError(f"obsm[{name!r}] is missing; run cplmixvi.tl.annotate(adata, model, key_added={key!r}) first.")
    state = np.asarray(adata.obsm[name], dtype=np.float64)
    check_finite(state, f"obsm[{name!r}]")
    return state[:, :1] if state.shape[1] == 2 and not state[:, 1].any() else state


def _correlations(
    values: sparse.csr_matrix, state: np.ndarray, n_permutations: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rank correlations ``(n_state, n_genes)``, and the largest of any gene with permuted states, ``(n_state, n)``."""
    n_cells, n_genes = values.shape
    states = _standardised(state).T
    shuffled = np.stack([states[:, rng.permutation(n_cells)] for _ in range(n_permutations)] or [states[:, :0]], axis=1)
    correlation = np.empty((len(states), n_genes))
    largest = np.zeros((len(states), n_permutations))
    columns = values.tocsc()
    step = max(1, _ENTRIES // n_cells)
    for start in range(0, n_genes, step):
        ranks = _standardised(columns[:, start : start + step].toarray())
        correlation[:, start : start + step] = states @ ranks
        if n_permutations:
            largest = np.maximum(largest, np.abs(shuffled @ ranks).max(-1))
    return correlation, largest


def _standardised(values: np.ndarray) -> np.ndarray:
    """Ranks of each column, centred and of length 1; zeros where all are equal."""
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(0)
    norm = np.linalg.norm(ranks, axis=0)
    return np.divide(ranks, norm, out=np.zeros_like(ranks), where=norm > 0)


def _table(
    category: str,
    dimension: int,
    genes: np.ndarray,
    correlation: np.ndarray,
    n_cells: int,
    largest: np.ndarray,
    n_genes: int | None,
) -> pd.DataFrame:
    size = np.abs(correlation)
    statistic = size * np.sqrt((n_cells - 2) / np.maximum(1 - size**2, 1e-12))
    pvalue = 2 * t.sf(statistic, n_cells - 2)
    best = np.argsort(-size, kind="stable")[:n_genes]
    columns = {
        "category": category,
        "dimension": dimension + 1,
        "rank": np.arange(1, len(best) + 1),
        "gene": genes[best],
        "correlation": correlation[best],
        "pvalue": pvalue[best],
        "pvalue_adjusted": false_discovery_control(pvalue)[best],
    }
    if len(largest):
        beyond = (largest[:, None] >= size[best]).sum(0)
        columns["pvalue_max"] = (1 + beyond) / (1 + len(largest))
    return pd.DataFrame(columns)
