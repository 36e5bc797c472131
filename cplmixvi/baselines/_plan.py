"""Training of baselines: schedules that are shares of the training, and two networks that take turns."""

from __future__ import annotations

import torch
from scvi.module.base import LossOutput

from cplmixvi._constants import COPIES_KEY
from cplmixvi.train import CplMixPlan


class ScheduledPlan(CplMixPlan):
    """Tells the module before training how many steps there will be, so that schedules can be shares of them."""

    def on_fit_start(self) -> None:
        """See :meth:`CplMixPlan.on_fit_start`."""
        super().on_fit_start()
        self.module.plan_steps(int(self.trainer.estimated_stepping_batches))


class AdversarialPlan(CplMixPlan):
    """Trains a discriminator and then a generator in every step, with the authors' optimisers.

    Parameters
    ----------
    module
        An :class:`~cplmixvi.baselines.InfoGANModule`.
    lr, discriminator_lr
        Of the generator and of the discriminator.
    **kwargs
        Of :class:`cplmixvi.train.CplMixPlan`.

    Raises
    ------
    ValueError
        If the rate is to follow a loss: neither network's loss says how good the other one is. If a weight of
        divergences is to rise: there are none.
    """

    def __init__(self, module, *, lr: float = 1e-3, discriminator_lr: float = 2e-4, **kwargs):
        if kwargs.get("reduce_lr_on_plateau"):
            raise ValueError("reduce_lr_on_plateau=True: no loss says how well two networks compete; leave it out.")
        warm_up = [name for name in ("n_epochs_kl_warmup", "n_steps_kl_warmup") if kwargs.get(name) is not None]
        if warm_up:
            raise ValueError(
                f"{warm_up[0]}={kwargs[warm_up[0]]!r}: the objective has no divergence whose weight could rise; leave "
                f"{warm_up[0]} out."
            )
        super().__init__(module, lr=lr, **kwargs)
        self.discriminator_lr = discriminator_lr
        # Two optimisers take turns, which Lightning leaves to the plan.
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam with little momentum for both, whose tasks change."""
        options = {"betas": (0.5, 0.999), "eps": self.eps, "weight_decay": self.weight_decay}
        return [
            torch.optim.Adam(self.module.generator, lr=self.lr, **options),
            torch.optim.Adam(self.module.discriminator, lr=self.discriminator_lr, **options),
        ]

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """One step of the discriminator, and one of the generator on the same images."""
        (x,) = self.module.with_copies(batch)[COPIES_KEY]
        generator, discriminator = self.optimizers()
        codes = self.module.draw(len(x))
        images = self.module.generate(codes)
        loss, terms = self.module.discriminator_loss(x, images, codes)
        if not self._stepped(discriminator, loss):
            return
        # Gradients of the discriminator's weights are not needed here, only those that pass through it.
        for weight in self.module.discriminator:
            weight.requires_grad_(False)
        of_generator, more = self.module.generator_loss(images, codes)
        done = self._stepped(generator, of_generator)
        for weight in self.module.discriminator:
            weight.requires_grad_(True)
        if not done:
            return
        terms = {key: value.detach() for key, value in {**terms, **more}.items()}
        output = LossOutput(loss=(loss + of_generator).detach(), n_obs_minibatch=len(x), extra_metrics=terms)
        self._last_metrics = output.extra_metrics
        self._accumulate(output, "train")

    def _stepped(self, optimizer, loss: torch.Tensor) -> bool:
        """Step down the gradient of a loss that is finite; otherwise go back to the last good epoch."""
        if not loss.isfinite():
            self._go_back()
            return False
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return True

    def _logged(self, means: dict[str, torch.Tensor], mode: str) -> dict[str, torch.Tensor]:
        """See :meth:`CplMixPlan._logged`: training has no reconstruction, and so no bound of the likelihood."""
        if mode == "train":
            means = {key: value for key, value in means.items() if key not in ("reconstruction_loss", "kl_local")}
            return {f"{key}_{mode}": value for key, value in means.items()}
        return super()._logged(means, mode)
