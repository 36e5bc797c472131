"""Saved models: everything comes back, nothing in the files is run, and what is wrong with them is said in one line."""

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import scvi
import torch

import cplmixvi as cpl
from cplmixvi import io, pp
from cplmixvi.model import _persistence

pytestmark = pytest.mark.usefixtures("small_committee")

WEIGHTS, META = "weights.safetensors", "model.json"


def make(adata, **options):
    cpl.CplMixVI.setup_anndata(
        adata,
        layer="counts",
        batch_key="batch",
        labels_key="some",
        categorical_covariate_keys=["site", "run"],
        continuous_covariate_keys=["age"],
    )
    model = cpl.CplMixVI(adata, **({"n_categories": 4, "n_hidden": 8, "augment": "learned+thin"} | options))
    model.train_augmenter(max_epochs=1, enable_progress_bar=False)
    model.train(max_epochs=2, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def adata(make_counts):
    adata = make_counts(n_obs=90, n_vars=40)
    adata.obs["some"] = [None, "type0", "T ζ"] * 30
    adata.obs["site"] = pd.Categorical(["a", "b", "c"] * 30)
    adata.obs["run"] = np.arange(90) % 2
    adata.obs["age"] = np.linspace(0, 1, 90)
    return adata


@pytest.fixture(scope="module")
def model(adata):
    scvi.settings.seed = 5
    return make(adata)


@pytest.fixture(scope="module")
def original(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder, save_anndata=True)
    return folder


@pytest.fixture
def saved(original, tmp_path):
    """A copy of the saved model that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def equal(a, b):
    """Equal with their types, through dicts, lists and tables."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
        return True
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


class TestWhatComesBack:
    def test_everything(self, model, adata, original):
        assert sorted(path.name for path in original.iterdir()) == [
            "adata.h5ad",
            "arrays.safetensors",
            "model.json",
            "model_card.md",
            "weights.safetensors",
        ]
        assert len({path.stat().st_mode for path in original.iterdir()}) == 1, "readable by the same people"
        before = torch.get_rng_state()
        loaded = cpl.CplMixVI.load(original, adata=adata.copy())
        assert torch.equal(torch.get_rng_state(), before), "a model that is loaded draws nothing"
        assert loaded.is_trained
        for name, value in model.module.state_dict().items():
            assert torch.equal(loaded.module.state_dict()[name], value), name
        kept = {name for name in vars(model) if name.endswith("_")}
        assert {"init_params_", "history_", "training_", "augmenter_history_", "train_indices_"} <= kept
        for name in kept - {"registry_"}:
            assert equal(getattr(loaded, name), getattr(model, name)), name
        assert list(loaded.category_names) == list(model.category_names) == ["T ζ", "type0", "2", "3"]
        pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
        np.testing.assert_array_equal(loaded.get_state(), model.get_state())
        loaded.train(max_epochs=1, enable_progress_bar=False)

    def test_the_registry(self, model, original):
        read = cpl.CplMixVI.load_registry(original)
        assert equal(read, dict(model.registry_) | {"field_registries": dict(model.registry_["field_registries"])})
        cpl.CplMixVI.view_setup_args(original)

    def test_with_the_cells_that_were_saved_or_without_any(self, model, adata, original, tmp_path):
        assert list(cpl.CplMixVI.load(original).predict()) == list(model.predict())
        without = cpl.CplMixVI.load(original, adata=False, accelerator="cpu", device=0)
        assert without.adata is None
        assert list(without.predict(adata.copy())) == list(model.predict())
        without.save(tmp_path / "again", prefix="x_")
        again = cpl.CplMixVI.load(tmp_path / "again", adata=False, prefix="x_")
        assert list(again.predict(adata.copy())) == list(model.predict())
        with pytest.warns(UserWarning, match="none were saved"):
            assert cpl.CplMixVI.load(tmp_path / "again", prefix="x_").adata is None
        with pytest.raises(ValueError, match="no AnnData to save"):
            cpl.CplMixVI.load(original, adata=False).save(tmp_path / "other", save_anndata=True)

    def test_a_number_of_categories_that_was_found(self, adata, tmp_path):
        cpl.CplMixVI.setup_anndata(adata, layer="counts")
        model = cpl.CplMixVI(adata, n_hidden=8)
        found = model.select_n_categories([2, 3]).n_categories
        model.save(tmp_path / "before")
        loaded = cpl.CplMixVI.load(tmp_path / "before", adata=adata)
        assert loaded.selection_ == model.selection_
        loaded.train(max_epochs=1, warm_start=False, enable_progress_bar=False)
        loaded.save(tmp_path / "after")
        assert cpl.CplMixVI.load(tmp_path / "after", adata=False).n_categories == found

    def test_checkpoints_of_scvi_tools_are_read_back(self, adata, tmp_path):
        scvi.settings.logging_dir = str(tmp_path)
        cpl.CplMixVI.setup_anndata(adata, layer="counts")
        model = cpl.CplMixVI(adata, n_categories=3, n_hidden=8)
        options = {"enable_checkpointing": True, "checkpointing_monitor": "elbo_validation"}
        model.train(max_epochs=2, enable_progress_bar=False, warm_start=False, **options)
        folders = [path.parent for path in tmp_path.glob(f"**/{META}")]
        assert (folders[0] / "model.pt").exists(), "scvi-tools reads the best weights from there"
        loaded = cpl.CplMixVI.load(folders[0], adata=False)
        assert loaded.is_trained
        assert "not recorded" in loaded.card()
        model.save(tmp_path / "model")
        assert not (tmp_path / "model" / "model.pt").exists()


def test_same_seed_same_bits(model, adata):
    scvi.settings.seed = 5
    again = make(adata)
    for name, value in model.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value), name
    assert equal(again.training_, model.training_)
    pd.testing.assert_frame_equal(again.predict(soft=True), model.predict(soft=True), check_exact=True)


class TestSaving:
    def test_folders_are_replaced_only_on_request(self, model, saved):
        for options in ({}, {"prefix": "new_"}):
            with pytest.raises(ValueError, match="overwrite=True"):
                model.save(saved, **options)
        (saved / "notes.txt").write_text("mine")
        (saved / "model.pt").write_text("old")
        model.save(saved, overwrite=True)
        assert (saved / "notes.txt").read_text() == "mine"
        assert not (saved / "adata.h5ad").exists()
        assert not (saved / "model.pt").exists()
        assert [path.name for path in saved.parent.iterdir()] == ["model"]

    def test_files_of_others_stay(self, model, tmp_path):
        mine = {name: tmp_path / name for name in ("adata.h5ad", "model.pt", "notes.txt")}
        for name, path in mine.items():
            path.write_text(name)
        with pytest.raises(ValueError, match="adata.h5ad in .* is not of a model"):
            model.save(tmp_path, overwrite=True, save_anndata=True)
        # The second time, a model is there that has no cells.
        for _ in range(2):
            model.save(tmp_path, overwrite=True)
            assert (tmp_path / "adata.h5ad").read_text() == "adata.h5ad"
            assert (tmp_path / "notes.txt").read_text() == "notes.txt"
        cpl.CplMixVI.load(tmp_path, adata=False)

    def test_cells_in_a_file_stay_in_that_file(self, adata, tmp_path):
        adata.write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        model = make(backed)
        for _ in range(2):
            model.save(tmp_path / "model", save_anndata=True, overwrite=True)
            assert Path(backed.filename) == tmp_path / "cells.h5ad"
            assert (backed.X[:2] != adata.X[:2]).nnz == 0
        again = cpl.CplMixVI.load(tmp_path / "model")
        np.testing.assert_array_equal(again.predict(), model.predict())

    def test_what_a_file_cannot_hold_is_refused_and_nothing_is_left(self, model, saved, monkeypatch):
        before = (saved / META).read_bytes()
        monkeypatch.setattr(model, "odd_", {"deep": [object()]}, raising=False)
        with pytest.raises(io.ModelFileError, match=r"attributes\.odd_\.deep\.0 is of type builtins.object"):
            model.save(saved, overwrite=True)
        assert (saved / META).read_bytes() == before
        with pytest.raises(ValueError, match="leave them out"):
            model.save(saved, overwrite=True, save_kwargs={"pickle_protocol": 4})

    def test_failure_in_the_middle_keeps_the_old_model(self, model, saved, monkeypatch):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(_persistence, "write_h5ad", full)
        with pytest.raises(OSError, match="No space left.*check space"):
            model.save(saved, overwrite=True, save_anndata=True)
        assert [path.name for path in saved.parent.iterdir()] == ["model"]
        cpl.CplMixVI.load(saved)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_read_only_folders_are_named(self, model, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError, match="check space and permissions"):
            model.save(tmp_path / "model")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def change(path, **entries):
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | entries))


def rewrite(folder, **changes):
    """Other weights, with the hash that they should have."""
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    for name, value in changes.items():
        weights.pop(name, None)
        if value is not None:
            weights[name] = value
    saved = io.read_files(folder)
    io.write_files(folder, io.Saved(saved.meta, weights, saved.arrays))


class TestWhatIsRefused:
    def refused(self, folder, match, adata=False):
        with pytest.raises(ValueError, match=match) as caught:
            cpl.CplMixVI.load(folder, adata=adata)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("file", [WEIGHTS, "arrays.safetensors", META, "model.pt"])
    @pytest.mark.parametrize("writer", ["pickle", "torch"])
    def test_pickles_are_not_run(self, saved, tmp_path, file, writer):
        evil = {"model_state_dict": Evil(tmp_path / "run")}
        if writer == "pickle":
            (saved / file).write_bytes(pickle.dumps(evil))
        else:
            torch.save(evil, saved / file)
        if file == "model.pt":
            cpl.CplMixVI.load(saved, adata=False)
            (saved / META).unlink()
        self.refused(saved, "no JSON" if file == META else "pickle")
        with pytest.raises(ValueError):
            cpl.CplMixVI.load_registry(saved)
        with pytest.raises(ValueError, match="trusted=True"):
            cpl.CplMixVI.convert_legacy_save(saved, tmp_path / "new")
        assert not (tmp_path / "run").exists()

    def test_folders_without_a_model(self, tmp_path):
        self.refused(tmp_path / "no", "no folder")
        self.refused(tmp_path, "model.json is missing")

    @pytest.mark.parametrize("file", [WEIGHTS, "arrays.safetensors", META])
    def test_truncated_damaged_and_missing_files(self, saved, file):
        path = saved / file
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        self.refused(saved, "truncated")
        path.write_bytes(b"")
        self.refused(saved, "truncated")
        if file != META:
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            self.refused(saved, "damaged")
        path.unlink()
        self.refused(saved, "missing")

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"format_version": io.FORMAT_VERSION + 1}, "upgrade cplmixvi"),
            ({"format_version": "1"}, "is none"),
            ({"format": "other"}, "not the JSON file of a model"),
            ({"registry": None}, "no registry"),
            ({"registry": {"model_name": "SCVI"}}, "class 'SCVI'"),
            ({"init_params": {"kwargs": {}, "non_kwargs": {"speed": 1}}}, "does not fit together"),
            ({"init_params": {}}, "does not fit together"),
            ({"attributes": {"x_": {"@": "os.system"}}}, "unknown type"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_json_that_is_not_ours(self, saved, entries, message):
        change(saved / META, **entries)
        self.refused(saved, message)

    def test_prefixes_that_are_paths(self, model, saved, tmp_path):
        for prefix in ("../x_", "x/y", str(tmp_path / "x_")):
            with pytest.raises(ValueError, match="not of a path"):
                model.save(tmp_path / "other", prefix=prefix)
            with pytest.raises(ValueError, match="not of a path"):
                cpl.CplMixVI.load(saved, adata=False, prefix=prefix)
        assert not (tmp_path / "other").exists()

    def test_fewer_cells_than_categories_are_enough_to_load(self, saved, adata):
        assert cpl.CplMixVI.load(saved, adata=adata[:2].copy()).predict().shape == (2,)

    def test_whatever_else_is_in_the_json(self, saved, adata):
        rng = random.Random(0)
        text = (saved / META).read_text()
        wrong = 0
        for i in range(60):
            meta = json.loads(text)
            part = meta[rng.choice(["registry", "init_params", "attributes", "genes"])]
            while True:
                key = rng.choice(list(part) if isinstance(part, dict) else range(len(part)))
                if not isinstance(part[key], dict | list) or not part[key] or rng.random() < 0.2:
                    break
                part = part[key]
            part[key] = rng.choice([None, "text", -1, [1], {"a": 1}])
            (saved / META).write_text(json.dumps(meta))
            try:
                # Where the change does no harm, or is a value that is allowed, there is a model.
                cpl.CplMixVI.load(saved, adata=adata.copy() if i % 2 else False)
            except ValueError:
                wrong += 1
        assert wrong > 10

    def test_attributes_that_are_not_kept_are_not_set(self, saved):
        change(saved / META, attributes={"predict": "no", "is_trained_": True, "_module_cls_": 1})
        loaded = cpl.CplMixVI.load(saved, adata=False)
        assert callable(loaded.predict)
        assert not hasattr(loaded, "_module_cls_")

    def test_other_weights(self, saved):
        weights = safetensors.torch.load_file(saved / WEIGHTS)
        name, value = max(weights.items(), key=lambda item: item[1].numel())
        for changes, message in (
            ({name: None}, "lacks weights"),
            ({"surplus": torch.ones(1)}, "unknown weights surplus"),
            ({name: value[:, 1:]}, r"Weights .* are torch.float32 \("),
            ({name: value.double()}, "are torch.float64"),
        ):
            rewrite(saved, **{key: weights.get(key) for key in (name, "surplus")} | changes)
            self.refused(saved, message)
        rewrite(saved, **{name: value, "surplus": None})
        cpl.CplMixVI.load(saved, adata=False)

    def test_weights_that_begin_like_a_pickle(self, saved):
        # The first byte is the header's length modulo 256, which is a multiple of 8.
        for width in range(8, 300, 8):
            rewrite(saved, **{"x" * width: torch.ones(1)})
            if (saved / WEIGHTS).read_bytes()[0] == 0x80:
                break
            rewrite(saved, **{"x" * width: None})
        assert (saved / WEIGHTS).read_bytes()[0] == 0x80
        self.refused(saved, "unknown weights x")

    def test_other_genes(self, adata, saved):
        self.refused(saved, "1 of the model's 40 genes are missing", adata[:, 1:].copy())
        self.refused(saved, "40 genes in another order; load the model with adata=False", adata[:, ::-1].copy())
        more = ad.concat([adata, adata[:, :1].copy()], axis=1)
        more.var_names_make_unique()
        self.refused(saved, "40 genes and 1 more", more)

    def test_cells_that_cannot_be_read(self, saved):
        (saved / "adata.h5ad").write_bytes(b"no")
        self.refused(saved, "pass adata", adata=None)

    def test_arguments_without_a_meaning(self, saved):
        for options in ({"backup_url": "https://x"}, {"datamodule": object()}):
            with pytest.raises(ValueError, match="not supported"):
                cpl.CplMixVI.load(saved, adata=False, **options)


def test_models_of_scvi_tools_own_format_are_converted_on_trust(model, adata, tmp_path):
    # What was written before there was a format of our own.
    scvi.model.base.BaseModelClass.save(model, str(tmp_path / "old"))
    with pytest.raises(io.ModelFileError, match="convert_legacy_save"):
        cpl.CplMixVI.load(tmp_path / "old", adata=adata)
    cpl.CplMixVI.convert_legacy_save(tmp_path / "old", tmp_path / "new", trusted=True)
    loaded = cpl.CplMixVI.load(tmp_path / "new", adata=adata.copy())
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))


class TestCard:
    def test_says_what_the_model_is(self, model, adata, original):
        card = model.card()
        assert (original / "model_card.md").read_text() == card
        assert cpl.CplMixVI.load(original, adata=False).card() == card
        digest = pp.input_hash(adata.layers["counts"], adata.var_names)
        for text in ("90 of 90 cells, 40 genes: counts from adata.layers['counts']", digest, "2 epochs, seed 5"):
            assert text in card
        for text in ("categories are used", "| scvi-tools |", "| augment | learned+thin |", "T ζ, type0, 2, 3"):
            assert text in card

    def test_untrained(self, adata):
        cpl.CplMixVI.setup_anndata(adata, layer="counts")
        assert "Not trained." in cpl.CplMixVI(adata, n_categories=2).card()
