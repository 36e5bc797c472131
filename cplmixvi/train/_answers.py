"""What a guide says of the training cells, asked once per cell."""

from __future__ import annotations

import torch

from cplmixvi._constants import CELL_KEY
from cplmixvi.module import CplMixVAE

from ._guide import guide_input
from ._guide_state import guide_of, guide_state
from ._views import ViewConsensus

#: Probabilities that are kept, at most (40 MB). Where there are more, only the largest of every cell are, and of these
#: at most so many altogether (300 MB); else the guide is asked in every step.
MAX_KEPT, MAX_LARGEST = 10_000_000, 50_000_000
N_LARGEST = 16


class GuideAnswers:
    """The guide's probabilities for minibatches of training cells.

    A guide looks at a cell in tens of views, which costs as much as the step of the arms. It says the same of the cell
    in every epoch, so its answers are kept by the cell's row.

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
        # Where types must not follow a condition, each answer is for another draw of the cell's counterparts.
        if module.augmenter.nuisance_keys or n_rows == 0:
            return
        n_kept = module.n_categories
        if n_rows * n_kept > MAX_KEPT:
            n_kept = min(N_LARGEST, n_kept)
            if n_rows * n_kept > MAX_LARGEST:
                return
            if n_kept < module.n_categories:
                self._which = torch.zeros((n_rows, n_kept), dtype=torch.int16, device=module.device)
        self._kept = torch.full((n_rows, n_kept), torch.nan, device=module.device)

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps: the guide, and what it has said."""
        return {"guide": guide_state(self.guide), "kept": self._kept, "which": self._which}

    @classmethod
    def of(cls, state: dict[str, object], module: CplMixVAE) -> GuideAnswers:
        """Make again what :meth:`state` is of, on the module's device."""
        answers = cls(guide_of(state["guide"]).to(module.device), module)
        if state["kept"] is not None:
            answers._kept = state["kept"].to(module.device)
        if state.get("which") is not None:
            answers._which = state["which"].to(module.device)
        return answers

    def __call__(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """``(n_cells, K)``."""
        if self._kept is None or CELL_KEY not in tensors:
            return self.guide(*guide_input(self.module, tensors))
        rows = tensors[CELL_KEY].view(-1)
        answer = self._kept[rows]
        if answer.isnan().any():
            answer = self.guide(*guide_input(self.module, tensors))
            if self._which is None:
                self._kept[rows] = answer
            else:
                self._kept[rows], which = answer.topk(self._kept.shape[1], dim=1)
                self._which[rows] = which.to(torch.int16)
        elif self._which is not None:
            # What is left is little, and no more is known of it.
            n_others = self.module.n_categories - answer.shape[1]
            rest = ((1 - answer.sum(1, keepdim=True)) / n_others).clamp_min(0)
            answer = rest.repeat(1, self.module.n_categories).scatter(1, self._which[rows].long(), answer)
        return answer
