"""Do types differ in how their cells vary?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import kruskal, levene

from cplmixvi._constants import DEFAULT_KEY
from cplmixvi.tl._annotate import add_entries, read_labels
from cplmixvi.tl._state_genes import MIN_CELLS, read_state


def compare_states(adata: AnnData, key: str = DEFAULT_KEY) -> pd.DataFrame:
    r"""Test whether the distribution of each dimension of the state differs between categories.

    Location is tested with the Kruskal-Wallis rank test, spread with Levene's test on absolute deviations from the
    medians (Brown-Forsythe). With thousands of cells everything is significant: the effect sizes, which are shares of
    variance from 0 to 1 and near 0 without a difference, show whether it matters.

    .. math::
        \eta^2_{\text{location}} = \max\left(0, \frac{H - k + 1}{n - k}\right), \qquad
        \epsilon^2_{\text{spread}} = \max\left(0, \frac{(k - 1)(W - 1)}{(k - 1) W + n - k}\right)

    with :math:`k` categories, :math:`n` cells, the Kruskal-Wallis statistic :math:`H` and Levene's :math:`W`.

    Two things to keep in mind. Where the states of a type lie says little by itself: each type has a profile of its
    own, which can take up any shift of its states, so that a difference of location alone is no biology (spread,
    shape, and the genes of :func:`state_genes` are). And categories and states were found in the same values, so that
    p-values are no evidence for the categories.

    Parameters
    ----------
    adata
        Annotated cells.
    key
        Name of the annotation.

    Returns
    -------
    pandas.DataFrame
        One row per dimension: ``dimension`` (from 1), ``n_categories``, ``n_cells``, ``location_effect``,
        ``location_pvalue``, ``spread_effect``, ``spread_pvalue``; p-values are multiplied by the number of tests
        (Bonferroni). Categories with fewer than 10 cells and unassigned cells are left out.

        Also writes ``uns[key]["state_tests"]``, the same table as arrays.

    Raises
    ------
    ValueError
        If there is no result under ``key``, fewer than two categories have 10 cells, or states are not finite.
    """
    labels = read_labels(adata, key)
    state = read_state(adata, key)
    members = [np.flatnonzero(labels == name) for name in labels.categories]
    members = [member for member in members if len(member) >= MIN_CELLS]
    if len(members) < 2:
        raise ValueError(
            f"{len(members)} categories of {key!r} have {MIN_CELLS} or more cells; at least 2 are needed to compare."
        )
    table = pd.DataFrame([_row(j, [state[member, j] for member in members]) for j in range(state.shape[1])])
    for column in ("location_pvalue", "spread_pvalue"):
        table[column] = (table[column] * 2 * len(table)).clip(upper=1.0)
    add_entries(adata, key, state_tests={name: values.to_numpy() for name, values in table.items()})
    return table


def _row(dimension: int, groups: list[np.ndarray]) -> dict[str, float]:
    k, n = len(groups), sum(map(len, groups))
    row = {"dimension": dimension + 1, "n_categories": k, "n_cells": n}
    if all(np.ptp(group) == 0 for group in groups):
        # A dimension that nobody uses differs nowhere.
        return (
            row
            | dict.fromkeys(("location_effect", "spread_effect"), 0.0)
            | {
                "location_pvalue": 1.0,
                "spread_pvalue": 1.0,
            }
        )
    location, spread = kruskal(*groups), levene(*groups, center="median")
    between = (k - 1) * spread.statistic
    return row | {
        "location_effect": max(0.0, float((location.statistic - k + 1) / (n - k))),
        "location_pvalue": float(location.pvalue),
        "spread_effect": max(0.0, float((between - k + 1) / (between + n - k))),
        "spread_pvalue": float(spread.pvalue),
    }
