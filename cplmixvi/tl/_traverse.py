"""What changes in a cell whose type is held while its state moves?"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cplmixvi import pp
from cplmixvi._constants import COUNT_LIKELIHOODS, DEFAULT_KEY
from cplmixvi._isolation import seeded
from cplmixvi.tl._annotate import ORIGIN, add_entries, check_model, model_values, read_labels
from cplmixvi.tl._gene_sets import MARKERS, check_lists, resolve_gene_sets
from cplmixvi.tl._leakage import TypeMarkers, standard_deviation
from cplmixvi.tl._markers import rank_genes
from cplmixvi.tl._traversal import MONOTONE, Traversal, effects, monotonicity

if TYPE_CHECKING:
    from cplmixvi.model import CplMixVI

MAIN = "main"

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
    moved: float = 1.0,
    n_draws: int = 0,
    seed: int | None = None,
) -> Traversal:
    r"""Hold the cell type fixed, move the state, and decode.

    For each category, each dimension of the state moves in equal steps between two quantiles of the states of the
    category's cells, with the other dimensions at the category's mean. An additional path, ``"main"``, follows the
    first principal direction :math:`v` of these states, :math:`\bar z + t v`, between the same quantiles of :math:`t`.
    Each arm decodes in its own coordinates (see :class:`~cplmixvi.module.StateAlignment`), and the decoded parameters
    are averaged over arms and over the batches and covariates of the category's cells.

    Parameters
    ----------
    adata
        Cells annotated by :func:`annotate` with this model.
    model
        The model.
    categories
        Categories to traverse; all with at least five cells if `None`.
    gene_sets
        Gene sets to summarise in addition to the markers of the categories and the built-in sets (immediate early,
        housekeeping and interferon genes, human and mouse): a mapping from set names to gene names, or the path of a
        GMT file.
    n_steps
        Number of steps of a path, at least 3.
    key_added
        Name of the annotation to which the result is added.
    markers
        Markers of the categories: a table with columns ``category`` and ``gene``, such as that returned by
        :func:`rank_genes`, or lists of genes by category. By default the top 20 genes of :func:`rank_genes` with a fold
        change of at least 2 and an adjusted p-value of at most 0.01, among the model's genes. Scaled values have no
        fold changes, and the categories then have no markers unless they are given.
    quantiles
        Quantiles at the two ends of the paths.
    library_size
        Total molecules over the model's genes to which counts are scaled; the median of the cells that the model was
        trained on if `None`. No effect on log and binary values.
    moved
        A gene moves along a path if it changes by at least this many of its standard deviations over all cells.
    n_draws
        Number of cells to draw and re-encode at each step; with 0, the expected expression itself is re-encoded.
    seed
        Seed of these draws; they are drawn from the global generator if `None`, which ``scvi.settings.seed`` sets.
        Random numbers drawn afterwards do not depend on a seed that is given.

    Returns
    -------
    Traversal
        Expression is ``log1p`` of counts scaled to the library size or, for log and binary values, on the scale of the
        model's input.

        Also writes ``uns[key_added]["traversals"]``, the same content as arrays.

    Raises
    ------
    ValueError
        If there is no annotation by this model under ``key_added``, a category is not part of it or has too few cells,
        ``gene_sets`` has none of the model's genes, or an option is out of range. Nothing is written in these cases.

    Warns
    -----
    UserWarning
        If values are negative and no markers are given.
    """
    check_model(model)
    _check_options(n_steps, quantiles, library_size, moved, n_draws, seed)
    labels = read_labels(adata, key_added)
    chosen = _chosen(labels, categories)
    genes = np.asarray(model.get_var_names()).astype(str)
    sets = resolve_gene_sets(gene_sets, genes)
    own = _positions(markers, genes, chosen)
    on_counts = model.likelihood in COUNT_LIKELIHOODS
    if library_size is None and on_counts:
        library_size = float(model.module.target_library)
    with nullcontext() if seed is None else seeded(seed):
        posterior = model.get_posterior(adata, top_k=1)
        _check_own(labels, model.category_names[posterior.category], key_added)
        walks = {name: _walk(posterior.combined[labels == name], n_steps, quantiles) for name in chosen}
        expression, flips = _decode(model, adata, labels, walks, library_size, n_draws)
    values = _values(adata, model, library_size)
    if own is None:
        own = _best_markers(values, genes, labels, chosen)
    result = _summarise(walks, expression, flips, values, labels, genes, own, sets, moved, on_counts)
    result.params.update(
        n_steps=int(n_steps),
        quantiles=np.asarray(quantiles, dtype=float),
        n_draws=int(n_draws),
        scale=_scale(model.likelihood, library_size),
    )
    if seed is not None:
        result.params["seed"] = int(seed)
    add_entries(adata, key_added, traversals=result.to_uns())
    return result


def _check_options(n_steps, quantiles, library_size, moved, n_draws, seed) -> None:
    if not pp.is_whole(n_steps) or n_steps < 3:
        raise ValueError(f"n_steps={n_steps!r} was given; give a whole number of at least 3.")
    given = list(quantiles) if np.iterable(quantiles) else []
    if len(given) != 2 or not all(map(pp.is_number, given)) or not 0 <= given[0] < given[1] <= 1:
        raise ValueError(f"quantiles={quantiles!r} was given; give two ascending numbers from 0 to 1.")
    if library_size is not None and not (pp.is_number(library_size) and 0 < library_size < np.inf):
        raise ValueError(f"library_size={library_size!r} was given; give a positive number, or None for the median.")
    if not (pp.is_number(moved) and 0 < moved < np.inf):
        raise ValueError(f"moved={moved!r} was given; give a positive number of standard deviations.")
    if not pp.is_whole(n_draws) or n_draws < 0:
        raise ValueError(f"n_draws={n_draws!r} was given; give a whole number, 0 for the expected expression.")
    if seed is not None and not (pp.is_whole(seed) and 0 <= seed < 2**32):
        raise ValueError(f"seed={seed!r} was given; give a whole number from 0 to 2**32 - 1, or None.")


def _chosen(labels: pd.Categorical, categories: Sequence[str] | str | None) -> list[str]:
    """Types to walk through, in their order in the annotation or as given."""
    sizes = labels.value_counts()
    if categories is None:
        chosen = [name for name in labels.categories if sizes[name] >= MIN_CELLS]
        if not chosen:
            raise ValueError(
                f"No category has the {MIN_CELLS} cells that a range of states needs; give more cells, or annotate "
                "with a lower min_confidence."
            )
        return chosen
    chosen = [categories] if isinstance(categories, str) or not np.iterable(categories) else categories
    chosen = list(dict.fromkeys(map(str, chosen)))
    unknown = [name for name in chosen if name not in labels.categories]
    if unknown or not chosen:
        raise ValueError(
            f"categories={', '.join(map(repr, unknown)) or repr(categories)} names no category of the annotation; "
            f"there are {', '.join(map(repr, labels.categories[:20]))}; name some of these."
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
    if not isinstance(markers, Mapping):
        raise ValueError(
            f"markers is a {type(markers).__name__}; give a table as that of tl.rank_genes, or a mapping from "
            "categories to lists of gene names."
        )
    check_lists(markers, "markers")
    own = {str(name): np.flatnonzero(np.isin(genes, [str(gene) for gene in found])) for name, found in markers.items()}
    if not any(len(own.get(name, ())) for name in chosen):
        raise ValueError(
            "None of the markers is a gene of the model; names of categories and genes must match exactly."
        )
    return {name: own.get(name, np.array([], dtype=int)) for name in chosen}


def _values(adata: AnnData, model: CplMixVI, library_size: float | None) -> sparse.csr_matrix:
    """Values of the model's genes on the scale of the result, ``(n_obs, n_genes)``."""
    values = model_values(adata, model)
    return values if library_size is None else pp.log_normalize(values, library_size)


def _best_markers(
    values: sparse.csr_matrix, genes: np.ndarray, labels: pd.Categorical, chosen: list[str]
) -> dict[str, np.ndarray]:
    none = {name: np.array([], dtype=int) for name in chosen}
    if (labels.value_counts() >= 2).sum() < 2:
        # A single type has no other to be told from.
        return none
    if (values.data < 0).any():
        warnings.warn(
            "The model reads negative values, as scaled ones are, which have no fold changes to choose markers of "
            "categories by, and there are no results on markers. Give markers, such as markers=cplmixvi.tl.rank_genes("
            "adata, layer='counts', n_genes=20) if there is a layer of counts or log values.",
            UserWarning,
            stacklevel=3,
        )
        return none
    large = labels.remove_categories([name for name in labels.categories if (labels == name).sum() < 2])
    # Apart from the user's cells, whose own ranking stays as it is.
    obs = pd.DataFrame({DEFAULT_KEY: large}, index=np.arange(len(labels)).astype(str))
    cells = AnnData(values.copy(), obs=obs, var=pd.DataFrame(index=genes))
    cells.uns[DEFAULT_KEY] = {"origin": ORIGIN, "categories": np.array(large.categories, dtype=object)}
    table = rank_genes(cells)
    clear = table[(table["log2_fold_change"] >= MIN_LOG2_FOLD) & (table["pvalue_adjusted"] <= MAX_PVALUE)]
    best = clear.groupby("category", observed=True).head(N_MARKERS)
    position = pd.Index(genes)
    return {name: np.sort(position.get_indexer(best.loc[best["category"] == name, "gene"])) for name in chosen}


class _Walk(NamedTuple):
    """Paths through a type's states.

    Attributes
    ----------
    names
        Of the paths.
    points
        ``(n_paths, n_steps, n_state)``.
    along
        Where the type's cells are along each path, ``(n_paths, n_cells)``.
    """

    names: list[str]
    points: np.ndarray
    along: np.ndarray


def _walk(state: np.ndarray, n_steps: int, quantiles: tuple[float, float]) -> _Walk:
    """Paths through the states ``(n_cells, n_state)`` of a type."""
    mean = state.mean(0)
    directions, names = list(np.eye(state.shape[1])), [str(j + 1) for j in range(state.shape[1])]
    if state.shape[1] > 1:
        main = np.linalg.svd(state - mean, full_matrices=False)[2][0]
        # Its sign is arbitrary: the one along the dimension that it follows most.
        directions.append(main * np.sign(main[np.abs(main).argmax()]))
        names.append(MAIN)
    along = np.stack([(state - mean) @ direction for direction in directions])
    low, high = np.quantile(along, quantiles, axis=1)
    t = low[:, None] + np.linspace(0, 1, n_steps) * (high - low)[:, None]
    points = mean + t[..., None] * np.stack(directions)[:, None]
    return _Walk(names, points.astype(np.float32), along)


def _decode(
    model: CplMixVI,
    adata: AnnData,
    labels: pd.Categorical,
    walks: dict[str, _Walk],
    library_size: float | None,
    n_draws: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Expression along all walks, on the scale of the result, and the flip rate of each path."""
    expression, flips = [], []
    for name, walk in walks.items():
        n_paths, n_steps, n_state = walk.points.shape
        decoded = model.decode_state(
            walk.points.reshape(-1, n_state),
            name,
            adata=adata,
            indices=np.flatnonzero(labels == name),
            library_size=library_size,
            n_draws=n_draws,
        )
        expression.append(decoded.expression.reshape(n_paths, n_steps, -1))
        flips.append(decoded.flips.reshape(n_paths, n_steps).mean(1))
    values = np.stack(expression).astype(np.float32)
    return np.log1p(values) if model.likelihood in COUNT_LIKELIHOODS else values, np.stack(flips)


def _summarise(walks, expression, flips, values, labels, genes, own, sets, moved, on_counts) -> Traversal:
    """Effects, sets and leakage of decoded walks; the arguments are the variables of :func:`traverse`."""
    deviation = standard_deviation(values)
    effect, rank = effects(expression[:, :, -1] - expression[:, :, 0], deviation), monotonicity(expression)
    paths = next(iter(walks.values())).names
    named = [(name, path) for name in walks for path in paths]
    of_sets = [
        {"category": name, "path": path, "gene_set": label, **_of_set(e[positions], r[positions], moved)}
        for (name, path), e, r in zip(named, _rows(effect), _rows(rank), strict=True)
        for label, positions in {MARKERS: own[name], **sets}.items()
    ]
    leaks = []
    for (name, walk), x, rates in zip(walks.items(), expression, flips, strict=True):
        markers = TypeMarkers(values, np.flatnonzero(labels == name), own[name], deviation, on_counts)
        for path, along, steps, rate in zip(paths, walk.along, x, rates, strict=True):
            row = markers.leakage(steps[:, own[name]], along, moved)
            leaks.append({"category": name, "path": path, **row, "flip_rate": float(rate)})
    return Traversal(
        categories=np.array(list(walks), dtype=object),
        paths=np.array(paths, dtype=object),
        genes=genes.astype(object),
        state=np.stack([walk.points for walk in walks.values()]),
        expression=expression,
        effect=effect,
        monotonicity=rank,
        deviation=deviation.astype(np.float32),
        gene_sets=pd.DataFrame(of_sets),
        leakage=pd.DataFrame(leaks),
        members=_members(own, sets, genes),
        params={"moved": float(moved)},
    )


def _rows(values: np.ndarray) -> np.ndarray:
    """One row per type and path, ``(n_types * n_paths, n_genes)``."""
    return values.reshape(-1, values.shape[-1])


def _members(own: dict[str, np.ndarray], sets: dict[str, np.ndarray], genes: np.ndarray) -> pd.DataFrame:
    """Genes of all sets; the category is empty where a set is the same for all."""
    rows = [(MARKERS, name, gene) for name, positions in own.items() for gene in genes[positions]]
    rows += [(label, "", gene) for label, positions in sets.items() for gene in genes[positions]]
    return pd.DataFrame(rows, columns=["gene_set", "category", "gene"])


def _scale(likelihood: str, library_size: float | None) -> str:
    if library_size is not None:
        return f"log1p of counts per {library_size:g}"
    return "probability" if likelihood == "bernoulli" else "value"


def _of_set(effect: np.ndarray, rank: np.ndarray, moved: float) -> dict[str, float]:
    if not len(effect):
        return {"n_genes": 0} | dict.fromkeys(("median_effect", "share_moved", "share_monotone", "share_up"), np.nan)
    return {
        "n_genes": len(effect),
        "median_effect": float(np.median(np.abs(effect))),
        "share_moved": float((np.abs(effect) >= moved).mean()),
        "share_monotone": float((np.abs(rank) >= MONOTONE).mean()),
        "share_up": float((effect > 0).mean()),
    }
