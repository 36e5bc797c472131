"""Cells of new batches: a copy of a trained model that learns these batches and nothing else (scArches)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS

from cplmixvi.module import find_shift, train_new_batches_only, with_new_batches

from ._covariates import check_known, known_batches
from ._devices import resolve_device
from ._genes import align_genes, check_same_genes
from ._inputs import check_cells
from ._mixin import Mixin
from ._saved import part, take_over

#: Cells of a new batch that its shift is found in, at most, and how often.
_MAX_CELLS = 5_000
_N_ROUNDS = 5
_ON_OTHER_GENES = (
    "pass inplace_subset_query_vars=True, which puts them into the model's order and drops others from adata"
)


class QueryMixin(Mixin):
    """Lets a trained model learn batches that it has not seen."""

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData,
        reference_model,
        inplace_subset_query_vars: bool = False,
        accelerator: str = "auto",
        device: int | str = "auto",
    ):
        """Create a model for cells of new batches, like :meth:`scvi.model.base.ArchesMixin.load_query_data`.

        It has the categories of the reference model, under the same names, and gives the same results as the reference
        for cells of the reference's batches. When :meth:`train` is called, only the weights of the new batches are
        trained: what a batch adds to the first layers of encoders and decoders. They start at the mean over the known
        batches, and the mean that the arms' linear paths subtract is shifted by the mean difference between the new
        cells and what the decoders expect of them.

        Parameters
        ----------
        adata
            Cells with the genes and columns of the reference, at least one of them from a new batch. They are set up
            here. A cell type that the reference does not have is not found in them, see :meth:`get_novelty`.
        reference_model
            Trained model, or a folder written by :meth:`save`.
        inplace_subset_query_vars
            Bring the genes of ``adata`` into the model's order and drop all others, in place. If `False`, they must
            match already.
        accelerator, device
            See :meth:`load`.

        Returns
        -------
        CplMixVI
            Still to be trained, by default without a warm start. The coordinates of states, and the distances that
            novelty is measured against, are those of the reference.

        Raises
        ------
        ModelFileError
            A ValueError. See :meth:`load`.
        ValueError
            If the reference was not trained, or was set up without batches; if the cells are from no new batch, lack
            genes or columns, or have values that the model cannot read; if genes of cells in a file are to be changed.

        Examples
        --------
        >>> cplmixvi.CplMixVI.setup_anndata(adata, batch_key="batch")
        >>> model = cplmixvi.CplMixVI(adata, n_categories=3)
        >>> model.train()
        >>> new.obs["batch"] = "tuesday"
        >>> query = cplmixvi.CplMixVI.load_query_data(new, model)
        >>> query.train(max_epochs=100)
        >>> cplmixvi.tl.annotate(new, query)
        """
        target = resolve_device(accelerator, device)
        if isinstance(reference_model, str | Path):
            saved = cls._read(Path(reference_model))
        elif isinstance(reference_model, cls):
            saved = reference_model._as_saved(with_anndata=False)
        else:
            raise ValueError(f"reference_model={reference_model!r} is neither a {cls.__name__} nor a folder of one.")
        attributes, registry = part(saved, "attributes"), part(saved, "registry")
        if not attributes.get("is_trained_"):
            raise ValueError("The reference model was not trained; train it first.")
        _check_batches(adata, registry)
        genes = saved.meta["genes"]
        if inplace_subset_query_vars and adata.isbacked:
            raise ValueError(
                "The cells are read from a file, whose genes are not dropped or put into another order: leave "
                "inplace_subset_query_vars out, or give adata.to_memory()."
            )
        # Checked before genes are dropped.
        given = align_genes(adata, genes) if inplace_subset_query_vars else adata
        check_same_genes(given, genes, _ON_OTHER_GENES)
        options = part(saved, "init_params")["non_kwargs"]
        check_cells(given, registry, options["likelihood"], options.get("allow_empty_cells"), new_batches=True)
        if inplace_subset_query_vars:
            adata._inplace_subset_var(genes)
        cls.setup_anndata(adata, source_registry=registry, extend_categories=True, **registry["setup_args"])
        model = cls._made(saved, adata, registry)
        n_known = len(known_batches(registry))
        saved.weights = with_new_batches(saved.weights, model.module, n_known)
        take_over(model, saved)
        model.references_ = [model.training_, *(model.references_ or [])]
        # What is said of the reference's cells one by one.
        for name in ("condition_", "history_", "train_indices_", "validation_indices_", "test_indices_", "training_"):
            setattr(model, name, None)
        model.is_trained_, model.n_reference_batches_ = False, n_known
        train_new_batches_only(model.module, n_known)
        model.to_device(target)
        model.module.eval()
        model._find_shifts()
        return model

    def _check_query_training(self, plan_kwargs: dict) -> None:
        """Refuse a training that would change what the reference has learned.

        Raises
        ------
        ValueError
            For a warm start, or a decay of weights.
        """
        if self.n_reference_batches_ is None:
            return
        for name in ("warm_start", "weight_decay"):
            if plan_kwargs.get(name):
                raise ValueError(
                    f"{name}={plan_kwargs[name]!r} would change what the reference model has learned; leave it out."
                )

    def _find_shifts(self) -> None:
        """Find what arms' linear paths take out of cells of new batches."""
        codes = self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY).ravel()
        for batch in range(self.n_reference_batches_, self.summary_stats.n_batch):
            rows = np.flatnonzero(codes == batch)
            rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _MAX_CELLS)).astype(int)]
            start = [arm.path.mean[batch].clone() for arm in self.module.arms]
            for _ in range(_N_ROUNDS):
                loader = self._make_data_loader(adata=self.adata, indices=rows)
                shift = sum(find_shift(self.module, tensors) for tensors in loader) / len(rows)
                for arm, mean in zip(self.module.arms, start, strict=True):
                    arm.path.mean[batch] = mean + shift


def _check_batches(adata: AnnData, registry: dict) -> None:
    known = known_batches(registry)
    if known is None:
        raise ValueError(
            "The reference model was set up without batch_key, so that it knows of no batches: use it as it is "
            "(model.predict(adata)), or train one with batch_key."
        )
    check_known(adata, registry, new_batches=True)
    key = registry["setup_args"]["batch_key"]
    if len({isinstance(name, str) for name in (*known, *adata.obs[key].unique())}) > 1:
        raise ValueError(
            f"Batches of the cells (obs[{key!r}]) and of the reference model must all be text, or all be numbers: "
            f"convert them, for instance with adata.obs[{key!r}].astype(str)."
        )
    if set(adata.obs[key].unique()) <= set(known):
        raise ValueError(f"All batches of the cells (obs[{key!r}]) are known to the reference model: use it as it is.")
