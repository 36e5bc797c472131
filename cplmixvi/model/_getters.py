"""What a trained model says of cells: categories, states and their consensus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS

from cplmixvi import pp
from cplmixvi.module import mean_over_arms

from ._calibration import apply_calibration
from ._consensus import Consensus
from ._inputs import checked_rows
from ._labels import category_names, registered_labels
from ._mixin import Mixin
from ._report import Report

#: Cells that the check at the end of training looks at.
_REPORT_CELLS = 5_000


@dataclass(frozen=True)
class Posterior:
    """Posterior of a set of cells, computed in one pass over them.

    Attributes
    ----------
    proba
        Mean of the arms' q(c|x), shape ``(n_cells, K)``, no more certain than fits to halves of the data justify (see
        :attr:`~cplmixvi.CplMixVI.calibration_`); a CSR matrix with the largest probabilities of each cell if only these
        were requested.
    category
        Most probable category, shape ``(n_cells,)``.
    confidence
        Probability of that category, shape ``(n_cells,)``.
    labels
        Label assigned by each arm, shape ``(n_cells, n_arms)``.
    state
        Mean of q(s|c,x) at the most probable category of ``proba``, in the coordinates shared by all arms (see
        :class:`~cplmixvi.module.StateAlignment`), shape ``(n_cells, n_arms, n_state)``.
    state_variance
        Its variance, of the same shape.
    combined
        Mean of the equally weighted mixture of the arms, shape ``(n_cells, n_state)``.
    combined_variance
        Its variance, of the same shape.
    """

    proba: np.ndarray | sparse.csr_matrix
    category: np.ndarray
    confidence: np.ndarray
    labels: np.ndarray
    state: np.ndarray
    state_variance: np.ndarray
    combined: np.ndarray
    combined_variance: np.ndarray


class GettersMixin(Mixin):
    """Getters that no scvi-tools mixin has."""

    @property
    def label_names(self) -> list[str]:
        """Labels that at least one cell has, each of which is a category; empty without ``labels_key``."""
        return registered_labels(self.registry_["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"])

    @property
    def n_labels(self) -> int:
        """Number of labels, the smallest allowed number of categories; 0 without ``labels_key``."""
        return len(self.label_names)

    @property
    def category_names(self) -> np.ndarray:
        """Names of the categories, shape ``(K,)``: labels first, then the index in the model of all others."""
        return category_names(self.n_categories, self.label_names)

    @torch.inference_mode()
    def get_posterior(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        *,
        top_k: int | None = None,
        calibrated: bool = True,
    ) -> Posterior:
        """Everything that the other getters are computed from, in one pass over the cells.

        Parameters
        ----------
        adata
            Cells with the genes that the model was set up with, in any order. The model's own cells if `None`.
        indices
            Cells to use; all if `None`.
        batch_size
            Minibatch size; ``scvi.settings.batch_size`` if `None`.
        top_k
            Number of probabilities to keep per cell, the largest ones; all if `None`. With thousands of categories or
            millions of cells, all probabilities take more memory than everything else.
        calibrated
            If `True`, probabilities are no more certain than fits to halves of the data justify (see
            :attr:`calibration_`); if `False`, they are as certain as the arms are.

        Returns
        -------
        Posterior

        Raises
        ------
        ValueError
            If ``top_k`` is not a whole number of at least 1.

        Examples
        --------
        >>> posterior = model.get_posterior()
        >>> posterior.proba.shape == (adata.n_obs, 3)
        True
        """
        if top_k is not None and not (pp.is_whole(top_k) and top_k >= 1):
            raise ValueError(f"top_k={top_k!r} must be a whole number of at least 1, or None for all probabilities.")
        self._check_if_trained(warn=False)
        adata = self._validate_anndata(adata)
        loader = self._make_data_loader(adata=adata, indices=indices, batch_size=batch_size)
        n_cells, start = len(loader.indices), 0
        kept: list[np.ndarray] = []
        for tensors in loader:
            joint = self._infer_jointly(tensors)
            mean, variance = self.module.alignment(joint.mean, joint.variance, joint.category)
            combined = mean_over_arms(mean, variance)
            proba = joint.log_qc.exp().mean(0)
            proba = apply_calibration(proba, self.calibration_) if calibrated else proba
            confidence, category = proba.max(1)
            largest = (proba, category) if top_k is None else proba.topk(min(top_k, self.n_categories), dim=1)
            found = (
                *largest,
                category,
                confidence,
                joint.log_qc.argmax(-1).T,
                mean.movedim(0, 1),
                variance.movedim(0, 1),
                *combined,
            )
            found = [tensor.cpu().numpy() for tensor in found]
            # Parts that are put together in the end would need twice the memory.
            kept = kept or [np.empty((n_cells, *part.shape[1:]), dtype=part.dtype) for part in found]
            for whole, part in zip(kept, found, strict=True):
                whole[start : start + len(part)] = part
            start += len(proba)
        proba, which, *others = kept
        return Posterior(proba if top_k is None else _rows_of(proba, which, self.n_categories), *others)

    def predict(
        self,
        adata: AnnData | None = None,
        *,
        soft: bool = False,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray | pd.DataFrame:
        """Predict the category of each cell from the average posterior of the arms.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_posterior`.
        soft
            Return probabilities instead of category names.

        Returns
        -------
        numpy.ndarray or pandas.DataFrame
            Category names, shape ``(n_cells,)``, dtype object; with ``soft``, a data frame of shape ``(n_cells, K)``
            with cells as rows and categories as columns.
        """
        posterior = self.get_posterior(adata, indices, batch_size, top_k=None if soft else 1)
        names = self.category_names
        if not soft:
            return names[posterior.category]
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

        Examples
        --------
        >>> consensus = model.get_consensus()
        >>> consensus.matrix.shape
        (3, 3)
        """
        posterior = self.get_posterior(adata, indices, batch_size, top_k=1)
        return Consensus.from_labels(posterior.labels, posterior.category, self.n_categories, self.category_names)

    def report(
        self, adata: AnnData | None = None, *, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> Report:
        """Assess whether the fit is sound: categories used, certainty, agreement of the arms, signs of collapse.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_posterior`.

        Returns
        -------
        Report
            Prints as sentences; ``sound`` and ``problems`` are for use in code.
        """
        posterior = self.get_posterior(adata, indices, batch_size, calibrated=False)
        found_again = None if self.calibration_ is None else self.calibration_["found_again"]
        report = Report.from_posterior(posterior.proba, posterior.labels, self.category_names, found_again)
        is_own = self.adata is not None and (adata is None or adata is self.adata)
        # A model may be loaded with other cells than it was trained on.
        if is_own and self.condition_ is not None and len(self.condition_) == self.adata.n_obs:
            rows = checked_rows(indices, self.adata.n_obs)
            levels = self.condition_ if rows is None else self.condition_[rows]
            # Of cells that were trained on: others have no level.
            levels = levels[levels >= 0]
            report = replace(report, condition=float((levels > 0).mean()) if len(levels) else None)
        return self._with_selection(report)

    def _report_of_some(self) -> Report | None:
        """Report on a part of the cells, for speed; none without cells."""
        if self.adata is None:
            return None
        n_obs = self.adata.n_obs
        return self.report(indices=np.linspace(0, n_obs - 1, min(n_obs, _REPORT_CELLS)).astype(int))


def _rows_of(values: np.ndarray, columns: np.ndarray, n_columns: int) -> sparse.csr_matrix:
    """CSR ``(n, n_columns)`` of the same number of entries ``(n, k)`` in every row."""
    n, k = values.shape
    rows = sparse.csr_matrix((values.ravel(), columns.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n_columns))
    rows.sort_indices()
    return rows
