"""Would the same types be found again? Refits with other seeds on other cells answer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from cplmixvi import metrics, pp
from cplmixvi._constants import DEFAULT_KEY, ResultKeys
from cplmixvi._isolation import quiet, seeded
from cplmixvi.tl._annotate import add_entries, check_model, read_labels

if TYPE_CHECKING:
    from cplmixvi.model import CplMixVI


@dataclass(frozen=True)
class Stability:
    """How consistently refits of a model recover its categories.

    Attributes
    ----------
    by_category
        Indexed by category, in the order of ``uns[key]["categories"]``: ``n_cells`` and ``jaccard``, the mean over
        refits of the Jaccard index of the category and its partner (cells in both over cells in either). 1: always the
        same cells; 0: no partner; ``nan`` for a category whose cells are all unassigned.
    by_cell
        Indexed by cell, float32: fraction of refits in which the cell is in the partner of its category; ``nan`` for
        unassigned cells.
    ari_to_result
        Adjusted Rand index between each refit and the result, over cells that are not unassigned, mean over refits.
    ari_between
        Adjusted Rand index between refits, over all cells, mean over pairs of refits; ``nan`` with one refit.
    n_repeats
        Number of refits.
    subsample
        Fraction of the cells that each refit was trained on.
    """

    by_category: pd.DataFrame
    by_cell: pd.Series
    ari_to_result: float
    ari_between: float
    n_repeats: int
    subsample: float


def stability(
    adata: AnnData,
    model: CplMixVI,
    key: str = DEFAULT_KEY,
    *,
    n_repeats: int = 5,
    subsample: float = 0.8,
    seed: int = 0,
    train_kwargs: dict | None = None,
) -> Stability:
    """Refit the model with other seeds on random subsets of the cells, and measure which categories are recovered.

    Each refit has the configuration of ``model`` and labels all cells. Its categories are matched one-to-one to those
    of the result so that the largest number of cells agrees; if it has fewer categories, some have no partner.

    Parameters
    ----------
    adata
        Cells annotated by :func:`annotate`, the same ones that the model was set up with, in any order.
    model
        The model of that annotation. It is not changed.
    key
        Name of the result.
    n_repeats
        Number of refits. Each takes as long as the training of the model did.
    subsample
        Fraction of the cells, in ``(0, 1]``, that each refit is trained on; with 1, only the seeds differ.
    seed
        Determines the seeds and cells of the refits. Random numbers drawn afterwards do not depend on it.
    train_kwargs
        Keyword arguments of :meth:`cplmixvi.CplMixVI.train`, such as ``{"max_epochs": 50}``; by default that
        method's own, without a progress bar. If the model was trained with others, pass the same ones here: they are
        not kept with it. Fewer epochs make refits faster.

    Returns
    -------
    Stability
        Also writes, as float32, ``obs[key_stability]`` (``by_cell``) and ``uns[key]["stability_by_category"]`` (the
        ``jaccard`` column of ``by_category``).

    Raises
    ------
    ValueError
        If ``adata`` has no result under ``key`` or has other cells than the model, an option is out of range, or
        ``obs[key_stability]`` was not written by cplmixvi.
    """
    check_model(model)
    _check_options(n_repeats, subsample, seed)
    labels = read_labels(adata, key)
    keys = ResultKeys(key)
    if keys.stability in adata.obs and "stability_by_category" not in adata.uns[key]:
        raise ValueError(f"obs[{keys.stability!r}] exists already and was not written by cplmixvi; rename it first.")
    rows = _rows_in_model(adata, model, key)
    n_train = _n_train(model, subsample)
    if labels.isna().all():
        raise ValueError(f"obs[{key!r}] has no cell with a category; annotate with a lower min_confidence.")
    # Seeds far from each other and from small numbers, so that no refit repeats the fit under test.
    seeds = np.random.SeedSequence(seed).generate_state(n_repeats)
    repeats = [_labels_of_refit(model, n_train, int(number), train_kwargs or {})[rows] for number in seeds]
    result = _summary(labels, repeats, adata.obs_names, subsample)
    adata.obs[keys.stability] = result.by_cell.to_numpy()
    found = result.by_category["jaccard"].to_numpy(dtype=np.float32)
    add_entries(adata, keys.uns, stability_by_category=found)
    return result


def _labels_of_refit(model: CplMixVI, n_train: int, seed: int, train_kwargs: dict) -> np.ndarray:
    """Fit the model's configuration anew to ``n_train`` random cells and label all of its cells.

    Returns
    -------
    Names of the refit's categories, ``(n_obs,)``, in the order of the model's cells.
    """
    cls, setup = type(model), model.registry_["setup_args"]
    cells = _bare_copy(model)
    some = np.random.default_rng(seed).choice(cells.n_obs, n_train, replace=False)
    training = cells[np.sort(some)].copy()
    # An augmenter with weights must not be shared with the model.
    given = copy.deepcopy(model.init_params_)
    arguments = {**given["non_kwargs"], **given["kwargs"].get("module_kwargs", {})}
    # An unsound refit shows in the result, and what is wrong with the data was said when the model was made.
    with quiet(), seeded(seed):
        for part in (cells, training):
            # The model's own registry, because a part may lack a batch, and batches must keep their codes.
            cls.setup_anndata(part, source_registry=model.registry_, **setup)
        refit = cls(training, **{**arguments, "n_categories": model.n_categories})
        given = {"enable_progress_bar": False, "logger": False, **train_kwargs}
        # Only labels are compared: how certain the refit may be is not asked.
        given["plan_kwargs"] = {"fit_halves": False, **(given.get("plan_kwargs") or {})}
        refit.train(**given)
        labels = refit.predict(cells)
    # scvi-tools remembers all cells that were ever set up, and with them their matrices.
    for part in (cells, training):
        refit.deregister_manager(part)
    return labels


def _bare_copy(model: CplMixVI) -> AnnData:
    """Make an AnnData that shares the values that the model reads with its cells, and can be set up without a trace."""
    adata, layer = model.adata, model.registry_["setup_args"].get("layer")
    values = adata.X if layer is None else adata.layers[layer]
    if adata.isbacked:
        values = pp.as_csr(adata, layer)
    given = {"obs": adata.obs.copy(), "var": pd.DataFrame(index=adata.var_names)}
    if model.module.augmenter.needs_cells:
        # Coordinates and graphs by which the augmenter compares cells.
        given |= {"obsm": dict(adata.obsm), "obsp": dict(adata.obsp)}
    if layer is None:
        return AnnData(values, **given)
    return AnnData(layers={layer: values}, **given)


def _summary(labels: pd.Categorical, repeats: list[np.ndarray], cells: pd.Index, subsample: float) -> Stability:
    codes = np.asarray(labels.codes)
    known = codes >= 0
    aligned = [_aligned(labels, predicted) for predicted in repeats]
    by_cell = np.where(known, np.mean([found == codes for found in aligned], axis=0), np.nan).astype(np.float32)
    jaccard = np.mean([_jaccard(codes[known], found[known], len(labels.categories)) for found in aligned], axis=0)
    sizes = np.bincount(codes[known], minlength=len(labels.categories))
    pairs = [metrics.ari(a, b) for a, b in combinations(repeats, 2)]
    return Stability(
        by_category=pd.DataFrame(
            {"n_cells": sizes, "jaccard": jaccard}, index=pd.Index(labels.categories, name="category")
        ),
        by_cell=pd.Series(by_cell, index=cells, name="stability"),
        ari_to_result=float(np.mean([metrics.ari(labels, predicted) for predicted in repeats])),
        ari_between=float(np.mean(pairs)) if pairs else float("nan"),
        n_repeats=len(repeats),
        subsample=float(subsample),
    )


def _aligned(labels: pd.Categorical, predicted: np.ndarray) -> np.ndarray:
    """Code of the category that is the partner of each cell's predicted one; -2 where it has none, ``(n_obs,)``."""
    partner = metrics.match_categories(labels, predicted)
    code_of = {name: code for code, name in enumerate(labels.categories)}
    codes, names = pd.factorize(predicted)
    return np.array([code_of[partner[name]] if name in partner else -2 for name in names])[codes]


def _jaccard(codes: np.ndarray, found: np.ndarray, n_categories: int) -> np.ndarray:
    """Cells in both over cells in either, per category; ``nan`` where there are none."""
    both, first, second = (
        np.bincount(part, minlength=n_categories) for part in (codes[codes == found], codes, found[found >= 0])
    )
    either = first + second - both
    return np.divide(both, either, out=np.full(n_categories, np.nan), where=either > 0)


def _check_options(n_repeats: int, subsample: float, seed: int) -> None:
    if not pp.is_whole(n_repeats) or n_repeats < 1:
        raise ValueError(f"n_repeats={n_repeats!r} was given; give a whole number of refits, at least 1.")
    if not pp.is_whole(seed) or seed < 0:
        raise ValueError(f"seed={seed!r} was given; give a whole number, at least 0.")
    if not (pp.is_number(subsample) and 0 < subsample <= 1):
        raise ValueError(f"subsample={subsample!r} is outside (0, 1]; give a share of cells.")


def _n_train(model: CplMixVI, subsample: float) -> int:
    """Cells that a refit is trained on."""
    n_train = round(subsample * model.adata.n_obs)
    needed = max(2, model.n_categories)
    if n_train < needed:
        raise ValueError(
            f"subsample={subsample!r} leaves {n_train} of {model.adata.n_obs} cells; the {model.n_categories} "
            f"categories of the model need at least {needed}; raise subsample."
        )
    return n_train


def _rows_in_model(adata: AnnData, model: CplMixVI, key: str) -> np.ndarray:
    """Positions of the cells of ``adata`` among those of the model, ``(n_obs,)``."""
    if model.adata is None:
        raise ValueError("The model was loaded without cells; refits need them: CplMixVI.load(directory, adata).")
    theirs = model.adata.obs_names
    if adata.obs_names.equals(theirs):
        return np.arange(adata.n_obs)
    rows = theirs.get_indexer(adata.obs_names) if theirs.is_unique and adata.obs_names.is_unique else np.array([-1])
    if len(rows) != len(theirs) or (rows < 0).any():
        raise ValueError(
            f"adata has {adata.n_obs} cells and the model was set up with {len(theirs)}, and these are not the same "
            f"cells by name; annotate the model's own cells with tl.annotate(model.adata, model, {key!r}) and give "
            "model.adata."
        )
    return rows
