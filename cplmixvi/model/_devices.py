"""Device of a loaded model from Lightning's two words for it."""

from __future__ import annotations

import torch

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
