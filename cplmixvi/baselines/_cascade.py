"""CascadeVAE: states released one dimension after the other, categories found by optimisation instead of an encoder."""

from __future__ import annotations

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput
from torch import nn

from cplmixvi.module import Arm, ArmOutput, Covariates, likelihood_class

from ._assignment import assign_categories
from ._model import SingleArmModel, doc_of
from ._module import SingleArmModule


class CascadeArm(Arm):
    r"""An arm whose category is the one that reconstructs best.

    :math:`q(c\mid x) \propto p(x\mid \bar s, c)` with :math:`\bar s` the mean of :math:`q(s\mid x)`: the category
    head of :class:`~cplmixvi.module.Arm` is not used. Set by the module: ``congestion`` of the assignment in training,
    whether categories are in use (``categorical``), and the depth that encoder inputs were brought to (``library``,
    `None` where values are not counts).
    """

    congestion: float = 0.0
    categorical: bool = True
    library: torch.Tensor | None = None

    @torch.no_grad()
    def costs(self, x: torch.Tensor, s: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """Reconstruction error in every category, nats, ``(n_cells, K)``.

        Parameters
        ----------
        x
            Encoder inputs, ``(n_cells, n_genes)``; counts are brought back to the common depth.
        s
            States, ``(n_cells, n_state)``.
        covariates
            Of the cells.
        """
        counts = x if self.library is None else torch.expm1(x)
        if type(self.likelihood) in (likelihood_class("poisson"), likelihood_class("zinb")):
            # Torch's distributions take whole numbers only.
            counts = counts.round()
        library = x.new_ones(len(x), 1) if self.library is None else self.library.to(x).expand(len(x), 1)
        columns = []
        for index in range(self.n_categories):
            c = nn.functional.one_hot(torch.full((len(x),), index, device=x.device), self.n_categories).to(x.dtype)
            columns.append(-self.likelihood.score(self.decode_hidden(c, s, covariates), library, counts))
        return torch.stack(columns, dim=1)

    def encode(self, x: torch.Tensor, covariates: Covariates) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Arm.encode`."""
        hidden = self.encoder(x, *covariates.categorical, cont=covariates.continuous)
        mean, _ = self.state(hidden, x.new_zeros(len(x), self.n_categories))
        return hidden, torch.log_softmax(-self.costs(x, mean.detach(), covariates), dim=-1)

    def forward(self, x: torch.Tensor, covariates: Covariates, **options) -> ArmOutput:
        """See :meth:`Arm.forward`; categories are assigned in training, and none before their stage."""
        if not self.training:
            return super().forward(x, covariates, **options)
        hidden, log_qc = self.encode(x, covariates)
        c = torch.zeros_like(log_qc)
        if self.categorical:
            found = assign_categories(-log_qc.cpu().double().numpy(), self.congestion)
            c = nn.functional.one_hot(torch.from_numpy(found).to(x.device), self.n_categories).to(x.dtype)
        mean, variance = self.state(hidden, c)
        return ArmOutput(log_qc, c, mean, variance, mean + variance.sqrt() * torch.randn_like(mean))


class CascadeModule(SingleArmModule):
    r"""One arm with the objective of CascadeVAE (Jeong and Song 2019, arXiv:1905.09432).

    .. math:: -\log p(x\mid s, c) + \sum_d \beta_d\,\mathrm{KL}\big(q(s_d\mid x)\,\|\,\mathcal N(0, 1)\big)

    All :math:`\beta_d` are high at first; each stage lowers that of one more dimension, except stage
    ``category_stage``, in which categories come into use instead. From then on, the categories of a minibatch are those
    with the smallest reconstruction error under a congestion cost (:func:`~cplmixvi.baselines.assign_categories`);
    before that stage, cells have no category.

    Parameters
    ----------
    n_input
        Number of genes.
    beta_high, beta_low
        :math:`\beta_d` before and after the dimension is released.
    stage_steps
        Number of steps per stage. If `None`, the number of training steps divided by the number of dimensions plus one,
        so that one stage remains after all dimensions are released.
    category_stage
        Stage in which categories come into use, from 0 to ``n_state``; as many dimensions have been released by then.
    congestion
        Nats by which the cost of a cell rises for each cell that is already in its category.
    n_channels, image_shape
        See :class:`~cplmixvi.baselines.JointModule`.
    **options
        Of :class:`~cplmixvi.module.CplMixVAE`: ``n_categories``, ``n_hidden``, ``likelihood``, ...

    Raises
    ------
    ValueError
        If a weight is negative, a stage is out of range, the values are not the pixels of such an image, or an option
        is given that this objective does not have, such as ``beta`` or ``temperature``.
    """

    _arm_cls = CascadeArm
    _method = "CascadeVAE"
    #: Categories are assigned, not drawn.
    _unused = (*SingleArmModule._unused, "temperature", "hard")

    def __init__(
        self,
        n_input: int,
        *,
        beta_high: float = 10.0,
        beta_low: float = 0.1,
        stage_steps: int | None = None,
        category_stage: int = 1,
        congestion: float = 0.001,
        **options,
    ):
        for name, value in {"beta_high": beta_high, "beta_low": beta_low, "congestion": congestion}.items():
            if not value >= 0:
                raise ValueError(f"{name}={value!r} must be at least 0.")
        if stage_steps is not None and stage_steps < 1:
            raise ValueError(f"stage_steps={stage_steps!r} must be at least 1.")
        super().__init__(n_input, **options)
        if not 0 <= category_stage <= self.n_state:
            raise ValueError(f"category_stage={category_stage!r} must be from 0 to the {self.n_state} states.")
        self.beta_high, self.beta_low, self.category_stage = beta_high, beta_low, category_stage
        self.stage_steps = stage_steps
        self._steps_per_stage = stage_steps or 1
        for arm in self.arms:
            arm.congestion = congestion
        self._set_stage()

    def plan_steps(self, n_steps: int) -> None:
        """Set the length of a stage from the number of training steps, ``n_steps``, unless it was given."""
        self._steps_per_stage = self.stage_steps or max(1, n_steps // (self.n_state + 1))
        self._set_stage()

    @property
    def stage(self) -> int:
        """Stage of the next step, counted from 0."""
        return int(self.n_steps) // self._steps_per_stage

    @property
    def n_released(self) -> int:
        """Number of state dimensions that are released in the next step."""
        return min(self.n_state, self.stage + (self.stage < self.category_stage))

    def _set_stage(self) -> None:
        for arm in self.arms:
            arm.categorical = self.stage >= self.category_stage
            arm.library = self.target_library if self.on_counts else None

    def inference(self, *args, **kwargs) -> dict:
        """See :meth:`CplMixVAE.inference`."""
        self._set_stage()
        return super().inference(*args, **kwargs)

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        kl_weight: torch.Tensor | float = 1.0,
    ) -> LossOutput:
        """Objective of a minibatch; ``kl_weight`` scales the weights of all divergences."""
        output, reconstruction = self.reconstructed(tensors, inference_outputs, generative_outputs)
        divergence = 0.5 * (output.variance + output.mean.square() - 1 - output.variance.log())
        beta = divergence.new_full((self.n_state,), self.beta_high)
        beta[: self.n_released] = self.beta_low
        kl_state = divergence.sum(-1)
        return LossOutput(
            loss=(reconstruction + kl_weight * (divergence * beta).sum(-1)).mean(),
            reconstruction_loss=reconstruction,
            kl_local={"kl_state": kl_state},
            n_obs_minibatch=len(tensors[REGISTRY_KEYS.X_KEY]),
            extra_metrics={"released": kl_state.new_tensor(float(self.n_released))},
        )


class CascadeVAE(SingleArmModel):
    __doc__ = doc_of("CascadeVAE", "Jeong and Song 2019, arXiv:1905.09432", "CascadeModule")

    _module_cls = CascadeModule
