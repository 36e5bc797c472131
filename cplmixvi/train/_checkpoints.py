"""Checkpoints of a training: all that decides how it goes on, taken and put back where an epoch begins.

Lightning's own checkpoints would not do. They are pickles; they have neither random states nor a guide; and what its
loops do when they restart differs from what they do when they were never stopped.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

#: Checkpoints of a training where their interval is not given.
USUAL_NUMBER = 20


class Checkpoints(Callback):
    """Writes the state of training at the start of every ``every``-th epoch, and can resume from such a state.

    Parameters
    ----------
    write
        Called with the number of completed epochs and their :func:`training_state`.
    every
        Number of epochs between two checkpoints.
    state
        State to resume from, with the module as it was then; `None` to start from the beginning.

    Raises
    ------
    ValueError
        At the start of training, if it runs in several processes.
    OSError
        During training, if the first checkpoint cannot be written.

    Warns
    -----
    UserWarning
        If a checkpoint after the first cannot be written: a full disk must not end training that has run for hours.
    """

    def __init__(self, write: Callable[[int, dict], None], every: int, state: dict | None = None):
        self.write, self.every, self.state = write, every, state
        self._last: int | None = None if state is None else int(state["epoch"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore what the plan keeps, before it would fit a guide."""
        if trainer.world_size > 1:
            raise ValueError("Checkpoints are of one process; train on one device, or leave out checkpoint_dir.")
        if self.state is not None:
            pl_module.on_load_checkpoint(self.state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore everything else, except the random states, which are drawn from until the epoch begins."""
        if self.state is not None:
            restore_trainer(trainer, self.state)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random states, or write a checkpoint if one is due."""
        if self.state is not None:
            set_random_states(self.state["random"])
            self.state = None
        elif trainer.current_epoch % self.every == 0:
            state = training_state(trainer)
            pl_module.on_save_checkpoint(state)
            try:
                self.write(trainer.current_epoch, state)
            except OSError as error:
                if self._last is None:
                    # Where nothing can be written at all, nothing is lost yet.
                    raise
                warnings.warn(
                    f"No checkpoint after epoch {trainer.current_epoch}: {error.strerror or error}. The training goes "
                    f"on; the last checkpoint is that after epoch {self._last}.",
                    UserWarning,
                    # Whoever called is Lightning.
                    stacklevel=1,
                )
            else:
                self._last = trainer.current_epoch


def training_state(trainer: Trainer) -> dict[str, object]:
    """State of a training where an epoch begins: dicts, lists, numbers, arrays and tensors.

    The module is not in it, nor what the plan adds with ``on_save_checkpoint``.
    """
    data = trainer.datamodule
    return {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "callbacks": {callback.state_key: state for callback in trainer.callbacks if (state := callback.state_dict())},
        "history": dict(getattr(trainer.logger, "history", {})),
        "split": [np.asarray(getattr(data, name)) for name in ("train_idx", "val_idx", "test_idx")],
        "random": random_states(),
    }


def restore_trainer(trainer: Trainer, state: dict) -> None:
    """Bring a trainer that has just started to the epoch of a :func:`training_state`."""
    for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    for config, saved in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
        config.scheduler.load_state_dict(saved)
    for callback in trainer.callbacks:
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    experiment = getattr(trainer.logger, "experiment", None)
    if hasattr(experiment, "data"):
        experiment.data = dict(state["history"])
    epoch, step = int(state["epoch"]), int(state["global_step"])
    progress = trainer.fit_loop.epoch_progress
    for counter in (progress.total, progress.current):
        counter.ready = counter.started = counter.processed = counter.completed = epoch
    loop = trainer.fit_loop.epoch_loop
    steps = loop.automatic_optimization.optim_progress.optimizer.step
    for counter in (steps.total, steps.current):
        counter.ready = counter.completed = step
    loop._batches_that_stepped = step


def random_states() -> dict[str, Any]:
    """States of all global generators."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, object]) -> None:
    """Set all global generators; those of devices only where there are as many as there were."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])


def usual_interval(max_epochs: int) -> int:
    """Default number of epochs between checkpoints: a twentieth of the training.

    Parameters
    ----------
    max_epochs
        Number of epochs of the training.

    Returns
    -------
    int
        ``max_epochs / 20``, rounded; at least 1.
    """
    return max(1, round(max_epochs / USUAL_NUMBER))
