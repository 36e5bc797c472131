"""How many categories the cells have: as many as two independent halves of the data agree on best.

Likelihoods grow with every category that follows the shape of a cloud more closely, on held-out cells too, so they do
not tell types from pieces of types. What is found twice in halves that share no noise does: :mod:`._halves`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from ._em import MixtureEM
from ._halves import COLUMNS, Encode, HalfView, agreement, views_of_halves
from ._views import fitter_for, no_batch, usual_dimensions, usual_scalings

#: Pairs of halves. All fits are compared with one another, also across pairs.
N_SPLITS = 4
#: Cells that are looked at, at most, by what is fitted to halves. Communities merge types that are close to each other
#: where they have few images.
MAX_CELLS = {"mixture": 5_000, "images": 12_000}
#: Cells per category without which a type cannot be told from a chance group of outlying cells.
_CELLS_PER_CATEGORY = 20
_LARGEST = 150
#: Agreement of halves that cannot be better, and the share of categories that must be stable for more than that many.
_PERFECT, _STABLE_SHARE = 0.99, 0.85
#: A number that scores so much below the best is worse, and not just unlucky.
_MARGIN = 0.03


@dataclass(frozen=True)
class Selection:
    """How well independent halves of the data agree for different numbers of categories.

    Attributes
    ----------
    table
        Indexed by ``n_categories``, ascending; means over pairs of fits:

        - ``score``: ``agreement`` minus ``1 / n_categories``, which favours more categories; but no higher than that of
          a smaller number with an agreement of at least 0.99, unless 0.85 of the categories are stable;
        - ``agreement``: share of cells in the same category, with categories matched one to one;
        - ``ari``: adjusted Rand index;
        - ``similarity``: Jaccard index of a category and its partner (cells in both over cells in either), mean over
          categories;
        - ``n_stable``: number of categories with a similarity of at least 0.6.
    """

    table: pd.DataFrame

    @property
    def n_categories(self) -> int:
        """Number of categories with the highest score."""
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
    start: str = "mixture",
    seed: int = 0,
) -> Selection:
    r"""Find the number of categories for which independent halves of the data agree best.

    Splitting a Poisson count by fair coin flips gives two independent Poisson counts, so that two fits share no noise
    (count splitting: Neufeld et al. 2024, Biostatistics 25:270). The score of a number :math:`K` is
    :math:`\frac1N\sum_i [c_1(x_i') = c_2(x_i'')] - \frac1K` for the labels :math:`c_1, c_2` of two fits, matched one to
    one. Suppose that both halves cut one of :math:`K` types of equal size in two, in the same way for a share :math:`r`
    of its cells. This costs :math:`(1 - r) / K` of the agreement and gains :math:`1 / (K (K + 1))`: the cut is
    worthwhile if :math:`r > 1 - 1 / (K + 1)`, 0.67 of two types and 0.91 of ten. For few types that is little, so that
    more categories have to be stable where halves agree on all cells.

    Parameters
    ----------
    values
        Values of cells in random order, ``(n_cells, n_genes)``; the first 5,000 are used, or 12,000 for images.
    on_counts
        Whether the values are counts, whose molecules are halved; otherwise the genes are halved.
    encode
        Computes the log values of a half; if `None`, values are used as they are.
    batch
        Batch codes, ``(n_cells,)``; a single batch if `None`.
    candidates
        Numbers to try. By default, numbers that grow by a fifth are tried up to a twentieth of the number of cells (at
        most 150), or until three in a row are clearly worse than the best, and then numbers around the best.
    smallest
        Smallest number to try by default, at least 2.
    n_splits
        Number of pairs of halves.
    start
        What is fitted to the halves, see :func:`~cplmixvi.train._views.fit_views`; ``"images"`` for images in their
        normal form.
    seed
        Seed of all random numbers.

    Returns
    -------
    Selection
        The scores, and the number of categories with the best one.
    """
    x = torch.as_tensor(values[: MAX_CELLS[start]], dtype=torch.float32)
    batch = no_batch(x) if batch is None else batch[: MAX_CELLS[start]]
    looks = usual_dimensions(start, smallest), usual_scalings(start)
    views = [
        view for index in range(n_splits) for view in views_of_halves(x, batch, on_counts, encode, index, seed, *looks)
    ]
    rows: dict[int, dict[str, float]] = {}

    def score(k: int) -> float:
        if k not in rows:
            rows[k] = agreement([view.labels(_fitter(view, k, seed, start)) for view in views], k)
        return rows[k]["score"]

    if candidates is None:
        _search(score, smallest, max(smallest, min(_LARGEST, len(x) // _CELLS_PER_CATEGORY)))
    else:
        for k in candidates:
            score(k)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).sort_index()
    table.index.name = "n_categories"
    table["score"] = _capped(table)
    return Selection(table)


def _capped(table: pd.DataFrame) -> pd.Series:
    """Scores, of which those of unstable categories are no higher than that of fewer on which halves agree."""
    settled = table.index[table["agreement"] >= _PERFECT]
    if not len(settled):
        return table["score"]
    best = settled.max()
    unstable = (table.index > best) & (table["n_stable"] < _STABLE_SHARE * table.index)
    return table["score"].mask(unstable, table["score"].clip(upper=table["score"][best]))


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


def _fitter(view: HalfView, k: int, seed: int, start: str) -> MixtureEM:
    generator = torch.Generator().manual_seed(10_000 * (seed % 2**20) + 100 * k + view.index)
    return fitter_for(start, k, generator=generator, few_moves=3)
