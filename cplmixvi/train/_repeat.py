"""Whether categories would be found again: fits to halves of the data, which arms cannot replace.

Arms that follow one guide agree with each other and with it, whatever it is: their probabilities say how well a cell
fits a category, given that there are these categories. Where other data would have led to other categories, they are
too certain. Fits that see half of the cells, and half of the measurements of these, say how often that happens, and in
which categories.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from cplmixvi._constants import CELL_KEY
from cplmixvi.module import CplMixVAE

from ._guide import half_encoder, known_categories, values_of
from ._halves import labels_of_halves, matched_table, some_levels, views_of_halves
from ._views import usual_dimensions

#: Pairs of halves.
N_SPLITS = 3
#: Cells that are looked at, at most: altogether, per category, and with any number of categories.
_CELLS, _CELLS_PER_CATEGORY, _MOST_CELLS = 5_000, 100, 20_000
#: Fewer cells than this per category cannot be halved.
_FEWEST_CELLS = 10
#: Cells of all categories that a category's own are added to, so that few cells do not decide.
_PRIOR_CELLS = 5.0


@dataclass(frozen=True)
class HalfFits:
    """Labels of cells according to fits to halves of the data.

    Attributes
    ----------
    rows
        Rows of the cells in their AnnData, ``(n,)``.
    labels
        Categories, in a different order for each fit, ``(n_fits, n)``.
    """

    rows: np.ndarray
    labels: np.ndarray

    def found_again(self, final: np.ndarray, n_categories: int) -> np.ndarray:
        r"""Share of each category's cells that a fit to half of the data puts into the same category.

        .. math:: r_k = \frac{\sum_f |k \cap \pi_f(k)| + m\,\bar r}{F\,|k| + m}

        with :math:`\pi_f` the one-to-one matching of fit :math:`f` that keeps the most cells together, :math:`\bar r`
        the share over all cells, and :math:`m = 5`.

        Parameters
        ----------
        final
            Categories of the cells, in the order of ``rows``, ``(n,)``.
        n_categories
            Number of categories ``K``.

        Returns
        -------
        numpy.ndarray
            ``(K,)``.
        """
        same = np.zeros(n_categories)
        for labels in self.labels:
            both, matched = matched_table(final, labels, n_categories)
            same += both[matched]
        asked = len(self.labels) * np.bincount(final, minlength=n_categories)
        overall = same.sum() / asked.sum()
        return (same + _PRIOR_CELLS * overall) / (asked + _PRIOR_CELLS)


def fit_halves(module: CplMixVAE, batches: Iterable[dict[str, torch.Tensor]], start: str) -> HalfFits | None:
    """Fit mixtures to halves of the training cells.

    Parameters
    ----------
    module
        The arms: their categories and labels, and what their encoders and the guide read.
    batches
        Minibatches of the training cells, in random order.
    start
        Where the guide started, see :func:`~cplmixvi.train._views.fit_views`.

    Returns
    -------
    HalfFits or None
        `None` where halves say nothing: of images, with one category or fewer than ten cells for each, or if the
        minibatches do not say which cells they hold.
    """
    n_categories = module.n_categories
    n_cells = min(max(_CELLS, _CELLS_PER_CATEGORY * n_categories), _MOST_CELLS)
    if start == "images" or n_categories == 1:
        return None
    # scvi-tools' seed decides here too, and what is looked at afterwards does not change what is trained.
    with torch.random.fork_rng(devices=[]):
        found = _read(module, batches, n_cells)
        seed = int(torch.randint(2**31 - 1, (1,)))
    if found is None or len(found[0]) < _FEWEST_CELLS * n_categories:
        return None
    rows, values, codes, known = found
    encode = half_encoder(module)
    dimensions = usual_dimensions(start, n_categories)
    views = [
        view
        for index in range(N_SPLITS)
        for view in views_of_halves(values, codes, module.on_counts, encode, index, seed, dimensions)
    ]
    fitters = [view.fitter(start, n_categories, seed, few_moves=5) for view in views]
    return HalfFits(rows, np.stack(labels_of_halves(views, fitters, known)))


def _read(
    module: CplMixVAE, batches: Iterable[dict[str, torch.Tensor]], n_cells: int
) -> tuple[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
    """Rows of cells, their values and their counterparts' ``(n, n_views, n_genes)``, batch codes, known categories."""
    rows, values, codes, known, n_read = [], [], [], [], 0
    for tensors in batches:
        if CELL_KEY not in tensors:
            return None
        x = values_of(module, tensors)
        rows.append(tensors[CELL_KEY].view(-1).cpu())
        values.append(some_levels(module.augmenter.neutral(x, tensors)).cpu())
        codes.append(tensors[REGISTRY_KEYS.BATCH_KEY].view(-1).long().cpu())
        labels = known_categories(module, tensors)
        if labels is not None:
            known.append(labels.cpu())
        n_read += len(x)
        if n_read >= n_cells:
            break
    if not rows:
        return None
    first = slice(n_cells)
    labels = torch.cat(known)[first] if known else None
    return torch.cat(rows)[first].numpy(), torch.cat(values)[first], torch.cat(codes)[first], labels
