"""What the variational autoencoders that cplmixvi is compared with have in common: one arm, no start, no coupling."""

from __future__ import annotations

from anndata import AnnData

from cplmixvi import pp
from cplmixvi.augment import Augment
from cplmixvi.model import CplMixVI

from ._plan import ScheduledPlan

#: Arguments of :meth:`cplmixvi.CplMixVI.train`, or of its plan, that are of a warm start.
_OF_A_START = ("warm_start", "find_condition", "guided_fraction", "fit_halves", "begin")


class SingleArmModel(CplMixVI):
    """A model of one arm with the data, likelihoods, getters and files of :class:`~cplmixvi.CplMixVI`.

    The labels of ``setup_anndata(labels_key=...)`` are not used.

    Parameters
    ----------
    adata
        Cells on which :meth:`setup_anndata` was called.
    n_categories
        Number of cell types ``K``.
    n_state
        Number of state dimensions ``S``.
    likelihood, augment, allow_empty_cells, registry
        See :class:`~cplmixvi.CplMixVI`; no augmentation by default.
    **module_kwargs
        Passed to the module.

    Raises
    ------
    ValueError
        If an argument is out of range, the number of categories is not given, or an option is given that the method
        does not have, such as one of several arms.
    """

    _training_plan_cls = ScheduledPlan

    def __init__(
        self,
        adata: AnnData | None = None,
        n_categories: int | None = None,
        n_state: int = 10,
        likelihood: str = "nb",
        augment: Augment = "none",
        *,
        allow_empty_cells: bool | None = None,
        registry: dict | None = None,
        **module_kwargs,
    ):
        if not pp.is_whole(n_categories) or n_categories < 2:
            raise ValueError(
                f"n_categories={n_categories!r} must be a whole number of at least 2: baselines do not find it."
            )
        super().__init__(
            adata,
            n_categories,
            n_state,
            # The module refuses any other number.
            module_kwargs.pop("n_arms", 1),
            likelihood,
            augment,
            allow_empty_cells=allow_empty_cells,
            registry=registry,
            **module_kwargs,
        )
        self.init_params_ = self._get_init_params(locals())

    def train(self, max_epochs: int | None = None, **kwargs) -> None:
        """Train from a random start.

        Parameters
        ----------
        max_epochs, **kwargs
            Of :meth:`cplmixvi.CplMixVI.train`, except ``warm_start`` and what is part of it: ``find_condition``, and
            ``guided_fraction``, ``fit_halves`` and ``begin`` of ``plan_kwargs``.

        Raises
        ------
        ValueError
            If one of these is requested, because these methods have no warm start.
        """
        plan_kwargs = kwargs.get("plan_kwargs") or {}
        for name in _OF_A_START:
            # Whoever says that there is to be none is right.
            value = kwargs.get(name) or plan_kwargs.get(name)
            if value is not None and value is not False:
                given = f"{name}={value!r}" if pp.is_number(value) or value is True else name
                raise ValueError(
                    f"{given}: {type(self).__name__} has no warm start, nor what is part of it; leave {name} out."
                )
        kwargs.pop("warm_start", None)
        super().train(max_epochs, warm_start=False, **kwargs)


def doc_of(name: str, source: str, module: str, *, cells: str = "adata", before: tuple[str, ...] = ()) -> str:
    """Docstring of a model: that of :class:`SingleArmModel` with where it is from, and an example.

    Parameters
    ----------
    name, source, module
        Of the model, what it is from, and its module.
    cells, before
        Name of the example's cells, and lines that make them.
    """
    lines = (
        *before,
        f"{name}.setup_anndata({cells})",
        f"baseline = {name}({cells}, 3)",
        "baseline.train(max_epochs=2, enable_progress_bar=False)",
        "labels = baseline.predict()",
    )
    summary = f"{name} ({source}; :class:`~cplmixvi.baselines.{module}`) with the data"
    common = SingleArmModel.__doc__.replace("A model of one arm with the data", summary).rstrip()
    return "\n".join([common, "", "    Examples", "    --------", *(f"    >>> {line}" for line in lines), "    "])
