"""What a guide says of the training cells, asked once per cell."""

from __future__ import annotations

import torch

from cplmixvi._constants import CELL_KEY
from cplmixvi.module import CplMixVAE

from ._guide import guide_input
from ._guide_state import guide_of, guide_state
from ._views import ViewConsensus

#: How often the guide is asked of a cell whose counterparts are drawn anew each time.
N_DRAWS = 5
#: Probabilities that are kept, at most (200 MB); with more, the guide is asked in every step.
MAX_KEPT = 50_000_000


class GuideAnswers:
    """The guide's probabilities for minibatches of training cells.

    A guide looks at a cell in tens of views, which costs as much as the step of the arms. It says the same of the cell
    in every epoch, so its answers are kept by the cell's row. Where types must not follow a condition, it is asked of
    a cell with counterparts that are drawn anew, and the mean of the first answers is kept. The objective is linear in
    the answer, but for a constant, so that the mean has the gradient that answers to single draws have on average.

    Parameters
    ----------
    guide
        On the module's device.
    module
        The arms.
    n_rows
        Rows that cells can have; 0 keeps nothing.
    """

    def __init__(self, guide: ViewConsensus, module: CplMixVAE, n_rows: int = 0):
        self.guide, self.module = guide, module
        self._kept: torch.Tensor | None = None
        self._n_draws = N_DRAWS if module.augmenter.nuisance_keys else 1
        if 0 < n_rows * module.n_categories <= MAX_KEPT:
            self._kept = torch.zeros(n_rows, module.n_categories, device=module.device)
            self._n_asked = torch.zeros(n_rows, 1, device=module.device)

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps: the guide, and what it has said."""
        asked = None if self._kept is None else self._n_asked
        return {"guide": guide_state(self.guide), "kept": self._kept, "asked": asked}

    @classmethod
    def of(cls, state: dict[str, object], module: CplMixVAE) -> GuideAnswers:
        """Make again what :meth:`state` is of, on the module's device."""
        answers = cls(guide_of(state["guide"]).to(module.device), module)
        if state["kept"] is not None:
            answers._kept = state["kept"].to(module.device)
            answers._n_asked = state["asked"].to(module.device)
        return answers

    def __call__(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """``(n_cells, K)``."""
        if self._kept is None or CELL_KEY not in tensors:
            return self.guide(*guide_input(self.module, tensors))
        rows = tensors[CELL_KEY].view(-1)
        asked = self._n_asked[rows]
        if (asked < self._n_draws).any():
            answer = self.guide(*guide_input(self.module, tensors))
            # Cells are in a minibatch once, and every epoch has all: they are asked of equally often.
            self._kept[rows] += (answer - self._kept[rows]) / (asked + 1)
            self._n_asked[rows] += 1
        return self._kept[rows]
