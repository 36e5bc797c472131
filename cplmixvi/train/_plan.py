"""The training plan: copies for the arms, the optimiser's defaults, and one log line per epoch."""

from __future__ import annotations

import torch
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan

from cplmixvi._constants import COPIES_KEY


class CplMixPlan(TrainingPlan):
    r"""Trains :class:`~cplmixvi.module.CplMixVAE`.

    Three things differ from :class:`scvi.train.TrainingPlan`: every step draws a fresh copy of each cell for each
    arm (so inference and validation see the cell itself), :math:`\lambda` takes a dual step after the gradient
    step when the coupling is constrained, and the terms of the loss are accumulated on the device and logged once
    per epoch, because logging each step costs more than the step of a small model.

    Parameters
    ----------
    module
        The coupled arms.
    lr, eps, weight_decay
        Of Adam. ``eps`` is torch's 1e-8, not scvi-tools' 0.01, which would damp the small gradients of rare
        categories.
    n_epochs_kl_warmup
        Epochs over which the states' divergence reaches its weight; `None` for no warm-up.
    **kwargs
        Of :class:`scvi.train.TrainingPlan`.
    """

    def __init__(
        self,
        module,
        *,
        lr: float = 2e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        n_epochs_kl_warmup: int | None = None,
        **kwargs,
    ):
        super().__init__(
            module, lr=lr, eps=eps, weight_decay=weight_decay, n_epochs_kl_warmup=n_epochs_kl_warmup, **kwargs
        )
        self._totals: dict[str, dict[str, torch.Tensor]] = {"train": {}, "validation": {}}
        self._n_seen = {"train": 0, "validation": 0}
        self._last_distance = torch.zeros(())

    def _accumulate(self, output: LossOutput, mode: str) -> None:
        n_obs = output.n_obs_minibatch
        terms = {
            "loss": output.loss.detach() * n_obs,
            "reconstruction_loss": output.reconstruction_loss_sum.detach(),
            "kl_local": output.kl_local_sum.detach(),
            **{key: value.detach() * n_obs for key, value in output.extra_metrics.items()},
        }
        totals = self._totals[mode]
        for key, value in terms.items():
            totals[key] = totals[key] + value if key in totals else value
        self._n_seen[mode] += n_obs

    def _log_epoch(self, mode: str) -> None:
        n_obs = self._n_seen[mode]
        if n_obs == 0:
            return
        means = {key: value / n_obs for key, value in self._totals[mode].items()}
        loss = means.pop("loss")
        values = {f"{key}_{mode}": value for key, value in means.items()}
        values[f"elbo_{mode}"] = means["reconstruction_loss"] + means["kl_local"]
        # scvi-tools calls the two totals train_loss and validation_loss, against its own pattern elsewhere.
        self.log(f"{mode}_loss", loss, prog_bar=mode == "train", batch_size=n_obs, sync_dist=self.use_sync_dist)
        self.log_dict(values, batch_size=n_obs, sync_dist=self.use_sync_dist)
        self._totals[mode] = {}
        self._n_seen[mode] = 0

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """One step on fresh copies; returns the loss to Lightning's automatic optimisation."""
        if "kl_weight" in self.loss_kwargs:
            self.loss_kwargs["kl_weight"] = self.kl_weight
        batch = {**batch, COPIES_KEY: self.module.draw_copies(batch)}
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        self._last_distance = output.extra_metrics["distance"]
        self._accumulate(output, "train")
        return output.loss

    def on_train_batch_end(self, *args) -> None:
        """Dual step, once the gradient step that used the old multiplier is done."""
        super().on_train_batch_end(*args)
        self.module.coupling.dual_step(self._last_distance)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Terms of the loss on the cells themselves."""
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        self._accumulate(output, "validation")

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means."""
        super().on_train_epoch_end()
        self._log_epoch("train")

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's means."""
        super().on_validation_epoch_end()
        self._log_epoch("validation")
