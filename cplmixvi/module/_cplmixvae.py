"""The coupled arms as one scvi-tools module: inference, generative model and objective."""

from __future__ import annotations

import math

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import nn
from torch.distributions import Distribution, Normal

from cplmixvi._compiled import scaled_log1p
from cplmixvi._constants import COPIES_KEY, COUNT_LIKELIHOODS, GUIDE_KEY, KNOWN_KEY, TARGETS_KEY
from cplmixvi._processes import averaged, n_processes
from cplmixvi.augment import Augmenter, Identity

from ._alignment import StateAlignment
from ._arm import Arm, ArmOutput, Covariates
from ._coupling import Coupling, pairwise_agreement
from ._dual import DualWeight
from ._likelihoods import likelihood_class
from ._losses import coupled_objective, guide_divergence, kl_normal, label_divergence, negative_entropy
from ._prior import StatePrior
from ._ranges import check_ranges


class CplMixVAE(BaseModuleClass):
    """``n_arms`` mixture VAEs that must agree on each cell's category (paper, Eq. 8).

    Parameters
    ----------
    n_input
        Number of genes.
    n_categories, n_state, n_arms
        ``K``, ``S`` and ``A``.
    n_batch, n_cats_per_cov, n_continuous_cov
        Levels of the batch and of further categorical covariates, number of continuous ones.
    likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"`` on counts; ``"normal"``, ``"mse"`` on log values; ``"bernoulli"``.
    augmenter
        Draws the arms' copies in training; inference always sees the cell itself.
    n_hidden, n_layers, dropout_rate
        Of every encoder and decoder; dropout in the encoder only.
    temperature, hard
        Temperature of the Gumbel-softmax in training, and whether samples are straight-through instead of relaxed.
    beta
        Weight of the states' divergence.
    state_given_category
        Whether q(s|c,x) sees ``c``.
    share_arms
        Whether all arms are one network, which then sees several copies of each cell (an ablation of the paper).
    state_prior
        p(s|c): ``"standard"`` or ``"type"``, see :class:`~cplmixvi.module.StatePrior`.
    target_library
        Molecules to which cells are scaled before the encoder's logarithm (training data's median library size).
    distance, lam, epsilon, dual_rate, variance_momentum
        See :class:`~cplmixvi.module.Coupling`. The paper's own coupling is ``distance="perturbed", epsilon=None``: it
        has to keep categories from collapsing, where a guide does that here; its gradient grows without bound as a
        category's variance falls, which with rare types undoes the guide.
    guide_epsilon
        Tolerated divergence of the arms from a guide (where the minibatch has one), as a share of what the guide says
        of a cell beyond the categories' frequencies; the guide's weight is found by dual ascent. `None` keeps it at 10.
    n_labels
        The first so many categories are those of labels, which guide the training (where the minibatch has them).
    use_size_factor_key, size_factor_scale
        Whether a size factor in minibatches takes the place of the library, and molecules of these genes per unit of
        it. Some data modules give one that nobody has registered, relative to the minibatch.

    Raises
    ------
    ValueError
        If a number is out of range, or the name of a likelihood, distance or prior is not known.

    Notes
    -----
    The states of different arms have coordinates of their own: ``qz`` and ``z``, which scvi-tools' getters read, are
    those of arm 0, and ``alignment`` brings the others to these. ``px`` averages the arms' decoded parameters, which do
    share their coordinates (genes).
    """

    _arm_cls: type[Arm] = Arm

    def __init__(
        self,
        n_input: int,
        *,
        n_categories: int,
        n_state: int = 2,
        n_arms: int = 2,
        n_batch: int = 1,
        n_cats_per_cov: tuple[int, ...] = (),
        n_continuous_cov: int = 0,
        likelihood: str = "nb",
        augmenter: Augmenter | None = None,
        n_hidden: int = 100,
        n_layers: int = 2,
        dropout_rate: float = 0.0,
        temperature: float = 1.0,
        hard: bool = False,
        beta: float = 1.0,
        state_given_category: bool = True,
        share_arms: bool = False,
        state_prior: str = "standard",
        target_library: float = 1e4,
        distance: str = "aitchison",
        lam: float | None = None,
        epsilon: float | None = 0.05,
        dual_rate: float = 0.05,
        variance_momentum: float = 0.1,
        guide_epsilon: float | None = 0.03,
        n_labels: int = 0,
        use_size_factor_key: bool = True,
        size_factor_scale: float = 1.0,
    ):
        check_ranges(locals())
        super().__init__()
        self.n_input, self.n_categories, self.n_state, self.n_arms = n_input, n_categories, n_state, n_arms
        self.n_labels, self.n_batch = n_labels, n_batch
        self.use_size_factor_key, self.size_factor_scale = use_size_factor_key, size_factor_scale
        #: Set where only the weights of batches after the first so many may learn.
        self.n_known_batches: int | None = None
        self.on_counts = likelihood in COUNT_LIKELIHOODS
        self.temperature, self.hard, self.beta = temperature, hard, beta
        #: Set by the training plan: categories are drawn from the minibatch's guide while the arms learn to predict it.
        self.guided = False
        self.guide_weight = DualWeight(10.0, guide_epsilon, bounds=(1.0, 1e2))
        # A running average, because a small minibatch may hold a single type, of which a guide says nothing more.
        self.register_buffer("guide_information", torch.tensor(0.5 * math.log(max(n_categories, 2))))
        self.augmenter = augmenter or Identity()
        self.coupling = Coupling(
            n_arms,
            n_categories,
            distance=distance,
            lam=lam,
            epsilon=epsilon,
            dual_rate=dual_rate,
            momentum=variance_momentum,
        )
        self.register_buffer("target_library", torch.tensor(float(target_library)))
        arms = [
            self._arm_cls(
                n_input,
                n_categories,
                n_state,
                likelihood_class(likelihood),
                n_cats_per_cov=(n_batch, *n_cats_per_cov),
                n_continuous=n_continuous_cov,
                n_hidden=n_hidden,
                n_layers=n_layers,
                dropout_rate=dropout_rate,
                state_given_category=state_given_category,
                normal_form=self.augmenter.normal_form if self.augmenter.moves_far else None,
            )
            for _ in range(1 if share_arms else n_arms)
        ]
        priors = [StatePrior(state_prior, n_categories, n_state) for _ in arms]
        # One network stands in the place of every arm, so that nothing else needs to know.
        self.arms = nn.ModuleList(arms * n_arms if share_arms else arms)
        self.priors = nn.ModuleList(priors * n_arms if share_arms else priors)
        self.alignment = StateAlignment(n_arms, n_categories, n_state)

    def train(self, mode: bool = True) -> CplMixVAE:
        """Set the mode; what a module has learned of known batches includes the statistics of its normalisation."""
        super().train(mode)
        if self.n_known_batches is not None:
            for part in self.modules():
                if isinstance(part, nn.BatchNorm1d):
                    part.eval()
        return self

    @torch.no_grad()
    def with_copies(self, tensors: dict[str, torch.Tensor]) -> dict:
        """A minibatch with an independent copy of it for every arm, and what the arm reconstructs from that."""
        x = tensors[REGISTRY_KEYS.X_KEY].float()
        copies, targets = zip(*(self.augmenter.draw(x, tensors) for _ in range(self.n_arms)), strict=True)
        return {**tensors, COPIES_KEY: list(copies), TARGETS_KEY: list(targets)}

    def encoder_input(self, x: torch.Tensor, depth: float = 1.0) -> torch.Tensor:
        r"""What an encoder reads: :math:`\log(1 + x\,\ell_0/\ell)` of counts, other values unchanged.

        ``depth`` is the share of a cell's molecules that ``x`` has, if it is a part of the cell.
        """
        if not self.on_counts:
            return x
        return scaled_log1p(x, depth * self.target_library / x.sum(-1, keepdim=True).clamp_min(1.0))

    def _get_inference_input(self, tensors: dict[str, torch.Tensor], **kwargs) -> dict:
        return {
            "x": tensors[REGISTRY_KEYS.X_KEY].float(),
            "covariates": Covariates.of(tensors),
            "copies": tensors.get(COPIES_KEY),
            "guide": tensors.get(GUIDE_KEY) if self.guided else None,
        }

    def _get_generative_input(self, tensors: dict[str, torch.Tensor], inference_outputs: dict) -> dict:
        return {
            "arms": inference_outputs["arms"],
            "library": self._library(tensors, tensors.get(TARGETS_KEY, inference_outputs["views"])),
            "covariates": Covariates.of(tensors),
        }

    def _library(self, tensors: dict[str, torch.Tensor], views: list[torch.Tensor]) -> list[torch.Tensor]:
        """Library size of what each arm reconstructs; a registered size factor is scaled by the share that was kept."""
        totals = [view.sum(-1, keepdim=True) for view in views]
        size_factor = tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        if size_factor is not None and self.use_size_factor_key:
            whole = tensors[REGISTRY_KEYS.X_KEY].sum(-1, keepdim=True).clamp_min(1.0)
            return [self.size_factor_scale * size_factor * (total / whole).clamp_min(1e-6) for total in totals]
        # A copy may have lost every molecule; a rate of zero has no likelihood.
        return [total.clamp_min(1.0) for total in totals]

    @auto_move_data
    def inference(
        self,
        x: torch.Tensor,
        covariates: Covariates,
        copies: list[torch.Tensor] | None = None,
        guide: torch.Tensor | None = None,
        sample: bool = False,
        n_samples: int = 1,
    ) -> dict:
        """Posterior of every arm.

        Parameters
        ----------
        x
            Values, shape ``(n_cells, n_genes)``.
        covariates
            See :class:`~cplmixvi.module.Covariates`.
        copies
            The arms' copies, each ``(n_cells, n_genes)``; without them every arm sees ``x``.
        guide
            Probabilities ``(n_cells, K)`` that categories are drawn from instead of the arms' own.
        sample
            Draw the category instead of taking the most probable one (always so in training).
        n_samples
            Number of posterior samples; the category is drawn for each when there are several.

        Returns
        -------
        dict
            ``arms``: a list of :class:`~cplmixvi.module.ArmOutput`; ``views``: what each arm saw; ``qz`` and ``z``:
            posterior and sample of arm 0's state.
        """
        views = copies if copies is not None else [x] * self.n_arms
        outputs = [
            arm(
                self.encoder_input(view),
                covariates,
                temperature=self.temperature,
                hard=self.hard,
                sample=sample or n_samples > 1,
                n_samples=n_samples,
                guide=guide,
            )
            for arm, view in zip(self.arms, views, strict=True)
        ]
        first = outputs[0]
        return {"arms": outputs, "views": views, "qz": Normal(first.mean, first.variance.sqrt()), "z": first.s}

    def forward(self, tensors, *args, inference_kwargs: dict | None = None, compute_loss: bool = True, **kwargs):
        """Infer, decode and, with ``compute_loss``, compare; see scvi-tools.

        For a loss, the category is drawn: with the most probable one alone, there would be no bound on the evidence.
        """
        chosen = {"sample": compute_loss} | (inference_kwargs or {})
        return super().forward(tensors, *args, inference_kwargs=chosen, compute_loss=compute_loss, **kwargs)

    @auto_move_data
    def generative(
        self,
        arms: list[ArmOutput],
        library: list[torch.Tensor],
        covariates: Covariates,
        transform_batch: torch.Tensor | int | None = None,
    ) -> dict[str, Distribution | list | None]:
        """Decode every arm.

        Parameters
        ----------
        arms
            Posteriors from :meth:`inference`.
        library
            Molecules per cell for every arm, each ``(n_cells, 1)``.
        covariates
            See :class:`~cplmixvi.module.Covariates`.
        transform_batch
            Decode all cells as if they came from this batch (code).

        Returns
        -------
        dict
            ``decoded``: the decoders' last hidden layer and the library size, for every arm; ``px``: the average of the
            arms' distributions (`None` in training, which needs none); ``pz``: prior of ``s``.
        """
        if transform_batch is not None:
            batch, *rest = covariates.categorical
            covariates = Covariates((torch.full_like(batch, int(transform_batch)), *rest), covariates.continuous)
        decoded = [
            (arm.decode_hidden(output.c, output.s, covariates), size)
            for arm, output, size in zip(self.arms, arms, library, strict=True)
        ]
        px = None
        if not self.training:
            px_arms = [arm.likelihood(*of_arm) for arm, of_arm in zip(self.arms, decoded, strict=True)]
            px = self.arms[0].likelihood.mean_over_arms(px_arms)
        mean, variance = self.priors[0](arms[0].c)
        return {"decoded": decoded, "px": px, "pz": Normal(mean, variance.sqrt())}

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        kl_weight: torch.Tensor | float = 1.0,
    ) -> LossOutput:
        """Objective of a minibatch and the terms that are logged.

        ``reconstruction_loss`` and ``kl_local`` (states, and categories against the uniform prior) are means over
        arms in nats per cell, so that their sum is a negative evidence lower bound whatever the coupling.
        """
        outputs: list[ArmOutput] = inference_outputs["arms"]
        targets = tensors.get(TARGETS_KEY, inference_outputs["views"])
        parts = zip(self.arms, generative_outputs["decoded"], targets, strict=True)
        reconstruction = -torch.stack([arm.likelihood.score(*decoded, target) for arm, decoded, target in parts])
        states = zip(self.priors, outputs, strict=True)
        kl_state = torch.stack([kl_normal(state.mean, state.variance, *prior(state.c)) for prior, state in states])
        log_qc = torch.stack([output.log_qc for output in outputs])
        neg_entropy = negative_entropy(log_qc.exp())
        distance2, share = self.coupling(log_qc)
        objective = coupled_objective(
            reconstruction,
            kl_state,
            neg_entropy,
            distance2,
            # Arms that all follow one guide need no pull towards each other.
            lam=0.0 if self.guided else self.coupling.lam.value,
            beta=self.beta * kl_weight,
            constrained=self.coupling.constrained,
        )
        metrics = {
            "distance": distance2.detach().mean() / max(self.coupling.n_pairs, 1),
            "disagreement": share,
            "entropy": -neg_entropy.detach().mean(),
            "agreement": pairwise_agreement(log_qc.argmax(-1)).mean(),
            "lambda": self.coupling.lam.value.clone(),
        }
        if GUIDE_KEY in tensors:
            divergence, information = guide_divergence(log_qc, tensors[GUIDE_KEY])
            objective = objective + self.guide_weight.value * divergence.sum(0)
            n_cells = n_processes() * len(tensors[GUIDE_KEY])
            self.guide_information.lerp_(information.to(self.guide_information), n_cells / (n_cells + 1_000))
            metrics["guide_divergence"] = divergence.detach().mean() / self.guide_information.clamp_min(1e-3)
            metrics["guide_weight"] = self.guide_weight.value.clone()
        elif KNOWN_KEY in tensors:
            # The weight stays where it is: ratios of a few labelled cells are too noisy to steer it.
            divergence = label_divergence(log_qc, tensors[KNOWN_KEY])
            objective = objective + self.guide_weight.value * divergence.sum(0)
            metrics["label_divergence"] = divergence.detach().mean()
        return LossOutput(
            loss=objective.mean(),
            reconstruction_loss=reconstruction.mean(0),
            kl_local={"kl_state": kl_state.mean(0), "kl_category": neg_entropy.mean(0) + math.log(self.n_categories)},
            extra_metrics=metrics,
        )

    def dual_step(self, metrics: dict[str, torch.Tensor]) -> None:
        """Move the multipliers after a gradient step, given the ``extra_metrics`` of its loss."""
        if n_processes() > 1:
            names = [name for name in ("disagreement", "guide_divergence") if name in metrics]
            metrics = dict(zip(names, averaged(torch.stack([metrics[name] for name in names])), strict=True))
        if self.guided:
            self.coupling.lam.observe(metrics["disagreement"])
            return
        self.coupling.lam.step(metrics["disagreement"])
        if "guide_divergence" in metrics:
            self.guide_weight.step(metrics["guide_divergence"])

    @torch.inference_mode()
    def sample(
        self, tensors: dict[str, torch.Tensor], n_samples: int = 1, generative_kwargs: dict | None = None
    ) -> torch.Tensor:
        """Draw from the posterior predictive of the averaged arms.

        Parameters
        ----------
        tensors
            A minibatch.
        n_samples
            Draws per cell.
        generative_kwargs
            Of :meth:`generative`.

        Returns
        -------
        torch.Tensor
            ``(n_cells, n_genes)``, with a last axis ``n_samples`` if there are several.
        """
        _, generative_outputs = self.forward(
            tensors,
            inference_kwargs={"n_samples": n_samples},
            generative_kwargs=generative_kwargs,
            compute_loss=False,
        )
        drawn = generative_outputs["px"].sample()
        return drawn.movedim(0, -1).cpu() if n_samples > 1 else drawn.cpu()
