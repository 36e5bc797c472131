"""How many categories the cells have: as many as two independent halves of the data agree on best.

Likelihoods grow with every category that follows the shape of a cloud more closely, on held-out cells too, so they do
not tell types from pieces of types. And pieces of types come back in other samples of the cells, because the same genes
are noisy in the same way. So the data are halved twice: into two sets of cells, and every cell into two halves that
share none of its measurements (molecules, or genes where values are not counts). A fit to each labels all cells from
its own half; what both find is in the cells and not in their noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from ._mixture import SharedCovarianceMixture
from ._views import DIMENSIONS, SCALINGS, Projection, no_batch, possible

#: Pairs of halves. All fits are compared with one another, also across pairs.
N_SPLITS = 4
#: Cells that are looked at, at most.
MAX_CELLS = 5_000
#: Cells per category without which a type cannot be told from a chance group of outlying cells.
_CELLS_PER_CATEGORY = 20
_LARGEST = 150
#: A number that scores so much below the best is worse, and not just unlucky.
_MARGIN = 0.03
#: Similarity (Jaccard index) of a category in two fits above which it is stable (Hennig 2007, Computational Statistics
#: & Data Analysis 52:258).
STABLE = 0.6
_COLUMNS = ("score", "agreement", "ari", "similarity", "n_stable")

Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Selection:
    """How far independent halves of the data agree on different numbers of categories.

    Attributes
    ----------
    table
        Indexed by ``n_categories``, ascending; means over pairs of fits:

        - ``score``: ``agreement`` minus ``1 / n_categories``, what a blind choice would reach;
        - ``agreement``: share of cells in the same category, categories matched one-to-one;
        - ``ari``: adjusted Rand index;
        - ``similarity``: of a category to its partner (Jaccard index: cells in both over cells in either), mean over
          categories;
        - ``n_stable``: categories with a similarity of at least 0.6.
    """

    table: pd.DataFrame

    @property
    def n_categories(self) -> int:
        """The number with the highest score."""
        return int(self.table["score"].idxmax())


def select_n_categories(
    values: torch.Tensor,
    *,
    on_counts: bool,
    encode: Encode | None = None,
    batch: torch.Tensor | None = None,
    candidates: Sequence[int] | None = None,
    smallest: int = 2,
    n_splits: int = N_SPLITS,
    seed: int = 0,
) -> Selection:
    r"""Find the number of categories on which independent halves of the data agree best.

    A Poisson count split by fair coins gives two independent Poisson counts, so that two fits share no noise
    (count splitting: Neufeld et al. 2024, Biostatistics 25:270). The score of a number :math:`K` is
    :math:`\frac1N\sum_i [c_1(x_i') = c_2(x_i'')] - \frac1K` for the labels :math:`c_1, c_2` of two fits, matched
    one-to-one.

    Parameters
    ----------
    values
        Values of cells in random order, ``(n_cells, n_genes)``; the first 5,000 are used.
    on_counts
        Whether they are counts, whose molecules are halved; else genes are.
    encode
        What makes log values of a half; the values as they are if `None`.
    batch
        Batch codes, ``(n_cells,)``; one batch if `None`.
    candidates
        Numbers to try. By default numbers that grow by a fifth, up to a twentieth of the cells (at most 150) or until
        three in a row are clearly worse than the best, and then those around the best.
    smallest
        Smallest number that is tried by default, at least 2.
    n_splits
        Pairs of halves.
    seed
        Source of all randomness.

    Returns
    -------
    Selection
    """
    x = torch.as_tensor(values[:MAX_CELLS], dtype=torch.float32)
    batch = no_batch(x) if batch is None else batch[:MAX_CELLS]
    views = [view for index in range(n_splits) for view in _views_of_halves(x, batch, on_counts, encode, index, seed)]
    rows: dict[int, dict[str, float]] = {}

    def score(k: int) -> float:
        if k not in rows:
            rows[k] = _agreement([view.labels(k, seed) for view in views], k)
        return rows[k]["score"]

    if candidates is None:
        _search(score, smallest, max(smallest, min(_LARGEST, len(x) // _CELLS_PER_CATEGORY)))
    else:
        for k in candidates:
            score(k)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=_COLUMNS).sort_index()
    table.index.name = "n_categories"
    return Selection(table)


def _search(score: Callable[[int], float], smallest: int, largest: int) -> None:
    """Score a ladder of numbers, upwards while there is hope, and then the numbers around its best."""
    tried = {smallest: score(smallest)}
    k = smallest
    while k < largest:
        k = min(largest, max(k + 1, round(1.2 * k)))
        tried[k] = score(k)
        if len(tried) > 5 and all(value < max(tried.values()) - _MARGIN for value in list(tried.values())[-3:]):
            break
    while True:
        best = max(tried, key=tried.get)
        # Two numbers that differ by less than a tenth are hardly two answers.
        step = max(1, round(0.1 * best))
        fresh = [m for m in (best - step, best + step) if smallest <= m <= largest and m not in tried]
        if not fresh:
            break
        for m in fresh:
            tried[m] = score(m)


@dataclass(frozen=True)
class _View:
    """All cells in the coordinates of one half, and the cells that a fit may see."""

    points: list[torch.Tensor]
    seen: torch.Tensor
    index: int

    def labels(self, k: int, seed: int) -> np.ndarray:
        """Label all cells by a fit of ``k`` categories to the cells seen."""
        generator = torch.Generator().manual_seed(10_000 * (seed % 2**20) + 100 * k + self.index)
        fitter = SharedCovarianceMixture(k, n_starts=4, n_moves=3, generator=generator)
        fit = fitter.fit([z[self.seen] for z in self.points])
        return fitter.posterior(self.points, fit).argmax(1).numpy()


def _views_of_halves(
    x: torch.Tensor, batch: torch.Tensor, on_counts: bool, encode: Encode | None, index: int, seed: int
) -> list[_View]:
    """Halve cells and their measurements at random: what each of two fits will see."""
    generator = torch.Generator().manual_seed(1_000 * (seed % 2**20) + index)
    cells = torch.randperm(len(x), generator=generator).tensor_split(2)
    views = []
    for side, (part, seen) in enumerate(zip(_halves(x, on_counts, generator), cells, strict=True)):
        log_values = part if encode is None else encode(part)
        # Few cells cannot be halved: both fits see all, in halves of their measurements.
        seen = seen if len(seen) >= 20 else torch.arange(len(x))
        dimensions = possible(DIMENSIONS, len(seen), log_values.shape[1])
        dimensions = dimensions[index % 2 :: 2] or dimensions
        scaling = SCALINGS[index % len(SCALINGS)]
        projection = Projection(log_values[seen], batch[seen], max(dimensions), scaling)
        z = projection(log_values, batch)
        views.append(_View([z[:, :d] for d in dimensions], seen, 2 * index + side))
    return views


def _halves(x: torch.Tensor, on_counts: bool, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two halves of values: of the molecules of counts, else of the genes."""
    if on_counts:
        first = torch.binomial(x, torch.full_like(x, 0.5), generator=generator)
        return first, x - first
    genes = torch.randperm(x.shape[1], generator=generator).tensor_split(2)
    return x[:, genes[0]], x[:, genes[1] if len(genes[1]) else genes[0]]


def _agreement(labels: Sequence[np.ndarray], k: int) -> dict[str, float]:
    """Compare all pairs of labellings, codes below ``k``, by the measures of :class:`Selection`."""
    pairs = []
    for first, second in combinations(labels, 2):
        both = np.bincount(first * k + second, minlength=k * k).reshape(k, k)
        matched = linear_sum_assignment(-both)
        similarity = _jaccard(both)
        pairs.append(
            (
                both[matched].sum() / len(first),
                adjusted_rand_score(first, second),
                similarity.mean(),
                (similarity >= STABLE).sum(),
            )
        )
    agreement, ari, similarity, n_stable = np.mean(pairs, axis=0).tolist()
    return dict(zip(_COLUMNS, (agreement - 1 / k, agreement, ari, similarity, n_stable), strict=True))


def _jaccard(both: np.ndarray) -> np.ndarray:
    """Similarity of every category of one labelling to its one-to-one partner in another, from their cross table."""
    either = both.sum(1, keepdims=True) + both.sum(0, keepdims=True) - both
    index = both / np.maximum(either, 1)
    return index[linear_sum_assignment(-index)]
