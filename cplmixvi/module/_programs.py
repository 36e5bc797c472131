"""What goes with the states of each category in the genes, and turns that make it the same in all categories."""

from __future__ import annotations

import torch
from torch import nn

from ._procrustes import nearest_rotations, with_average

#: Times that all categories are turned onto their mean, and that axes are multiplied to find principal ones.
N_ROUNDS = 20

#: Cells of the average category that every category's products are mixed with. Genes are many, so a few tell the turn.
PSEUDO_CELLS = 10.0


class StatePrograms:
    r"""Products of states and encoder inputs, both centred in their category, summed over minibatches of cells.

    Parameters
    ----------
    n_categories, n_state, n_genes
        ``K``, ``S`` and the number of genes.
    device
        Where the minibatches are.
    """

    def __init__(self, n_categories: int, n_state: int, n_genes: int, device: torch.device | str = "cpu"):
        self._n_cells = torch.zeros(n_categories, 1, device=device)
        self._state = torch.zeros(n_categories, n_state, device=device)
        self._values = torch.zeros(n_categories, n_genes, device=device)
        self._products = torch.zeros(n_categories, n_state, n_genes, device=device)

    def add(self, state: torch.Tensor, x: torch.Tensor, category: torch.Tensor) -> None:
        """Add cells.

        Parameters
        ----------
        state
            Of one arm, shape ``(n_cells, n_state)``.
        x
            Encoder inputs, shape ``(n_cells, n_genes)``.
        category
            Integer, shape ``(n_cells,)``.
        """
        self._n_cells.index_add_(0, category, torch.ones_like(state[:, :1]))
        self._state.index_add_(0, category, state)
        self._values.index_add_(0, category, x)
        self._products.index_add_(0, category, state[:, :, None] * x[:, None, :])

    def sums(self) -> torch.Tensor:
        """Sums over the cells of each category, shape ``(K, n_state, n_genes)``, on the CPU."""
        mean = self._state / self._n_cells.clamp_min(1.0)
        return (self._products - mean[:, :, None] * self._values[:, None, :]).cpu()


def common_turns(sums: torch.Tensor, n_cells: int) -> torch.Tensor:
    r"""Turns of the states of each category after which the same genes go with them in all categories.

    With :math:`P_k` the sums of :meth:`StatePrograms.sums` and :math:`N` the number of cells

    .. math::
        \bar P = \tfrac1N \sum_k Q_k^\top P_k, \qquad Q_k = U V^\top, \qquad
        U D V^\top = \big(P_k + \tfrac{n_0}{N} \sum_l P_l\big) \bar P^\top,

    one after the other until they stand still: generalised orthogonal Procrustes analysis (Gower 1975), shrunk to one
    turn for all by :math:`n_0 = 10` cells of the average category. At first :math:`\bar P` are the principal
    components of the rows of all :math:`P_k`: the mean of categories whose dimensions are in different orders is like
    none of them.

    Parameters
    ----------
    sums
        :math:`P`, shape ``(K, n_state, n_genes)``.
    n_cells
        :math:`N`.

    Returns
    -------
    torch.Tensor
        :math:`Q`, orthogonal, reflections among them, ``(K, n_state, n_state)``, double precision.
    """
    # Fewer genes than dimensions: the others go with nothing.
    sums = nn.functional.pad(sums, (0, max(0, sums.shape[1] - sums.shape[2])))
    common = _principal(sums) / max(n_cells, 1)
    for _ in range(N_ROUNDS):
        cross = torch.einsum("ksg,tg->kst", sums, common).double()
        turn = nearest_rotations(with_average(cross, n_cells, PSEUDO_CELLS, dim=0))
        common = torch.einsum("kst,ksg->tg", turn.to(sums.dtype), sums) / max(n_cells, 1)
    return turn


def likeness(sums: torch.Tensor) -> torch.Tensor:
    r"""How far the genes that go with a dimension in one category are those that go with it in all others together.

    Parameters
    ----------
    sums
        Of :meth:`StatePrograms.sums`, with the states of all categories turned: :math:`Q_k^\top P_k`, ``(K, n_state,
        n_genes)``.

    Returns
    -------
    torch.Tensor
        Cosine, from -1 to 1, ``(K, n_state)``; 0 where a category or all others have no cells.
    """
    product, square = torch.zeros(sums.shape[:2]), torch.zeros(sums.shape[:2])
    total = sums.sum(0)
    for k, own in enumerate(sums):
        others = total - own
        product[k], square[k] = (own * others).sum(-1), others.square().sum(-1)
    return product / (square.sqrt() * sums.norm(dim=-1)).clamp_min(torch.finfo(sums.dtype).tiny)


def _principal(sums: torch.Tensor) -> torch.Tensor:
    """Principal components of all rows, as long as their spread, ``(n_state, n_genes)``; by subspace iteration."""
    rows = sums.flatten(0, 1)
    # From the category with the largest sums: nothing is drawn, so that a model is aligned twice alike.
    axes = sums[sums.square().sum((1, 2)).argmax()].T
    for _ in range(N_ROUNDS):
        axes = torch.linalg.qr(rows.T @ (rows @ axes))[0]
    _, spread, own = torch.linalg.svd(rows @ axes, full_matrices=False)
    return spread[:, None] * (own @ axes.T)
