"""Where a guide comes from: mixtures fitted to the training cells that a data module yields."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from scvi import REGISTRY_KEYS

from cplmixvi.module import CplMixVAE

from ._views import SCALINGS, ViewConsensus, fit_views

#: Cells that views are fitted to. More change little and cost time in proportion.
MAX_CELLS = 20_000


def fit_guide(
    module: CplMixVAE, batches: Iterable[dict[str, torch.Tensor]], max_cells: int = MAX_CELLS
) -> ViewConsensus:
    """Fit an answer to all views of the training cells, and a committee that votes on its certainty.

    The answer is one mixture over several views at once: one projection of the data per arm, in several numbers of
    dimensions each. Every member of the committee is fitted to some of the cells and to views of its own. See
    :func:`~cplmixvi.train._views.fit_views`.

    Parameters
    ----------
    module
        The arms: their number, their categories and what their encoders read.
    batches
        Minibatches of the training cells, in random order.
    max_cells
        Stop reading here.

    Returns
    -------
    ViewConsensus
        In evaluation mode, on the CPU.
    """
    values, codes, n_cells = [], [], 0
    for tensors in batches:
        values.append(module.encoder_input(tensors[REGISTRY_KEYS.X_KEY].to(module.device).float()).cpu())
        codes.append(tensors[REGISTRY_KEYS.BATCH_KEY].view(-1).long().cpu())
        n_cells += len(values[-1])
        if n_cells >= max_cells:
            break
    scalings = [SCALINGS[arm % len(SCALINGS)] for arm in range(module.n_arms)]
    # Drawn from the global generator, so that scvi-tools' seed decides here too.
    seed = int(torch.randint(2**31 - 1, (1,)))
    guide = fit_views(torch.cat(values), module.n_categories, batch=torch.cat(codes), scalings=scalings, seed=seed)
    return guide.eval()
