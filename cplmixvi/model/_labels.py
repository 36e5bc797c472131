"""Labels of some of the cells: how they are registered, and the names of categories that come from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data.fields import CategoricalObsField

from cplmixvi._constants import UNASSIGNED


class LabelsField(CategoricalObsField):
    """Codes of the cells' labels, those without a label last.

    :class:`scvi.data.fields.LabelsWithUnlabeledObsField` means the same, but cannot register labels that are numbers
    or missing, or no column at all; keeps categories of the column that no cell has; and either refuses cells that lack
    the column or adds it to them. The registry here has the entries that it has there, all of them strings.

    Parameters
    ----------
    registry_key
        Key in the registry and in minibatches.
    obs_key
        Column of ``obs``; `None` for no labels.
    unlabeled_category
        What cells without a label are called in that column.
    """

    UNLABELED_CATEGORY = "unlabeled_category"

    def __init__(self, registry_key: str, obs_key: str | None, unlabeled_category: object = "unknown"):
        super().__init__(registry_key, obs_key)
        self._obs_key, self._unlabeled = obs_key, as_name(unlabeled_category)

    def validate_field(self, adata: AnnData) -> None:
        """Nothing to refuse: a column that is missing means that no cell has a label."""

    def register_field(self, adata: AnnData) -> dict:
        """Find the labels and write the codes of the cells.

        Raises
        ------
        ValueError
            If a label has the name that is kept for unassigned cells.
        """
        labels = self._labels(adata)
        names = list(labels.categories)
        if UNASSIGNED in names:
            raise ValueError(
                f"obs[{self._obs_key!r}] has the label {UNASSIGNED!r}, which is kept for cells that get no category: "
                f"rename it, or pass unlabeled_category={UNASSIGNED!r} if these cells have no label"
            )
        return self._write(adata, labels, names)

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Write codes of the labels that are registered; cells with another one, or without the column, have none."""
        return self._write(adata_target, self._labels(adata_target), registered_labels(state_registry))

    def _labels(self, adata: AnnData) -> pd.Categorical:
        """Labels as strings, missing where a cell has none, ``(n_cells,)``."""
        if self._obs_key not in adata.obs:
            return pd.Categorical([None] * adata.n_obs, categories=[])
        given = adata.obs[self._obs_key].astype("category").cat.remove_unused_categories()
        # Names of different values may be the same, such as those of 1 and "1" in a mixed column.
        names = dict.fromkeys(as_name(value) for value in given.cat.categories)
        values = given.astype(object).map(as_name, na_action="ignore")
        return pd.Categorical(
            values.where(values != self._unlabeled), categories=[name for name in names if name != self._unlabeled]
        )

    def _write(self, adata: AnnData, labels: pd.Categorical, names: list[str]) -> dict:
        codes = labels.set_categories(names).codes.astype(np.int64)
        adata.obs[self.attr_key] = np.where(codes < 0, len(names), codes)
        return {
            self.CATEGORICAL_MAPPING_KEY: np.array([*names, self._unlabeled], dtype=object),
            self.ORIGINAL_ATTR_KEY: self.attr_key if self._obs_key is None else self._obs_key,
            self.UNLABELED_CATEGORY: self._unlabeled,
        }


def as_name(value: object) -> str:
    """Label as a string; whole numbers without a point, because missing values make floats of them."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return str(value)


def registered_labels(state_registry: Mapping) -> list[str]:
    """Names of the labels that :class:`LabelsField` registered; none in models older than that.

    Raises
    ------
    ValueError
        If the registry is another's, and cells without a label do not come last in it.
    """
    if LabelsField.UNLABELED_CATEGORY not in state_registry:
        return []
    *labels, last = (str(name) for name in state_registry[LabelsField.CATEGORICAL_MAPPING_KEY])
    unlabeled = str(state_registry[LabelsField.UNLABELED_CATEGORY])
    if labels and last != unlabeled:
        raise ValueError(
            f"{unlabeled!r}, the cells without a label, must be the last of the labels and is not among "
            f"{[*labels, last]} so: leave labels_key out of the data module."
        )
    return labels


def category_names(n_categories: int, labels: Sequence[str] = ()) -> np.ndarray:
    """Names of the categories: the labels, and for the others their index in the model as a string.

    Parameters
    ----------
    n_categories
        ``K``.
    labels
        Names of the first categories.

    Returns
    -------
    numpy.ndarray
        Strings that are all different, ``(K,)``, dtype object. An index that is a label gets underscores behind it.
    """
    names = list(labels)
    for k in range(len(labels), n_categories):
        name = str(k)
        while name in labels:
            name += "_"
        names.append(name)
    return np.array(names, dtype=object)
