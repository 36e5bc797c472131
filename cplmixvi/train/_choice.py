"""Whether many types are better looked for by likelihood or by communities: by what comes back in the other half.

Up to some 25 categories, starts and moves find the likeliest mixture, and that is the better answer: communities of
few types can be reproducible and still follow something else, such as depth (worm neurons: .80 of the cells in the same
community twice, ARI .2 with the types). With more, moves one by one do not get far.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from ._halves import Encode, agreement, labels_of_halves, views_of_halves
from ._views import FEW_CATEGORIES, no_batch, usual_dimensions

logger = logging.getLogger(__name__)

#: Pairs of halves.
N_SPLITS = 2
#: Cells that are looked at, at most, altogether and per category.
MAX_CELLS = 5_000
CELLS_PER_CATEGORY = 100
#: Fewer cells than this per category say nothing about communities.
_FEWEST_CELLS = 10
#: By how much communities must agree better. The mixture comes first, because it does not split a type along what
#: varies in all types.
_MARGIN = 0.03


def choose_start(
    values: torch.Tensor,
    n_categories: int,
    *,
    on_counts: bool,
    encode: Encode | None = None,
    batch: torch.Tensor | None = None,
    seed: int = 0,
) -> str:
    """Choose the start of the views by how far independent halves of the data agree on the categories it leads to.

    Parameters
    ----------
    values
        Values of cells in random order, ``(n_cells, n_genes)``; see :func:`n_cells_to_choose`.
    n_categories
        ``K``.
    on_counts
        Whether they are counts, whose molecules are halved; else genes are.
    encode
        What makes log values of a half; the values as they are if `None`.
    batch
        Batch codes, ``(n_cells,)``; one batch if `None`.
    seed
        Source of all randomness.

    Returns
    -------
    ``"graph"`` if the share of cells in the same category and the adjusted Rand index are together higher by more than
    .03 on average, else ``"mixture"``, as with up to 25 categories; see :func:`~cplmixvi.train._views.fit_views`.
    """
    n_seen = n_cells_to_choose(n_categories)
    x = torch.as_tensor(values[:n_seen], dtype=torch.float32)
    if n_categories <= FEW_CATEGORIES or len(x) < _FEWEST_CELLS * n_categories:
        return "mixture"
    batch = no_batch(x) if batch is None else batch[:n_seen]
    score = {}
    for start in ("mixture", "graph"):
        dimensions = usual_dimensions(start, n_categories)
        agreements = []
        for index in range(N_SPLITS):
            views = views_of_halves(x, batch, on_counts, encode, index, seed, dimensions)
            fitters = [view.fitter(start, n_categories, seed, few_moves=3) for view in views]
            # Communities cannot start from others, so mixtures do not either.
            found = agreement(labels_of_halves(views, fitters, exchange=False), n_categories)
            agreements.append((found["agreement"] + found["ari"]) / 2)
        score[start] = float(np.mean(agreements))
    logger.info("Halves of the data agree by %.3f (likeliest mixtures), %.3f (communities).", *score.values())
    return "graph" if score["graph"] > score["mixture"] + _MARGIN else "mixture"


def n_cells_to_choose(n_categories: int) -> int:
    """Cells that :func:`choose_start` looks at, at most."""
    return max(MAX_CELLS, CELLS_PER_CATEGORY * n_categories)
