"""JointVAE: disentangled continuous and discrete latents by capacities that grow."""

from __future__ import annotations

import math

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput

from cplmixvi.module import kl_normal

from ._model import SingleArmModel, doc_of
from ._module import SingleArmModule

#: Share of the training in which capacities grow: 25,000 of about 94,000 steps in the authors' settings for MNIST.
_GROWING = 0.25


class JointModule(SingleArmModule):
    r"""One arm with the objective of JointVAE (Dupont 2018, arXiv:1804.00104).

    .. math::
        -\log p(x\mid s, c) + \gamma\,|\mathrm{KL}_s - C_s| + \gamma\,|\mathrm{KL}_c - C_c|

    where :math:`\mathrm{KL}_s` is the divergence of :math:`q(s\mid x)` from a standard normal and :math:`\mathrm{KL}_c`
    that of :math:`q(c\mid x)` from the uniform distribution, both averaged over the minibatch. The capacities grow
    linearly from zero; :math:`C_c` stops at :math:`\log K`, the most that the categories can hold. The state does not
    depend on the category.

    Parameters
    ----------
    n_input
        Number of genes.
    gamma
        Weight of the distance between divergences and capacities.
    capacity_state, capacity_category
        Values of :math:`C_s` and :math:`C_c` after ``capacity_steps``, nats, apart from the bound on the latter.
    capacity_steps
        Number of steps until the largest capacities are reached; a quarter of the training steps if `None`.
    temperature
        Temperature of the Gumbel-softmax.
    n_channels, image_shape
        For images: channels of the convolution next to the image (``n_channels=32`` with ``n_hidden=256`` gives the
        networks of JointVAE's authors), and rows and columns, a square if `None`. Default: fully connected layers.
    **options
        Of :class:`~cplmixvi.module.CplMixVAE`: ``n_categories``, ``n_hidden``, ``likelihood``, ...

    Raises
    ------
    ValueError
        If a weight or capacity is negative, the number of steps is below 1, the values are not the pixels of such an
        image, or an option is given that this objective does not have, such as ``beta``.
    """

    _method = "JointVAE"

    def __init__(
        self,
        n_input: int,
        *,
        gamma: float = 30.0,
        capacity_state: float = 5.0,
        capacity_category: float = 5.0,
        capacity_steps: int | None = None,
        temperature: float = 0.67,
        **options,
    ):
        for name, value in {
            "gamma": gamma,
            "capacity_state": capacity_state,
            "capacity_category": capacity_category,
        }.items():
            if not value >= 0:
                raise ValueError(f"{name}={value!r} must be at least 0.")
        if capacity_steps is not None and capacity_steps < 1:
            raise ValueError(f"capacity_steps={capacity_steps!r} must be at least 1.")
        super().__init__(n_input, temperature=temperature, **options)
        self.gamma, self.capacity_steps = gamma, capacity_steps
        self.capacity_state, self.capacity_category = capacity_state, capacity_category
        self._growing_steps = capacity_steps or 1

    def plan_steps(self, n_steps: int) -> None:
        """Set the steps of the capacities' growth from those of the training, ``n_steps``, unless they were given."""
        self._growing_steps = self.capacity_steps or max(1, round(_GROWING * n_steps))

    @property
    def capacities(self) -> tuple[float, float]:
        """:math:`C_s` and :math:`C_c` of the next step, nats."""
        share = min(1.0, int(self.n_steps) / self._growing_steps)
        # Cut off, not scaled: both capacities grow at the same rate until the categories can hold no more.
        return share * self.capacity_state, min(share * self.capacity_category, math.log(self.n_categories))

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        kl_weight: torch.Tensor | float = 1.0,
    ) -> LossOutput:
        """Objective of a minibatch; ``kl_weight`` scales the weights of both divergences."""
        output, reconstruction = self.reconstructed(tensors, inference_outputs, generative_outputs)
        kl_state = kl_normal(output.mean, output.variance)
        kl_category = (output.log_qc.exp() * output.log_qc).sum(-1) + math.log(self.n_categories)
        of_state, of_category = self.capacities
        excess = (kl_state.mean() - of_state).abs() + (kl_category.mean() - of_category).abs()
        return LossOutput(
            loss=reconstruction.mean() + kl_weight * self.gamma * excess,
            reconstruction_loss=reconstruction,
            kl_local={"kl_state": kl_state, "kl_category": kl_category},
            n_obs_minibatch=len(tensors[REGISTRY_KEYS.X_KEY]),
            extra_metrics={"state_information": kl_state.mean(), "category_information": kl_category.mean()},
        )


class JointVAE(SingleArmModel):
    __doc__ = doc_of("JointVAE", "Dupont 2018, arXiv:1804.00104", "JointModule")

    _module_cls = JointModule
