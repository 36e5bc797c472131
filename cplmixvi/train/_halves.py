"""Two halves of the data that share neither cells nor measurements, and how far labellings found in them agree.

Fits to other cells are not enough to tell types from pieces of types: these come back in other samples of the cells,
because the same genes are noisy in the same way. So the data are halved twice: into two sets of cells, and every cell
into two halves that share none of its measurements (molecules, or genes where values are not counts). A fit to each
labels all cells from its own half; what both find is in the cells and not in their noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from ._em import MixtureEM
from ._views import DIMENSIONS, SCALINGS, Projection, fitter_for, possible

#: Similarity (Jaccard index) of a category in two fits above which it is stable (Hennig 2007, Computational Statistics
#: & Data Analysis 52:258).
STABLE = 0.6
COLUMNS = ("score", "agreement", "ari", "similarity", "n_stable")

Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class HalfView:
    """All cells in the coordinates of one half, and the cells that a fit may see."""

    points: list[torch.Tensor]
    seen: torch.Tensor
    index: int

    def labels(self, fitter: MixtureEM, known: torch.Tensor | None = None) -> np.ndarray:
        """Label all cells by a fit to those that may be seen, some of which may have a known category."""
        known = None if known is None or not (known[self.seen] >= 0).any() else known[self.seen]
        fit = fitter.fit([z[self.seen] for z in self.points], known=known)
        return fitter.posterior(self.points, fit).argmax(1).numpy()

    def fitter(self, start: str, n_categories: int, seed: int, few_moves: int) -> MixtureEM:
        """What labels cells from ``start``, with randomness of this view's own; see :func:`fitter_for`."""
        generator = torch.Generator().manual_seed(10_000 * (seed % 2**20) + self.index)
        return fitter_for(start, n_categories, generator=generator, few_moves=few_moves)


def views_of_halves(
    x: torch.Tensor,
    batch: torch.Tensor,
    on_counts: bool,
    encode: Encode | None,
    index: int,
    seed: int,
    dimensions: Sequence[int] = DIMENSIONS,
    scalings: Sequence[float | None] = SCALINGS,
) -> list[HalfView]:
    """Halve cells and their measurements at random: what each of two fits will see.

    ``x`` has cells first and genes last; ``encode`` makes log values ``(n_cells, n_genes)`` of a half of it.
    """
    generator = torch.Generator().manual_seed(1_000 * (seed % 2**20) + index)
    cells = torch.randperm(len(x), generator=generator).tensor_split(2)
    views = []
    for side, (part, seen) in enumerate(zip(halves(x, on_counts, generator), cells, strict=True)):
        log_values = part if encode is None else encode(part)
        # Few cells cannot be halved: both fits see all, in halves of their measurements.
        seen = seen if len(seen) >= 20 else torch.arange(len(x))
        some = possible(dimensions, len(seen), log_values.shape[1])
        some = some[index % 2 :: 2] or some
        scaling = scalings[index % len(scalings)]
        projection = Projection(log_values[seen], batch[seen], max(some), scaling)
        z = projection(log_values, batch)
        views.append(HalfView([z[:, :d] for d in some], seen, 2 * index + side))
    return views


def halves(x: torch.Tensor, on_counts: bool, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two halves of values: of the molecules of counts, else of the genes."""
    if on_counts:
        first = torch.binomial(x, torch.full_like(x, 0.5), generator=generator)
        return first, x - first
    genes = torch.randperm(x.shape[-1], generator=generator).tensor_split(2)
    return x[..., genes[0]], x[..., genes[1] if len(genes[1]) else genes[0]]


def agreement(labels: Sequence[np.ndarray], k: int) -> dict[str, float]:
    """Compare all pairs of labellings, codes below ``k``, by the measures of `Selection`."""
    pairs = []
    for first, second in combinations(labels, 2):
        both, matched = matched_table(first, second, k)
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
    return dict(zip(COLUMNS, (agreement - 1 / k, agreement, ari, similarity, n_stable), strict=True))


def matched_table(first: np.ndarray, second: np.ndarray, k: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Cross table of two labellings ``(k, k)``, and the entries of the one-to-one matching with most cells."""
    both = np.bincount(first * k + second, minlength=k * k).reshape(k, k)
    return both, linear_sum_assignment(-both)


def _jaccard(both: np.ndarray) -> np.ndarray:
    """Similarity of every category of one labelling to its one-to-one partner in another, from their cross table."""
    either = both.sum(1, keepdims=True) + both.sum(0, keepdims=True) - both
    index = both / np.maximum(either, 1)
    return index[linear_sum_assignment(-index)]
