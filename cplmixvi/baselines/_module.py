"""What the modules of baselines have in common: one arm, and an objective that changes with the steps done."""

from __future__ import annotations

import torch

from cplmixvi.module import ArmOutput, CplMixVAE


class SingleArmModule(CplMixVAE):
    """One arm whose state does not depend on the category, and which counts its steps.

    Parameters
    ----------
    n_input
        Number of genes.
    **options
        Of :class:`~cplmixvi.module.CplMixVAE`.
    """

    def __init__(self, n_input: int, **options):
        super().__init__(n_input, state_given_category=False, **options)
        self.register_buffer("n_steps", torch.tensor(0))

    def reconstructed(self, inference_outputs: dict, generative_outputs: dict) -> tuple[ArmOutput, torch.Tensor]:
        """What the arm says of a minibatch, and its reconstruction error, nats, ``(n_cells,)``."""
        (output,), (view,) = inference_outputs["arms"], inference_outputs["views"]
        (decoded,) = generative_outputs["decoded"]
        return output, -self.arms[0].likelihood.score(*decoded, view)

    def dual_step(self, metrics: dict[str, torch.Tensor]) -> None:
        """Count the step."""
        self.n_steps += 1
