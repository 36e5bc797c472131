"""Types, states and their certainty written back into the AnnData."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cplmixvi import pp
from cplmixvi._constants import DEFAULT_KEY, NAMES_KEY, SELECTION_KEY, UNASSIGNED, ResultKeys
from cplmixvi.model import Consensus, CplMixVI

if TYPE_CHECKING:
    from cplmixvi.train import Selection

#: Marks an entry of ``uns`` as ours, so that a result may replace an older result but nothing else.
ORIGIN = "cplmixvi"


def annotate(
    adata: AnnData,
    model: CplMixVI,
    key_added: str = DEFAULT_KEY,
    *,
    min_confidence: float = 0.0,
    top_k: int | None = None,
    overwrite: bool = False,
    batch_size: int | None = None,
    values_of: AnnData | None = None,
) -> None:
    """Write categories, probabilities, states and consensus into ``adata``.

    Parameters
    ----------
    adata
        Cells to annotate: the model's own cells or others that have the model's genes, in any order and possibly among
        other genes.
    model
        A trained model.
    key_added
        Name of the result: a letter followed by letters, digits, ``_``, ``.`` or ``-``.
    min_confidence
        Cells with a lower confidence are labelled ``"unassigned"`` instead of with their category.
    top_k
        Number of probabilities to write per cell, the largest ones, as a sparse matrix; all, as a dense array, if
        `None`. Useful with thousands of categories or millions of cells. The CELLxGENE schema does not allow sparse
        matrices there.
    overwrite
        Replace entries that were not written by cplmixvi. An earlier result of this function is always replaced, and
        whatever :func:`stability`, :func:`rank_genes` and :func:`order_categories` derived from it is removed.
    batch_size
        Minibatch size.
    values_of
        The same cells with the values to use, if ``adata`` has other values or none, for example if everything but the
        values is in memory.

    Returns
    -------
    None
        Writes the following, where ``key`` is ``key_added``:

        - ``obs[key]``: category (names of the used categories, in the order of their indices, followed by
          ``"unassigned"`` if any cell is unassigned);
        - ``obs[key_confidence]``: float32, probability of that category;
        - ``obs[key_agreement]``: float32, fraction of arm pairs that agree on the cell: 1 or 0 with two arms, ``nan``
          with one;
        - ``obs[key_condition]``: categorical, ``"0"`` or ``"1"``, if training found a condition that no column of
          ``obs`` had (``find_condition`` of :meth:`cplmixvi.CplMixVI.train`) and ``adata`` has exactly the cells that
          it was found in; missing for cells that were not trained on;
        - ``obsm["X_" + key]``: float32 ``(n_obs, max(n_state, 2))``, state within the type, averaged over the aligned
          arms (see :meth:`cplmixvi.CplMixVI.get_state`; a single dimension is padded with a column of zeros, because
          embeddings need two columns);
        - ``obsm[key_proba]``: float32 ``(n_obs, n_used)``, probabilities of the used categories; a row sums to less
          than 1 by the probability of categories without cells and, with ``top_k`` (a CSR matrix), by the probabilities
          that are left out;
        - ``uns[key]``: ``params``, ``categories`` (of the columns of ``key_proba``), ``n_categories``, ``pruned``
          (indices of the categories without cells), ``n_unassigned``, ``has_condition`` (whether levels were written),
          ``history``, ``version``, ``versions`` (of the packages that the model was trained with), ``seed`` (of its
          training, if one was set) and ``input_sha256`` (of the values it was trained on, see
          :func:`cplmixvi.pp.input_hash`); with two or more arms also ``consensus``,
          ``consensus_by_category`` and ``consensus_by_arm`` (see :class:`~cplmixvi.Consensus`);
          ``found_again_by_category`` if training fitted halves of the data (see
          :attr:`cplmixvi.CplMixVI.calibration_`); and ``selection`` if the model has determined the number of
          categories itself (see :func:`select_categories`; otherwise a selection that was written before any annotation
          is kept). Other functions add ``stability_by_category`` (:func:`stability`), ``order`` and ``linkage``
          (:func:`order_categories`), ``traversals`` (:func:`traverse`), ``state_genes`` (:func:`state_genes`) and
          ``state_tests`` (:func:`compare_states`).

    Raises
    ------
    ValueError
        If ``key_added`` is not a valid name, ``min_confidence`` is outside ``[0, 1]``, ``top_k`` is below 1, entries
        not written by cplmixvi exist, genes are missing, or ``values_of`` has other cells.
    """
    check_model(model)
    if not (pp.is_number(min_confidence) and 0 <= min_confidence <= 1):
        raise ValueError(f"min_confidence={min_confidence!r} is outside [0, 1]; give a probability.")
    check_destination(adata, key_added, overwrite=overwrite)
    keys = ResultKeys(key_added)
    if values_of is not None:
        pp.check_adata(values_of)
        if not values_of.obs_names.equals(adata.obs_names):
            raise ValueError(
                "values_of has other cells than adata, or in another order; the same obs_names are needed."
            )
    cells = adata if values_of is None else values_of
    if cells is model.adata:
        model.check_own_values()
    posterior = model.get_posterior(cells, batch_size=batch_size, top_k=top_k)
    final = posterior.category
    consensus = Consensus.from_labels(posterior.labels, final, model.n_categories, model.category_names)
    used = np.unique(final)
    confidence = posterior.confidence.astype(np.float32)
    # In the precision that is written, so that the column shows why a cell is unassigned.
    is_uncertain = ~(confidence >= np.float32(min_confidence))
    columns = {
        keys.labels: _labels(consensus.categories, final, is_uncertain),
        keys.confidence: confidence,
        keys.agreement: consensus.by_cell.astype(np.float32),
    }
    if model.condition_ is not None and _was_trained_on(model, cells):
        columns[keys.condition] = pd.Categorical.from_codes(model.condition_, categories=["0", "1"])
    proba = posterior.proba[:, used].astype(np.float32, copy=False)
    arrays = {
        keys.state: _at_least_two_columns(posterior.combined),
        keys.proba: np.ascontiguousarray(proba) if top_k is None else proba,
    }
    entry = _waiting_selection(adata.uns.get(keys.uns)) | _summary(model, consensus, used)
    entry["n_unassigned"] = int(is_uncertain.sum())
    entry["has_condition"] = keys.condition in columns
    if min_confidence > 0:
        entry["params"]["min_confidence"] = float(min_confidence)

    # Nothing is written before all of it is there: what fails leaves the cells as they were.
    _drop_derived(adata, keys)
    for name, column in columns.items():
        adata.obs[name] = column
    adata.obsm.update(arrays)
    adata.uns[keys.uns] = entry


def _was_trained_on(model: CplMixVI, cells: AnnData) -> bool:
    """Whether these are the cells that the model was trained on, in their order."""
    if model.training_ is None or cells.n_obs != model.training_["n_obs"]:
        return False
    return pp.input_hash(model_values(cells, model), model.get_var_names()) == model.training_["input_sha256"]


def model_values(adata: AnnData, model: CplMixVI) -> sparse.csr_matrix:
    """Values of the model's genes in its order, ``(n_obs, n_genes)``."""
    positions = adata.var_names.astype(str).get_indexer(np.asarray(model.get_var_names()).astype(str))
    values = pp.as_csr(adata, model.registry_["setup_args"].get("layer"))
    return values if np.array_equal(positions, np.arange(values.shape[1])) else values[:, positions]


def _labels(names: np.ndarray, final: np.ndarray, is_uncertain: np.ndarray) -> pd.Categorical:
    """Names of the cells' categories; only those that some cell has are categories, because others break scanpy."""
    categories = list(names[np.unique(final[~is_uncertain])])
    if is_uncertain.any():
        categories.append(UNASSIGNED)
    return pd.Categorical(np.where(is_uncertain, UNASSIGNED, names[final]), categories=categories)


def _drop_derived(adata: AnnData, keys: ResultKeys) -> None:
    """Remove what was made from an older result: it would not fit the new categories."""
    earlier = adata.uns.get(keys.uns)
    if is_ours(earlier):
        adata.uns.pop(f"{keys.labels}_colors", None)
        adata.uns.pop(keys.ranking, None)
        # scanpy's, which it makes for its plots, and cannot know to be of other categories.
        adata.uns.pop(f"dendrogram_{keys.labels}", None)
        if _has_condition(earlier) and keys.condition in adata.obs:
            del adata.obs[keys.condition]
        if "stability_by_category" in earlier and keys.stability in adata.obs:
            del adata.obs[keys.stability]


def _summary(model: CplMixVI, consensus: Consensus, used: np.ndarray) -> dict:
    history = {name: frame.to_numpy(dtype=float).ravel() for name, frame in (model.history or {}).items()}
    summary = {
        "origin": ORIGIN,
        "version": version("cplmixvi"),
        "params": _flat_params(model),
        "categories": consensus.categories[used],
        "n_categories": int(model.n_categories),
        "pruned": np.setdiff1d(np.arange(model.n_categories), used).astype(np.int64),
        "history": {name: values for name, values in history.items() if len(values)},
    }
    trained = model.training_ or {}
    summary |= {name: trained[name] for name in ("seed", "input_sha256", "versions") if trained.get(name) is not None}
    if model.n_arms > 1:
        summary["consensus"] = consensus.matrix[np.ix_(used, used)].astype(np.float32)
        summary["consensus_by_category"] = consensus.by_category[used].astype(np.float32)
        summary["consensus_by_arm"] = consensus.by_arm.astype(np.float32)
    if model.calibration_ is not None:
        summary["found_again_by_category"] = model.calibration_["found_again"][used].astype(np.float32)
    if model.selection is not None:
        summary[SELECTION_KEY] = selection_entry(model.selection)
    return summary


def selection_entry(selection: Selection) -> dict[str, np.ndarray]:
    """Columns of a selection's table as arrays ``(n_tried,)``, which every file keeps as they are."""
    return {name: column.to_numpy() for name, column in selection.table.reset_index().items()}


def _waiting_selection(earlier: object) -> dict:
    """Get the selection that was written before there was an annotation; that of an older annotation goes with it."""
    if not is_ours(earlier) or _is_annotation(earlier) or SELECTION_KEY not in earlier:
        return {}
    return {SELECTION_KEY: earlier[SELECTION_KEY]}


def _flat_params(model: CplMixVI) -> dict[str, str | int | float | bool]:
    """Constructor arguments as scalars and strings, the only values that every AnnData reader keeps."""
    given = {**model.init_params_["non_kwargs"], **model.init_params_["kwargs"].get("module_kwargs", {})}
    given["n_categories"] = model.n_categories
    params = {}
    for name, value in given.items():
        if value is None:
            continue
        params[name] = value if isinstance(value, str | int | float | bool) else str(value)
    return params


def _at_least_two_columns(state: np.ndarray) -> np.ndarray:
    if state.shape[1] == 1:
        state = np.hstack([state, np.zeros_like(state)])
    return np.ascontiguousarray(state, dtype=np.float32)


def check_destination(adata: AnnData, key_added: str = DEFAULT_KEY, *, overwrite: bool = False) -> None:
    """Check ``key_added`` before a model is trained, raising the same errors as :func:`annotate`.

    Parameters
    ----------
    adata, key_added, overwrite
        See :func:`annotate`.

    Raises
    ------
    ValueError
        If ``key_added`` is not a valid name or entries not written by cplmixvi exist.

    Examples
    --------
    >>> check_destination(adata, "another_name")
    """
    pp.check_adata(adata)
    check_key(key_added)
    if not overwrite:
        _check_free(adata, ResultKeys(key_added))


def check_model(model: object) -> None:
    """Check that a model is one of cplmixvi.

    Parameters
    ----------
    model
        Any object.

    Raises
    ------
    ValueError
        If it is not.

    Examples
    --------
    >>> check_model(model)
    """
    if not isinstance(model, CplMixVI):
        raise ValueError(f"model is a {type(model).__name__}, and a CplMixVI is needed; give the AnnData first.")


def check_key(key: str) -> None:
    """Raise ValueError unless ``key`` may be the name of a result."""
    # The pattern of the CELLxGENE schema for embeddings, which is also safe for HDF5 and zarr paths.
    if not isinstance(key, str) or not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.-]*", key):
        raise ValueError(
            f"key_added={key!r} is not a valid name; start with a letter and use letters, digits, '_', '.' or '-' only."
        )
    if key in _RESERVED:
        raise ValueError(f"key_added={key!r} is a column that the CELLxGENE schema reserves; choose another name.")
    if key in _SCANPY:
        raise ValueError(
            f"key_added={key!r} would give entries of the result names that scanpy uses; choose another name."
        )
    if key == NAMES_KEY:
        raise ValueError(f"key_added={key!r} is what tl.map_to_reference writes to; choose another name.")


_RESERVED = frozenset(
    {
        "assay",
        "cell_type",
        "development_stage",
        "disease",
        "organism",
        "self_reported_ethnicity",
        "sex",
        "suspension_type",
        "tissue",
        "tissue_type",
    }
)


#: Of entries that scanpy reads without being told to: uns[key], obsm["X_" + key] or uns["rank_genes_" + key].
_SCANPY = frozenset({"diffmap", "groups", "hvg", "log1p", "neighbors", "pca", "tsne", "umap"})


def _check_free(adata: AnnData, keys: ResultKeys) -> None:
    there = adata.uns.get(keys.uns)
    taken = [f"obs[{keys.condition!r}]"] if keys.condition in adata.obs and not _has_condition(there) else []
    if not _is_annotation(there):
        taken += [f"obs[{name!r}]" for name in (keys.labels, keys.confidence, keys.agreement) if name in adata.obs]
        taken += [f"obsm[{name!r}]" for name in (keys.state, keys.proba) if name in adata.obsm]
        taken += [f"uns[{keys.uns!r}]"] if keys.uns in adata.uns and not is_ours(there) else []
    if taken:
        raise ValueError(
            f"{', '.join(taken)} exist already and were not written by cplmixvi; "
            "pass another name by key_added=, or overwrite=True to replace them."
        )


def is_ours(entry: object) -> bool:
    """Whether we wrote an entry of ``uns``: an annotation, or a selection that has none yet."""
    return isinstance(entry, Mapping) and entry.get("origin") == ORIGIN


def _has_condition(entry: object) -> bool:
    """Whether an annotation wrote the levels of a condition; it did not say so before version 0.2."""
    return isinstance(entry, Mapping) and _is_annotation(entry) and bool(entry.get("has_condition", True))


def _is_annotation(entry: object) -> bool:
    return is_ours(entry) and "categories" in entry


def add_entries(adata: AnnData, key: str, /, **entries: object) -> None:
    """Add entries to the result ``uns[key]``.

    By a new mapping: the old one is also that of the AnnData that ``adata`` may be a view of.
    """
    adata.uns[key] = {**adata.uns.get(key, {}), **entries}


def read_labels(adata: AnnData, key: str = DEFAULT_KEY) -> pd.Categorical:
    """Categories of the cells as :func:`annotate` wrote them.

    Parameters
    ----------
    adata
        Annotated cells.
    key
        Name of the result.

    Returns
    -------
    pandas.Categorical
        Shape ``(n_obs,)``; its categories are ``uns[key]["categories"]``, also those without a cell, and a cell that
        is unassigned is missing.

    Raises
    ------
    ValueError
        If there is no such result, or ``obs[key]`` has labels that are not categories of it.
    """
    pp.check_adata(adata)
    if not isinstance(key, str):
        # Not as it would print itself, which a model does at length.
        raise ValueError(
            f"key is a {type(key).__name__}, and the name of a result is needed; leave it out for 'cplmixvi'."
        )
    result = adata.uns.get(key)
    if not _is_annotation(result) or key not in adata.obs:
        found = sorted(name for name, entry in adata.uns.items() if _is_annotation(entry))
        problem = f"key={key!r} names no result of cplmixvi in this AnnData; it has "
        problem += ", ".join(map(repr, found)) or "none"
        if _is_annotation(result):
            problem = f"obs[{key!r}] is missing, though there is uns[{key!r}]"
        raise ValueError(
            f"{problem}; run cplmixvi.tl.annotate(adata, model, key_added={key!r}) first or pass the key of a result."
        )
    categories = [str(name) for name in result["categories"]]
    # Tools that write text files bring names that are numbers back as numbers.
    given = adata.obs[key].astype(object).map(str, na_action="ignore")
    foreign = sorted(set(given.dropna()) - {*categories, UNASSIGNED})
    if foreign:
        raise ValueError(
            f"obs[{key!r}] has the label {foreign[0]!r}, but the categories of the result are "
            f"{', '.join(categories[:20])}; annotate again, and keep changed names in another column."
        )
    return pd.Categorical(given.where(given != UNASSIGNED), categories=categories)
