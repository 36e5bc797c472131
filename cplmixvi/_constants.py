"""Names that more than one room uses: AnnData keys of a result and keys of a minibatch."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_KEY = "cplmixvi"

#: What cells are called that get no category or name, because none is certain enough.
UNASSIGNED = "unassigned"

#: Entry of a result with the numbers of categories that were tried.
SELECTION_KEY = "selection"

#: Entry of ``uns`` with the columns of ``obs`` that :func:`cplmixvi.tl.map_to_reference` has written.
NAMES_KEY = "cplmixvi_names"

#: Entry of a minibatch with the list of the arms' copies of the cells, each ``(n_cells, n_genes)``.
COPIES_KEY = "copies"

#: Entry of a minibatch with the list of what the arms reconstruct from their copies, each ``(n_cells, n_genes)``.
TARGETS_KEY = "targets"

#: Entry of a minibatch of training cells with their rows in the AnnData, shape ``(n_cells,)``.
CELL_KEY = "cell"

#: Entry of a minibatch with the starting posterior of the categories, shape ``(n_cells, n_categories)``.
GUIDE_KEY = "guide"

#: Entry of a minibatch without a guide with the cells' labels, -1 where there is none, shape ``(n_cells,)``.
KNOWN_KEY = "known"

COUNT_LIKELIHOODS = ("nb", "zinb", "poisson")
LOG_LIKELIHOODS = ("normal", "mse")
#: exp(50) counts is no cell: larger values are not logarithms.
LARGEST_LOG = 50.0
LIKELIHOODS = (*COUNT_LIKELIHOODS, *LOG_LIKELIHOODS, "bernoulli")


@dataclass(frozen=True)
class ResultKeys:
    """Where :func:`cplmixvi.tl.annotate` writes a result called ``key``.

    Parameters
    ----------
    key
        The name of the result, the ``key_added`` of :func:`cplmixvi.tl.annotate`.
    """

    key: str = DEFAULT_KEY

    @property
    def labels(self) -> str:
        """Column of ``obs`` with the categories."""
        return self.key

    @property
    def confidence(self) -> str:
        """Column of ``obs`` with the probability of the chosen category."""
        return f"{self.key}_confidence"

    @property
    def agreement(self) -> str:
        """Column of ``obs`` with the share of arm pairs that agree on the cell."""
        return f"{self.key}_agreement"

    @property
    def condition(self) -> str:
        """Column of ``obs`` with the level of a condition that was found."""
        return f"{self.key}_condition"

    @property
    def state(self) -> str:
        """Entry of ``obsm`` with the continuous states."""
        return f"X_{self.key}"

    @property
    def proba(self) -> str:
        """Entry of ``obsm`` with the category probabilities."""
        return f"{self.key}_proba"

    @property
    def uns(self) -> str:
        """Entry of ``uns`` with everything that is not per cell."""
        return self.key

    @property
    def stability(self) -> str:
        """Column of ``obs`` with the share of refits that find the cell's category again."""
        return f"{self.key}_stability"

    @property
    def ranking(self) -> str:
        """Entry of ``uns`` with the marker genes of the categories."""
        return f"rank_genes_{self.key}"


#: File that a folder is known by to hold a saved model, and the one, a pickle, of scvi-tools' own way of saving.
MODEL_FILE, LEGACY_MODEL_FILE = "model.json", "model.pt"
#: Cells that were saved with a model.
CELLS_FILE = "adata.h5ad"
