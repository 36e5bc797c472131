"""The training plan: copies for the arms, the optimiser's defaults, and one log line per epoch."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan

from cplmixvi._constants import CELL_KEY, COPIES_KEY, GUIDE_KEY, KNOWN_KEY
from cplmixvi.augment import AcrossLevels, Augmenter, Compose

from ._answers import GuideAnswers
from ._cells import training_cells
from ._condition import Condition
from ._follow import follow_guide
from ._guide import fit_guide, guide_input, known_categories
from ._labels import labelled
from ._rollback import LastGood

logger = logging.getLogger(__name__)


class CplMixPlan(TrainingPlan):
    r"""Trains :class:`~cplmixvi.module.CplMixVAE`.

    Five things differ from :class:`scvi.train.TrainingPlan`: every step draws a fresh copy of each cell for each
    arm (so inference and validation see the cell itself), labels that some cells have guide the arms, multipliers of
    constraints take a dual step after each gradient step, a training that diverges goes back to its last good epoch
    and on at a lower rate, and the terms of the loss are accumulated on the device and logged once per epoch, because
    logging each step costs more than the step of a small model.

    Parameters
    ----------
    module
        The coupled arms.
    lr, eps, weight_decay
        Of Adam. ``eps`` is torch's 1e-8, not scvi-tools' 0.01, which would damp the small gradients of rare
        categories.
    n_epochs_kl_warmup
        Epochs over which the states' divergence reaches its weight; `None` for no warm-up.
    warm_start
        Fit a :class:`~cplmixvi.train._views.ViewConsensus` to the training cells first. The arms learn to predict its
        categories and stay near them (``guide_epsilon`` of the module). Cells that have a label are guided by that.
        Without a start, they alone have a guide: their cross-entropy is added to the objective.
    guided_fraction
        Share of the epochs in which decoders and states see categories drawn from the guide, before they see the arms'
        own.
    find_condition
        Whether a warm start looks for a condition that shifts cells of all types alike, and keeps types from following
        it: copies are then of both levels, see :class:`~cplmixvi.augment.AcrossLevels`.
    **kwargs
        Of :class:`scvi.train.TrainingPlan`.

    Attributes
    ----------
    level
        Level of every cell in a condition that was found, ``(n_obs,)``, -1 for cells that are not trained on; `None`
        if there is none.
    """

    def __init__(
        self,
        module,
        *,
        lr: float = 2e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        n_epochs_kl_warmup: int | None = None,
        warm_start: bool = False,
        guided_fraction: float = 0.25,
        find_condition: bool = True,
        **kwargs,
    ):
        super().__init__(
            module, lr=lr, eps=eps, weight_decay=weight_decay, n_epochs_kl_warmup=n_epochs_kl_warmup, **kwargs
        )
        self.warm_start, self.guided_fraction, self.find_condition = warm_start, guided_fraction, find_condition
        self.level: np.ndarray | None = None
        # In lists, because torch would take them for parts of the plan.
        self._own_augmenter: list[Augmenter] = []
        self._guide: list[GuideAnswers] = []
        self._totals: dict[str, dict[str, torch.Tensor]] = {"train": {}, "validation": {}}
        self._n_seen = {"train": 0, "validation": 0}
        self._last_metrics: dict[str, torch.Tensor] = {}
        self._last_good = LastGood(self.module, module.n_input)
        self._skips_step = False

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

    def on_fit_start(self) -> None:
        """Show the training cells to the augmenter, and fit the guide to them."""
        super().on_fit_start()
        augmenter = self.module.augmenter
        if augmenter.needs_cells:
            augmenter.prepare(training_cells(self.trainer.datamodule, self.module.on_counts), self.device)
        # A training that is resumed has its guide already.
        if self.warm_start and not self._guide:
            datamodule = self.trainer.datamodule
            adopt = self._adopt if self._looks_for_condition() else None
            guide = fit_guide(self.module, datamodule.train_dataloader(), adopt=adopt).to(self.device)
            self._guide = [GuideAnswers(guide, self.module, _n_rows(datamodule))]
            follow_guide(self.module, self._guide[0], datamodule.train_dataloader())

    def _looks_for_condition(self) -> bool:
        """Whether copies could be of both levels of a condition, and the user has not named one."""
        augmenter = self.module.augmenter
        has_cells = hasattr(self.trainer.datamodule, "adata_manager")
        may_cross = not (augmenter.replaces or augmenter.nuisance_keys or augmenter.on_images)
        return self.find_condition and has_cells and may_cross

    def _adopt(self, condition: Condition) -> None:
        """Find the level of every training cell in a condition, which copies are of both levels of from now on."""
        datamodule = self.trainer.datamodule
        cells = training_cells(datamodule, self.module.on_counts)
        self.level = np.full(cells.adata.n_obs, -1, dtype=np.int8)
        for tensors in datamodule.train_dataloader():
            level = condition(*(values.cpu() for values in guide_input(self.module, tensors)))
            self.level[tensors[CELL_KEY].view(-1).cpu().numpy()] = level.numpy()
        upper = self.level[cells.rows].mean()
        logger.info(
            "A condition shifts cells of all types alike (%.0f%% of them): types do not follow it.", 100 * upper
        )
        self._cross_levels()
        self.module.augmenter.prepare(cells, self.device)

    def _cross_levels(self) -> None:
        """Let copies be of both levels until the training ends."""
        self._own_augmenter.append(self.module.augmenter)
        self.module.augmenter = Compose([AcrossLevels(np.maximum(self.level, 0)), self.module.augmenter])

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """One step on fresh copies; returns the loss to Lightning's automatic optimisation."""
        if "kl_weight" in self.loss_kwargs:
            self.loss_kwargs["kl_weight"] = self.kl_weight
        batch = {**batch, COPIES_KEY: self.module.draw_copies(batch)}
        self.module.guided = bool(self._guide) and self.current_epoch < self.guided_fraction * self.trainer.max_epochs
        known = known_categories(self.module, batch)
        for guide in self._guide:
            batch[GUIDE_KEY] = labelled(guide(batch), known)
        if known is not None and not self._guide:
            batch[KNOWN_KEY] = known
        output = self._finite(batch)
        if output is None:
            self._go_back()
            self._skips_step = True
            # Lightning steps on what is returned; without gradients no weight moves.
            return 0.0 * next(self.module.parameters()).sum()
        self._last_metrics = output.extra_metrics
        self._accumulate(output, "train")
        if math.isinf(self._last_good.best):
            # Before the first step: what the first epoch is compared with.
            self._last_good.best = float(output.reconstruction_loss_sum.detach()) / output.n_obs_minibatch
        return output.loss

    def _finite(self, batch: dict[str, torch.Tensor]) -> LossOutput | None:
        """Terms of the loss; `None` if they are not finite, or cannot be because weights are not."""
        try:
            _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        except ValueError:
            # Distributions refuse parameters that are not finite.
            if self._last_good.is_finite():
                raise
            return None
        return output if output.loss.isfinite() else None

    def _go_back(self) -> None:
        self._last_good.go_back(self.trainer.optimizers, self.current_epoch)
        self._totals["train"], self._n_seen["train"], self._last_metrics = {}, 0, {}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let no weight move after a loss that was not finite."""
        super().on_before_optimizer_step(optimizer)
        if self._skips_step:
            optimizer.zero_grad(set_to_none=True)
            self._skips_step = False

    def on_train_epoch_start(self) -> None:
        """Remember the state that the epoch starts from."""
        super().on_train_epoch_start()
        self._last_good.take(self.trainer.optimizers)

    def on_train_batch_end(self, *args) -> None:
        """Dual steps, once the gradient step that used the old multipliers is done; a look at the epoch at its end."""
        super().on_train_batch_end(*args)
        if self._last_metrics:
            self.module.dual_step(self._last_metrics)
        if self.trainer.is_last_batch and self._n_seen["train"]:
            # Before the validation, which would see what is wrong.
            mean = float(self._totals["train"]["reconstruction_loss"]) / self._n_seen["train"]
            if self._last_good.is_bad(mean):
                self._go_back()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Add what is neither the module's nor the trainer's."""
        checkpoint["plan"] = {
            "guide": [guide.state() for guide in self._guide],
            "level": self.level,
            "n_rollbacks": self._last_good.n_rollbacks,
            "best": self._last_good.best,
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Take over what :meth:`on_save_checkpoint` added."""
        state = checkpoint["plan"]
        self.level = state["level"]
        if self.level is not None:
            self._cross_levels()
        self._guide = [GuideAnswers.of(guide, self.module) for guide in state["guide"]]
        self._last_good.n_rollbacks, self._last_good.best = int(state["n_rollbacks"]), float(state["best"])

    def on_fit_end(self) -> None:
        """Leave the module as inference expects it."""
        super().on_fit_end()
        self._leave()

    def configure_callbacks(self) -> list[Callback]:
        """Leave the module so too where the training fails: Lightning tells callbacks of that, and not the plan."""
        return [*super().configure_callbacks(), _LeaveOnException()]

    def _leave(self) -> None:
        self.module.guided = False
        self.module.augmenter.release()
        if self._own_augmenter:
            self.module.augmenter = self._own_augmenter.pop()

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


class _LeaveOnException(Callback):
    def on_exception(self, trainer: Trainer, pl_module: CplMixPlan, exception: BaseException) -> None:
        pl_module._leave()


def _n_rows(datamodule) -> int:
    """Rows that the training cells have in their AnnData; 0 where the data module does not say."""
    return int(max(getattr(datamodule, "train_idx", ()), default=-1)) + 1
