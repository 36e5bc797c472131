"""Orthogonal Procrustes analysis by category, with small categories held by the average one."""

from __future__ import annotations

import torch


def with_average(sums: torch.Tensor, n_cells: int, pseudo_cells: float, dim: int) -> torch.Tensor:
    """Sums over each category's cells, categories along ``dim``, with some cells of the average category added."""
    return sums + pseudo_cells * sums.sum(dim, keepdim=True) / max(n_cells, 1)


def nearest_rotations(cross: torch.Tensor) -> torch.Tensor:
    r"""Orthogonal :math:`U V^\top` of cross products :math:`U D V^\top`, each ``(..., n_state, n_state)``."""
    left, _, right = torch.linalg.svd(cross)
    return left @ right
