"""What changes in a cell whose type is held while its state moves?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cplmixvi import pp
from cplmixvi._constants import COUNT_LIKELIHOODS, DEFAULT_KEY
from cplmixvi.tl._annotate import ORIGIN, read_labels
from cplmixvi.tl._gene_sets import resolve_gene_sets
from cplmixvi.tl._markers import rank_genes
from cplmixvi.tl._traversal import MONOTONE, Traversal, effects, monotonicity

if TYPE_CHECKING:
    from cplmixvi.model import CplMixVI

MAIN = "main"
MARKERS = "markers"

#: Types with fewer cells have no range of states worth the name.
MIN_CELLS = 5

#: Markers of a type: so many at most, the best first, and only genes that are clearly higher in it.
N_MARKERS = 20
MIN_LOG2_FOLD = 1.0
MAX_PVALUE = 0.01

#: Share of the labels that the model must give again; below it they are those of another model.
MIN_OWN = 0.9


def traverse(
    adata: AnnData,
    model: CplMixVI,
    categories: Sequence[str] | str | None = None,
    gene_sets: Mapping[str, Iterable[str]] | str | Path | None = None,
    n_steps: int = 11,
    key_added: str = DEFAULT_KEY,
    *,
    markers: pd.DataFrame | Mapping[str, Iterable[str]] | None = None,
    quantiles: tuple[float, float] = (0.05, 0.95),
    library_size: float | None = None,
    moved: float = 0.5,
    n_draws: int = 0,
) -> Traversal:
    r"""Hold the type, move the state, and decode.

    For every type, each dimension of the state walks in even steps between two quantiles of the states of the type's
    cells, the other dimensions at the type's mean; and one more path, ``"main"``, walks along the first principal
    direction :math:`v` of these states, :math:`\bar z + t v`, between the same quantiles of :math:`t`. Each arm decodes
    in its own coordinates (see :class:`~cplmixvi.module.StateAlignment`), and the decoded parameters are averaged over
    arms, and over the batches and covariates of the type's cells.

    Parameters
    ----------
    adata
        Cells that :func:`annotate` has annotated with this model.
    model
        The model.
    categories
        Types to walk through; all with at least five cells if `None`.
    gene_sets
        Sets to summarise beside the markers of the type and the built-in sets (immediate early, housekeeping and
        interferon genes, human and mouse): gene names by name of the set, or the path of a GMT file.
    n_steps
        Steps of a path, at least 3.
    key_added
        Name of the annotation, to which the result is added.
    markers
        Markers of the types: a table with ``category`` and ``gene`` such as that of :func:`rank_genes`, or lists of
        genes by category. By default the 20 best of :func:`rank_genes` whose fold change is at least 2 and whose
        adjusted p-value is at most 0.01, among the model's genes.
    quantiles
        Ends of the paths.
    library_size
        Molecules in the model's genes that counts are scaled to; the median of the cells that the model was trained on
        if `None`. Without effect on log and binary values.
    moved
        A gene moves along a path if its effect is at least this number of its standard deviations.
    n_draws
        Re-encode so many cells drawn at every step; 0 for the expected expression itself.

    Returns
    -------
    Traversal
        Expression is ``log1p`` of counts scaled to the library size, or what the model was given, log or binary values.

        Written: ``uns[key_added]["traversals"]``, the same as arrays.

    Raises
    ------
    ValueError
        If there is no annotation by this model under ``key_added``, a category is not one of it or has too few cells, a
        gene set has none of the model's genes, or an option is out of range. Nothing is written then.
    """
    _check_options(n_steps, quantiles, library_size, moved, n_draws)
    labels = read_labels(adata, key_added)
    chosen = _chosen(labels, categories)
    genes = np.asarray(model.get_var_names()).astype(str)
    sets = resolve_gene_sets(gene_sets, genes)
    own = _positions(markers, genes, chosen)
    posterior = model.get_posterior(adata)
    _check_own(labels, model.category_names[posterior.proba.argmax(1)], key_added)
    on_counts = model.likelihood in COUNT_LIKELIHOODS
    if library_size is None and on_counts:
        library_size = float(model.module.target_library)
    values = _values(adata, model, library_size)
    if own is None:
        own = _best_markers(values, genes, labels, chosen)

    walks = [_walk(posterior.combined[labels == name], n_steps, quantiles) for name in chosen]
    state = np.stack([walk for walk, _ in walks])
    expression, flips = [], []
    for name, walk in zip(chosen, state, strict=True):
        decoded = model.decode_state(
            walk.reshape(-1, model.n_state),
            name,
            adata=adata,
            indices=np.flatnonzero(labels == name),
            library_size=library_size,
            n_draws=n_draws,
        )
        expression.append(decoded.expression.reshape(*walk.shape[:2], -1))
        flips.append(decoded.flips.reshape(walk.shape[:2]).mean(1))
    expression = np.stack(expression)
    if on_counts:
        expression = np.log1p(expression)
    params = {"n_steps": int(n_steps), "quantiles": np.asarray(quantiles, dtype=float), "moved": float(moved)}
    params |= {"scale": _scale(model.likelihood, library_size), "n_draws": int(n_draws)}
    result = _summarise(
        chosen, walks[0][1], genes, state, expression, _deviation(values), np.stack(flips), own, sets, params
    )
    # A new entry rather than a change of the old one, which a view of an AnnData would lose.
    adata.uns[key_added] = {**adata.uns[key_added], "traversals": result.to_uns()}
    return result


def _check_options(n_steps, quantiles, library_size, moved, n_draws) -> None:
    if not pp.is_whole(n_steps) or n_steps < 3:
        raise ValueError(f"n_steps={n_steps!r} was given; give a whole number of at least 3.")
    if len(quantiles) != 2 or not 0 <= quantiles[0] < quantiles[1] <= 1:
        raise ValueError(f"quantiles={quantiles!r} was given; give two ascending numbers from 0 to 1.")
    if library_size is not None and not 0 < library_size < np.inf:
        raise ValueError(f"library_size={library_size!r} was given; give a positive number, or None for the median.")
    if not 0 < moved < np.inf:
        raise ValueError(f"moved={moved!r} was given; give a positive number of standard deviations.")
    if not pp.is_whole(n_draws) or n_draws < 0:
        raise ValueError(f"n_draws={n_draws!r} was given; give a whole number, 0 for the expected expression.")


def _chosen(labels: pd.Categorical, categories: Sequence[str] | str | None) -> list[str]:
    """Types to walk through, in their order in the annotation or as given."""
    sizes = labels.value_counts()
    if categories is None:
        chosen = [name for name in labels.categories if sizes[name] >= MIN_CELLS]
        if not chosen:
            raise ValueError(f"No category has the {MIN_CELLS} cells that a range of states needs; give more cells.")
        return chosen
    chosen = [categories] if isinstance(categories, str) else list(dict.fromkeys(map(str, categories)))
    unknown = [name for name in chosen if name not in labels.categories]
    if unknown or not chosen:
        raise ValueError(
            f"categories={categories!r}: {', '.join(map(repr, unknown)) or 'none given'}; categories of the annotation "
            f"are {', '.join(labels.categories[:20])}; name some of these."
        )
    small = [name for name in chosen if sizes[name] < MIN_CELLS]
    if small:
        raise ValueError(
            f"Category {small[0]!r} has {sizes[small[0]]} cells here; at least {MIN_CELLS} are needed for a range of "
            "states; leave it out."
        )
    return chosen


def _check_own(labels: pd.Categorical, predicted: np.ndarray, key: str) -> None:
    known = ~labels.isna()
    share = float(np.mean(np.asarray(labels)[known] == predicted[known]))
    if share < MIN_OWN:
        raise ValueError(
            f"The model gives only {share:.0%} of the labels in obs[{key!r}]: they are of another model; call "
            f"cplmixvi.tl.annotate(adata, model, key_added={key!r}) with this one first."
        )


def _positions(markers, genes: np.ndarray, chosen: list[str]) -> dict[str, np.ndarray] | None:
    """Positions of the markers that were given, by category."""
    if markers is None:
        return None
    if isinstance(markers, pd.DataFrame):
        missing = [column for column in ("category", "gene") if column not in markers]
        if missing:
            raise ValueError(f"markers has no column {missing[0]!r}; a table as that of tl.rank_genes is needed.")
        markers = markers.groupby("category", observed=True)["gene"].agg(list).to_dict()
    own = {str(name): np.flatnonzero(np.isin(genes, [str(gene) for gene in found])) for name, found in markers.items()}
    if not any(len(own.get(name, ())) for name in chosen):
        raise ValueError(
            "None of the markers is a gene of the model; names of categories and genes must match exactly."
        )
    return {name: own.get(name, np.array([], dtype=int)) for name in chosen}


def _values(adata: AnnData, model: CplMixVI, library_size: float | None) -> sparse.csr_matrix:
    """Values of the model's genes on the scale of the result, ``(n_obs, n_genes)``."""
    positions = adata.var_names.astype(str).get_indexer(np.asarray(model.get_var_names()).astype(str))
    values = pp.as_csr(adata, model.registry_["setup_args"].get("layer"))[:, positions]
    return values if library_size is None else pp.log_normalize(values, library_size)


def _deviation(values: sparse.csr_matrix) -> np.ndarray:
    """Standard deviation of every gene over all cells, ``(n_genes,)``."""
    mean = np.asarray(values.mean(0), dtype=float).ravel()
    square = np.asarray(values.multiply(values).mean(0), dtype=float).ravel()
    return np.sqrt(np.maximum(square - mean**2, 0.0))


def _best_markers(
    values: sparse.csr_matrix, genes: np.ndarray, labels: pd.Categorical, chosen: list[str]
) -> dict[str, np.ndarray]:
    if (labels.value_counts() >= 2).sum() < 2:
        # A single type has no other to be told from.
        return {name: np.array([], dtype=int) for name in chosen}
    large = labels.remove_categories([name for name in labels.categories if (labels == name).sum() < 2])
    # Apart from the user's cells, whose own ranking stays as it is.
    cells = AnnData(values.copy(), obs=pd.DataFrame({DEFAULT_KEY: large}), var=pd.DataFrame(index=genes))
    cells.obs_names = cells.obs_names.astype(str)
    cells.uns[DEFAULT_KEY] = {"origin": ORIGIN, "categories": np.array(large.categories, dtype=object)}
    table = rank_genes(cells)
    clear = table[(table["log2_fold_change"] >= MIN_LOG2_FOLD) & (table["pvalue_adjusted"] <= MAX_PVALUE)]
    best = clear.groupby("category", observed=True).head(N_MARKERS)
    position = pd.Index(genes)
    return {name: np.sort(position.get_indexer(best.loc[best["category"] == name, "gene"])) for name in chosen}


def _walk(state: np.ndarray, n_steps: int, quantiles: tuple[float, float]) -> tuple[np.ndarray, list[str]]:
    """Paths through a type's states, ``(n_paths, n_steps, n_state)``, and their names."""
    mean = state.mean(0)
    directions, names = list(np.eye(state.shape[1])), [str(j + 1) for j in range(state.shape[1])]
    if state.shape[1] > 1:
        main = np.linalg.svd(state - mean, full_matrices=False)[2][0]
        # Its sign is arbitrary: the one along the dimension that it follows most.
        directions.append(main * np.sign(main[np.abs(main).argmax()]))
        names.append(MAIN)
    share = np.linspace(0, 1, n_steps)[:, None]
    paths = []
    for direction in directions:
        low, high = np.quantile((state - mean) @ direction, quantiles)
        paths.append(mean + (low + share * (high - low)) * direction)
    return np.stack(paths).astype(np.float32), names


def _scale(likelihood: str, library_size: float | None) -> str:
    if library_size is not None:
        return f"log1p of counts per {library_size:g}"
    return "probability" if likelihood == "bernoulli" else "value"


def _summarise(chosen, paths, genes, state, expression, deviation, flips, own, sets, params) -> Traversal:
    effect, rank = effects(expression, deviation), monotonicity(expression)
    rows, leaks = [], []
    for t, name in enumerate(chosen):
        for p, path in enumerate(paths):
            where = {"category": name, "path": path}
            rows += [
                {**where, "gene_set": label, **_of_set(effect[t, p, positions], rank[t, p, positions], params["moved"])}
                for label, positions in {MARKERS: own[name], **sets}.items()
            ]
            moving = effect[t, p, own[name]] >= params["moved"]
            share = float(moving.mean()) if len(moving) else np.nan
            leaks.append({**where, "n_markers": len(moving), "markers_moved": share, "flip_rate": float(flips[t, p])})
    members = [(MARKERS, name, gene) for name in chosen for gene in genes[own[name]]]
    members += [(label, "", gene) for label, positions in sets.items() for gene in genes[positions]]
    return Traversal(
        categories=np.array(chosen, dtype=object),
        paths=np.array(paths, dtype=object),
        genes=genes.astype(object),
        state=state,
        expression=expression.astype(np.float32),
        effect=effect,
        monotonicity=rank,
        gene_sets=pd.DataFrame(rows),
        leakage=pd.DataFrame(leaks),
        members=pd.DataFrame(members, columns=["gene_set", "category", "gene"]),
        params=params,
    )


def _of_set(effect: np.ndarray, rank: np.ndarray, moved: float) -> dict[str, float]:
    if not len(effect):
        return {"n_genes": 0} | dict.fromkeys(("median_effect", "share_moved", "share_monotone", "share_up"), np.nan)
    return {
        "n_genes": len(effect),
        "median_effect": float(np.median(effect)),
        "share_moved": float((effect >= moved).mean()),
        "share_monotone": float((np.abs(rank) >= MONOTONE).mean()),
        "share_up": float((rank > 0).mean()),
    }
