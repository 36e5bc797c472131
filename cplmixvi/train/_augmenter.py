"""How the learned augmenter is trained: generator and discriminator in turn, in every step."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from scvi import REGISTRY_KEYS
from torch.nn.functional import softplus

from cplmixvi.augment import Discriminator, LearnedAugmenter


class AugmenterPlan(LightningModule):
    r"""Trains a :class:`~cplmixvi.augment.LearnedAugmenter` against a discriminator.

    For each cell :math:`x` with latent mean :math:`\mu`, and a copy :math:`x_a` that is drawn at :math:`z` and has
    latent mean :math:`\mu_a` itself, the generator minimises

    .. math::
        -\log p(x\mid z) + \mathrm{KL}(q(z\mid x)\,\|\,\mathcal N(0, I))
        + w_\text{adv}\,\zeta(-D(x_a))
        + w_\text{tri}\big[\|\mu_a - \mu\|^2 - \|\mu_a - \mu_\text{other}\|^2 + m\big]_+
        + w_\text{tri}\big[v - \|z - \mu\|^2\big]_+

    where :math:`\zeta` is the softplus, squared distances are means over dimensions, and "other" is another cell of the
    minibatch. The triplet term keeps a copy closer to its own cell than to others; the last term keeps the copy from
    becoming identical to the cell. The discriminator minimises :math:`\zeta(-D(x)) + \zeta(D(x_a))` on log values.

    Parameters
    ----------
    augmenter
        The augmenter to train.
    n_genes
        Number of genes.
    lr
        Learning rate of generator and discriminator.
    adversarial_weight, triplet_weight
        :math:`w_\text{adv}` and :math:`w_\text{tri}`, nats. With ten times the default, the discriminator tears the
        copies away from the cells (``benchmarks/NOTES.md``).
    margin, least_spread
        :math:`m` and :math:`v`, in units of the prior's variance.
    """

    def __init__(
        self,
        augmenter: LearnedAugmenter,
        n_genes: int,
        *,
        lr: float = 1e-3,
        adversarial_weight: float = 3.0,
        triplet_weight: float = 10.0,
        margin: float = 0.5,
        least_spread: float = 0.05,
    ):
        super().__init__()
        # Two optimisers take turns, which Lightning leaves to the plan.
        self.automatic_optimization = False
        self.augmenter, self.discriminator = augmenter, Discriminator(n_genes)
        self.lr = lr
        self.adversarial_weight, self.triplet_weight = adversarial_weight, triplet_weight
        self.margin, self.least_spread = margin, least_spread
        #: Mean of every term of the losses, one entry per epoch.
        self.history: dict[str, list[float]] = {}
        self._totals: dict[str, torch.Tensor] = {}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the generator, and Adam with less momentum for the discriminator, whose task keeps changing."""
        slow: list[torch.nn.Parameter] = []
        fast: list[torch.nn.Parameter] = []
        for name, parameter in self.augmenter.generator.named_parameters():
            # Each of these is seen once per step, and moves by no more than the rate in it.
            (fast if name in ("emission.log_theta", "emission.log_scale") else slow).append(parameter)
        groups = [{"params": slow}, {"params": fast, "lr": 10 * self.lr}]
        return [
            torch.optim.Adam([group for group in groups if group["params"]], lr=self.lr),
            torch.optim.Adam(self.discriminator.parameters(), lr=self.lr, betas=(0.5, 0.999)),
        ]

    def generator_terms(self, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Terms of the generator's loss, each weighted and averaged over cells, and the log values of the copies."""
        drawn = self.augmenter.copies(x)
        log_copies = self.augmenter.log_values(drawn.values)
        own = self.augmenter.generator.encode(log_copies)[0]
        # Every cell's neighbour in the minibatch, which is in random order.
        other = drawn.mean.roll(1, 0)
        near, far = ((own - mean).square().mean(-1) for mean in (drawn.mean, other))
        spread = (drawn.latent - drawn.mean).square().mean(-1)
        terms = {
            "reconstruction": -drawn.log_prob.mean(),
            "divergence": drawn.divergence.mean(),
            "adversarial": self.adversarial_weight * softplus(-self.discriminator(log_copies)).mean(),
            "triplet": self.triplet_weight * (near - far + self.margin).clamp_min(0).mean(),
            "spread": self.triplet_weight * (self.least_spread - spread).clamp_min(0).mean(),
        }
        return terms, log_copies

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Take one step of the generator, and one of the discriminator on the same copies."""
        x = batch[REGISTRY_KEYS.X_KEY].float()
        generator, discriminator = self.optimizers()
        self.discriminator.requires_grad_(False)
        terms, log_copies = self.generator_terms(x)
        loss = torch.stack(list(terms.values())).sum()
        generator.zero_grad()
        self.manual_backward(loss)
        generator.step()
        self.discriminator.requires_grad_(True)
        real, copied = self.discriminator(self.augmenter.log_values(x)), self.discriminator(log_copies.detach())
        terms["discriminator"] = softplus(-real).mean() + softplus(copied).mean()
        discriminator.zero_grad()
        self.manual_backward(terms["discriminator"])
        discriminator.step()
        for key, value in terms.items():
            value = value.detach()
            self._totals[key] = self._totals[key] + value if key in self._totals else value
        return loss.detach()

    def on_fit_start(self) -> None:
        """Unfreeze the generator."""
        self.augmenter.generator.requires_grad_(True)

    def on_train_epoch_end(self) -> None:
        """Keep the means over the epoch, with one transfer from the device per epoch."""
        n_batches = self.trainer.num_training_batches
        for key, value in self._totals.items():
            self.history.setdefault(key, []).append(float(value) / n_batches)
        self._totals = {}

    def on_fit_end(self) -> None:
        """Freeze the generator."""
        self.augmenter.generator.requires_grad_(False)
        self.augmenter.fitted = True
