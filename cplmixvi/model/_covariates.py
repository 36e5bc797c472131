"""Batches and other covariates of cells: those that the model knows, or none at all; and how deep cells are."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager

from cplmixvi import pp

#: Values that are named in a message, at most.
_NAMED = 5


def check_known(adata: AnnData, registry: dict, *, new_batches: bool = False) -> None:
    """Refuse cells of a batch, or another categorical covariate, that the model has not seen.

    Parameters
    ----------
    adata
        New cells.
    registry
        Of the model.
    new_batches
        Whether there may be batches that it has not seen.

    Raises
    ------
    ValueError
        If a column is missing, a cell has no value in one, or there is one that the model was not trained on.
    """
    batch_key = registry["setup_args"].get("batch_key")
    for key, values in _known(registry).items():
        if key not in adata.obs:
            raise ValueError(f"The new cells have no column obs[{key!r}], which the model was set up with: add it.")
        column = pd.Series(adata.obs[key])
        if column.isna().any():
            raise ValueError(f"obs[{key!r}] of the new cells has missing values: fill them in, or drop those cells.")
        new = [value for value in column.unique() if value not in values]
        if new and not (new_batches and key == batch_key):
            learn = ", or let the model learn new batches: CplMixVI.load_query_data(adata, model)."
            raise ValueError(
                f"obs[{key!r}] of the new cells has {_named(new)}, and the model knows {_named(values)}: call them by "
                f"the one that is most like them{learn if key == batch_key else ', or train on cells of all.'}"
            )


def check_size_factors(adata: AnnData, key: str | None) -> None:
    """Refuse size factors that are not positive.

    Raises
    ------
    ValueError
        If there are any in ``obs[key]``.
    """
    if key is None:
        return
    n_wrong = int((adata.obs[key].to_numpy(dtype=float) <= 0).sum())
    if n_wrong:
        raise ValueError(
            f"obs[{key!r}] has size factors that are not positive ({n_wrong} of {adata.n_obs} cells): mend them, or "
            "leave size_factor_key out."
        )


def names_of(keys: Sequence[str] | None) -> list[str]:
    """Names of columns, none for `None`.

    Raises
    ------
    ValueError
        If they are a single name, such as a string, whose letters would be taken for names.
    """
    if isinstance(keys, str) or not (keys is None or np.iterable(keys)):
        raise ValueError(f"{keys!r} was given where names of columns are needed: give a list, [{keys!r}].")
    return [] if keys is None else list(keys)


def as_of_anndata(registry: dict) -> dict:
    """Registry of a data module in which the batch of cells without one is called what AnnData's is, a copy.

    Data modules have a name of their own for it, with which no AnnData could be labelled.
    """
    registry = deepcopy(registry)
    if registry["setup_args"].get("batch_key") is None:
        batch = registry["field_registries"][REGISTRY_KEYS.BATCH_KEY]
        batch["state_registry"] |= {"categorical_mapping": np.array([0]), "original_key": "_scvi_batch"}
    return registry


def depth_of(manager: AnnDataManager) -> dict[str, float]:
    """Depth of a typical cell, and molecules of the model's genes per unit of its size factor where there are any.

    Size factors of one tool are molecules, of another relative to a typical cell, or of all genes where the model has
    some; the decoder's shares add up to one, so that they have to be molecules of the model's genes.

    Raises
    ------
    ValueError
        If a size factor is not positive.
    """
    depth = pp.library_size(manager.get_from_registry(REGISTRY_KEYS.X_KEY))
    # Empty cells, where they are allowed, say nothing of how deep others are.
    has_any = depth > 0
    if not has_any.any():
        return {"target_library": 1.0}
    found = {"target_library": float(np.median(depth[has_any]))}
    key = manager.registry["setup_args"].get("size_factor_key")
    if key is not None:
        factor = np.asarray(manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY), dtype=float).ravel()
        check_size_factors(manager.adata, key)
        found["size_factor_scale"] = float(np.median((depth / factor)[has_any]))
    return found


def known_batches(registry: dict) -> list | None:
    """Batches that a model knows; `None` if it was set up without any."""
    return _known(registry).get(registry["setup_args"].get("batch_key"))


def _known(registry: dict) -> dict[str, list]:
    """Values of every categorical covariate that a model knows, by the column."""
    fields, arguments = registry["field_registries"], registry["setup_args"]
    known = {}
    if arguments.get("batch_key") is not None:
        known[arguments["batch_key"]] = list(fields[REGISTRY_KEYS.BATCH_KEY]["state_registry"]["categorical_mapping"])
    for key in arguments.get("categorical_covariate_keys") or ():
        known[key] = list(fields[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]["mappings"][key])
    return known


def _named(values: list) -> str:
    return ", ".join(map(repr, map(str, values[:_NAMED]))) + (", ..." if len(values) > _NAMED else "")
