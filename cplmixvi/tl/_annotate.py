"""Types, states and their certainty written back into the AnnData."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from cplmixvi._constants import DEFAULT_KEY, ResultKeys
from cplmixvi.model import Consensus

if TYPE_CHECKING:
    from cplmixvi.model import CplMixVI

#: Marks an entry of ``uns`` as ours, so that a result may replace an older result but nothing else.
_ORIGIN = "cplmixvi"


def annotate(
    adata: AnnData,
    model: CplMixVI,
    key_added: str = DEFAULT_KEY,
    *,
    overwrite: bool = False,
    batch_size: int | None = None,
) -> None:
    """Write categories, probabilities, states and consensus into ``adata``.

    Parameters
    ----------
    adata
        Cells to annotate: the model's own or others that have the model's genes, in any order and among others.
    model
        A trained model.
    key_added
        Name of the result; letters, digits, ``_``, ``.`` and ``-`` after a first letter.
    overwrite
        Replace entries of another origin. An earlier result of this function is always replaced.
    batch_size
        Cells per pass.

    Returns
    -------
    None
        Writes, with ``key`` for ``key_added``:

        - ``obs[key]``: category (names of the used categories, in the order of their index);
        - ``obs[key_confidence]``: float32, probability of that category;
        - ``obs[key_agreement]``: float32, share of arm pairs that agree on the cell, ``nan`` with one arm;
        - ``obsm["X_" + key]``: float32 ``(n_obs, max(n_state, 2))``, state within the type (a single dimension gets
          a column of zeros beside it, because embeddings need two);
        - ``obsm[key_proba]``: float32 ``(n_obs, n_used)``, probabilities of the used categories; a row sums to less
          than 1 by what the model gives to categories that no cell chose;
        - ``uns[key]``: ``params``, ``categories`` (of the columns of ``key_proba``), ``n_categories``, ``pruned``
          (indices of the categories that no cell chose), ``history``, ``version`` and, with two or more arms,
          ``consensus``, ``consensus_by_category`` and ``consensus_by_arm`` (see :class:`~cplmixvi.Consensus`).

    Raises
    ------
    ValueError
        If ``key_added`` is not a valid name, entries of another origin exist, or genes are missing.
    """
    check_destination(adata, key_added, overwrite=overwrite)
    keys = ResultKeys(key_added)
    posterior = model.get_posterior(adata, batch_size=batch_size)
    final = posterior.proba.argmax(1)
    consensus = Consensus.from_labels(posterior.labels, final, model.n_categories)
    used = np.unique(final)
    names = consensus.categories[used]

    adata.obs[keys.labels] = pd.Categorical(consensus.categories[final], categories=names)
    adata.obs[keys.confidence] = posterior.proba.max(1).astype(np.float32)
    adata.obs[keys.agreement] = consensus.by_cell.astype(np.float32)
    adata.obsm[keys.state] = _at_least_two_columns(posterior.state[:, 0])
    adata.obsm[keys.proba] = np.ascontiguousarray(posterior.proba[:, used], dtype=np.float32)
    adata.uns[keys.uns] = _summary(model, consensus, used)
    # Colours that a plot left for an older result would not fit the new categories.
    adata.uns.pop(f"{keys.labels}_colors", None)


def _summary(model: CplMixVI, consensus: Consensus, used: np.ndarray) -> dict:
    history = {name: frame.to_numpy(dtype=float).ravel() for name, frame in (model.history or {}).items()}
    summary = {
        "origin": _ORIGIN,
        "version": version("cplmixvi"),
        "params": _flat_params(model),
        "categories": consensus.categories[used],
        "n_categories": int(model.n_categories),
        "pruned": np.setdiff1d(np.arange(model.n_categories), used).astype(np.int64),
        "history": {name: values for name, values in history.items() if len(values)},
    }
    if model.n_arms > 1:
        summary["consensus"] = consensus.matrix[np.ix_(used, used)].astype(np.float32)
        summary["consensus_by_category"] = consensus.by_category[used].astype(np.float32)
        summary["consensus_by_arm"] = consensus.by_arm.astype(np.float32)
    return summary


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
    """Raise what :func:`annotate` would raise about ``key_added``, before a model is trained.

    Parameters
    ----------
    adata, key_added, overwrite
        See :func:`annotate`.

    Raises
    ------
    ValueError
        If ``key_added`` is not a valid name or entries of another origin exist.
    """
    _check_key(key_added)
    if not overwrite:
        _check_free(adata, ResultKeys(key_added))


def _check_key(key: str) -> None:

    # The pattern of the CELLxGENE schema for embeddings, which is also safe for HDF5 and zarr paths.
    if not isinstance(key, str) or not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.-]*", key):
        raise ValueError(
            f"key_added={key!r} is not a valid name; start with a letter and use letters, digits, '_', '.' or '-' only."
        )
    if key in _RESERVED:
        raise ValueError(f"key_added={key!r} is a column that the CELLxGENE schema reserves; choose another name.")


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


def _check_free(adata: AnnData, keys: ResultKeys) -> None:
    earlier = adata.uns.get(keys.uns)
    if isinstance(earlier, Mapping) and earlier.get("origin") == _ORIGIN:
        return
    taken = [f"obs[{name!r}]" for name in (keys.labels, keys.confidence, keys.agreement) if name in adata.obs]
    taken += [f"obsm[{name!r}]" for name in (keys.state, keys.proba) if name in adata.obsm]
    taken += [f"uns[{keys.uns!r}]"] if keys.uns in adata.uns else []
    if taken:
        raise ValueError(
            f"{', '.join(taken)} exist already and were not written by cplmixvi; "
            "pass another key_added, or overwrite=True to replace them."
        )
