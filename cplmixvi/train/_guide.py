"""Where a guide comes from: mixtures fitted to the training cells that a data module yields."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from cplmixvi._constants import CELL_KEY
from cplmixvi.module import CplMixVAE

from ._choice import choose_start, n_cells_to_choose
from ._condition import LevelOf, find_condition
from ._halves import Encode
from ._labels import LABEL_CELLS, rare
from ._views import FEW_CATEGORIES, ViewConsensus, fit_committee, fit_views

#: Cells that views are fitted to. More change little and cost time in proportion.
MAX_CELLS = 20_000
#: Cells per category that must be among these for their categories to be a beginning.
_BEGIN_CELLS_PER_CATEGORY = 20


def guide_input(module: CplMixVAE, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a guide sees of a minibatch.

    Log values of the cells; or their mean with those of the cells' counterparts, or the normal form of images, where
    the augmenter changes what types must not follow.

    Returns
    -------
    torch.Tensor
        Log values, ``(n_cells, n_genes)``, on the module's device.
    torch.Tensor
        Codes of the batches, ``(n_cells,)``.
    """
    x = values_of(module, tensors)
    values = module.encoder_input(module.augmenter.neutral(x, tensors)).mean(0)
    return values, tensors[REGISTRY_KEYS.BATCH_KEY].view(-1).long()


def values_of(module: CplMixVAE, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Values of a minibatch's cells, ``(n_cells, n_genes)``, on the module's device."""
    return tensors[REGISTRY_KEYS.X_KEY].to(module.device).float()


def fit_guide(
    module: CplMixVAE,
    batches: Iterable[dict[str, torch.Tensor]],
    max_cells: int = MAX_CELLS,
    adopt: Callable[[LevelOf, bool], None] | None = None,
    begin: tuple[np.ndarray, np.ndarray] | None = None,
) -> ViewConsensus:
    """Fit an answer to all views of the training cells, and a committee that votes on its certainty.

    The answer is one mixture over several views at once: one projection of the data in several numbers of dimensions.
    Every member of the committee is fitted to some of the cells and to views of its own. See
    :func:`~cplmixvi.train._views.fit_views`.

    Parameters
    ----------
    module
        The arms: their categories and labels, and what their encoders read.
    batches
        Minibatches of the training cells, in random order.
    max_cells
        Stop reading here, but for cells of labels that were on few cells so far.
    adopt
        What is to be done with the levels of a condition, if one is found, and whether categories follow it
        (:func:`~cplmixvi.train._condition.find_condition`); if they do, which they should not, cells are read anew
        afterwards. `None`: do not look for it.
    begin
        Rows of some cells in their AnnData, ``(n,)``, and probabilities of their categories, ``(n, K)``, if they are
        known before: the answer is what these lead to, if 20 cells per category are among those that are read.

    Returns
    -------
    ViewConsensus
        In evaluation mode, on the CPU.

    Warns
    -----
    UserWarning
        If no training cell has one of the labels.
    """
    # Many categories: where the views start is chosen first, from values as they are.
    on_images = module.augmenter.on_images
    n_raw = n_cells_to_choose(module.n_categories) if module.n_categories > FEW_CATEGORIES and not on_images else 0
    rows, values, raw, codes, known = _read(module, batches, max_cells, n_raw)
    # Drawn from the global generator, so that scvi-tools' seed decides here too.
    seed = int(torch.randint(2**31 - 1, (1,)))
    start = "images" if on_images else "mixture"
    # Communities do not know of labels.
    if n_raw and known is None:
        start = choose_start(
            raw, module.n_categories, on_counts=module.on_counts, encode=half_encoder(module), batch=codes, seed=seed
        )
    del raw
    options = {"known": known, "start": start, "seed": seed}
    committee = fit_committee(values, module.n_categories, codes, **options)
    if adopt is not None:
        condition = find_condition(values, codes, committee, n_known=module.n_labels, seed=seed)
        if condition is not None:
            adopt(*condition)
            if condition[1]:
                return fit_guide(module, batches, max_cells, begin=begin)
    begin = None if begin is None or rows is None else _found_in(rows.numpy(), *begin)
    return fit_views(values, module.n_categories, batch=codes, committee=committee, begin=begin, **options).eval()


def _found_in(rows: np.ndarray, some: np.ndarray, posterior: np.ndarray) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Where the rows ``some`` stand in ``rows``, and the posteriors of those that do; `None` if too few do."""
    _, places, those = np.intersect1d(rows, some, return_indices=True)
    if len(places) < _BEGIN_CELLS_PER_CATEGORY * posterior.shape[1]:
        return None
    return torch.from_numpy(places), torch.from_numpy(posterior[those])


def half_encoder(module: CplMixVAE) -> Encode:
    """What the arms' encoders read when they are given half of the molecules of each cell.

    Parameters
    ----------
    module
        The arms.

    Returns
    -------
    Callable
        Maps values of half of each cell's molecules, ``(..., n_genes)``, to encoder inputs of the same shape on the
        CPU; see :meth:`CplMixVAE.encoder_input`, with ``depth=0.5``.
    """

    def encode(half: torch.Tensor) -> torch.Tensor:
        return module.encoder_input(half.to(module.device), depth=0.5).cpu()

    return encode


def known_categories(module: CplMixVAE, tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """Categories of a minibatch's cells by their labels, -1 without one, ``(n_cells,)``; `None` if no cell has any."""
    if module.n_labels == 0:
        return None
    codes = tensors[REGISTRY_KEYS.LABELS_KEY].view(-1).long()
    return torch.where(codes < module.n_labels, codes, -1)


def _read(
    module: CplMixVAE, batches: Iterable[dict[str, torch.Tensor]], max_cells: int, n_raw: int
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Rows ``(n,)`` and log values ``(n, n_genes)`` of the cells to fit views to, values of the first, and codes.

    There are no rows if minibatches do not have them. Values are of the first ``n_raw`` cells as they are; codes are of
    batches and of known categories, ``(n,)``.
    """
    cells, values, raw, codes, known, n_cells = [], [], [], [], [], 0
    seen = torch.zeros(module.n_labels, dtype=torch.long)
    for tensors in batches:
        labels = known_categories(module, tensors)
        rows = slice(None)
        if n_cells >= max_cells:
            # Only labels that are still on few cells are worth reading on.
            if (seen >= LABEL_CELLS).all():
                break
            rows = rare(labels.cpu(), seen).to(labels.device)
        log_values, batch = guide_input(module, tensors)
        if n_cells < n_raw:
            raw.append(values_of(module, tensors)[rows].cpu())
        if CELL_KEY in tensors:
            cells.append(tensors[CELL_KEY].view(-1).long()[rows].cpu())
        values.append(log_values[rows].cpu())
        codes.append(batch[rows].cpu())
        n_cells += len(values[-1])
        if labels is not None:
            known.append(labels[rows].cpu())
            seen += torch.bincount(known[-1][known[-1] >= 0], minlength=module.n_labels)
    missing = (seen == 0).nonzero().view(-1).tolist()
    if missing:
        warnings.warn(
            f"{len(missing)} of {module.n_labels} labels are on no cell that is trained on, so that their categories "
            "may be of any cells: train on all cells (train_size=1).",
            UserWarning,
            stacklevel=2,
        )
    raw_values = torch.cat(raw) if raw else torch.empty(0, values[0].shape[1])
    of_all = [torch.cat(part) if part else None for part in (cells, known)]
    return of_all[0], torch.cat(values), raw_values, torch.cat(codes), of_all[1]
