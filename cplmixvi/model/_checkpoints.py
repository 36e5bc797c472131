"""Trainings that can be interrupted: checkpoints while they run, and going on from the last one."""

from __future__ import annotations

import hashlib
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scvi
import torch
from scvi import REGISTRY_KEYS

from cplmixvi import io, pp
from cplmixvi.train import Checkpoints, usual_interval

from ._mixin import Mixin
from ._saved import part, take_over

logger = logging.getLogger(__name__)

#: Arguments of ``train`` that do not decide what is learned, or cannot be kept in a file.
_NOT_KEPT = {
    "accelerator",
    "callbacks",
    "devices",
    "enable_model_summary",
    "enable_progress_bar",
    "log_save_dir",
    "logger",
    "progress_bar_refresh_rate",
    "simple_progress_bar",
}


class CheckpointsMixin(Mixin):
    """Writes checkpoints of a training, and takes a training up where one was written."""

    def _checkpoints(self, settings: dict, folder: str | Path | None, every: int | None) -> Checkpoints | None:
        """Get what writes checkpoints of a training from its start; `None` without a folder.

        Parameters
        ----------
        settings
            Arguments of the training, none of them left to a default.
        folder
            Where to.
        every
            Epochs between two; about 20 checkpoints altogether if `None`.

        Raises
        ------
        ValueError
            If there are some already, or no AnnData is trained on.
        """
        if folder is None:
            if every is not None:
                raise ValueError("checkpoint_every needs a folder to write to: give checkpoint_dir.")
            return None
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"checkpoint_dir={str(folder)!r} is a file; name a folder.")
        if self.adata is None or settings.get("datamodule") is not None:
            raise ValueError("Checkpoints need a model with an AnnData that it is trained on; leave out datamodule.")
        if io.list_checkpoints(folder):
            raise ValueError(
                f"{str(folder)!r} has checkpoints of another training: go on with it by resume={str(folder)!r}, or "
                "name another folder."
            )
        every = _interval(usual_interval(settings["max_epochs"]) if every is None else every)
        # What a killed process left of a checkpoint.
        io.remove_checkpoints(folder, with_folder=False)
        about = {
            "settings": {key: value for key, value in settings.items() if key not in _NOT_KEPT},
            "every": every,
            "seed": scvi.settings.seed,
            "cells": self._cells_digest(),
        }
        return Checkpoints(self._checkpoint_writer(folder, about), every)

    def _resumed(
        self, folder: str | Path, given: dict, checkpoint_dir: str | Path | None, every: int | None
    ) -> tuple[dict, Checkpoints]:
        """Take over the last checkpoint, and get the arguments of its training and what goes on from it.

        Parameters
        ----------
        folder
            Of checkpoints.
        given
            Arguments of the training that were given; those that are `None` were not.
        checkpoint_dir
            The same folder, or `None`.
        every
            Epochs between two checkpoints; as before if `None`.

        Raises
        ------
        ModelFileError
            A ValueError. If there is no checkpoint, or it is damaged.
        ValueError
            If the model, its cells, the seed or an argument is not that of the training.
        """
        folder = Path(folder)
        if checkpoint_dir is not None and Path(checkpoint_dir).resolve() != folder.resolve():
            raise ValueError(
                f"checkpoint_dir={str(checkpoint_dir)!r} is not the folder that resume names; leave it out: "
                "checkpoints go on where they began."
            )
        if self.adata is None:
            raise ValueError("A training is resumed with the AnnData that it began with, and the model has none.")
        saved = io.read_checkpoint(folder)
        about, state = part(saved, "training"), part(saved, "state")
        _check_given(given, about["settings"])
        if about["seed"] != scvi.settings.seed:
            raise ValueError(
                f"seed={scvi.settings.seed!r} (scvi.settings.seed) is not that of the training in {str(folder)!r}, "
                f"{about['seed']!r}; set it to that before the model is made."
            )
        if about["cells"] != self._cells_digest():
            raise ValueError(
                f"The training in {str(folder)!r} is of other cells, genes, values, batches or labels; give the "
                "AnnData that it began with, or train from the start."
            )
        init_params = part(saved, "init_params")
        if self._finds_n_categories and not self.is_trained_:
            # It was found before the first checkpoint.
            self._take_n_categories(int(init_params["non_kwargs"]["n_categories"]))
        if not _equal(self.init_params_, init_params):
            theirs = _flat(init_params)
            ours = _flat(self.init_params_).items()
            other = [key.rpartition(".")[2] for key, value in ours if not _equal(value, theirs.get(key))]
            raise ValueError(
                f"The training in {str(folder)!r} is of a model with other settings ({', '.join(other)}); make the "
                "model with those that it had, or train from the start."
            )
        take_over(self, saved)
        settings = dict(about["settings"])
        settings["datasplitter_kwargs"] = {
            **(settings.get("datasplitter_kwargs") or {}),
            "external_indexing": [np.asarray(rows, dtype=np.int64) for rows in state["split"]],
        }
        settings |= {key: value for key, value in given.items() if key in _NOT_KEPT}
        logger.info("Going on from the checkpoint after epoch %d of %d.", state["epoch"], settings["max_epochs"])
        every = _interval(about["every"] if every is None else every)
        return settings, Checkpoints(self._checkpoint_writer(folder, about), every, state)

    def _checkpoint_writer(self, folder: Path, about: dict):
        """Get the function that writes a checkpoint of the model as it is: a saved model, and its training besides."""
        # An argument that a file cannot hold is refused now and not after the first epoch.
        io.encode(about["settings"], "train", {})

        def write(epoch: int, state: dict) -> None:
            saved = self._as_saved(with_anndata=False)
            saved.meta["training"] = io.encode(about, "training", saved.arrays)
            saved.meta["state"] = io.encode(state, "state", saved.arrays)
            io.write_checkpoint(folder, epoch, saved)

        return write

    def _cells_digest(self) -> str:
        """Hash of all that is registered of the model's cells."""
        total = hashlib.sha256(self._values_digest().encode())
        for key in sorted(set(self.adata_manager.data_registry) - {REGISTRY_KEYS.X_KEY}):
            total.update(key.encode())
            total.update(np.ascontiguousarray(self.adata_manager.get_from_registry(key)).tobytes())
        return total.hexdigest()


@contextmanager
def interruptible(resumable: str | Path | None) -> Iterator[None]:
    """Let Ctrl-C end a training as it ends other Python, with a message that says how to go on.

    Lightning catches it, turns off the signal for the rest of the process and leaves with SystemExit. With
    ``deterministic=True`` it also binds the rest of the process to deterministic algorithms; both are put back.

    Parameters
    ----------
    resumable
        Folder of checkpoints, if any.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C.
    """
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    except SystemExit as leaving:
        if not isinstance(leaving.__context__, KeyboardInterrupt):
            raise
        how = "there were no checkpoints (checkpoint_dir), so it must begin anew"
        if resumable is not None:
            how = f"go on with train(resume={str(resumable)!r})"
        raise KeyboardInterrupt(f"The training was interrupted; {how}.") from None
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warns_only)
        if in_main and handler is not None:
            signal.signal(signal.SIGINT, handler)


def _interval(every: int) -> int:
    if not pp.is_whole(every) or every < 1:
        raise ValueError(f"checkpoint_every={every!r} must be a whole number of at least 1.")
    return int(every)


def _check_given(given: dict, settings: dict) -> None:
    """Refuse arguments that are not those of the training that goes on."""
    known = _flat(settings)
    for key, value in _flat(given).items():
        if value is not None and key.partition(".")[0] not in _NOT_KEPT and not _equal(value, known.get(key)):
            raise ValueError(
                f"{key}={value!r} is not what the training began with, {known.get(key)!r}; leave it out, or train from "
                "the start."
            )


def _flat(values: dict) -> dict[str, object]:
    """Entries of nested dicts, by names with dots."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        inner = _flat(value) if isinstance(value, dict) else None
        flat |= {f"{key}.{name}": item for name, item in inner.items()} if inner is not None else {key: value}
    return flat


def _equal(first: object, second: object) -> bool:
    """Whether two values are the same in a file."""
    arrays: tuple[dict, dict] = ({}, {})
    encoded = [io.encode(value, "value", some) for value, some in zip((first, second), arrays, strict=True)]
    return (
        encoded[0] == encoded[1]
        and arrays[0].keys() == arrays[1].keys()
        and all(np.array_equal(value, arrays[1][name]) for name, value in arrays[0].items())
    )
