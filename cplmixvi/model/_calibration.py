"""Probabilities that do not say more than other data would: each category's are as sure as it is found again."""

from __future__ import annotations

import numpy as np
import torch
from anndata import AnnData

from cplmixvi.train import HalfFits

from ._mixin import Mixin

#: Probabilities below are taken for this one: a category that every arm rules out is not less likely than that.
_LEAST = 1e-12
_FLATTEST = 1e-3
_N_HALVINGS = 30


class CalibrationMixin(Mixin):
    """Lowers the certainty of categories that fits to halves of the data do not find again."""

    adata: AnnData | None
    #: What limits certainty. ``found_again``: share of each category's cells that fits to half of the data put into the
    #: same one, ``(K,)``; ``exponent``: of the probabilities of its cells, ``(K,)``. `None` if halves were not fitted:
    #: without a warm start, of images, with fewer than ten cells per category. Kept with the model when it is saved.
    calibration_: dict[str, np.ndarray] | None = None

    def _learn_calibration(self, half_fits: HalfFits | None) -> None:
        """Compare the arms' answer for training cells with what fits to halves of the data say of them."""
        self.calibration_ = None
        if half_fits is None or self.adata is None:
            return
        proba = self.get_posterior(indices=half_fits.rows, calibrated=False).proba
        found_again = half_fits.found_again(proba.argmax(1), proba.shape[1])
        self.calibration_ = {"found_again": found_again, "exponent": exponents(proba, found_again)}


def apply_calibration(proba: torch.Tensor, calibration: dict[str, np.ndarray] | None) -> torch.Tensor:
    """Probabilities ``(n_cells, K)`` that are no more certain than a model's ``calibration_`` allows."""
    if calibration is None:
        return proba
    return flattened(proba, torch.from_numpy(calibration["exponent"]).to(proba))


def flattened(proba: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    r"""Probabilities :math:`p_j^{\tau_k}/\sum_i p_i^{\tau_k}` with :math:`k` the most probable category.

    Parameters
    ----------
    proba
        ``(n_cells, K)``.
    exponent
        :math:`\tau`, of every category, ``(K,)``.

    Returns
    -------
    torch.Tensor
        ``(n_cells, K)``, with the same order of categories in every cell.
    """
    each = exponent[proba.argmax(1)][:, None]
    power = torch.softmax(proba.clamp_min(_LEAST).log() * each, dim=1)
    # Untouched where nothing changes, to the last bit.
    return torch.where(each == 1, proba, power)


def exponents(proba: np.ndarray, certainty: np.ndarray) -> np.ndarray:
    r"""Exponents with which the cells of a category are as certain as it is, on average.

    Parameters
    ----------
    proba
        Probabilities of cells, ``(n_cells, K)``.
    certainty
        What the mean of the largest probability should be over the cells of each category, ``(K,)``.

    Returns
    -------
    numpy.ndarray
        ``(K,)``, at most 1: probabilities that are less certain than that stay as they are.
    """
    best = proba.argmax(1)
    odds = np.log(np.maximum(proba, _LEAST))
    odds -= odds.max(1, keepdims=True)
    size = np.maximum(np.bincount(best, minlength=len(certainty)), 1)
    low, high = np.full(len(certainty), np.log(_FLATTEST)), np.zeros(len(certainty))

    def too_certain(log_exponent: np.ndarray) -> np.ndarray:
        largest = 1 / np.exp(odds * np.exp(log_exponent)[best, None]).sum(1)
        return np.bincount(best, largest, minlength=len(certainty)) / size > certainty

    is_sure = too_certain(high)
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        above = too_certain(middle)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.where(is_sure, np.exp(low), 1.0)
