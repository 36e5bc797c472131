"""Arguments of a model and of a training, with all that was left open decided."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import signature

import numpy as np

from cplmixvi import pp
from cplmixvi.train import default_batch_size, default_max_epochs

from ._devices import has_several


def default_n_categories(n_obs: int) -> int:
    """Bound on the number of types until it is found: a twentieth of the cells, between 2 and 30."""
    return int(min(30, max(2, n_obs // 20)))


def check_positive(**values: int) -> None:
    """Raise ValueError unless all are whole numbers of at least one."""
    for name, value in values.items():
        if not pp.is_whole(value) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")


def check_plan_kwargs(plan: type, names: Iterable[str]) -> None:
    """Raise ValueError for names that a training plan does not know, which it would hand on to the loss."""
    known = {name for cls in plan.__mro__ for name in _arguments(cls)} - {"self", "module"}
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(f"plan_kwargs has {unknown[0]!r}, which is not known; known are {', '.join(sorted(known))}.")


def _arguments(cls: type) -> list[str]:
    """Named arguments of the initialiser that a class of this package or of scvi-tools has itself."""
    init = cls.__dict__.get("__init__")
    if init is None or cls.__module__.partition(".")[0] not in ("cplmixvi", "scvi"):
        return []
    return [
        name
        for name, part in signature(init).parameters.items()
        if part.kind not in (part.VAR_POSITIONAL, part.VAR_KEYWORD)
    ]


def settled(given: dict, n_obs: int | None, is_trained: bool) -> dict:
    """Decide what was left open.

    Parameters
    ----------
    given
        Arguments of :meth:`cplmixvi.CplMixVI.train`, with ``plan_kwargs``; those that are `None` were not given.
    n_obs
        Number of the model's own cells; `None` if it has none.
    is_trained
        Whether the model was trained before.

    Returns
    -------
    dict
        Arguments of :meth:`scvi.model.base.UnsupervisedTrainingMixin.train`.

    Raises
    ------
    ValueError
        If epochs, cells per step or the share of training cells are out of range, or neither epochs are given nor the
        number of cells that a data module has.
    """
    check_positive(**{name: given[name] for name in ("max_epochs", "batch_size") if given.get(name) is not None})
    train_size, validation_size = given.get("train_size"), given.get("validation_size")
    if train_size is not None and not (pp.is_number(train_size) and 0 < train_size <= 1):
        raise ValueError(f"train_size={train_size!r} must be a share of the cells, above 0 and at most 1.")
    if validation_size is not None and not (pp.is_number(validation_size) and 0 <= validation_size < 1):
        raise ValueError(f"validation_size={validation_size!r} must be a share of the cells, from 0 to below 1.")
    # Lightning and PyTorch refuse whole numbers of NumPy.
    whole = {name: int(given[name]) for name in ("max_epochs", "batch_size") if given.get(name) is not None}
    settings = {**given, **whole, "plan_kwargs": {"warm_start": not is_trained, **given["plan_kwargs"]}}
    if has_several(given.get("devices", "auto")) and given.get("strategy") is None:
        # Without a name, Lightning takes the same one, but loaders of scvi-tools do not know of it.
        settings["strategy"] = "ddp"
    warm_start = settings["plan_kwargs"]["warm_start"]
    if given.get("datamodule") is not None:
        if given["max_epochs"] is None:
            settings["max_epochs"] = _epochs_of(given["datamodule"], warm_start)
        return settings
    if n_obs is None:
        raise ValueError("The model has no cells to train on: load it with adata, or give a datamodule.")
    external = (given.get("datasplitter_kwargs") or {}).get("external_indexing")
    if external is None:
        rest = 1 - (validation_size or 0)
        if train_size is None:
            settings["train_size"] = min(0.9, rest) if _needs_validation({**given, **given["plan_kwargs"]}) else 1.0
        elif train_size > rest + 1e-9:
            raise ValueError(
                f"train_size={train_size!r} and validation_size={validation_size!r} are more than all cells; leave one "
                "of them out."
            )
    watching = next((name for name in ("early_stopping", "check_val_every_n_epoch") if given.get(name)), None)
    if watching and _watches_none(settings, external):
        raise ValueError(
            f"{watching} needs cells to watch that are not trained on, and there are none: lower train_size, or leave "
            "validation_size out."
        )
    if given["batch_size"] is None:
        settings["batch_size"] = default_batch_size(n_obs)
    if given["max_epochs"] is None:
        n_train = len(external[0]) if external is not None else int(np.ceil(n_obs * settings["train_size"]))
        settings["max_epochs"] = default_max_epochs(n_train, settings["batch_size"], warm_start=warm_start)
    return settings


def _epochs_of(datamodule: object, warm_start: bool) -> int:
    n_obs = getattr(datamodule, "n_obs", None)
    if n_obs is None:
        raise ValueError("The data module does not say how many cells it has (n_obs), so max_epochs must be given.")
    batch_size = getattr(datamodule, "batch_size", None) or default_batch_size(n_obs)
    return default_max_epochs(n_obs, batch_size, warm_start=warm_start)


def _needs_validation(settings: dict) -> bool:
    return bool(
        settings.get("early_stopping")
        or settings.get("check_val_every_n_epoch")
        or settings.get("enable_checkpointing")
        or settings.get("learning_rate_monitor")
        or settings.get("reduce_lr_on_plateau")
        or settings.get("validation_size")
    )


def _watches_none(settings: dict, external: Sequence | None) -> bool:
    """Whether no cells are left that are not trained on."""
    if external is not None:
        return len(external) < 2 or len(external[1]) == 0
    return settings["train_size"] == 1 or settings.get("validation_size") == 0
