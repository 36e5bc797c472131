"""Scores of categories and states together against factors that are known, such as those of dSprites."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.metrics import mutual_info_score

from cplmixvi import pp
from cplmixvi.metrics._labels import check_labels, encode
from cplmixvi.metrics._numbers import numbers

#: Values of a factor or state beyond which it is cut into so many bins.
N_BINS = 20


def _checked(factors, state, category) -> tuple[pd.DataFrame, np.ndarray, np.ndarray | None]:
    """Table of factors, float64 states ``(n_obs, n_state)`` and codes of categories, all of the same observations."""
    if isinstance(factors, pd.Series) or (not isinstance(factors, pd.DataFrame | Mapping) and np.ndim(factors) == 1):
        factors = {getattr(factors, "name", None) or "factor": np.asarray(factors)}
    if not isinstance(factors, pd.DataFrame | Mapping) and np.ndim(factors) != 2:
        raise ValueError(
            f"factors is a {type(factors).__name__}; pass a DataFrame or an array (n_obs, n_factors), a dict of "
            f"columns, or one factor (n_obs,)"
        )
    table = pd.DataFrame(factors).reset_index(drop=True).infer_objects()
    values = numbers(state, "state")
    if values.ndim != 2 or len(values) != len(table) or len(table) < 2 or not table.shape[1]:
        raise ValueError(
            f"state has shape {values.shape}, factors {table.shape}; one row per observation in each, at least two "
            f"rows and one factor are needed: pass states (n_obs, n_state) and factors (n_obs, n_factors)"
        )
    if not np.isfinite(values).all() or table.isna().any(axis=None):
        raise ValueError("state or factors have missing values: leave these observations out")
    if category is None:
        return table, values, None
    check_labels(category, "category")
    codes, _ = encode(category)
    if len(codes) != len(table) or (codes < 0).any():
        raise ValueError(f"{len(codes)} categories for {len(table)} observations, or missing ones: pass one for each")
    return table, values, codes


def disentanglement_score(
    factors,
    state,
    category=None,
    *,
    kl=None,
    min_kl: float = 0.1,
    n_votes: int = 800,
    n_samples: int = 100,
    seed: int = 0,
) -> float:
    """Majority votes on which latent variable follows which factor (Kim and Mnih 2018, Jeong and Song 2019).

    Each vote picks a factor and an observation at random, draws ``n_samples`` observations that share this
    observation's value of the factor, and names the latent variable that varies least among them, relative to its
    variation over all observations. The variation of a state dimension is its variance; that of a category is the
    probability that two observations differ in it (Gini). Each latent variable is then assigned the factor that names
    it most often; the score is the share of votes that agree with this assignment.

    Parameters
    ----------
    factors
        Known factors, each with few values: a DataFrame or array ``(n_obs, n_factors)``, a dict of columns, or a single
        factor ``(n_obs,)``.
    state
        Posterior means of the state, ``(n_obs, n_state)``.
    category
        Labels, ``(n_obs,)``, which count as one more latent variable.
    kl
        Mean divergence of each state dimension from its prior, nats, ``(n_state,)``. Dimensions below ``min_kl`` carry
        no information and are left out. Without it, only dimensions that do not vary are left out.
    min_kl
        Threshold on ``kl``, nats.
    n_votes
        Number of votes.
    n_samples
        Number of observations in each vote (fewer if not enough observations share the value).
    seed
        Seed of the random draws.

    Returns
    -------
    float
        In [0, 1]; by chance about ``1 / n_factors`` or more.

    Raises
    ------
    ValueError
        If shapes differ, values are missing, nothing varies, ``n_votes`` is below 1 or ``n_samples`` below 2, or no two
        observations share a value of some factor.

    Examples
    --------
    >>> state = np.random.default_rng(0).normal(size=(200, 2))
    >>> disentanglement_score({"x": state[:, 0] > 0, "y": state[:, 1] > 0}, state) > 0.9
    True
    """
    table, values, codes = _checked(factors, state, category)
    if not (pp.is_whole(n_votes) and pp.is_whole(n_samples)) or n_votes < 1 or n_samples < 2:
        raise ValueError(
            f"n_votes={n_votes!r}, n_samples={n_samples!r}: at least one vote of two observations is needed"
        )
    if kl is not None:
        kl = numbers(kl, "kl")
        if kl.shape != (values.shape[1],):
            raise ValueError(f"kl has shape {kl.shape}; one value for each of {values.shape[1]} dimensions is needed")
        values = values[:, kl >= min_kl]
    in_all = _variation(values, codes)
    varies = in_all > 0
    if not varies.any():
        raise ValueError("no latent variable varies: there is nothing to vote for")
    members = {}
    for name in table:
        groups = [rows for rows in table.groupby(name, observed=True).indices.values() if len(rows) > 1]
        if not groups:
            raise ValueError(f"no two observations have the same {name!r}: cut it into a few values")
        members[name] = groups
    rng = np.random.default_rng(seed)
    votes = np.zeros((len(in_all), table.shape[1]), dtype=int)
    for _ in range(n_votes):
        factor = rng.integers(table.shape[1])
        groups = members[table.columns[factor]]
        sizes = np.array([len(rows) for rows in groups])
        rows = groups[rng.choice(len(groups), p=sizes / sizes.sum())]
        rows = rng.choice(rows, min(n_samples, len(rows)), replace=False)
        among = _variation(values[rows], None if codes is None else codes[rows])
        share = np.divide(among, in_all, out=np.full(len(in_all), np.inf), where=varies)
        votes[share.argmin(), factor] += 1
    return float(votes.max(axis=1).sum() / n_votes)


def _variation(values: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
    """Unbiased variance of the states and, last, the chance that the categories of two observations differ."""
    variance = values.var(axis=0, ddof=1)
    if codes is None:
        return variance
    n = len(codes)
    equal = (np.bincount(codes).astype(float) * (np.bincount(codes) - 1)).sum() / (n * (n - 1))
    return np.append(variance, 1 - equal)


def _few(values: np.ndarray | pd.Series) -> np.ndarray:
    """Codes of values, or of bins of equal numbers of observations where there are many numbers."""
    codes, known = encode(values)
    if len(known) <= N_BINS or not pd.api.types.is_numeric_dtype(values):
        return codes
    return pd.qcut(values, min(N_BINS, max(2, len(values) // 5)), labels=False, duplicates="drop")


def mutual_information_gap(factors, state, category=None) -> pd.Series:
    r"""How much more the best latent variable reveals about each factor than the second best (MIG; Chen et al. 2018).

    .. math::
        \frac{I(z_{(1)}; v) - I(z_{(2)}; v)}{H(v)}

    with the mutual information of the empirical counts. States and numeric factors with more than 20 values are cut
    into 20 bins with equal numbers of observations, or into fewer bins if these would hold fewer than five observations
    each.

    Parameters
    ----------
    factors
        Known factors: a DataFrame or array ``(n_obs, n_factors)``, a dict of columns, or a single factor ``(n_obs,)``.
    state
        Posterior means of the state, ``(n_obs, n_state)``.
    category
        Labels, ``(n_obs,)``, which count as one more latent variable.

    Returns
    -------
    pandas.Series
        One number in [0, 1] per factor; 0 for a factor that does not vary. MIG is the mean of the series.

    Raises
    ------
    ValueError
        If shapes differ, values are missing, or there are fewer than two latent variables.

    Examples
    --------
    >>> factor = np.arange(100) % 2
    >>> mutual_information_gap(factor, np.column_stack([factor, np.zeros(100)])).item()
    1.0
    """
    table, values, codes = _checked(factors, state, category)
    latents = [_few(column) for column in values.T] + ([] if codes is None else [codes])
    if len(latents) < 2:
        raise ValueError(
            f"{len(latents)} latent variables given, a gap needs two: pass two states, or the category too"
        )
    gaps = {}
    for name in table:
        known = _few(table[name])
        entropy = mutual_info_score(known, known)
        second, first = sorted(mutual_info_score(known, latent) for latent in latents)[-2:]
        gaps[name] = (first - second) / entropy if entropy > 0 else 0.0
    return pd.Series(gaps, name="gap").rename_axis("factor")
