"""Where compiled loops are used, and their threads; elsewhere torch does the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType

import torch

from cplmixvi._memory import empty_like

#: Values of a minibatch from which on loops are compiled: with fewer they do not make up for the time that this takes.
MIN_VALUES = 2**14


def kernels(*tensors: torch.Tensor) -> ModuleType | None:
    """Module of the compiled loops for matrices of cells by genes, or `None` where torch must do.

    That is elsewhere than on a CPU, in other than single precision, for small matrices, where gradients are asked for,
    and without numba.
    """
    suits = all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in tensors
    )
    return _kernels() if suits and tensors[0].dim() == 2 and tensors[0].numel() >= MIN_VALUES else None


@cache
def _kernels() -> ModuleType | None:
    try:
        from numba import config

        from . import _kernels as module
    except ImportError:
        return None
    return None if config.DISABLE_JIT else module


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="cplmixvi")


if hasattr(os, "register_at_fork"):
    # Threads do not live on in the child.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def in_parts(function: Callable[[slice], object], n: int, multiple: int = 1) -> list:
    """What ``function`` gives for parts of ``range(n)``, each begun at a ``multiple``, on as many threads as torch has.

    Compiled loops let go of Python's lock.
    """
    n_threads = torch.get_num_threads()
    size = max(-(-n // (n_threads * multiple)), 1) * multiple
    parts = [slice(first, min(first + size, n)) for first in range(0, n, size)]
    return [function(parts[0])] if len(parts) == 1 else list(_pool(n_threads).map(function, parts))


def scaled_log1p(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Logarithm of one plus ``x`` times ``factor``, ``(n_cells, n_genes)`` and ``(n_cells, 1)``."""
    loops = kernels(x, factor)
    if loops is None:
        # In place: a second matrix of this size would cost more than the logarithms.
        return (x * factor).log1p_()
    out = empty_like(x)
    values = [tensor.numpy() for tensor in (x.contiguous(), factor.view(-1), out)]
    in_parts(lambda rows: loops.scaled_log1p(*(value[rows] for value in values)), len(x))
    return out


def standardised(
    x: torch.Tensor, mean: torch.Tensor, group: torch.Tensor | None, inverse_scale: torch.Tensor
) -> torch.Tensor:
    """Values less the mean of their group, scaled, and clipped at 1 on either side, ``(n_cells, n_genes)``.

    Parameters
    ----------
    x
        ``(n_cells, n_genes)``.
    mean
        ``(n_groups, n_genes)``.
    group
        Group of each cell, ``(n_cells,)``; `None` for the first.
    inverse_scale
        ``(n_genes,)``.
    """
    loops = kernels(x, mean, inverse_scale)
    if loops is None:
        return (x - (mean[0] if group is None else mean[group])).mul_(inverse_scale).clamp_(-1, 1)
    out = empty_like(x)
    group = torch.zeros(len(x), dtype=torch.long) if group is None else group
    cells = [tensor.numpy() for tensor in (x.contiguous(), group, out)]
    genes = mean.numpy(), inverse_scale.numpy()
    in_parts(lambda rows: loops.standardised(*(value[rows] for value in cells), *genes), len(x))
    return out
