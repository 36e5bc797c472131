"""CplMixVICluster: clustering, probabilities and states of rows of an array."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from cplmixvi import pp
from cplmixvi._constants import COUNT_LIKELIHOODS
from cplmixvi._isolation import quiet, seeded
from cplmixvi.model import CplMixVI
from cplmixvi.model._calibration import apply_calibration
from cplmixvi.module import Covariates, infer_jointly, mean_over_arms

#: Rows that are made dense at a time.
_CHUNK = 1024
#: Arguments of a training that need rows apart from those that are trained on.
_HELD_OUT = ("train_size", "validation_size", "early_stopping", "check_val_every_n_epoch", "datasplitter_kwargs")


class CplMixVICluster(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Coupled mixture variational autoencoders as a scikit-learn clusterer and transformer.

    Fits :class:`~cplmixvi.CplMixVI` to the rows of an array. Nothing is printed, and global state is left unchanged:
    random numbers, ``scvi.settings``, warning filters, threads.

    Parameters
    ----------
    n_clusters
        Maximum number of clusters; clusters without rows are left out. `None` finds the number on which independent
        halves of the data agree best, which needs about a hundred rows to be useful.
    n_state
        Number of dimensions of the state within a cluster, the columns of :meth:`transform`.
    n_arms
        Number of autoencoders that must agree.
    likelihood
        ``"normal"`` for any real values, preferably with about unit variance (use a ``StandardScaler`` first);
        ``"nb"``, ``"zinb"`` or ``"poisson"`` for counts, which must be whole numbers; ``"bernoulli"`` for values in
        ``[0, 1]``.
    augment
        How the arms' copies differ, see :class:`~cplmixvi.CplMixVI`; only options that need no AnnData.
    max_epochs, batch_size, accelerator
        See :meth:`cplmixvi.CplMixVI.train`.
    model_kwargs
        Further keyword arguments of :class:`~cplmixvi.CplMixVI`.
    train_kwargs
        Further keyword arguments of :meth:`cplmixvi.CplMixVI.train`. All rows are trained on, so that there is nothing
        to stop early by.
    random_state
        Seed or generator; `None` draws from NumPy's global generator, as usual in scikit-learn.

    Attributes
    ----------
    labels_
        Cluster of each row, int64 from 0 without gaps, shape ``(n_samples,)``.
    n_clusters_
        Number of clusters that contain at least one row.
    categories_
        Index of each cluster among the model's categories, shape ``(n_clusters_,)``.
    model_
        The trained :class:`~cplmixvi.CplMixVI`, without cells.
    n_features_in_
        Number of columns, as usual in scikit-learn.
    feature_names_in_
        Names of the columns, as usual in scikit-learn, if there were any.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> pipeline = make_pipeline(StandardScaler(), CplMixVICluster(n_clusters=3, random_state=0))
    >>> labels = pipeline.fit_predict(X)
    """

    def __init__(
        self,
        n_clusters: int | None = None,
        *,
        n_state: int = 2,
        n_arms: int = 2,
        likelihood: str = "normal",
        augment: str = "auto",
        max_epochs: int | None = None,
        batch_size: int | None = None,
        accelerator: str = "auto",
        model_kwargs: dict | None = None,
        train_kwargs: dict | None = None,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_clusters = n_clusters
        self.n_state = n_state
        self.n_arms = n_arms
        self.likelihood = likelihood
        self.augment = augment
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.accelerator = accelerator
        self.model_kwargs = model_kwargs
        self.train_kwargs = train_kwargs
        self.random_state = random_state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = self.likelihood in (*COUNT_LIKELIHOODS, "bernoulli")
        tags.transformer_tags.preserves_dtype = ["float32", "float64"]
        return tags

    def fit(self, X, y=None) -> CplMixVICluster:
        """Find clusters.

        Parameters
        ----------
        X
            Array, data frame or sparse matrix ``(n_samples, n_features)`` with at least two rows.
        y
            Ignored.

        Returns
        -------
        CplMixVICluster
            The fitted estimator.

        Raises
        ------
        ValueError
            If the values do not fit the likelihood, or an argument is out of range.

        Warns
        -----
        ConvergenceWarning
            If the fit is unsound, see :meth:`cplmixvi.CplMixVI.report`, or may be because values are very large.
        """
        pp.check_likelihood(self.likelihood)
        self._check_further()
        X = self._checked(X, reset=True, ensure_min_samples=2)
        n = X.shape[0]
        if self.n_clusters is not None and not (pp.is_whole(self.n_clusters) and 1 <= self.n_clusters <= n):
            raise ValueError(f"n_clusters={self.n_clusters!r} must be a whole number from 1 to {n} (rows), or None.")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with quiet() as problems, seeded(seed):
            self.model_ = self._trained(X)
        for problem in problems:
            warnings.warn(problem, ConvergenceWarning, stacklevel=2)
        proba, _ = self._infer(X)
        used, self.labels_ = np.unique(proba.argmax(1), return_inverse=True)
        self.categories_, self.n_clusters_ = used, len(used)
        return self

    def predict(self, X) -> np.ndarray:
        """Predict the cluster of each row.

        Parameters
        ----------
        X
            Shape ``(n_samples, n_features)``.

        Returns
        -------
        numpy.ndarray
            int64, shape ``(n_samples,)``; equal to ``labels_`` for the rows used in :meth:`fit`.
        """
        return self.predict_proba(X).argmax(1)

    def predict_proba(self, X) -> np.ndarray:
        """Probability of each cluster: the mean over the arms, no more certain than fits to halves of the data justify.

        Parameters
        ----------
        X
            Shape ``(n_samples, n_features)``.

        Returns
        -------
        numpy.ndarray
            float64, shape ``(n_samples, n_clusters_)``; rows sum to 1.
        """
        check_is_fitted(self)
        proba = self._infer(self._checked(X))[0][:, self.categories_]
        # What the model gives to clusters without a row is shared out.
        return proba / proba.sum(1, keepdims=True).clip(np.finfo(float).tiny)

    def transform(self, X) -> np.ndarray:
        """State of each row within its cluster: the mean over the arms, in the coordinates that they share.

        Parameters
        ----------
        X
            Shape ``(n_samples, n_features)``.

        Returns
        -------
        numpy.ndarray
            Shape ``(n_samples, n_state)``, float32 if ``X`` is float32, else float64.
        """
        check_is_fitted(self)
        X = self._checked(X)
        return self._infer(X)[1].astype(X.dtype, copy=False)

    @property
    def _n_features_out(self) -> int:
        return self.n_state

    def _checked(self, X, *, reset: bool = False, ensure_min_samples: int = 1):
        return validate_data(
            self,
            X,
            accept_sparse="csr",
            dtype=[np.float64, np.float32],
            reset=reset,
            ensure_min_samples=ensure_min_samples,
        )

    def _check_further(self) -> None:
        """Refuse further arguments that are parameters of this class, or need rows that are not trained on."""
        for name in ("model_kwargs", "train_kwargs"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f"{name} is a {type(value).__name__}: give a dict, or None.")
        own = {"n_clusters": "n_categories", "n_state": "n_state", "n_arms": "n_arms", "likelihood": "likelihood"}
        for name, meant in (*own.items(), ("augment", "augment")):
            if meant in (self.model_kwargs or {}):
                raise ValueError(f"model_kwargs has {meant!r}: give it as {name}=.")
        given = self.train_kwargs or {}
        if "max_epochs" in given:
            raise ValueError("train_kwargs has 'max_epochs': give it as max_epochs=.")
        held_out = [name for name in _HELD_OUT if given.get(name)]
        if held_out:
            raise ValueError(f"train_kwargs has {held_out[0]!r}, and all rows are trained on: leave it out.")

    def _trained(self, X) -> CplMixVI:
        """Train a model, and part it from its cells, which scvi-tools would keep for as long as the process lives."""
        names = getattr(self, "feature_names_in_", None)
        adata = AnnData(X.astype(np.float32))
        adata.var_names = [f"x{i}" for i in range(X.shape[1])] if names is None else list(names)
        CplMixVI.setup_anndata(adata)
        # A row of zeros is one like others, unless it is a cell without molecules.
        options = {"allow_empty_cells": self.likelihood not in COUNT_LIKELIHOODS, **(self.model_kwargs or {})}
        model = CplMixVI(adata, self.n_clusters, self.n_state, self.n_arms, self.likelihood, self.augment, **options)
        try:
            # A split of our own: that of scvi-tools is drawn from scvi.settings.seed.
            split = [np.arange(adata.n_obs), np.zeros(0, dtype=int), np.zeros(0, dtype=int)]
            model.train(
                self.max_epochs,
                **{
                    "batch_size": self.batch_size,
                    "accelerator": self.accelerator,
                    "enable_progress_bar": False,
                    "datasplitter_kwargs": {"external_indexing": split},
                    **(self.train_kwargs or {}),
                },
            )
            return model.without_cells()
        finally:
            model.deregister_manager(adata)

    @torch.inference_mode()
    def _infer(self, X) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of the model's categories, ``(n_samples, K)``, and states, ``(n_samples, n_state)``."""
        with quiet():
            # That values are large was said when they were fitted.
            empty = self.model_.allow_empty_cells
            pp.check_values(X, self.model_.likelihood, where="X", allow_empty_cells=empty, min_cells=1)
        # In double precision a row has the same result in whatever company it comes.
        module = copy.deepcopy(self.model_.module).double().eval()
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        for start in range(0, X.shape[0], _CHUNK):
            rows = X[start : start + _CHUNK]
            rows = rows.toarray() if sparse.issparse(rows) else np.array(rows)
            # Rounded as in the training.
            x = torch.from_numpy(rows.astype(np.float32)).to(module.device).double()
            one_batch = Covariates((torch.zeros(len(x), 1, dtype=torch.long, device=x.device),))
            joint = infer_jointly(module, module.encoder_input(x), one_batch)
            states, _ = mean_over_arms(*module.alignment(joint.mean, joint.variance, joint.category))
            proba = apply_calibration(joint.log_qc.exp().mean(0), self.model_.calibration_)
            parts.append((proba.cpu(), states.cpu()))
        proba, found = zip(*parts, strict=True)
        return torch.cat(proba).numpy(), torch.cat(found).numpy()
