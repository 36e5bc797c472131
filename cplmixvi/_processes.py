"""Sums over the processes of a training on several devices; with one process, nothing happens."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


def n_processes() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if _are_several() else 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if _are_several() else 0


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all processes, through which gradients flow back to all."""
    return _Sum.apply(tensor) if _are_several() else tensor


def averaged(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over all processes, through which gradients flow back to all."""
    return summed(tensor) / n_processes() if _are_several() else tensor


def any_of(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether a flag is set in some process."""
    return bool(summed(torch.tensor(float(flag), device=device)) > 0) if _are_several() else flag


def same_everywhere(value: Any) -> Any:
    """Give the value that the first process has to all of them; it may be anything that can be pickled."""
    if not _are_several():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total
