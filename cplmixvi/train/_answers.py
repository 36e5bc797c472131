"""What a guide says of the training cells, asked once per cell."""

from __future__ import annotations

from typing import Any

import torch

from cplmixvi._constants import CELL_KEY
from cplmixvi.module import CplMixVAE

from ._guide import guide_input
from ._guide_state import guide_of, guide_state
from ._views import ViewConsensus

#: How often the guide is asked of a cell whose counterparts are drawn anew each time.
N_DRAWS = 5
#: Probabilities that are kept, at most (40 MB). Where there are more, only the largest of every cell are, and of these
#: at most so many altogether (300 MB); else the guide is asked in every step.
MAX_KEPT, MAX_LARGEST = 10_000_000, 50_000_000
N_LARGEST = 16


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
        #: Categories of the probabilities that are kept, where not all are.
        self._which: torch.Tensor | None = None
        self._n_draws = N_DRAWS if module.augmenter.nuisance_keys else 1
        n_kept = module.n_categories
        if n_rows * n_kept > MAX_KEPT:
            n_kept = min(N_LARGEST, n_kept)
            # The largest of several draws need not be the same.
            if n_rows * n_kept > MAX_LARGEST or self._n_draws > 1:
                return
        if n_rows == 0:
            return
        if n_kept < module.n_categories:
            self._which = torch.zeros((n_rows, n_kept), dtype=torch.int16, device=module.device)
        self._kept = torch.zeros(n_rows, n_kept, device=module.device)
        self._n_asked = torch.zeros(n_rows, 1, device=module.device)

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps: the guide, and what it has said."""
        asked = None if self._kept is None else self._n_asked
        return {"guide": guide_state(self.guide), "kept": self._kept, "asked": asked, "which": self._which}

    @classmethod
    def of(cls, state: dict[str, Any], module: CplMixVAE) -> GuideAnswers:
        """Make again what :meth:`state` is of, on the module's device."""
        answers = cls(guide_of(state["guide"]).to(module.device), module)
        if state["kept"] is not None:
            answers._kept = state["kept"].to(module.device)
            answers._n_asked = state["asked"].to(module.device)
        if state["which"] is not None:
            answers._which = state["which"].to(module.device)
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
            self._n_asked[rows] += 1
            if self._which is not None:
                self._kept[rows], which = answer.topk(self._kept.shape[1], dim=1)
                self._which[rows] = which.to(torch.int16)
                return answer
            self._kept[rows] += (answer - self._kept[rows]) / (asked + 1)
        kept = self._kept[rows]
        if self._which is None:
            return kept
        # What is left is little, and no more is known of it.
        n_others = self.module.n_categories - kept.shape[1]
        rest = ((1 - kept.sum(1, keepdim=True)) / n_others).clamp_min(0)
        return rest.repeat(1, self.module.n_categories).scatter(1, self._which[rows].long(), kept)
