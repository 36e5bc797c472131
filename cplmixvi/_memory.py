"""Memory of large matrices that is taken again instead of given back."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

import numpy as np
import torch

#: Bytes from which on memory is kept: smaller pieces stay with the process anyway.
MIN_BYTES = 2**20


def _n_references(arrays: list[np.ndarray], position: int) -> int:
    return sys.getrefcount(arrays[position])


#: Of an array that nothing refers to but its list.
_UNUSED = _n_references([np.empty(0)], 0)


class KeptMemory:
    """Hands out matrices, and takes their memory again when nothing refers to them any more.

    The system takes back what a training step frees of large matrices, and to get its pages again costs a fifth of the
    next step.
    """

    def __init__(self):
        self._lock, self._arrays = Lock(), []

    def __reduce__(self):
        # To another process goes a new one.
        return KeptMemory, ()

    def empty(self, shape: Sequence[int]) -> torch.Tensor:
        """A matrix of single precision in memory that no other tensor uses, with whatever values are there."""
        n = math.prod(shape)
        with self._lock:
            positions = range(len(self._arrays))
            free = (i for i in positions if len(self._arrays[i]) >= n and _n_references(self._arrays, i) == _UNUSED)
            position = min(free, key=lambda i: len(self._arrays[i]), default=None)
            if position is None:
                self._arrays.append(np.empty(n, np.float32))
                position = -1
            # The tensor holds a view, and that the array, as long as anything uses either.
            return torch.from_numpy(self._arrays[position][:n].reshape(shape))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let :func:`empty_like` take memory from here."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[KeptMemory | None] = ContextVar("kept_memory", default=None)


def empty_like(x: torch.Tensor) -> torch.Tensor:
    """A tensor of the shape and kind of ``x`` in order of rows, with whatever values are there."""
    memory = _current.get()
    is_kept = memory is not None and x.device.type == "cpu" and x.dtype == torch.float32
    if is_kept and x.numel() * x.element_size() >= MIN_BYTES:
        return memory.empty(x.shape)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
