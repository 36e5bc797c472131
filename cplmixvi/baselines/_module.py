"""What the modules of baselines have in common: one arm, and an objective that changes with the steps done."""

from __future__ import annotations

import torch

from cplmixvi._constants import TARGETS_KEY
from cplmixvi.module import ArmOutput, CplMixVAE

from ._images import refuse_what_images_lack, with_convolutions


class SingleArmModule(CplMixVAE):
    """One arm whose state does not depend on the category, and which counts its steps.

    Parameters
    ----------
    n_input
        Number of genes.
    n_channels
        Of the convolution next to the image; fully connected layers if `None`.
    image_shape
        Rows and columns of the images; a square if `None`.
    **options
        Of :class:`~cplmixvi.module.CplMixVAE`.

    Raises
    ------
    ValueError
        If convolutions are asked for and values are not pixels of an image in ``[0, 1]``, there are batches or
        covariates, or settings are given that only fully connected layers have.
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_channels: int | None = None,
        image_shape: tuple[int, int] | None = None,
        **options,
    ):
        if n_channels is None and image_shape is not None:
            raise ValueError(f"image_shape={image_shape} is for convolutions: give n_channels too.")
        if n_channels is not None:
            if options.get("likelihood") != "bernoulli":
                raise ValueError(
                    f"n_channels={n_channels!r} is for images, values in [0, 1]: use likelihood='bernoulli'."
                )
            refuse_what_images_lack("a network of convolutions", options)
        super().__init__(n_input, state_given_category=False, **options)
        self.register_buffer("n_steps", torch.tensor(0))
        if n_channels is not None:
            (arm,) = self.arms
            with_convolutions(arm, n_input, image_shape, n_channels)

    def reconstructed(
        self, tensors: dict, inference_outputs: dict, generative_outputs: dict
    ) -> tuple[ArmOutput, torch.Tensor]:
        """What the arm says of a minibatch, and its reconstruction error, nats, ``(n_cells,)``."""
        (output,), (target,) = inference_outputs["arms"], tensors.get(TARGETS_KEY, inference_outputs["views"])
        (decoded,) = generative_outputs["decoded"]
        return output, -self.arms[0].likelihood.score(*decoded, target)

    def dual_step(self, metrics: dict[str, torch.Tensor]) -> None:
        """Count the step."""
        self.n_steps += 1
