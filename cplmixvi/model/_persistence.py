"""Saving and loading without pickle, behind the interface of scvi-tools."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import anndata as ad
import scvi
import torch
from anndata import AnnData
from anndata.io import write_h5ad
from scvi.data import AnnDataManager

from cplmixvi import io, pp
from cplmixvi._constants import COUNT_LIKELIHOODS, LEGACY_MODEL_FILE, LOG_LIKELIHOODS
from cplmixvi.module import train_new_batches_only

from ._devices import resolve_device
from ._genes import check_same_genes
from ._mixin import Mixin
from ._report import Report
from ._saved import checked_prefix, fitting_together, is_kept, part, take_over

#: Packages whose versions decide what a model does.
PACKAGES = ("cplmixvi", "scvi-tools", "torch", "anndata", "numpy")


class PersistenceMixin(Mixin):
    """Writes a model as safetensors and JSON, and reads it without running anything that is in the files."""

    #: What the model was trained on, how and with what success; kept with the model when it is saved.
    training_: dict[str, object] | None = None
    #: Number of batches whose weights stay as they are; `None` but for models of :meth:`load_query_data`.
    n_reference_batches_: int | None = None
    #: What the model was before it learned new batches: records like ``training_``, the latest first; see
    #: :meth:`load_query_data`. `None` but for its models, an entry is `None` where nothing was recorded.
    references_: list[dict[str, object] | None] | None = None
    #: Whether scvi-tools may be saving a checkpoint, which it reads back in a way of its own.
    _is_fitting = False

    def save(
        self,
        dir_path: str,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        save_kwargs: dict | None = None,
        legacy_mudata_format: bool = False,
        datamodule: object = None,
        **anndata_write_kwargs,
    ) -> None:
        """Save the model: weights and arrays as safetensors, everything else as JSON, and a model card.

        The folder is written completely or not at all; if saving fails, an existing folder is left unchanged.

        Parameters
        ----------
        dir_path
            Folder to write.
        prefix
            Prefix of the file names.
        overwrite
            Replace a model in the folder, with the cells saved with it; keep other files. If `False`, the folder must
            not exist.
        save_anndata
            Also save the cells, as ``adata.h5ad``.
        save_kwargs, legacy_mudata_format, datamodule
            Of scvi-tools, without a meaning here; leave it at `None` or `False`.
        **anndata_write_kwargs
            Keyword arguments of :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        ValueError
            If the folder exists, there are no cells to save, a file in their place is not of a model, or the model
            contains something that a file cannot store.
        OSError
            If the folder cannot be written.
        """
        if save_kwargs or datamodule is not None:
            raise ValueError(
                "save_kwargs and datamodule are of scvi-tools' own file format, which is not written; leave them out."
            )
        if save_anndata and self.adata is None:
            raise ValueError("The model has no AnnData to save; leave out save_anndata.")
        path, prefix = Path(dir_path), checked_prefix(prefix)
        if path.exists() and not (overwrite and path.is_dir()):
            raise ValueError(
                f"{str(path)!r} exists; name another folder"
                + (", or pass overwrite=True to replace a model in it." if path.is_dir() else ".")
            )
        replaced = io.owned(path, prefix)
        if save_anndata and io.ANNDATA not in replaced and (path / f"{prefix}{io.ANNDATA}").exists():
            raise ValueError(
                f"{prefix}{io.ANNDATA} in {str(path)!r} is not of a model there, so it is not replaced; name another "
                "folder, or a prefix."
            )
        saved = self._as_saved(save_anndata)
        with io.whole_folder(path, {f"{prefix}{name}" for name in replaced}) as folder:
            io.write_files(folder, saved, prefix)
            (folder / f"{prefix}{io.CARD}").write_text(self.card(), encoding="utf-8")
            if save_anndata:
                # The method would turn cells that are read from a file to the new one, which is about to be moved.
                write_h5ad(folder / f"{prefix}{io.ANNDATA}", self.adata, **anndata_write_kwargs)
            if self._is_fitting:
                # scvi-tools' checkpoints read the best weights from here; load() does not.
                torch.save({"model_state_dict": self.module.state_dict()}, folder / f"{prefix}{LEGACY_MODEL_FILE}")

    def _as_saved(self, with_anndata: bool) -> io.Saved:
        state = self.module.state_dict()
        weights = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        attributes = {name: value for name, value in vars(self).items() if is_kept(name)}
        registry, init_params = attributes.pop("registry_"), attributes.pop("init_params_")
        arrays: dict = {}
        meta = {
            "versions": _versions(),
            "genes": [str(name) for name in self.get_var_names()],
            "with_anndata": with_anndata,
            "init_params": io.encode(init_params, "init_params", arrays),
            "registry": io.encode(registry, "registry", arrays),
            "attributes": io.encode(attributes, "attributes", arrays),
            "extra_state": io.encode(
                {name: value for name, value in state.items() if name not in weights}, "extra_state", arrays
            ),
        }
        return io.Saved(meta, weights, arrays)

    @classmethod
    def load(
        cls,
        dir_path: str,
        adata: AnnData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        backup_url: str | None = None,
        datamodule: object = None,
        allowed_classes_names_list: list[str] | None = None,
    ):
        """Load a model written by :meth:`save`. Nothing in the files is executed, whoever made them.

        Parameters
        ----------
        dir_path
            Folder to read.
        adata
            Cells with the model's genes in the model's order; they need not be set up. `None` uses the cells that were
            saved with the model, if any; `False` uses none.
        accelerator
            Kind of device: ``"auto"`` (CUDA if available), ``"cpu"``, ``"gpu"`` or ``"mps"``.
        device
            Number of the device.
        prefix
            Prefix of the file names.
        backup_url, datamodule
            Of scvi-tools; not supported.
        allowed_classes_names_list
            Names of other model classes that the file may contain.

        Returns
        -------
        CplMixVI

        Raises
        ------
        ModelFileError
            A ValueError. If the folder contains no model, a file is missing, damaged, a pickle or of a newer version,
            or the weights do not belong to the model.
        ValueError
            If the cells have other genes, or values that the model cannot read.

        Warns
        -----
        UserWarning
            If no cells were given and none were saved.
        """
        if backup_url is not None or datamodule is not None:
            raise ValueError("backup_url and datamodule are not supported; download the folder first, and load it.")
        if adata is True:
            raise ValueError("adata=True was given; give an AnnData, None for the saved cells, or False for none.")
        if not (adata is None or adata is False or isinstance(adata, AnnData)):
            raise ValueError(
                f"adata is a {type(adata).__name__}; give an AnnData, None for the saved cells, or False for none."
            )
        target = resolve_device(accelerator, device)
        path, prefix = Path(dir_path), checked_prefix(prefix)
        saved = cls._read(path, prefix, *(allowed_classes_names_list or ()))
        registry = part(saved, "registry")
        if adata is None:
            adata = _saved_cells(path / f"{prefix}{io.ANNDATA}", saved)
        adata = None if adata is False else adata
        with fitting_together(path):
            if adata is not None:
                check_same_genes(adata, saved.meta["genes"])
                cls.setup_anndata(adata, source_registry=registry, **registry["setup_args"])
            model = cls._from_saved(saved, adata, registry)
            model.to_device(target)
            model.module.eval()
            if adata is not None:
                model._validate_anndata(adata)
        return model

    @classmethod
    def _read(cls, path: Path, prefix: str = "", *other_classes: str) -> io.Saved:
        """Read the files of a model of this class, or another one that is named."""
        saved = io.read_files(path, prefix)
        name = part(saved, "registry").get("model_name")
        if name not in (cls.__name__, *other_classes):
            raise io.ModelFileError(
                f"{str(path)!r} has a model of the class {name!r}, not {cls.__name__}; load it with that class."
            )
        return saved

    def without_cells(self):
        """Copy the model without its AnnData, equivalent to :meth:`load` with ``adata=False``.

        Returns
        -------
        CplMixVI
            In evaluation mode, on the same device.

        Examples
        --------
        >>> labels = model.without_cells().predict(adata)
        """
        saved = self._as_saved(with_anndata=False)
        saved.weights = {name: value.detach().clone() for name, value in saved.weights.items()}
        model = type(self)._from_saved(saved, None, part(saved, "registry"))
        model.to_device(self.device)
        model.module.eval()
        return model

    @classmethod
    def _from_saved(cls, saved: io.Saved, adata: AnnData | None, registry: dict):
        """Make the model anew, and give it its attributes and weights. Draws no random numbers of the user's."""
        # A new model has random weights, which the saved ones replace.
        with torch.random.fork_rng(devices=[]):
            model = cls._made(saved, adata, registry)
        take_over(model, saved)
        if model.n_reference_batches_ is not None:
            train_new_batches_only(model.module, model.n_reference_batches_)
        return model

    @classmethod
    def _made(cls, saved: io.Saved, adata: AnnData | None, registry: dict):
        """Make the model anew."""
        init_params = part(saved, "init_params")
        keywords = {name: value for group in init_params["kwargs"].values() for name, value in group.items()}
        if registry["setup_args"].get("size_factor_key") is not None:
            # Models of version 0.1 took size factors as they are.
            keywords.setdefault("size_factor_scale", 1.0)
        model = cls(adata, registry=registry, **init_params["non_kwargs"], **keywords)
        model.init_params_ = init_params
        return model

    @staticmethod
    def load_registry(dir_path: str, prefix: str | None = None) -> dict:
        """Read the registry of a saved model: what :meth:`setup_anndata` found in the cells.

        Parameters
        ----------
        dir_path, prefix
            See :meth:`load`.

        Returns
        -------
        dict

        Raises
        ------
        ModelFileError
            See :meth:`load`.

        Examples
        --------
        >>> model.save("model", overwrite=True)
        >>> cplmixvi.CplMixVI.load_registry("model")["model_name"]
        'CplMixVI'
        >>> cplmixvi.CplMixVI.view_setup_args("model")
        Setup via `CplMixVI.setup_anndata` with arguments:
        ...
        """
        return part(io.read_files(Path(dir_path), prefix or ""), "registry")

    @staticmethod
    def view_setup_args(dir_path: str, prefix: str | None = None) -> None:
        """Print the :meth:`setup_anndata` arguments of a saved model; parameters as for :meth:`load_registry`."""
        # scvi-tools uses this module without importing it.
        import_module("rich.pretty")
        AnnDataManager.view_setup_method_args(PersistenceMixin.load_registry(dir_path, prefix))

    @classmethod
    def convert_legacy_save(
        cls,
        dir_path: str,
        output_dir_path: str,
        overwrite: bool = False,
        prefix: str | None = None,
        *,
        trusted: bool = False,
        **save_kwargs,
    ) -> None:
        """Convert a model that was saved as ``model.pt``, a pickle, to a folder that :meth:`load` reads.

        Parameters
        ----------
        dir_path
            Folder with ``model.pt``.
        output_dir_path, overwrite, prefix
            See :meth:`save`.
        trusted
            Whether you know where the file comes from. Reading it may run any code that its author put there.
        **save_kwargs
            Keyword arguments of :meth:`save`.

        Raises
        ------
        ValueError
            If ``trusted`` is `False`, or there is no such file.
        """
        if not trusted:
            raise ValueError(
                f"{str(dir_path)!r} has a pickle, which may run code when it is read; pass trusted=True if you know "
                "where it is from."
            )
        model = super().load(str(dir_path), adata=False, accelerator="cpu", prefix=prefix)
        model.save(output_dir_path, prefix=prefix, overwrite=overwrite, **save_kwargs)

    def card(self) -> str:
        """Model card: what the model was trained on, how, with what result, and with which package versions.

        Returns
        -------
        str
            Markdown, as written to ``model_card.md`` by :meth:`save`.

        Examples
        --------
        >>> print(model.card().splitlines()[2])
        ## Trained on
        """
        given = {**self.init_params_["non_kwargs"], **self.init_params_["kwargs"].get("module_kwargs", {})}
        settings = {**given, "n_categories": self.n_categories}
        settings |= {name: value for name, value in self.registry_["setup_args"].items() if value is not None}
        return io.card_text(
            {
                "model": self._model_summary_string,
                "settings": settings,
                "categories": list(self.category_names),
                "trained": self.is_trained_,
                "training": self.training_,
                "references": self.references_ or [],
                "versions": _versions() if self.training_ is None else self.training_["versions"],
            }
        )

    def _record_training(self, report: Report | None) -> None:
        """Keep what the model was just trained on, for its card and for results that are made with it."""
        layer = self.registry_["setup_args"].get("layer")
        values = "counts" if self.likelihood in COUNT_LIKELIHOODS else "values in [0, 1]"
        if self.likelihood in LOG_LIKELIHOODS:
            values = "log values"
        self._digest = digest = None if self.adata is None else self._values_digest()
        # The plan of this training, which found a condition in these cells or did not.
        plan = self.trainer.lightning_module
        if digest != (self.training_ or {}).get("input_sha256") and getattr(plan, "level", None) is None:
            self.condition_ = None
        self.training_ = {
            "n_obs": int(self.summary_stats.n_cells),
            "n_cells": int(self.summary_stats.n_cells if self.train_indices is None else len(self.train_indices)),
            "n_genes": int(self.summary_stats.n_vars),
            "values": values,
            "source": pp.source_name(layer),
            "input_sha256": digest,
            "n_epochs": int(self.trainer.current_epoch),
            "seed": scvi.settings.seed,
            "report": None if report is None else str(report),
            "versions": _versions(),
        }


def _versions() -> dict[str, str]:
    return {**{name: version(name) for name in PACKAGES}, "python": python_version()}


def _saved_cells(path: Path, saved: io.Saved) -> AnnData | None:
    # Not whether there is a file: it could be from another model that was here before.
    if not saved.meta.get("with_anndata"):
        warnings.warn(
            "No cells were given, and none were saved with the model: it is loaded without any. Pass adata, or "
            "adata=False.",
            UserWarning,
            stacklevel=3,
        )
        return None
    try:
        return ad.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise io.ModelFileError(
            f"The cells in {str(path)!r} cannot be read ({type(error).__name__}); pass adata, or adata=False."
        ) from error
