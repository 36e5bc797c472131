"""The result of walking through the states of types, and its form in an AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

#: A gene is called monotone along a path from this absolute rank correlation with the step on.
MONOTONE = 0.9


@dataclass(frozen=True)
class Traversal:
    """Decoded expression along paths through the states of cell types.

    Attributes
    ----------
    categories
        Names of the categories, shape ``(n_types,)``.
    paths
        Names of the paths, shape ``(n_paths,)``: ``"1"``, ``"2"``, ... for the dimensions of the state, and ``"main"``
        for the first principal direction of the state within the category.
    genes
        Names of the model's genes, shape ``(n_genes,)``.
    state
        Combined states, shape ``(n_types, n_paths, n_steps, n_state)``.
    expression
        Expression averaged over arms and covariates, shape ``(n_types, n_paths, n_steps, n_genes)``, on the scale
        ``params["scale"]``.
    effect
        Expression at the last step minus expression at the first step, in standard deviations of the gene over all
        cells, shape ``(n_types, n_paths, n_genes)``; its sign is the direction.
    monotonicity
        Rank correlation of expression with the step, from -1 to 1, same shape as ``effect``.
    deviation
        Standard deviation of each gene over all cells, on the scale of the expression, shape ``(n_genes,)``.
    gene_sets
        One row per category, path and gene set: ``category``, ``path``, ``gene_set``, ``n_genes``, ``median_effect``
        (of absolute effects), ``share_moved`` (absolute effect of at least ``params["moved"]``), ``share_monotone``
        (absolute monotonicity of at least 0.9) and ``share_up``. The set ``"markers"`` contains the markers of the
        row's own category.
    leakage
        One row per category and path: ``category``, ``path``, ``n_markers`` and ``flip_rate``, the fraction of steps
        whose expression, re-encoded, is assigned to another category; and three fractions of the markers:
        ``markers_moved``, those that move along the path; ``markers_observed``, those that differ as much between the
        category's own cells at the two ends of the path (cells in the lowest and in the highest fifth of it), missing
        for a category with fewer than 30 cells, where such differences are chance; and ``markers_lost``, those that at
        some step are closer to their mean in all other cells than to their value in the middle of the path. A marker
        that also moves among the cells is not a fault of the model: the category's cells differ in it.
    members
        Genes of the sets: ``gene_set``, ``category`` (empty for sets that are the same for all categories) and
        ``gene``.
    params
        Arguments of :func:`cplmixvi.tl.traverse`, and the scale of the expression.
    """

    categories: np.ndarray
    paths: np.ndarray
    genes: np.ndarray
    state: np.ndarray
    expression: np.ndarray
    effect: np.ndarray
    monotonicity: np.ndarray
    deviation: np.ndarray
    gene_sets: pd.DataFrame
    leakage: pd.DataFrame
    members: pd.DataFrame
    params: dict

    def steps(self) -> pd.DataFrame:
        """Tidy table of ``expression``.

        Returns
        -------
        pandas.DataFrame
            One row per ``category``, ``path``, ``step`` (from 1) and ``gene``, with the column ``expression``.
        """
        names = ("category", "path", "step", "gene")
        index = pd.MultiIndex.from_product(
            [self.categories, self.paths, np.arange(1, self.expression.shape[2] + 1), self.genes], names=names
        )
        return pd.DataFrame({"expression": self.expression.ravel()}, index=index).reset_index()

    def by_gene(self) -> pd.DataFrame:
        """Tidy table of effects.

        Returns
        -------
        pandas.DataFrame
            One row per ``category``, ``path`` and ``gene``, with absolute ``effect`` and ``monotonicity``, and
            ``direction``.
        """
        index = pd.MultiIndex.from_product(
            [self.categories, self.paths, self.genes], names=("category", "path", "gene")
        )
        columns = {"effect": np.abs(self.effect).ravel(), "monotonicity": np.abs(self.monotonicity).ravel()}
        columns["direction"] = np.sign(self.effect).astype(int).ravel()
        return pd.DataFrame(columns, index=index).reset_index()

    def to_uns(self) -> dict:
        """Convert to arrays and scalars, which every AnnData file format can store.

        Returns
        -------
        dict
        """
        entry = {name: getattr(self, name) for name in _ARRAYS}
        tables = {name: getattr(self, name) for name in _TABLES}
        entry |= {name: {column: _plain(values) for column, values in table.items()} for name, table in tables.items()}
        return entry | {"params": dict(self.params)}

    @classmethod
    def from_uns(cls, entry: Mapping) -> Traversal:
        """Create from the output of :meth:`to_uns`, including one that was read from a file.

        Parameters
        ----------
        entry
            Entry of ``uns``.

        Returns
        -------
        Traversal
        """
        # zarr reads strings as a type of its own, with which NumPy cannot compare.
        arrays = {name: np.asarray(entry[name]) for name in _ARRAYS}
        arrays |= {name: arrays[name].astype(object) for name in _NAMES}
        # Files do not keep the order of a mapping.
        tables = {name: pd.DataFrame({k: _read(entry[name][k]) for k in _TABLES[name]}) for name in _TABLES}
        return cls(**arrays, **tables, params=dict(entry["params"]))


_NAMES = ("categories", "paths", "genes")
_ARRAYS = ("categories", "paths", "genes", "state", "expression", "effect", "monotonicity", "deviation")
_TABLES = {
    "gene_sets": (
        *("category", "path", "gene_set", "n_genes", "median_effect", "share_moved", "share_monotone", "share_up"),
    ),
    "leakage": (*("category", "path", "n_markers", "markers_moved", "markers_observed", "markers_lost", "flip_rate"),),
    "members": ("gene_set", "category", "gene"),
}


def _read(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    return values if values.dtype.kind in "iufb" else values.astype(object)


def _plain(values: pd.Series) -> np.ndarray:
    """Column as an array; strings as objects, which files keep."""
    return values.to_numpy(dtype=object if values.dtype.kind not in "iufb" else None)


def monotonicity(expression: np.ndarray) -> np.ndarray:
    """Rank correlation of each gene with the step, ``(..., n_genes)`` of ``(..., n_steps, n_genes)``.

    0 for a gene that is the same at all steps.
    """
    ranks = rankdata(expression, axis=-2)
    ranks -= ranks.mean(-2, keepdims=True)
    steps = np.arange(expression.shape[-2]) - (expression.shape[-2] - 1) / 2
    norm = np.sqrt(np.square(ranks).sum(-2) * np.square(steps).sum())
    product = np.einsum("s,...sg->...g", steps, ranks)
    return np.divide(product, norm, out=np.zeros_like(product), where=norm > 0).astype(np.float32)


def effects(change: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Change of each gene ``(..., n_genes)`` in units of its ``deviation`` ``(n_genes,)``; 0 where that is 0."""
    return np.divide(change, deviation, out=np.zeros_like(change), where=deviation > 0).astype(np.float32)
