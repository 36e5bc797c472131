"""What the modules of baselines have in common: one arm, and an objective that changes with the steps done."""

from __future__ import annotations

import inspect
from collections.abc import Collection

import torch

from cplmixvi._constants import TARGETS_KEY
from cplmixvi.module import ArmOutput, CplMixVAE

from ._images import refuse_what_images_lack, with_convolutions

#: Options of :class:`~cplmixvi.module.CplMixVAE` that are of its objective, or of several arms.
_OF_COUPLED_ARMS = (
    "beta",
    "distance",
    "dual_rate",
    "epsilon",
    "guide_epsilon",
    "lam",
    "share_arms",
    "state_given_category",
    "state_prior",
    "variance_momentum",
)


class SingleArmModule(CplMixVAE):
    """One arm whose state does not depend on the category, and which counts its steps.

    Of the options of :class:`~cplmixvi.module.CplMixVAE`, those of its own objective and of several arms do not exist:
    an option that changed nothing would look like one that does.

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
        If an option is given that the method does not have. If convolutions are asked for and values are not pixels of
        an image in ``[0, 1]``, there are batches or covariates, or settings are given that only fully connected layers
        have.
    """

    #: What the method is called in messages, and options of ``CplMixVAE`` that it does not have.
    _method = "a baseline"
    _unused: Collection[str] = _OF_COUPLED_ARMS

    def __init__(
        self,
        n_input: int,
        *,
        n_channels: int | None = None,
        image_shape: tuple[int, int] | None = None,
        **options,
    ):
        self._refuse_unused(options)
        options["n_arms"] = 1
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

    @classmethod
    def _refuse_unused(cls, options: dict) -> None:
        """Say which options mean nothing to the method, and which it has of its own."""
        if options.get("n_arms", 1) != 1:
            raise ValueError(f"n_arms={options['n_arms']!r}: {cls._method} has one arm; leave n_arms out.")
        unused = [name for name in options if name in cls._unused]
        if unused:
            given = ", ".join(f"{name}={options[name]!r}" for name in unused)
            parameters = inspect.signature(cls.__init__).parameters.values()
            own = ", ".join(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)
            raise ValueError(
                f"{given}: {cls._method} has no such setting, which would change nothing; leave it out. Settings of "
                f"its own are {own}."
            )

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
