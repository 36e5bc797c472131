"""What a guide says of the training cells, asked once per cell."""

from __future__ import annotations

import torch

from cplmixvi._constants import CELL_KEY
from cplmixvi.module import CplMixVAE

from ._guide import guide_input
from ._guide_state import guide_of, guide_state
from ._views import ViewConsensus

#: Probabilities that are kept, at most (200 MB); with more, the guide is asked in every step.
MAX_KEPT = 50_000_000


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
        # Where types must not follow a condition, each answer is for another draw of the cell's counterparts.
        if not module.augmenter.nuisance_keys and 0 < n_rows * module.n_categories <= MAX_KEPT:
            self._kept = torch.full((n_rows, module.n_categories), torch.nan, device=module.device)

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps: the guide, and what it has said."""
        return {"guide": guide_state(self.guide), "kept": self._kept}

    @classmethod
    def of(cls, state: dict[str, object], module: CplMixVAE) -> GuideAnswers:
        """Make again what :meth:`state` is of, on the module's device."""
        answers = cls(guide_of(state["guide"]).to(module.device), module)
        if state["kept"] is not None:
            answers._kept = state["kept"].to(module.device)
        return answers

    def __call__(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """``(n_cells, K)``."""
        if self._kept is None or CELL_KEY not in tensors:
            return self.guide(*guide_input(self.module, tensors))
        rows = tensors[CELL_KEY].view(-1)
        answer = self._kept[rows]
        if answer.isnan().any():
            answer = self.guide(*guide_input(self.module, tensors))
            self._kept[rows] = answer
        return answer
