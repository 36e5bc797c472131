"""How many categories? What was tried, and how well each number did, kept with the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from cplmixvi import pp
from cplmixvi._constants import DEFAULT_KEY, SELECTION_KEY, ResultKeys
from cplmixvi.tl._annotate import ORIGIN, add_entries, check_key, check_model, is_ours, selection_entry
from cplmixvi.train import Selection

if TYPE_CHECKING:
    from cplmixvi.model import CplMixVI


def select_categories(
    adata: AnnData,
    model: CplMixVI,
    key_added: str = DEFAULT_KEY,
    *,
    candidates: Sequence[int] | None = None,
    seed: int | None = None,
) -> Selection:
    """Write how well independent halves of the data agree for different numbers of categories.

    If the model already has a selection, as it does after training without a given number of categories, that selection
    is written unchanged. Otherwise, or if ``candidates`` or ``seed`` is given,
    :meth:`cplmixvi.CplMixVI.select_n_categories` is called: it uses at most 5,000 of the model's own cells, and takes
    minutes for that many. The model need not be trained.

    Parameters
    ----------
    adata
        Where to write the result.
    model
        A model of these cells.
    key_added
        Name of the result. If it already contains an annotation, the selection is added to it; if not, :func:`annotate`
        will add an annotation to the selection.
    candidates
        Numbers to try, each from 2 (or the number of labels, if larger) to the number of cells; as many as are worth
        trying if `None`.
    seed
        Seed of all random numbers; drawn from the global generator if `None`.

    Returns
    -------
    Selection
        ``n_categories``, the number chosen, and ``table``, with one row per number tried.

        Also writes ``uns[key]["selection"]``, a dict of arrays ``(n_tried,)``: ``n_categories``, int64, ascending, and
        float64 ``score``, ``agreement``, ``entropy``, ``ari``, ``similarity`` and ``n_stable`` (see
        :class:`cplmixvi.train.Selection`).

    Raises
    ------
    ValueError
        If ``key_added`` is not a valid name, ``uns[key]`` was not written by cplmixvi, a candidate is out of range, or
        the model has neither a selection nor an AnnData.

    Warns
    -----
    UserWarning
        If the halves hardly agree for any number of categories.
    """
    pp.check_adata(adata)
    check_model(model)
    check_key(key_added)
    keys = ResultKeys(key_added)
    earlier = adata.uns.get(keys.uns, {"origin": ORIGIN})
    if not is_ours(earlier):
        raise ValueError(
            f"uns[{keys.uns!r}] exists already and was not written by cplmixvi; pass another key_added, "
            "or delete it first."
        )
    selection = model.selection if candidates is None and seed is None else None
    if selection is None:
        selection = model.select_n_categories(candidates, seed=seed)
    add_entries(adata, keys.uns, origin=ORIGIN, **{SELECTION_KEY: selection_entry(selection)})
    return selection


def read_selection(adata: AnnData, key: str = DEFAULT_KEY) -> Selection:
    """Read what :func:`select_categories` wrote.

    Parameters
    ----------
    adata
        Cells that it was called on, or that were annotated by a model that determined the number of categories itself.
    key
        The ``key_added`` of that call.

    Returns
    -------
    Selection
        The number chosen, and a table of all numbers tried.

    Raises
    ------
    ValueError
        If the selection is missing.

    Examples
    --------
    >>> _ = cpl.tl.select_categories(adata, model, candidates=[2, 3, 4])
    >>> cpl.tl.read_selection(adata).table.columns[0]
    'score'
    """
    pp.check_adata(adata)
    result = adata.uns.get(key) if isinstance(key, str) else None
    found = result.get(SELECTION_KEY) if isinstance(result, Mapping) else None
    if not isinstance(found, Mapping) or "n_categories" not in found:
        raise ValueError(
            f"key={key!r} was given but adata.uns[{key!r}][{SELECTION_KEY!r}] is missing; "
            f"run cplmixvi.tl.select_categories(adata, model, {key!r}) first."
        )
    columns = {name: np.asarray(column) for name, column in found.items()}
    return Selection(pd.DataFrame(columns).set_index("n_categories"))
