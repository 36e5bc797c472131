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

from ._em import Fit, MixtureEM
from ._views import DIMENSIONS, SCALINGS, Projection, fitter_for, possible

#: Similarity (Jaccard index) of a category in two fits above which it is stable (Hennig 2007, Computational Statistics
#: & Data Analysis 52:258).
STABLE = 0.6
#: Share of a category's cells on which halves must agree for a cut of it to be worthwhile.
REPRODUCED = 0.9
#: Counterparts of a cell that are halved, at most: all those of tens of donors take gigabytes, and their mean is hardly
#: another.
MOST_LEVELS = 8
#: Values that are halved at a time.
_CHUNK = 2**22
COLUMNS = ("score", "agreement", "entropy", "ari", "similarity", "n_stable")

Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class HalfView:
    """All cells in the coordinates of one half, and the cells that a fit may see."""

    points: list[torch.Tensor]
    seen: torch.Tensor
    index: int

    @property
    def seen_points(self) -> list[torch.Tensor]:
        """Coordinates of the cells that a fit may see."""
        return [z[self.seen] for z in self.points]

    def known(self, known: torch.Tensor | None) -> torch.Tensor | None:
        """Categories of the cells that may be seen, of those of all cells; `None` if no such cell has one."""
        return None if known is None or not (known[self.seen] >= 0).any() else known[self.seen]

    def fit(self, fitter: MixtureEM, known: torch.Tensor | None = None) -> Fit:
        """Fit to the cells that may be seen, some of which may have a known category."""
        return fitter.fit(self.seen_points, known=self.known(known))

    def fitter(self, start: str, n_categories: int, seed: int, few_moves: int, salt: int = 0) -> MixtureEM:
        """What labels cells from ``start``, by random numbers of this view and ``salt``; see :func:`fitter_for`."""
        generator = torch.Generator().manual_seed(10_000 * (seed % 2**20) + salt + self.index)
        return fitter_for(start, n_categories, generator=generator, few_moves=few_moves, plain_seeds=True)


def labels_of_halves(
    views: Sequence[HalfView],
    fitters: Sequence[MixtureEM],
    known: torch.Tensor | None = None,
    *,
    exchange: bool = True,
) -> list[np.ndarray]:
    """Label all cells by a fit to each half.

    A search often misses the likeliest mixture of half of the data, and where two searches stop in different places,
    that says more of them than of the data. So every fit starts from what the others found as well, and keeps what is
    likeliest in its own half: no more is shared than where a search begins.

    Parameters
    ----------
    views, fitters
        Of the halves.
    known
        Category of the cells that have a label and -1 for the others, ``(n,)``.
    exchange
        Whether to start from what the others found.

    Returns
    -------
    list of numpy.ndarray
        Codes ``(n,)``, in an order of their own for each half.
    """
    fits = [view.fit(fitter, known) for view, fitter in zip(views, fitters, strict=True)]
    said = [fitter.posterior(view.points, fit) for view, fitter, fit in zip(views, fitters, fits, strict=True)]
    labels = [posterior.argmax(1).numpy() for posterior in said]
    if exchange:
        for index, (view, fitter, fit) in enumerate(zip(views, fitters, fits, strict=True)):
            others = [posterior[view.seen] for other, posterior in enumerate(said) if other != index]
            better = fitter.improved(view.seen_points, fit, others, view.known(known))
            if better is not fit:
                labels[index] = fitter.posterior(view.points, better).argmax(1).numpy()
    return labels


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

    ``x`` has cells first and genes last, and counterparts of the cells between them, if any; see
    :func:`encoded_halves`.
    """
    generator = torch.Generator().manual_seed(1_000 * (seed % 2**20) + index)
    cells = torch.randperm(len(x), generator=generator).tensor_split(2)
    views = []
    for side, (log_values, seen) in enumerate(zip(encoded_halves(x, on_counts, encode, generator), cells, strict=True)):
        # Few cells cannot be halved: both fits see all, in halves of their measurements.
        seen = seen if len(seen) >= 20 else torch.arange(len(x))
        some = possible(dimensions, len(seen), log_values.shape[1])
        some = some[index % 2 :: 2] or some
        scaling = scalings[index % len(scalings)]
        projection = Projection(log_values[seen], batch[seen], max(some), scaling)
        z = projection(log_values, batch)
        views.append(HalfView([z[:, :d] for d in some], seen, 2 * index + side))
    return views


def encoded_halves(
    x: torch.Tensor, on_counts: bool, encode: Encode | None, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log values of both halves of the measurements, each ``(n_cells, n_genes)``.

    ``encode`` makes them of a half of values; `None` if they are log values. A cell with counterparts ``(n_cells,
    n_levels, n_genes)`` has the mean over these.
    """

    def mean_of(half: torch.Tensor) -> torch.Tensor:
        half = half if encode is None else encode(half)
        return half if half.ndim == 2 else half.mean(1)

    # Genes are halved alike for all cells.
    chunks = x.split(max(1, _CHUNK // x[0].numel())) if on_counts else (x,)
    encoded = [tuple(map(mean_of, halves(some, on_counts, generator))) for some in chunks]
    first, second = zip(*encoded, strict=True)
    return torch.cat(first), torch.cat(second)


def some_levels(values: torch.Tensor) -> torch.Tensor:
    """Cells and their counterparts, of which eight are drawn for each cell if there are more.

    ``values`` has counterparts first, ``(n_levels, n_cells, n_genes)``; what is returned has cells first.
    """
    n_levels, n_cells = values.shape[:2]
    if n_levels <= MOST_LEVELS:
        return values.movedim(0, 1)
    drawn = torch.rand(n_cells, n_levels, device=values.device).argsort(1)[:, :MOST_LEVELS]
    return values[drawn, torch.arange(n_cells, device=values.device)[:, None]]


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
                (_entropy(both.sum(0)) + _entropy(both.sum(1))) / 2,
                adjusted_rand_score(first, second),
                similarity.mean(),
                (similarity >= STABLE).sum(),
            )
        )
    agreement, entropy, *others = np.mean(pairs, axis=0).tolist()
    score = agreement + (1 - REPRODUCED) / np.log(2) * entropy
    return dict(zip(COLUMNS, (score, agreement, entropy, *others), strict=True))


def matched_table(first: np.ndarray, second: np.ndarray, k: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Cross table of two labellings ``(k, k)``, and the entries of the one-to-one matching with most cells."""
    both = np.bincount(first * k + second, minlength=k * k).reshape(k, k)
    return both, linear_sum_assignment(-both)


def _entropy(sizes: np.ndarray) -> float:
    """Entropy of shares in proportion to ``sizes``, nats."""
    share = sizes[sizes > 0] / sizes.sum()
    return float(-(share * np.log(share)).sum())


def _jaccard(both: np.ndarray) -> np.ndarray:
    """Similarity of every category of one labelling to its one-to-one partner in another, from their cross table."""
    either = both.sum(1, keepdims=True) + both.sum(0, keepdims=True) - both
    index = both / np.maximum(either, 1)
    return index[linear_sum_assignment(-index)]
