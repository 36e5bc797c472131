"""What labels of some cells mean for a mixture: which cells must be looked at, and which component each must have."""

from __future__ import annotations

import torch

#: Cells of every label that are looked at, wherever only a part of the cells is.
LABEL_CELLS = 50
#: What a cell with a label counts for in the fit of its category, at most; others count for one.
LABEL_WEIGHT = 10.0
#: What a component that is not the label's loses in log-density: more than any density can make up for.
_IMPOSSIBLE = 1e4


def some_rows(
    n: int, n_seen: int, known: torch.Tensor | None = None, *, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draw ``n_seen`` of ``n`` rows in random order, and after them those of rare labels that the draw missed.

    Parameters
    ----------
    n, n_seen
        Numbers of rows, there and wanted.
    known
        Category of the cells that have a label and -1 for the others, ``(n,)``. Up to 50 cells of each are kept: a
        category whose label is on no cell that is seen would get the label's name and any cells.
    generator
        Source of randomness.

    Returns
    -------
    torch.Tensor
        Indices, ``(at least n_seen,)``.
    """
    order = torch.randperm(n, generator=generator)
    if known is None:
        return order[:n_seen]
    return order[(torch.arange(n) < n_seen) | rare(known[order])]


def rare(known: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Mask of the first cells of every label, up to 50 of each.

    Parameters
    ----------
    known
        Category of the cells that have a label and -1 for the others, ``(n,)``.
    seen
        Cells of each label that there are before these, ``(n_labels,)``; none if `None`.
    """
    keep = torch.zeros(len(known), dtype=torch.bool)
    for label in known[known >= 0].unique().tolist():
        wanted = LABEL_CELLS - (0 if seen is None else int(seen[label]))
        keep[(known == label).nonzero().squeeze(1)[: max(wanted, 0)]] = True
    return keep


def certain(log_p: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
    """Log-densities ``(n, K)`` by which a point of a known component can be of no other, unless that one is taken away.

    Parameters
    ----------
    log_p
        Joint log-density of points and components, ``(n, K)``.
    known
        Component of the points where that is known and -1 elsewhere, ``(n,)``; none is known if `None`.
    """
    if known is None:
        return log_p
    other = torch.arange(log_p.shape[1], device=log_p.device) != known[:, None]
    return torch.where(other & (known >= 0)[:, None], log_p - _IMPOSSIBLE, log_p)


def importance(known: torch.Tensor | None, n_categories: int) -> torch.Tensor | None:
    """What every cell counts for when categories are fitted, ``(n,)``, one on average; `None` without labels.

    The cells of a label count for as much as a type of average size, but none for more than ten cells. Otherwise a few
    could be outvoted by the cells without a label, and their category would end up with cells that have nothing to do
    with them.

    Parameters
    ----------
    known
        Category of the cells that have a label and -1 for the others, ``(n,)``.
    n_categories
        ``K``.
    """
    if known is None or not (known >= 0).any():
        return None
    size = torch.bincount(known[known >= 0], minlength=n_categories)
    each = (len(known) / (n_categories * size.clamp_min(1))).clamp(1.0, LABEL_WEIGHT)
    counts = torch.where(known >= 0, each[known.clamp_min(0)], 1.0)
    return counts / counts.mean()


def labelled(guide: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
    """Guide ``(n_cells, K)`` in which the cells of a known category have it for certain."""
    if known is None:
        return guide
    certainty = torch.nn.functional.one_hot(known.clamp_min(0), guide.shape[1]).to(guide.dtype)
    return torch.where((known >= 0)[:, None], certainty, guide)
