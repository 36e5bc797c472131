"""The training plan: copies for the arms, the optimiser's defaults, and one log line per epoch."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan

from cplmixvi import pp
from cplmixvi._constants import CELL_KEY, GUIDE_KEY, KNOWN_KEY
from cplmixvi._memory import KeptMemory
from cplmixvi._processes import any_of, n_processes, process_index, same_everywhere, summed
from cplmixvi.augment import AcrossBatches, AcrossLevels, Augmenter, Compose
from cplmixvi.module import synced

from ._answers import GuideAnswers
from ._cells import training_cells
from ._condition import LevelOf, are_of_groups, its_batch, may_cross
from ._follow import follow_guide
from ._guide import MAX_CELLS, fit_guide, guide_input, known_categories
from ._guide_state import guide_of, guide_state
from ._labels import labelled
from ._loader import Minibatches, is_on_disk
from ._norms import WarmNorms
from ._repeat import HalfFits, fit_halves
from ._rollback import LastGood

logger = logging.getLogger(__name__)


class CplMixPlan(TrainingPlan):
    """Trains :class:`~cplmixvi.module.CplMixVAE`.

    Five things differ from :class:`scvi.train.TrainingPlan`. Every training step draws a fresh copy of each cell for
    each arm (inference and validation see the cell itself). Labels that some cells have guide the arms. Multipliers of
    constraints take a dual step after each gradient step. Training that diverges returns to its last good epoch and
    continues at a lower rate. Terms of the loss are accumulated on the device and logged once per epoch, because
    logging each step costs more than the step of a small model.

    Parameters
    ----------
    module
        The coupled arms.
    lr, eps, weight_decay
        Of Adam. ``eps`` is torch's 1e-8 rather than scvi-tools' 0.01, which would damp the small gradients of rare
        categories.
    n_epochs_kl_warmup
        Number of epochs over which the weight of the states' divergence rises to its full value; `None` for no warm-up.
    warm_start
        Whether to fit a :class:`~cplmixvi.train._views.ViewConsensus` to the training cells first. The arms learn to
        predict its categories and stay close to them (``guide_epsilon`` of the module). Cells that have a label are
        guided by that instead. Without a warm start, only these cells have a guide: their cross-entropy is added to the
        objective.
    guided_fraction
        Share of the epochs in which decoders and states see categories drawn from the guide, before they see the arms'
        own.
    find_condition
        Whether a warm start looks for a condition that shifts cells of most types in the same direction, and keeps the
        types from following it if they would: copies are then of both levels, see
        :class:`~cplmixvi.augment.AcrossLevels`. Batches that change some types much more than others are such a
        condition as well: types are then looked for in the mean of cells and their counterparts, see
        :class:`~cplmixvi.augment.AcrossBatches`.
    fit_halves
        Whether a warm start also makes fits to halves of the data, without which confidence is too high.
    begin
        Rows of some training cells and probabilities of their categories, from which a warm start finds the others; see
        :func:`~cplmixvi.train._guide.fit_guide`.
    **kwargs
        Of :class:`scvi.train.TrainingPlan`.

    Attributes
    ----------
    level
        Level of each cell in the condition that was found, ``(n_obs,)``, -1 for cells outside the training set; `None`
        if no condition was found.
    crosses
        Whether types would follow that condition, so that copies are of both levels.
    compared
        Batch of each cell, likewise, where batches are compared, or its level, where a categorical covariate has the
        levels of the condition; `None` elsewhere.
    half_fits
        Labels of the training cells by fits to halves of them, see :func:`~cplmixvi.train._repeat.fit_halves`.
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
        fit_halves: bool = True,
        begin: tuple[np.ndarray, np.ndarray] | None = None,
        **kwargs,
    ):
        super().__init__(
            module, lr=lr, eps=eps, weight_decay=weight_decay, n_epochs_kl_warmup=n_epochs_kl_warmup, **kwargs
        )
        if not (pp.is_number(guided_fraction) and 0 <= guided_fraction <= 1):
            raise ValueError(f"guided_fraction={guided_fraction!r} must be a share of the epochs, from 0 to 1.")
        self.warm_start, self.guided_fraction = warm_start, guided_fraction
        self.find_condition, self.fit_halves, self.begin = find_condition, fit_halves, begin
        self.level: np.ndarray | None = None
        self.crosses = False
        self.compared: np.ndarray | None = None
        self.half_fits: HalfFits | None = None
        # In lists, because torch would take them for parts of the plan.
        self._own_augmenter: list[Augmenter] = []
        self._guide: list[GuideAnswers] = []
        self._totals: dict[str, dict[str, torch.Tensor]] = {"train": {}, "validation": {}}
        self._n_seen = {"train": 0, "validation": 0}
        self._last_metrics: dict[str, torch.Tensor] = {}
        self._last_good = LastGood(self.module, module.n_input)
        self._skips_step = False
        self._memory = KeptMemory()
        self._norms = WarmNorms(self.module)

    def get_optimizer_creator(self) -> Callable[..., torch.optim.Optimizer]:
        """Adam that updates all weights in one pass, where torch supports it; see :class:`scvi.train.TrainingPlan`."""
        kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}.get(self.optimizer_name)
        if kind is None or self.device.type not in ("cpu", "cuda"):
            return super().get_optimizer_creator()
        return partial(kind, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True)

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

    def _means(self, mode: str) -> dict[str, torch.Tensor]:
        """Means over the cells that all processes have seen in an epoch so far."""
        totals = self._totals[mode]
        some = torch.stack([*totals.values(), torch.as_tensor(self._n_seen[mode], device=self.device)])
        # Double, because single precision cannot count millions of cells one by one.
        *values, n_obs = summed(some.to(torch.float32 if self.device.type == "mps" else torch.float64))
        return {key: (value / n_obs).float() for key, value in zip(totals, values, strict=True)}

    def _logged(self, means: dict[str, torch.Tensor], mode: str) -> dict[str, torch.Tensor]:
        """What is logged of an epoch's means, by the name in the history."""
        values = {f"{key}_{mode}": value for key, value in means.items()}
        return {**values, f"elbo_{mode}": means["reconstruction_loss"] + means["kl_local"]}

    def _log_epoch(self, mode: str) -> None:
        n_obs = self._n_seen[mode]
        if n_obs == 0:
            return
        means = self._means(mode)
        loss = means.pop("loss")
        values = self._logged(means, mode)
        # scvi-tools calls the two totals train_loss and validation_loss, against its own pattern elsewhere.
        self.log(f"{mode}_loss", loss, prog_bar=mode == "train", batch_size=n_obs, sync_dist=self.use_sync_dist)
        self.log_dict(values, batch_size=n_obs, sync_dist=self.use_sync_dist)
        self._totals[mode] = {}
        self._n_seen[mode] = 0

    def setup(self, stage: str | None = None) -> None:
        """Normalise over the minibatches of all processes, if there are several."""
        super().setup(stage)
        if n_processes() > 1:
            synced(self.module.arms)

    def on_fit_start(self) -> None:
        """Show the training cells to the augmenter, and fit the guide to them."""
        super().on_fit_start()
        if getattr(self.trainer.datamodule, "shuffle", None) is False:
            warnings.warn(
                "The data module gives its cells in the order in which they are stored: minibatches and the cells that "
                "the start sees may be of a few types only. Let it mix them (shuffle=True).",
                UserWarning,
                stacklevel=2,
            )
        augmenter = self.module.augmenter
        if augmenter.needs_cells:
            augmenter.prepare(training_cells(self.trainer.datamodule, self.module.on_counts), self.device)
        # A training that is resumed has its guide already.
        if self.warm_start and not self._guide:
            self._start()
        self._norms = WarmNorms(self.module)
        if n_processes() > 1:
            # What is the same in all processes until now, if there is a seed, must not be their noise.
            torch.manual_seed(same_everywhere(int(torch.randint(2**31 - 1, (1,)))) + process_index())

    def _start(self) -> None:
        """Fit the guide and let the arms follow it, in one process; the others are given what it found."""
        if process_index() == 0:
            adopt = self._adopt if self._looks_for_condition() else None
            guide = fit_guide(self.module, self._start_batches(), adopt=adopt, begin=self.begin).to(self.device)
            self._guide = [GuideAnswers(guide, self.module, _n_rows(self.trainer.datamodule))]
            follow_guide(self.module, self._guide[0], self._start_batches())
            if self.fit_halves:
                self.half_fits = fit_halves(self.module, self._start_batches(), guide.start)
        if n_processes() > 1:
            mine = None
            if self._guide:
                found = self.level, self.crosses, self.compared, self.half_fits
                mine = [found, guide_state(self._guide[0].guide), self.module.state_dict()]
            found, state, weights = same_everywhere(mine)
            if process_index() > 0:
                self.level, self.crosses, self.compared, self.half_fits = found
                if self._cross():
                    cells = training_cells(self.trainer.datamodule, self.module.on_counts)
                    self.module.augmenter.prepare(cells, self.device)
                guide = guide_of(state).to(self.device)
                self._guide = [GuideAnswers(guide, self.module, _n_rows(self.trainer.datamodule))]
                self.module.load_state_dict(weights)

    def _start_batches(self, n_cells: int = MAX_CELLS) -> Iterable[dict[str, torch.Tensor]]:
        """Minibatches of at least so many training cells in random order, of whatever process."""
        datamodule = self.trainer.datamodule
        if hasattr(datamodule, "start_dataloader"):
            loader = datamodule.start_dataloader(n_cells, self.module.n_labels)
        else:
            loader = datamodule.train_dataloader()
        return Minibatches(datamodule, loader)

    def _looks_for_condition(self) -> bool:
        """Whether copies could be of both levels of a condition, and the user has not named one."""
        manager = getattr(self.trainer.datamodule, "adata_manager", None)
        if not self.find_condition or manager is None or not may_cross(self.module.augmenter):
            return False
        if is_on_disk(manager):
            logger.info("No condition is looked for: copies of both of its levels would need all cells in memory.")
            return False
        return True

    def _adopt(self, level_of: LevelOf, is_followed: bool) -> None:
        """Find the level of every training cell in a condition, which types do not follow from now on if they did."""
        datamodule = self.trainer.datamodule
        cells = training_cells(datamodule, self.module.on_counts)
        found = np.full(cells.adata.n_obs, -1, dtype=np.int16)
        for tensors in self._start_batches(cells.adata.n_obs):
            level = level_of(*(values.cpu() for values in guide_input(self.module, tensors)))
            found[tensors[CELL_KEY].view(-1).cpu().numpy()] = level.numpy()
        if level_of is its_batch:
            self.compared = found
            logger.info("Batches change some types much more than others: types are looked for across batches.")
        else:
            self.level, self.crosses = found.astype(np.int8), is_followed
            level, group = (torch.from_numpy(codes[cells.rows]).long() for codes in (found, cells.group))
            if is_followed and are_of_groups(level, group):
                # Decoders are given a covariate that has these levels: copies must be of the cell's own.
                self.compared = found
            upper = self.level[cells.rows].mean()
            logger.info(
                "A condition shifts cells of most types alike (%.0f%% of them): types do not follow it.", 100 * upper
            )
        if self._cross():
            self.module.augmenter.prepare(cells, self.device)

    def _cross(self) -> bool:
        """Let cells have counterparts at the other levels of a condition, if there is one, until the training ends."""
        if self.compared is not None:
            across = AcrossBatches(np.maximum(self.compared, 0))
        elif self.level is not None and self.crosses:
            across = AcrossLevels(np.maximum(self.level, 0))
        else:
            return False
        self._own_augmenter.append(self.module.augmenter)
        self.module.augmenter = Compose([across, self.module.augmenter])
        return True

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        """Take one step on fresh copies; returns the loss to Lightning's automatic optimisation, if that is on."""
        with self._memory.used():
            return self._step(batch)

    def _step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if "kl_weight" in self.loss_kwargs:
            self.loss_kwargs["kl_weight"] = self.kl_weight
        batch = self.module.with_copies(batch)
        self.module.guided = bool(self._guide) and self.current_epoch < self.guided_fraction * self.trainer.max_epochs
        known = known_categories(self.module, batch)
        for guide in self._guide:
            batch[GUIDE_KEY] = labelled(guide(batch), known)
        if known is not None and not self._guide:
            batch[KNOWN_KEY] = known
        self._norms.step()
        output = self._finite(batch)
        if output is None:
            self._go_back()
            self._skips_step = True
            # Lightning steps on what is returned; without gradients no weight moves. Of all weights, because processes
            # wait for the gradients of each.
            return 0.0 * sum(weight.sum() for weight in self.module.parameters() if weight.requires_grad)
        self._last_metrics = output.extra_metrics
        self._accumulate(output, "train")
        if math.isinf(self._last_good.best):
            # Before the first step: what the first epoch is compared with.
            self._last_good.best = float(self._means("train")["reconstruction_loss"])
        return output.loss

    def _finite(self, batch: dict[str, torch.Tensor]) -> LossOutput | None:
        """Terms of the loss; `None` if they are not finite, or cannot be because weights are not, in any process."""
        try:
            _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        except ValueError:
            # Distributions refuse parameters that are not finite. All processes have the same weights.
            if self._last_good.is_finite():
                raise
            return None
        return None if any_of(not output.loss.isfinite(), self.device) else output

    def _go_back(self) -> None:
        self._last_good.go_back(self.trainer.optimizers, self.current_epoch)
        self._totals["train"], self._n_seen["train"], self._last_metrics = {}, 0, {}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep all weights as they are after a loss that was not finite."""
        super().on_before_optimizer_step(optimizer)
        if self._skips_step:
            optimizer.zero_grad(set_to_none=True)
            self._skips_step = False

    def on_train_epoch_start(self) -> None:
        """Remember the state at the start of the epoch."""
        super().on_train_epoch_start()
        self._last_good.take(self.trainer.optimizers)

    def on_train_batch_end(self, *args) -> None:
        """Take dual steps after the gradient step that used the old multipliers; check the epoch once it ends."""
        super().on_train_batch_end(*args)
        if self._last_metrics:
            self.module.dual_step(self._last_metrics)
        if self.trainer.is_last_batch and self._n_seen["train"]:
            # Before the validation, which would see what is wrong.
            if self._last_good.is_bad(float(self._means("train")["reconstruction_loss"])):
                self._go_back()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Add what belongs neither to the module nor to the trainer."""
        checkpoint["plan"] = {
            "guide": [guide.state() for guide in self._guide],
            "level": self.level,
            "crosses": self.crosses,
            "compared": self.compared,
            "half_fits": None if self.half_fits is None else vars(self.half_fits),
            "n_rollbacks": self._last_good.n_rollbacks,
            "best": self._last_good.best,
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Restore what :meth:`on_save_checkpoint` added."""
        state = checkpoint["plan"]
        # Checkpoints of earlier versions know of no batches that are compared, and of no levels that are not.
        self.level, self.crosses, self.compared = state["level"], state.get("crosses", True), state.get("compared")
        self._cross()
        self.half_fits = None if state["half_fits"] is None else HalfFits(**state["half_fits"])
        self._guide = [GuideAnswers.of(guide, self.module) for guide in state["guide"]]
        self._last_good.n_rollbacks, self._last_good.best = int(state["n_rollbacks"]), float(state["best"])

    def on_fit_end(self) -> None:
        """Leave the module in the state that inference expects."""
        super().on_fit_end()
        self._leave()

    def configure_callbacks(self) -> list[Callback]:
        """Add a callback that resets the module if training fails, of which Lightning does not notify the plan."""
        return [*super().configure_callbacks(), _LeaveOnException()]

    def _leave(self) -> None:
        self.module.guided = False
        self.module.augmenter.release()
        self._memory = KeptMemory()
        self._norms.release()
        if self._own_augmenter:
            self.module.augmenter = self._own_augmenter.pop()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Compute the terms of the loss on the cells themselves."""
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        self._accumulate(output, "validation")

    def on_train_epoch_end(self) -> None:
        """Log the means over the epoch."""
        super().on_train_epoch_end()
        self._log_epoch("train")

    def on_validation_epoch_end(self) -> None:
        """Log the means over the epoch."""
        super().on_validation_epoch_end()
        self._log_epoch("validation")


class _LeaveOnException(Callback):
    def on_exception(self, trainer: Trainer, pl_module: CplMixPlan, exception: BaseException) -> None:
        pl_module._leave()


def _n_rows(datamodule) -> int:
    """Rows that the training cells have in their AnnData; 0 where the data module does not say."""
    return int(max(getattr(datamodule, "train_idx", ()), default=-1)) + 1
