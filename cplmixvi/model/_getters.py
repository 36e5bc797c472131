"""What a trained model says of cells: categories, states and their consensus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass

from cplmixvi.module import mean_over_arms

from ._consensus import Consensus
from ._labels import category_names, registered_labels
from ._report import Report


@dataclass(frozen=True)
class Posterior:
    """Posterior of a set of cells from one pass over them.

    Attributes
    ----------
    proba
        Mean of the arms' q(c|x), no more certain than fits to halves of the data allow (see
        :attr:`~cplmixvi.CplMixVI.calibration_`), shape ``(n_cells, K)``.
    labels
        Label of every arm, shape ``(n_cells, n_arms)``.
    state, state_variance
        Mean and variance of q(s|c,x) at the most probable category of ``proba``, in common coordinates of the arms
        (see :class:`~cplmixvi.module.StateAlignment`), shape ``(n_cells, n_arms, n_state)``.
    combined, combined_variance
        The same of the even mixture of the arms, shape ``(n_cells, n_state)``.
    """

    proba: np.ndarray
    labels: np.ndarray
    state: np.ndarray
    state_variance: np.ndarray
    combined: np.ndarray
    combined_variance: np.ndarray


class GettersMixin:
    """Getters that no scvi-tools mixin has."""

    module: BaseModuleClass

    @property
    def label_names(self) -> list[str]:
        """Labels that some cell has, each of them a category; none without ``labels_key``."""
        return registered_labels(self.registry_["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"])

    @property
    def n_labels(self) -> int:
        """Number of labels, the least number of categories; 0 without ``labels_key``."""
        return len(self.label_names)

    @property
    def category_names(self) -> np.ndarray:
        """Names of the categories, ``(K,)``: the labels first, then the index in the model of each other one."""
        return category_names(self.n_categories, self.label_names)

    @torch.inference_mode()
    def get_posterior(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        *,
        calibrated: bool = True,
    ) -> Posterior:
        """Everything that the getters below are made of, from one pass over the cells.

        Parameters
        ----------
        adata
            Cells with the genes that the model was set up with, in any order. The model's own if `None`.
        indices
            Cells to use; all if `None`.
        batch_size
            Cells per pass; ``scvi.settings.batch_size`` if `None`.
        calibrated
            Whether probabilities say no more than fits to halves of the data allow (see :attr:`calibration_`), or all
            that the arms say.

        Returns
        -------
        Posterior
        """
        self._check_if_trained(warn=False)
        adata = self._validate_anndata(adata)
        parts: list[tuple[torch.Tensor, ...]] = []
        for tensors in self._make_data_loader(adata=adata, indices=indices, batch_size=batch_size):
            joint = self._infer_jointly(tensors)
            mean, variance = self.module.alignment(joint.mean, joint.variance, joint.category)
            combined = mean_over_arms(mean, variance)
            proba = joint.log_qc.exp().mean(0)
            found = (
                self._calibrated(proba) if calibrated else proba,
                joint.log_qc.argmax(-1).T,
                mean.movedim(0, 1),
                variance.movedim(0, 1),
                *combined,
            )
            parts.append(tuple(tensor.cpu() for tensor in found))
        return Posterior(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))

    def predict(
        self,
        adata: AnnData | None = None,
        *,
        soft: bool = False,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray | pd.DataFrame:
        """Category of every cell, from the average of the arms' posteriors.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_posterior`.
        soft
            Return probabilities instead of labels.

        Returns
        -------
        numpy.ndarray or pandas.DataFrame
            Names of the categories, shape ``(n_cells,)``, dtype object; or with ``soft`` a frame of shape
            ``(n_cells, K)`` with cells as index and categories as columns.
        """
        posterior = self.get_posterior(adata, indices, batch_size)
        names = self.category_names
        if not soft:
            return names[posterior.proba.argmax(1)]
        obs_names = (self.adata if adata is None else adata).obs_names
        return pd.DataFrame(
            posterior.proba, index=obs_names if indices is None else obs_names[np.asarray(indices)], columns=names
        )

    def get_consensus(
        self, adata: AnnData | None = None, *, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> Consensus:
        """Agreement of the arms per category, per pair of arms and per cell.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_posterior`.

        Returns
        -------
        Consensus
        """
        posterior = self.get_posterior(adata, indices, batch_size)
        final = posterior.proba.argmax(1)
        return Consensus.from_labels(posterior.labels, final, self.n_categories, self.category_names)

    def report(
        self, adata: AnnData | None = None, *, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> Report:
        """Say whether the fit is sound: categories used, certainty, agreement of the arms, signs of collapse.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_posterior`.

        Returns
        -------
        Report
            Prints as sentences; ``sound`` and ``problems`` are for programs.
        """
        posterior = self.get_posterior(adata, indices, batch_size, calibrated=False)
        found_again = None if self.calibration_ is None else self.calibration_["found_again"]
        report = Report.from_posterior(posterior.proba, posterior.labels, self.category_names, found_again)
        return report if self.condition_ is None else replace(report, condition=float((self.condition_ > 0).mean()))
