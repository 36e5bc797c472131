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
    """Expression along paths through the states of types.

    Attributes
    ----------
    categories
        Names of the types, ``(n_types,)``.
    paths
        Names of the paths, ``(n_paths,)``: ``"1"``, ``"2"``, ... for the dimensions of the state and ``"main"`` for its
        first principal direction in the type.
    genes
        Names of the model's genes, ``(n_genes,)``.
    state
        Combined states, ``(n_types, n_paths, n_steps, n_state)``.
    expression
        Mean over arms and covariates, ``(n_types, n_paths, n_steps, n_genes)``, on the scale ``params["scale"]``.
    effect
        Expression at the last step minus that at the first, in standard deviations of the gene over all cells,
        ``(n_types, n_paths, n_genes)``; its sign is the direction.
    monotonicity
        Rank correlation with the step, from -1 to 1, same shape.
    deviation
        Standard deviation of each gene over all cells, on the scale of the expression, ``(n_genes,)``.
    gene_sets
        One row per type, path and gene set: ``category``, ``path``, ``gene_set``, ``n_genes``, ``median_effect`` (of
        absolute effects), ``share_moved`` (absolute effect of at least ``params["moved"]``), ``share_monotone``
        (absolute monotonicity of at least 0.9) and ``share_up``. The set ``"markers"`` holds the markers of the row's
        own type.
    leakage
        One row per type and path: ``category``, ``path``, ``n_markers``; shares of the markers that move,
        ``markers_moved``, that differ as much between the type's own cells at both ends of the path (those among the
        lowest and among the highest fifth of it), ``markers_observed``, and that come at some step nearer to their mean
        in all other cells than to where they are in the middle of the path, ``markers_lost``; and ``flip_rate``, the
        share of steps whose expression, re-encoded, is of another type. A marker that moves as it does among the cells
        is no fault of the model: the type's cells are not all alike in it.
    members
        Genes of the sets: ``gene_set``, ``category`` (empty for sets that are the same for all types) and ``gene``.
    params
        What :func:`cplmixvi.tl.traverse` was called with, and the scale of the expression.
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
        """Tidy table: one row per type, path, step (from 1) and gene, with the ``expression``."""
        names = ("category", "path", "step", "gene")
        index = pd.MultiIndex.from_product(
            [self.categories, self.paths, np.arange(1, self.expression.shape[2] + 1), self.genes], names=names
        )
        return pd.DataFrame({"expression": self.expression.ravel()}, index=index).reset_index()

    def by_gene(self) -> pd.DataFrame:
        """Tidy table: one row per type, path and gene, with absolute ``effect`` and ``monotonicity``, ``direction``."""
        index = pd.MultiIndex.from_product(
            [self.categories, self.paths, self.genes], names=("category", "path", "gene")
        )
        columns = {"effect": np.abs(self.effect).ravel(), "monotonicity": np.abs(self.monotonicity).ravel()}
        columns["direction"] = np.sign(self.effect).astype(int).ravel()
        return pd.DataFrame(columns, index=index).reset_index()

    def to_uns(self) -> dict:
        """Arrays and scalars only, which every file format of AnnData keeps."""
        entry = {name: getattr(self, name) for name in _ARRAYS}
        tables = {name: getattr(self, name) for name in _TABLES}
        entry |= {name: {column: _plain(values) for column, values in table.items()} for name, table in tables.items()}
        return entry | {"params": dict(self.params)}

    @classmethod
    def from_uns(cls, entry: Mapping) -> Traversal:
        """Read what :meth:`to_uns` made, also after a file."""
        arrays = {name: np.asarray(entry[name]) for name in _ARRAYS}
        # Files do not keep the order of a mapping.
        tables = {name: pd.DataFrame({k: np.asarray(entry[name][k]) for k in _TABLES[name]}) for name in _TABLES}
        return cls(**arrays, **tables, params=dict(entry["params"]))


_ARRAYS = ("categories", "paths", "genes", "state", "expression", "effect", "monotonicity", "deviation")
_TABLES = {
    "gene_sets": (
        *("category", "path", "gene_set", "n_genes", "median_effect", "share_moved", "share_monotone", "share_up"),
    ),
    "leakage": (*("category", "path", "n_markers", "markers_moved", "markers_observed", "markers_lost", "flip_rate"),),
    "members": ("gene_set", "category", "gene"),
}


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
