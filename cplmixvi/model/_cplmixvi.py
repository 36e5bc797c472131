"""CplMixVI: the scvi-tools model of coupled mixture VAEs. It wires; the mathematics is in ``cplmixvi.module``."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model.base import BaseModelClass, UnsupervisedTrainingMixin, VAEMixin
from scvi.utils import setup_anndata_dsp

from cplmixvi import pp
from cplmixvi._constants import COUNT_LIKELIHOODS
from cplmixvi.augment import Augment, learned_parts, resolve
from cplmixvi.module import CplMixVAE
from cplmixvi.train import CellLoader, CplMixPlan, CplMixSplitter, Minibatches

from ._augmenter import AugmenterMixin
from ._calibration import CalibrationMixin
from ._checkpoints import CheckpointsMixin, interruptible
from ._covariates import as_of_anndata, depth_of, names_of
from ._devices import check_several
from ._failure import as_it_was_on_failure
from ._getters import GettersMixin
from ._inherited import InheritedMixin
from ._inputs import InputsMixin
from ._labels import LabelsField, registered_labels
from ._novelty import NoveltyMixin
from ._persistence import PersistenceMixin
from ._query import QueryMixin
from ._selection import SelectionMixin
from ._settings import check_plan_kwargs, check_positive, default_n_categories, settled
from ._states import StatesMixin
from ._talk import without_talk


class CplMixVI(
    InputsMixin,
    GettersMixin,
    StatesMixin,
    SelectionMixin,
    AugmenterMixin,
    NoveltyMixin,
    CalibrationMixin,
    CheckpointsMixin,
    QueryMixin,
    PersistenceMixin,
    InheritedMixin,
    VAEMixin,
    UnsupervisedTrainingMixin,
    BaseModelClass,
):
    """Cell types and continuous states within each type from coupled mixture VAEs (cpl-mixVAE, arXiv 2007.09880).

    The arms see different copies of a cell and must agree on its type. After :meth:`train`, read :meth:`report` first.
    :meth:`predict` returns types, :meth:`get_state` states, :meth:`get_consensus` the agreement of the arms and
    :meth:`get_novelty` how unlike the training cells new ones are; :func:`cplmixvi.tl.annotate` writes types and states
    to AnnData.

    Parameters
    ----------
    adata
        AnnData that was registered with :meth:`setup_anndata`.
    n_categories
        Number of categories (cell types) ``K``, at least the number of labels. With `None` or ``"auto"``, it is
        determined during training, see :meth:`select_n_categories`. Categories without cells are reported as unused.
    n_state
        Number ``S`` of dimensions of the state.
    n_arms
        Number ``A`` of arms; a consensus requires two or more.
    likelihood
        ``"nb"``, ``"zinb"`` or ``"poisson"`` for raw counts; ``"normal"`` or ``"mse"`` for log values; ``"bernoulli"``
        for values in ``[0, 1]``.
    augment
        How the copies seen by the arms differ: ``"auto"`` (thinning for counts, otherwise masking), ``"thin"``,
        ``"mask"``, ``"noise"``, ``"neighbours"``, ``"across=KEY"`` (a condition in ``obs`` that cell types must not
        follow), ``"learned"`` (see :meth:`train_augmenter`), ``"affine"`` (for images), ``"none"``; several of these
        joined by ``"+"``; an :class:`~cplmixvi.augment.Augmenter`; or a list of these.
    allow_empty_cells
        Whether cells with zeros in all genes are accepted; by default only with ``"bernoulli"``.
    registry
        Registry of a saved model or of a data module, for use without an AnnData.
    **module_kwargs
        Keyword arguments of :class:`~cplmixvi.module.CplMixVAE`: ``n_hidden``, ``n_layers``, ``temperature``, ``hard``,
        ``beta``, ``distance``, ``lam``, ``epsilon``, ...

    Raises
    ------
    ValueError
        If an argument is out of range or the values do not fit the likelihood.

    Examples
    --------
    >>> adata = cplmixvi.datasets.simulate(n_obs=300, n_vars=100, n_types=4)
    >>> cplmixvi.CplMixVI.setup_anndata(adata)
    >>> model = cplmixvi.CplMixVI(adata, n_categories=4)
    >>> model.train(max_epochs=50)
    >>> cplmixvi.tl.annotate(adata, model)
    """

    #: Level of every cell in a condition that training found and types do not follow, 0 or 1, -1 for cells that were
    #: not trained on, ``(n_obs,)``; `None` if there is none. See ``find_condition`` of :meth:`train`.
    condition_: np.ndarray | None = None

    _module_cls = CplMixVAE
    _data_splitter_cls = CplMixSplitter
    _data_loader_cls = CellLoader
    _training_plan_cls = CplMixPlan

    def __init__(
        self,
        adata: AnnData | None = None,
        n_categories: int | str | None = None,
        n_state: int = 2,
        n_arms: int = 2,
        likelihood: str = "nb",
        augment: Augment = "auto",
        *,
        allow_empty_cells: bool | None = None,
        registry: dict | None = None,
        **module_kwargs,
    ):
        super().__init__(adata, None if registry is None else as_of_anndata(registry))
        check_positive(n_state=n_state, n_arms=n_arms)
        pp.check_likelihood(likelihood)
        n_obs = self.summary_stats.n_cells
        # Until it is found, the number is a bound, so that a model can be looked at before it is trained.
        self._finds_n_categories = n_categories is None or n_categories == "auto"
        self.n_categories = (
            max(default_n_categories(n_obs), self.n_labels) if self._finds_n_categories else n_categories
        )
        augmenter = resolve(augment, likelihood)
        if adata is not None:
            pp.check_n_categories(self.n_categories, n_obs if registry is None else np.inf, self.label_names)
            values = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
            layer = self.registry_["setup_args"].get("layer")
            pp.check_values(
                values,
                likelihood,
                where=pp.source_name(layer),
                obs_names=adata.obs_names,
                var_names=adata.var_names,
                allow_empty_cells=allow_empty_cells,
            )
            if likelihood in COUNT_LIKELIHOODS:
                module_kwargs = {**depth_of(self.adata_manager), **module_kwargs}
        augmenter.build(self.summary_stats.n_vars, likelihood, module_kwargs.get("target_library", 1e4))
        self.n_state, self.n_arms, self.likelihood = n_state, n_arms, likelihood
        self.allow_empty_cells = allow_empty_cells
        covariates = self.registry_["field_registries"]
        categorical = covariates.get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
        self._module_options = dict(
            n_state=n_state,
            n_arms=n_arms,
            n_batch=self.summary_stats.n_batch,
            n_cats_per_cov=tuple(categorical.get("n_cats_per_key", ())),
            n_continuous_cov=self.summary_stats.get("n_extra_continuous_covs", 0),
            n_labels=self.n_labels,
            use_size_factor_key=self.registry_["setup_args"].get("size_factor_key") is not None,
            likelihood=likelihood,
            augmenter=augmenter,
            **module_kwargs,
        )
        self._build(self.n_categories)
        self.init_params_ = self._get_init_params(locals())

    def _build(self, n_categories: int) -> None:
        """Make the module, anew where the number of categories has been found."""
        self.n_categories = n_categories
        self.module = self._module_cls(self.summary_stats.n_vars, n_categories=n_categories, **self._module_options)
        self._model_summary_string = (
            f"{type(self).__name__} with n_categories: {n_categories}, n_state: {self.n_state}, n_arms: {self.n_arms}, "
            f"likelihood: {self.likelihood}, augment: {type(self.module.augmenter).__name__}"
        )

    def _take_n_categories(self, n_categories: int) -> None:
        """Be a model with the number of categories that was found."""
        self._build(n_categories)
        # What a saved model is made from when it is loaded.
        kept = {**self.init_params_["non_kwargs"], "n_categories": n_categories}
        self.init_params_ = {**self.init_params_, "non_kwargs": kept}

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        size_factor_key: str | None = None,
        unlabeled_category: str = "unknown",
        **kwargs,
    ) -> None:
        """%(summary)s.

        Parameters
        ----------
        %(param_adata)s
        %(param_layer)s
        %(param_batch_key)s
        labels_key
            Column of ``obs`` with the cell types of some or all cells; optional. Labels guide the categories: each
            label becomes a category of the same name, and the remaining categories are left to unlabelled cell types.
            Leave it out if labels are only for evaluation. New cells passed to a trained model need no labels.
        %(param_cat_cov_keys)s
        %(param_cont_cov_keys)s
        %(param_size_factor_key)s
        unlabeled_category
            Value of ``labels_key`` that marks unlabelled cells; cells with a missing value are unlabelled too.

        Raises
        ------
        ValueError
            If there are no cells or genes, a layer or column does not exist, a column other than that of the labels has
            missing values, or a label is called "unassigned".

        Warns
        -----
        UserWarning
            If ``labels_key`` is given but no cell has a label.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        pp.check_setup(
            adata,
            layer=layer,
            # Cells that a trained model is transferred to need no labels.
            obs_keys=[labels_key] if labels_key is not None and kwargs.get("source_registry") is None else [],
            complete_keys=[key for key in (batch_key, *names_of(categorical_covariate_keys)) if key is not None],
            number_keys=[key for key in (size_factor_key, *names_of(continuous_covariate_keys)) if key is not None],
        )
        fields = [
            # Whether the values are counts depends on the likelihood, so the check waits for __init__.
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            LabelsField(REGISTRY_KEYS.LABELS_KEY, labels_key, unlabeled_category),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        if labels_key is not None and not registered_labels(manager.get_state_registry(REGISTRY_KEYS.LABELS_KEY)):
            warnings.warn(
                f"No cell has a label: obs[{labels_key!r}] is {unlabeled_category!r} or missing everywhere.",
                UserWarning,
                stacklevel=2,
            )
        cls.register_manager(manager)

    def train(
        self,
        max_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        batch_size: int | None = None,
        warm_start: bool | None = None,
        find_condition: bool = True,
        plan_kwargs: dict | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int | None = None,
        resume: str | Path | None = None,
        **kwargs,
    ) -> None:
        """Train all arms jointly, after determining the number of categories if none was given.

        If training fails or is interrupted, the model is left as it was before; with checkpoints, it can be resumed.

        Parameters
        ----------
        max_epochs
            Number of epochs; by default :func:`cplmixvi.train.default_max_epochs`, if a ``datamodule`` has ``n_obs``.
        accelerator
            Passed to Lightning; ``"auto"`` uses a GPU if available.
        devices
            Passed to Lightning; ``"auto"`` uses one. Several train together, in one process each.
        train_size
            Fraction of cells to train on. All by default, because cell types are found among the training cells and the
            rarest may have only a dozen. Early stopping and validation need a fraction below 1 (0.9 if not given).
        batch_size
            Minibatch size per process; by default from :func:`cplmixvi.train.default_batch_size`.
        warm_start
            Start the arms from the categories on which several views of the data agree, and keep them close to these.
            Default for the first training of a model. `False`, together with
            ``CplMixVI(..., distance="perturbed", epsilon=None)``, gives the paper's objective alone. Labels guide the
            arms in any case: without a warm start, the cross-entropy of labelled cells is added to the objective.
        find_condition
            Whether a warm start searches for a condition that no column of ``obs`` has: two levels of one shift shared
            by most types, such as a treatment; see :attr:`condition_`. If types would follow it, copies of a cell are
            of both levels, so that they do not. Batches that change some types much more than others are such a
            condition, too. There is no search for images, for cells in a file, or if ``augment`` names a
            condition or replaces cells.
        plan_kwargs
            Keyword arguments of :class:`cplmixvi.train.CplMixPlan`.
        checkpoint_dir
            Folder for saved models with the state of training, of which the last two are kept.
        checkpoint_every
            Epochs between them, by default a twentieth.
        resume
            Folder with checkpoints of an unfinished training. It continues from the last one with its original
            arguments and ends with the weights of an uninterrupted run. The model must be created as it was then.
        **kwargs
            See :meth:`scvi.model.base.UnsupervisedTrainingMixin.train`: ``early_stopping``, ``deterministic=True`` (the
            same seed gives the same result on a GPU too; slower, and an error if torch has no such algorithm), ...

        Raises
        ------
        ValueError
            If fewer than two cells are left, the cells lack what the augmenter needs, training diverges at every
            learning rate, or there is no checkpoint of this model to resume.

        Warns
        -----
        UserWarning
            If the fit is unsound, see :meth:`report`, or if training diverged and continued at a lower learning rate.
        """
        given = {"max_epochs": max_epochs, "train_size": train_size, "batch_size": batch_size, **kwargs}
        given |= {"accelerator": accelerator, "devices": devices, "plan_kwargs": dict(plan_kwargs or {})}
        check_plan_kwargs(self._training_plan_cls, given["plan_kwargs"])
        if warm_start is not None:
            given["plan_kwargs"].setdefault("warm_start", warm_start)
        if not find_condition:
            given["plan_kwargs"].setdefault("find_condition", False)
        if self.adata is not None and self.n_reference_batches_ is None:
            # Not before: a model that is loaded for inference needs nothing of what its augmenter looked at.
            self.module.augmenter.check(self.adata)
        if resume is None:
            has_start = self.is_trained_ or self.n_reference_batches_ is not None
            settings = settled(given, getattr(self.adata, "n_obs", None), has_start)
            self._check_query_training(settings["plan_kwargs"])
            # Refused before anything that takes long.
            checkpoints = self._checkpoints(settings, checkpoint_dir, checkpoint_every)
            self._find_what_training_needs(settings)
        with as_it_was_on_failure(self):
            if resume is not None:
                settings, checkpoints = self._resumed(resume, given, checkpoint_dir, checkpoint_every)
            if checkpoints is not None:
                settings["callbacks"] = [*(settings.get("callbacks") or ()), checkpoints]
            self._fit(settings, resumable=checkpoint_dir if resume is None else resume)
            report = self._report_of_some()
            self._record_training(report)
        if report is not None and not report.sound:
            # A collapsed fit looks like any other from outside: say so at once.
            warnings.warn(" ".join(report.problems) + " See model.report().", UserWarning, stacklevel=2)

    def _fit(self, settings: dict, resumable: str | Path | None) -> None:
        """Train the module, and look at what came out."""
        # Inference leaves the module in evaluation mode, and Lightning trains it in whatever mode it is.
        self.module.train()
        if self._finds_n_categories and self._consensus is not None and not self.is_trained_:
            # Not kept with the settings, because a training that is resumed has begun.
            settings = {**settings, "plan_kwargs": {**settings["plan_kwargs"], "begin": self._consensus}}
        self._is_fitting = True
        try:
            with without_talk(), interruptible(resumable):
                super().train(**settings)
        finally:
            self._is_fitting = False
        if settings["plan_kwargs"]["warm_start"]:
            self.condition_ = self.trainer.lightning_module.level
            self._learn_calibration(self.trainer.lightning_module.half_fits)
        if self.n_reference_batches_ is None:
            datamodule = settings.get("datamodule")
            self.align_arms(None if datamodule is None else Minibatches(datamodule, datamodule.train_dataloader()))
            self._learn_novelty()

    def _find_what_training_needs(self, settings: dict) -> None:
        """Find the number of categories where none was given, and train the augmenter where it was not."""
        finds = self._finds_n_categories and not self.is_trained_ and getattr(self.adata, "n_obs", 0) > 1
        learns = not all(part.fitted for part in learned_parts(self.module.augmenter))
        check_several(settings.get("strategy"), finds_n_categories=finds, learns_augmenter=learns)
        if finds:
            find_condition = settings["plan_kwargs"].get("find_condition", True)
            selection = self.selection or self.select_n_categories(find_condition=find_condition)
            self._take_n_categories(selection.n_categories)
        if learns:
            shared = ("accelerator", "devices", "batch_size", "enable_progress_bar", "logger")
            self.train_augmenter(**{key: settings[key] for key in shared if key in settings})
