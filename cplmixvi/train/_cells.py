"""The training cells of a data module, as augmenters want to see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scvi import REGISTRY_KEYS

from cplmixvi import pp
from cplmixvi.augment import Cells, combined

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule


def training_cells(datamodule: LightningDataModule, on_counts: bool) -> Cells:
    """Training cells of a splitter of scvi-tools.

    Parameters
    ----------
    datamodule
        What the training reads from, set up.
    on_counts
        Whether the values are counts.

    Returns
    -------
    Cells

    Raises
    ------
    ValueError
        If the data module does not read from an AnnData.
    """
    manager = getattr(datamodule, "adata_manager", None)
    if manager is None:
        raise ValueError(
            "The augmenter looks for other cells in an AnnData, and training reads from a data module; train on an "
            "AnnData or use another augmenter."
        )
    values = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
    values = pp.to_csr(values) if sparse.issparse(values) or not isinstance(values, np.ndarray) else values
    codes = [np.asarray(manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)).reshape(-1)]
    if REGISTRY_KEYS.CAT_COVS_KEY in manager.data_registry:
        codes += list(np.asarray(manager.get_from_registry(REGISTRY_KEYS.CAT_COVS_KEY)).T)
    return Cells(manager.adata, values, np.sort(np.asarray(datamodule.train_idx)), on_counts, combined(*codes))
