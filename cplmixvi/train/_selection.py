"""How many categories the cells have: as many as two independent halves of the data agree on best.

Likelihoods grow with every category that follows the shape of a cloud more closely, on held-out cells too, so they do
not tell types from pieces of types. What is found twice in halves that share no noise does: :mod:`._halves`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ._halves import COLUMNS, Encode, agreement, labels_of_halves, matched_table, views_of_halves
from ._views import no_batch, usual_dimensions, usual_scalings

#: Pairs of halves. All fits are compared with one another, also across pairs.
N_SPLITS = 4
#: Cells that are looked at, at most, by what is fitted to halves. Communities merge types that are close to each other
#: where they have few images.
MAX_CELLS = {"mixture": 5_000, "images": 12_000}
#: Cells per category without which a type cannot be told from a chance group of outlying cells.
_CELLS_PER_CATEGORY = 20
_LARGEST = 150
#: Numbers grow by so much; by more where they look hopeless.
_STEP, _LEAP = 1.2, 1.5
#: A number that scores so much below the best is worse, and not just unlucky; after so many of them in a row, and so
#: many categories, no more are tried unless scores rise.
_MARGIN, _PATIENCE, _FEWEST_TRIED = 0.03, 3, 15
#: Nor are so many times as many as the best, if they are so many: where halves agree on large types, scores fall
#: slowly, and fits take longer and longer.
_MANY_TIMES, _MANY = 2, 20
#: Share of the categories that must be stable: more that halves agree on outweigh some that they do not, but whoever
#: is given categories wants to rely on them.
_STABLE_SHARE = 0.8


@dataclass(frozen=True)
class Selection:
    """How well independent halves of the data agree for different numbers of categories.

    Attributes
    ----------
    table
        Indexed by ``n_categories``, ascending; means over pairs of fits:

        - ``score``: ``agreement`` plus 0.144 times ``entropy``; a single category would score 1;
        - ``agreement``: share of cells in the same category, with categories matched one to one;
        - ``entropy``: of the sizes of the categories, nats; ``log(n_categories)`` if all are equal;
        - ``ari``: adjusted Rand index;
        - ``similarity``: Jaccard index of a category and its partner (cells in both over cells in either), mean over
          categories;
        - ``n_stable``: number of categories with a similarity of at least 0.6.
    labels
        Categories of the cells looked at according to each fit, with the number of categories that was chosen, in a
        different order for each fit, ``(n_fits, n_cells)``; `None` for a selection that was read from a file.
    """

    table: pd.DataFrame
    labels: np.ndarray | None = None

    @property
    def n_categories(self) -> int:
        """Number with the highest score, of those of whose categories four in five are stable (of all, if none has)."""
        is_stable = self.table["n_stable"] >= _STABLE_SHARE * self.table.index
        return int(self.table["score"].where(is_stable | (not is_stable.any())).idxmax())

    def consensus(self) -> np.ndarray | None:
        """Share of the fits that put each cell into each category, ``(n_cells, n_categories)``.

        Categories are those of the fit that agrees best with all others; `None` without ``labels``.
        """
        if self.labels is None:
            return None
        k = self.n_categories
        matched = [[_matched_to(labels, other, k) for other in self.labels] for labels in self.labels]
        agreeing = [np.mean(np.array(others) == labels) for labels, others in zip(self.labels, matched, strict=True)]
        return np.mean([np.eye(k, dtype=np.float32)[other] for other in matched[int(np.argmax(agreeing))]], axis=0)


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
    (count splitting: Neufeld et al. 2024, Biostatistics 25:270). The score of a number of categories is

    .. math:: \frac1N\sum_i [c_1(x_i') = c_2(x_i'')] + \frac{1 - r}{\log 2} H

    for the labels :math:`c_1, c_2` of two fits, matched one to one, with :math:`H` the entropy of the sizes of their
    categories and :math:`r = 0.9`. Cutting a type with a share :math:`p` of the cells in two equal halves raises
    :math:`H` by :math:`p\log 2`, and costs :math:`p` times the share of its cells on which the fits disagree. So a cut
    is worthwhile if they agree on more than 0.9 of these cells, whatever the size of the type and the number of others.
    A single category scores 1. Numbers are chosen only if four in five of their categories are stable.

    Parameters
    ----------
    values
        Values of cells in random order, ``(n_cells, n_genes)``, or of cells and their counterparts at other levels of
        a condition, ``(n_cells, n_levels, n_genes)``, which stand for the cell by the mean of their log values; the
        first 5,000 are used, or 12,000 for images.
    on_counts
        Whether the values are counts, whose molecules are halved; otherwise the genes are halved.
    encode
        Computes the log values of a half, shape kept; if `None`, values are used as they are.
    batch
        Batch codes, ``(n_cells,)``; a single batch if `None`.
    candidates
        Numbers to try. By default, numbers that grow by a fifth (a half where three in a row are clearly worse than
        the best) are tried up to a twentieth of the number of cells (at most 150), until three in a row are clearly
        worse and there are 15, or, above 20, until twice the best number, but on while scores rise; and then numbers
        around the best.
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
    labels: dict[int, list[np.ndarray]] = {}
    rows: dict[int, dict[str, float]] = {}

    def score(k: int) -> float:
        if k not in rows:
            labels[k] = labels_of_halves(
                views, [view.fitter(start, k, seed, few_moves=3, salt=100 * k) for view in views]
            )
            rows[k] = agreement(labels[k], k)
        return rows[k]["score"]

    def found() -> Selection:
        table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).sort_index()
        table.index.name = "n_categories"
        return Selection(table)

    if candidates is None:
        largest = max(smallest, min(_LARGEST, len(x) // _CELLS_PER_CATEGORY))
        _search(score, lambda: found().n_categories, smallest, largest)
    else:
        for k in candidates:
            score(k)
    selection = found()
    return Selection(selection.table, np.stack(labels[selection.n_categories]))


def _matched_to(reference: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Labels by the categories of ``reference``, matched one to one, ``(n,)``."""
    of_reference, of_labels = matched_table(reference, labels, k)[1]
    name = np.empty(k, dtype=np.int64)
    name[of_labels] = of_reference
    return name[labels]


def _search(score: Callable[[int], float], chosen: Callable[[], int], smallest: int, largest: int) -> None:
    """Score a ladder of numbers, upwards while there is hope, and then those around that chosen of all scored."""
    tried = {smallest: score(smallest)}
    k = smallest
    while k < largest:
        best = chosen()
        scores = list(tried.values())
        hopeless = all(value < tried[best] - _MARGIN for value in scores[-_PATIENCE:])
        # Where types are as far from one another as all others, fits to halves that are given fewer categories merge
        # different ones, and agree only once the number is near theirs: a few bad scores are no reason to stop.
        rising = len(scores) > 1 and scores[-1] > scores[-2] + _MARGIN
        if not rising and ((hopeless and k >= _FEWEST_TRIED) or k >= max(_MANY_TIMES * best, _MANY)):
            break
        k = min(largest, max(k + 1, round((_LEAP if hopeless else _STEP) * k)))
        tried[k] = score(k)
    while True:
        best = chosen()
        # Two numbers that differ by less than a tenth are hardly two answers.
        step = max(1, round(0.1 * best))
        fresh = [m for m in (best - step, best + step) if smallest <= m <= largest and m not in tried]
        if not fresh:
            break
        for m in fresh:
            tried[m] = score(m)
