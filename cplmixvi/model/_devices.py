"""Device of a loaded model from Lightning's two words for it, and trainings on several devices."""

from __future__ import annotations

import scvi
import torch
from lightning.pytorch.strategies import DDPStrategy

_TYPES = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}


def resolve_device(accelerator: str = "auto", device: int | str | list[int] = "auto") -> torch.device:
    """Device that a model is put on.

    Parameters
    ----------
    accelerator
        ``"auto"`` (CUDA where there is a device, else the CPU), ``"cpu"``, ``"gpu"``, ``"cuda"`` or ``"mps"``.
    device
        ``"auto"`` for the first one, its number, a list of one number, or a name such as ``"cuda:1"``.

    Raises
    ------
    ValueError
        If the accelerator is unknown or not there, or the device is not one of it.
    """
    if accelerator != "auto" and accelerator not in _TYPES:
        raise ValueError(f"accelerator={accelerator!r} is not known; use 'auto', 'cpu', 'gpu' or 'mps'.")
    kind = _TYPES.get(accelerator) or ("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device, list | tuple) and len(device) == 1:
        device = device[0]
    if isinstance(device, str) and device != "auto" and not device.isdigit():
        return torch.device(device)
    if device != "auto" and not (isinstance(device, int) or (isinstance(device, str) and device.isdigit())):
        raise ValueError(f"device={device!r} is not a single device; use 'auto', a number or a name such as 'cuda:0'.")
    number = 0 if device == "auto" else int(device)
    n_there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(kind, 1)
    if kind == "cpu":
        return torch.device("cpu")
    if not 0 <= number < n_there:
        raise ValueError(
            f"accelerator={accelerator!r}, device={device!r} asks for {kind} device {number} and {n_there} are there; "
            "use accelerator='cpu'."
        )
    return torch.device(kind, number)


def has_several(devices: int | str | list[int]) -> bool:
    """Whether more than one device is asked for."""
    if isinstance(devices, list | tuple):
        return len(devices) > 1
    return devices == -1 or str(devices).isdigit() and int(devices) > 1


def check_several(strategy: object, *, finds_n_categories: bool, learns_augmenter: bool) -> None:
    """Refuse what each of several processes would do by itself before they train together.

    Parameters
    ----------
    strategy
        Of :meth:`cplmixvi.CplMixVI.train`.
    finds_n_categories, learns_augmenter
        Whether there is no number of categories yet, and whether there is an augmenter to be trained.

    Raises
    ------
    ValueError
        If the processes could find different numbers, or the augmenter was not trained before.
    """
    if not (isinstance(strategy, DDPStrategy) or "ddp" in str(strategy)):
        return
    if finds_n_categories and scvi.settings.seed is None:
        raise ValueError(
            "Each process would find a number of categories of its own; give n_categories, or set scvi.settings.seed."
        )
    if learns_augmenter:
        raise ValueError(
            "The learned augmenter is trained by one process; call model.train_augmenter() there, save the model, and "
            "load it for the training in several."
        )
