"""A number of categories of the model's own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from cplmixvi import pp
from cplmixvi._constants import CELL_KEY
from cplmixvi.augment import Augmenter, Cells
from cplmixvi.train import (
    MAX_SELECTION_CELLS,
    Selection,
    crossing,
    half_encoder,
    is_on_disk,
    select_n_categories,
    some_levels,
)

from ._mixin import Mixin
from ._report import Report

logger = logging.getLogger(__name__)

#: Below this adjusted Rand index two halves of the data hardly agree on any types.
WEAK = 0.2
#: Cells whose counterparts are looked up at a time.
_CHUNK = 500
_NO_TYPES = (
    "Two halves of the data hardly agree on any categories, whatever their number (adjusted Rand index below "
    f"{WEAK}): there may be no distinct types."
)


class SelectionMixin(Mixin):
    """Finds the number of categories from the data."""

    #: Columns of the table of the last selection, each a list; kept with the model when it is saved.
    selection_: dict[str, list[float]] | None = None
    #: Rows of the cells that the last selection looked at, and the categories that halves of the data agree on there.
    _consensus: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def selection(self) -> Selection | None:
        """Result of the last :meth:`select_n_categories`; `None` before the first call."""
        if self.selection_ is None:
            return None
        table = pd.DataFrame(self.selection_).set_index("n_categories")
        table.index = table.index.astype(int)
        return Selection(table)

    def select_n_categories(
        self, candidates: Sequence[int] | None = None, *, seed: int | None = None, find_condition: bool = True
    ) -> Selection:
        """Find the number of categories on which independent halves of the data agree best.

        The cells are split in half, and so are the molecules of each cell (or the genes, if values are not counts). A
        mixture is fitted to each half, and the labels that the two mixtures give to all cells are compared.
        :meth:`train` calls this method if the model was created without a number of categories, and uses the result of
        an earlier call if there is one. The categories then are those on which the halves agree.

        Parameters
        ----------
        candidates
            Numbers to try, each from 2 (or the number of labels, if larger) to the number of cells; if `None`, as many
            as are worth trying.
        seed
            Seed of all random numbers; drawn from the global generator if `None`, so that it is determined by
            ``scvi.settings.seed``.
        find_condition
            Whether to search for a condition that no column of ``obs`` has first, as :meth:`train` does, so that its
            levels do not count as categories.

        Returns
        -------
        Selection
            The number of categories and a table of all numbers tried. Also stored as ``model.selection``.

        Raises
        ------
        ValueError
            If a candidate is out of range, or the model has no AnnData.

        Warns
        -----
        UserWarning
            If the halves hardly agree for any number of categories.

        Examples
        --------
        >>> selection = model.select_n_categories([2, 3, 4])
        >>> selection.n_categories in (2, 3, 4)
        True
        """
        if self.adata is None:
            raise ValueError(
                "The number of categories is found from an AnnData, and the model has none: give n_categories."
            )
        self.module.augmenter.check(self.adata)
        n_obs = self.adata.n_obs
        smallest = max(2, self.n_labels)
        if candidates is not None:
            if isinstance(candidates, str) or not np.iterable(candidates) or not all(map(pp.is_whole, candidates)):
                raise ValueError(f"candidates={candidates!r} must be a list of whole numbers.")
            candidates = sorted({int(k) for k in candidates})
            if not candidates or candidates[0] < smallest or candidates[-1] > n_obs:
                raise ValueError(
                    f"candidates={candidates} must be numbers from {smallest} (2, or the number of labels if that is "
                    f"larger) to the {n_obs} cells."
                )
        if seed is not None and not (pp.is_whole(seed) and seed >= 0):
            raise ValueError(f"seed={seed!r} must be a whole number of at least 0, or None.")
        seed = int(torch.randint(2**31 - 1, (1,)) if seed is None else seed)
        start = "images" if self.module.augmenter.on_images else "mixture"
        some = np.random.default_rng(seed).permutation(n_obs)[: MAX_SELECTION_CELLS[start]]
        logger.info("Finding the number of categories of %d cells.", len(some))
        values, batch = [], []
        for tensors in self._make_data_loader(adata=self.adata, indices=some):
            values.append(tensors[REGISTRY_KEYS.X_KEY].float())
            batch.append(tensors[REGISTRY_KEYS.BATCH_KEY].view(-1).long())
        values, batch = self.module.augmenter.normal_form(torch.cat(values)), torch.cat(batch)
        across = self.module.augmenter if self.module.augmenter.nuisance_keys else None
        # As in training, where copies of both levels of a condition would need all cells in memory.
        if across is None and find_condition and not is_on_disk(self.adata_manager):
            across = crossing(self.module, values, batch, n_known=self.n_labels, seed=seed)
        if across is not None:
            values = self._with_counterparts(across, some, values, batch, seed)
        selection = select_n_categories(
            values,
            on_counts=self.module.on_counts,
            encode=half_encoder(self.module),
            batch=batch,
            candidates=candidates,
            smallest=smallest,
            start=start,
            seed=seed,
        )
        self._consensus = some, selection.consensus()
        self.selection_ = selection.table.reset_index().to_dict(orient="list")
        logger.info("Found %d categories, of %d numbers tried.", selection.n_categories, len(selection.table))
        if _is_weak(selection):
            warnings.warn(_NO_TYPES, UserWarning, stacklevel=2)
        return selection

    def _with_counterparts(
        self, across: Augmenter, rows: np.ndarray, values: torch.Tensor, batch: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Values of cells ``(n, n_genes)`` and of their counterparts among these, ``(n, n_drawn, n_genes)``."""
        cells = Cells(self.adata[rows], values.numpy(), np.arange(len(rows)), self.module.on_counts, batch.numpy())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                across.prepare(cells, "cpu")
                chunks = torch.arange(len(rows)).split(_CHUNK)
                return torch.cat([some_levels(across.neutral(values[some], {CELL_KEY: some})) for some in chunks])
            finally:
                across.release()

    def _with_selection(self, report: Report) -> Report:
        """Add to a report that halves of the data hardly agree on the categories whose number was found."""
        selection = self.selection
        if selection is None or selection.n_categories != self.n_categories or not _is_weak(selection):
            return report
        return replace(report, problems=(*report.problems, _NO_TYPES))


def _is_weak(selection: Selection) -> bool:
    """Whether halves hardly agree with the number of categories that has the highest score."""
    return bool(selection.table.loc[selection.n_categories, "ari"] < WEAK)
