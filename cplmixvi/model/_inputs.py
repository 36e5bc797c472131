"""Cells that a model is given: checked, registered as they are now, and read in minibatches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager

from cplmixvi import pp
from cplmixvi.train import is_on_disk

from ._covariates import check_known, check_size_factors, names_of
from ._genes import align_genes
from ._mixin import Mixin
from ._settings import check_positive

#: Cells whose values are looked at to see whether all have changed.
_LOOKED_AT = 200


class InputsMixin(Mixin):
    """What scvi-tools asks of cells before it reads them, and more."""

    allow_empty_cells: bool | None
    #: Hash of the own cells' values when they were last trained on; not of a model that was loaded.
    _digest: str | None = None
    #: Other cells that are registered: those that were last given. scvi-tools would hold all that ever were.
    _guest: str | None = None

    def check_own_values(self) -> None:
        """Refuse own cells whose values are not those that the model was trained on.

        Looks at all values, unless they are on disk or the model was loaded.

        Raises
        ------
        ValueError
            If they have changed.

        Examples
        --------
        >>> model.check_own_values()
        """
        if self._digest is None or is_on_disk(self.adata_manager) or not self._has_own_genes():
            return
        if self._values_digest() != self._digest:
            raise ValueError(
                "Values of the model's own cells have changed since it was trained: restore them, or train again. Keep "
                "what the model reads in a layer, and name it in setup_anndata(layer=...)."
            )

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        """Refuse values that the model cannot read and put genes into the model's order before registering."""
        if adata is None and self.adata is None:
            raise ValueError("The model has no cells of its own: give adata.")
        if adata is None or adata is self.adata:
            adata = self.adata
            # Whoever takes genes out of the model's own cells, or changes their order, has other cells.
            if self._has_own_genes():
                # Which puts back what another model's setup of the same cells has replaced.
                adata = super()._validate_anndata(adata, copy_if_view=copy_if_view)
                check_kept(self.adata_manager, self.likelihood)
                return adata
        pp.check_adata(adata)
        aligned = align_genes(adata, self.get_var_names())
        check_cells(aligned, self.registry_, self.likelihood, self.allow_empty_cells)
        return self._registered(aligned, copy_if_view)

    def _values_digest(self) -> str:
        """Hash of the own cells' values and genes as they are now."""
        return pp.input_hash(self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY), self.adata.var_names)

    def _has_own_genes(self) -> bool:
        """Whether the model's own cells have the genes that they were set up with, in that order."""
        return np.array_equal(self.adata.var_names.astype(str), self.get_var_names().astype(str))

    def _registered(self, adata: AnnData, copy_if_view: bool) -> AnnData:
        """Register other cells than the model's own as they are now, without making them the model's own."""
        own, set_up = (self._adata, self._adata_manager), dict(self._setup_adata_manager_store)
        if own[1] is None:
            # scvi-tools sets up copies and parts of cells that it knows as the model's own cells, and there are none.
            self._per_instance_manager_store.pop(self.id, None)
        is_known = self.get_anndata_manager(adata) is not None
        with warnings.catch_warnings():
            # Of few cells in a category, which matters where a model is trained.
            warnings.filterwarnings("ignore", message=".*has fewer than 3 cells")
            adata = super()._validate_anndata(adata, copy_if_view=copy_if_view)
            if is_known:
                # scvi-tools keeps the codes that batches and covariates had when it first saw the cells.
                self._register_manager_for_instance(own[1].transfer_fields(adata))
        self._adata, self._adata_manager = own
        # What a model without cells of its own sets up is not for models that are made later.
        self._setup_adata_manager_store.clear()
        self._setup_adata_manager_store.update(set_up)
        self._let_go_of_others(adata)
        return adata

    def _let_go_of_others(self, adata: AnnData) -> None:
        """Forget the cells that were given before ``adata``, which may be large copies that nobody else has."""
        uuid = self.get_anndata_manager(adata, required=True).adata_uuid
        if self._guest not in (None, uuid):
            self._per_instance_manager_store[self.id].pop(self._guest, None)
        self._guest = uuid

    def _make_data_loader(self, adata: AnnData, indices=None, batch_size: int | None = None, **kwargs):
        """Minibatches of some of the cells; refuses rows that are not there, and no cells at all."""
        if batch_size is not None:
            check_positive(batch_size=batch_size)
            batch_size = int(batch_size)
        indices = checked_rows(indices, adata.n_obs)
        return super()._make_data_loader(adata=adata, indices=indices, batch_size=batch_size, **kwargs)

    def get_var_names(self, *args, **kwargs) -> np.ndarray:
        """Names of the genes that the model was set up with, in its order, ``(n_vars,)``.

        Parameters
        ----------
        *args, **kwargs
            Of scvi-tools; only used where what was set up has no names.

        Examples
        --------
        >>> len(model.get_var_names()) == adata.n_vars
        True
        """
        state = self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
        names = state.get("column_names")
        return super().get_var_names(*args, **kwargs) if names is None else np.asarray(names)


def check_cells(
    adata: AnnData, registry: dict, likelihood: str, allow_empty_cells: bool | None, *, new_batches: bool = False
) -> None:
    """Refuse new cells that a model cannot read.

    Parameters
    ----------
    adata
        With the model's genes.
    registry
        Of the model.
    likelihood, allow_empty_cells
        See :func:`cplmixvi.pp.check_values`.
    new_batches
        Whether there may be batches that the model has not seen.

    Raises
    ------
    ValueError
        If a layer or a column is missing, or values of these are not such as the model reads.
    """
    check_known(adata, registry, new_batches=new_batches)
    arguments = registry["setup_args"]
    layer, factor = arguments.get("layer"), arguments.get("size_factor_key")
    numbers = [key for key in (factor, *names_of(arguments.get("continuous_covariate_keys"))) if key is not None]
    pp.check_setup(adata, layer=layer, number_keys=numbers)
    check_size_factors(adata, factor)
    pp.check_values(
        adata.X if layer is None else adata.layers[layer],
        likelihood,
        where=pp.source_name(layer),
        obs_names=adata.obs_names,
        var_names=adata.var_names,
        allow_empty_cells=allow_empty_cells,
        min_cells=1,
    )


def checked_rows(indices: Sequence[int] | None, n_obs: int) -> np.ndarray | None:
    """Rows of some of ``n_obs`` cells, from rows or a mask; `None` for all.

    Raises
    ------
    ValueError
        If there are none, they are no numbers, or there are no such cells.
    """
    if indices is None:
        return None
    rows = np.asarray(indices)
    if rows.ndim == 1 and rows.dtype.kind == "b":
        if len(rows) != n_obs:
            raise ValueError(f"indices is a mask of {len(rows)} cells, and there are {n_obs}: give one entry per cell.")
        rows = np.flatnonzero(rows)
    if rows.ndim != 1 or rows.size == 0 or rows.dtype.kind not in "iu":
        raise ValueError("indices must be row numbers of one or more cells, or a mask; names of cells are neither.")
    if rows.min() < -n_obs or rows.max() >= n_obs:
        raise ValueError(f"indices has row {rows.min() if rows.min() < -n_obs else rows.max()}, and there are {n_obs}.")
    return rows % n_obs


def check_kept(manager: AnnDataManager, likelihood: str) -> None:
    """Refuse a model's own cells if their values or batches are no longer what the model was set up with.

    Values of some cells only are looked at: to normalise or scale changes those of all.

    Raises
    ------
    ValueError
        If the batches are not those that were registered, or values are not such as the model reads.
    """
    adata, arguments = manager.adata, manager.registry["setup_args"]
    if not is_on_disk(manager):
        values = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        some = np.unique(np.linspace(0, adata.n_obs - 1, min(adata.n_obs, _LOOKED_AT)).astype(int))
        try:
            with warnings.catch_warnings(action="ignore"):
                name = pp.source_name(arguments.get("layer"))
                pp.check_values(values[some], likelihood, where=name, allow_empty_cells=True, min_cells=1)
        except ValueError as error:
            raise ValueError(
                f"The model's own cells have changed since they were set up: {error}. Keep what the model reads in a "
                "layer, and name it in setup_anndata(layer=...)."
            ) from error
    key = arguments.get("batch_key")
    if key is None or key not in adata.obs:
        return
    names = pd.Index(manager.get_state_registry(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"])
    codes = np.asarray(manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)).ravel()
    if not np.array_equal(codes, names.get_indexer(adata.obs[key])):
        raise ValueError(
            f"obs[{key!r}] of the model's own cells has changed since they were set up: restore it, or give them as "
            "new cells (adata.copy())."
        )
