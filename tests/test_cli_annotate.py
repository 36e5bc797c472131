"""``cplmixvi annotate``: everything of the input is kept, and the result is added."""

import json
import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
from _command_line import FAST, call, make_cells

import cplmixvi
from cplmixvi.cli import _backed
from cplmixvi.model import _selection
from cplmixvi.train import _guide

pytestmark = pytest.mark.usefixtures("small_committee")


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """One run with most options: its folder, status, stdout and stderr."""
    folder = tmp_path_factory.mktemp("annotated")
    make_cells().write_h5ad(folder / "in.h5ad")
    options = ["--layer", "counts", "--batch-key", "donor", "--hvg", "20", "--model-dir", folder / "model"]
    return folder, *call("annotate", folder / "in.h5ad", folder / "out.h5ad", *FAST, *options)


class TestAnnotate:
    def test_one_line_of_json(self, annotated):
        folder, status, out, _ = annotated
        assert status == 0
        assert out.count("\n") == 1
        summary = json.loads(out)
        assert (summary["cells"], summary["genes"], summary["genes_used"]) == (60, 30, 20)
        assert summary["n_categories"] == 3
        assert 1 <= summary["categories_used"] <= 3
        assert summary["unassigned"] == 0
        assert 0 <= summary["consensus"] <= 1
        model = cplmixvi.CplMixVI.load(folder / "model", adata=False)
        genes = ad.read_h5ad(folder / "out.h5ad")[:, model.get_var_names()]
        assert summary["found_again"] == pytest.approx(model.report(genes).found_again, abs=6e-5)
        assert summary["seconds"] > 0
        assert summary["device"] == "cpu"
        assert summary["output"] == str(folder / "out.h5ad")

    def test_everything_of_the_input_is_kept(self, annotated):
        before, after = (ad.read_h5ad(annotated[0] / name) for name in ("in.h5ad", "out.h5ad"))
        assert after.obs_names.equals(before.obs_names)
        assert after.var_names.equals(before.var_names)
        for read in (lambda a: a.X, lambda a: a.layers["counts"], lambda a: a.layers["log"], lambda a: a.raw.X):
            assert (read(before) != read(after)).nnz == 0
        np.testing.assert_array_equal(after.obsm["X_other"], before.obsm["X_other"])
        assert after.obs["donor"].astype(str).equals(before.obs["donor"].astype(str))

    def test_result_is_added_and_nothing_else(self, annotated):
        after = ad.read_h5ad(annotated[0] / "out.h5ad")
        assert set(after.obs) == {"donor", "cplmixvi", "cplmixvi_confidence", "cplmixvi_agreement"}
        assert set(after.obsm) == {"X_other", "X_cplmixvi", "cplmixvi_proba"}
        assert set(after.uns) == {"cplmixvi"}
        assert after.uns["cplmixvi"]["params"]["likelihood"] == "nb"

    def test_progress_goes_to_stderr_and_no_temporary_file_stays(self, annotated):
        folder, _, _, err = annotated
        assert "60 cells x 30 genes read, fitting 20 genes with 3 categories and 2 arms" in err
        assert "finding" not in err
        assert sorted(path.name for path in folder.iterdir()) == ["in.h5ad", "model", "out.h5ad"]

    def test_saved_model_gives_the_same_labels_for_the_input(self, annotated):
        after = ad.read_h5ad(annotated[0] / "out.h5ad")
        genes = after[:, cplmixvi.CplMixVI.load(annotated[0] / "model", adata=False).get_var_names()].copy()
        model = cplmixvi.CplMixVI.load(annotated[0] / "model", adata=genes)
        assert list(model.predict()) == list(after.obs["cplmixvi"].astype(str))

    def test_quiet_run_repeats_bit_by_bit(self, annotated, tmp_path):
        options = ["--layer", "counts", "--batch-key", "donor", "--hvg", "20", "--quiet", "--threads", "1"]
        status, _, err = call("annotate", annotated[0] / "in.h5ad", tmp_path / "again.h5ad", *FAST, *options)
        assert (status, err) == (0, "")
        first, second = ad.read_h5ad(annotated[0] / "out.h5ad"), ad.read_h5ad(tmp_path / "again.h5ad")
        np.testing.assert_array_equal(first.obsm["cplmixvi_proba"], second.obsm["cplmixvi_proba"])

    def test_uncertain_cells_are_unassigned(self, annotated, tmp_path):
        certain = ad.read_h5ad(annotated[0] / "out.h5ad")
        # The same fit as that one, of which half of the cells are below this.
        cut = float(certain.obs["cplmixvi_confidence"].median())
        options = ["--layer", "counts", "--batch-key", "donor", "--hvg", "20", "--quiet", "--min-confidence", cut]
        status, line, _ = call("annotate", annotated[0] / "in.h5ad", tmp_path / "out.h5ad", *FAST, *options)
        assert status == 0
        below = (certain.obs["cplmixvi_confidence"] < np.float32(cut)).to_numpy()
        assert json.loads(line)["unassigned"] == below.sum() > 0
        assert json.loads(line)["categories_used"] == len(certain.uns["cplmixvi"]["categories"])
        labels = ad.read_h5ad(tmp_path / "out.h5ad").obs["cplmixvi"].astype(str)
        assert (labels == np.where(below, "unassigned", certain.obs["cplmixvi"].astype(str))).all()

    def test_zarr_one_arm_other_key(self, in_file, tmp_path):
        out = tmp_path / "out.zarr"
        status, line, _ = call("annotate", in_file, out, *FAST, "--n-arms", "1", "--key-added", "types", "--quiet")
        assert status == 0
        assert json.loads(line)["consensus"] is None
        assert "types" in ad.read_zarr(out).obs
        assert call("annotate", in_file, out, *FAST)[0] == 2

    @pytest.mark.parametrize("options", [[], ["--backed"]], ids=["in memory", "backed"])
    def test_strings_that_may_be_missing_are_kept(self, in_file, tmp_path, options):
        if not hasattr(ad.settings, "allow_write_nullable_strings"):
            pytest.skip("this AnnData writes no such strings")
        adata = ad.read_h5ad(in_file)
        adata.obs_names = pd.Index(pd.array(adata.obs_names, dtype="string"))
        adata.uns["notes"] = pd.array(["good", None], dtype="string")
        with ad.settings.override(allow_write_nullable_strings=True):
            adata.write_h5ad(in_file)
        status, _, err = call("annotate", in_file, tmp_path / "out.h5ad", *FAST, "--quiet", *options)
        assert (status, err) == (0, "")
        after = ad.read_h5ad(tmp_path / "out.h5ad")
        assert list(after.obs_names) == list(adata.obs_names)
        assert after.uns["notes"][0] == "good"
        assert pd.isna(after.uns["notes"][1])
        assert not ad.settings.allow_write_nullable_strings

    def test_colors_of_something_else_are_kept(self, in_file, tmp_path):
        adata = ad.read_h5ad(in_file)
        adata.uns["cplmixvi_colors"] = np.array(["red"], dtype=object)
        adata.write_h5ad(in_file)
        assert call("annotate", in_file, tmp_path / "out.h5ad", *FAST, "--quiet")[0] == 0
        assert list(ad.read_h5ad(tmp_path / "out.h5ad").uns["cplmixvi_colors"]) == ["red"]

    def test_overwrite_replaces_the_input(self, in_file):
        status, _, _ = call("annotate", in_file, in_file, *FAST, "--overwrite", "--quiet")
        assert status == 0
        assert "cplmixvi" in ad.read_h5ad(in_file).obs

    def test_labels_of_some_cells_name_categories(self, in_file, tmp_path):
        adata = ad.read_h5ad(in_file)
        adata.obs["some"] = ["B cell", "T cell", "?", None] * 15
        adata.write_h5ad(in_file)
        out = tmp_path / "out.h5ad"
        options = ["--labels-key", "some", "--unlabeled-category", "?", "--model-dir", tmp_path / "model", "--quiet"]
        status, line, err = call("annotate", in_file, out, *FAST, *options)
        assert (status, err) == (0, "")
        after = ad.read_h5ad(out)
        assert json.loads(line)["categories_used"] == len(after.uns["cplmixvi"]["categories"])
        model = cplmixvi.CplMixVI.load(tmp_path / "model", adata=False)
        assert list(model.category_names) == ["B cell", "T cell", "2"]
        found = set(after.obs["cplmixvi"].astype(str))
        assert found & {"B cell", "T cell"}
        assert found <= set(model.category_names)
        assert after.obs["some"].astype(object).equals(ad.read_h5ad(in_file).obs["some"].astype(object))

    def test_a_model_is_put_beside_what_others_have_whole_or_not_at_all(self, in_file, tmp_path, monkeypatch):
        folder = tmp_path / "model"
        folder.mkdir()
        for name in ("model.json", "model.pt", "adata.h5ad", "notes.txt"):
            (folder / name).write_text("old")
        options = [*FAST, "--model-dir", folder, "--overwrite", "--quiet"]
        with monkeypatch.context() as patch:
            # An OSError in the middle of writing.
            patch.setattr(cplmixvi.CplMixVI, "card", lambda self: os.close(10**6))
            status, _, err = call("annotate", in_file, tmp_path / "out.h5ad", *options)
        assert status == 2
        assert err.count("\n") == 1
        assert "--model-dir: The model cannot be written" in err
        assert {path.read_text() for path in folder.iterdir()} == {"old"}
        # What has a place is not lost.
        assert err.endswith("OUT was written.\n")
        assert "cplmixvi" in ad.read_h5ad(tmp_path / "out.h5ad").obs
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "model", "out.h5ad"]
        assert call("annotate", in_file, tmp_path / "out.h5ad", *options)[::2] == (0, "")
        kept = ["adata.h5ad", "model.pt", "notes.txt"]
        files = ["arrays.safetensors", "model.json", "model_card.md", "weights.safetensors"]
        assert sorted(path.name for path in folder.iterdir()) == sorted(kept + files)
        assert {(folder / name).read_text() for name in kept} == {"old"}
        assert f"`{ad.read_h5ad(tmp_path / 'out.h5ad').uns['cplmixvi']['input_sha256']}`" in (
            cplmixvi.CplMixVI.load(folder, adata=False).card()
        )

    @pytest.mark.parametrize("options", [[], ["--backed"]], ids=["memory", "backed"])
    def test_a_full_disk_is_said_in_a_line_and_keeps_the_model(self, in_file, tmp_path, monkeypatch, options):
        def full(*args, **kwargs):
            # As HDF5 says it.
            raise RuntimeError("Disable slist on flush dest failure failed (No space left on device)")

        target = (_backed, "write") if options else (ad.AnnData, "write_h5ad")
        write = target[0].__dict__[target[1]]
        monkeypatch.setattr(*target, full)
        model_dir = tmp_path / "model"
        status, _, err = call("annotate", in_file, tmp_path / "out.h5ad", *FAST, "--model-dir", model_dir, *options)
        assert status == 2
        assert err.splitlines()[-1].startswith(f"cplmixvi: error: {str(tmp_path / 'out.h5ad')!r} cannot be written")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "model"]
        monkeypatch.setattr(*target, write)
        cells = ad.read_h5ad(in_file)
        cplmixvi.tl.annotate(cells, cplmixvi.CplMixVI.load(model_dir, adata=False))

    def test_a_full_disk_is_not_the_fault_of_the_input(self, in_file, tmp_path, monkeypatch):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ad.AnnData, "write_h5ad", full)
        status, _, err = call("annotate", in_file, tmp_path / "out.h5ad", *FAST, "--backed", "--hvg", "20")
        assert status == 2
        assert "cannot be written" in err
        assert "No space left" in err
        assert "IN" not in err

    @pytest.mark.parametrize("name", ["across=donor+thin", "neighbours=X_other"])
    def test_augmenters_get_what_they_look_at(self, in_file, tmp_path, name):
        options = ["--layer", "counts", "--augment", name, "--model-dir", tmp_path / "model", "--quiet"]
        status, _, err = call("annotate", in_file, tmp_path / "out.h5ad", *FAST, *options)
        assert (status, err) == (0, "")
        assert set(ad.read_h5ad(tmp_path / "out.h5ad").obsm) == {"X_other", "X_cplmixvi", "cplmixvi_proba"}
        cplmixvi.CplMixVI.load(tmp_path / "model", adata=False)

    def test_log_values_with_a_normal_likelihood(self, in_file, tmp_path):
        options = ["--layer", "log", "--likelihood", "normal", "--n-categories", "auto", "--max-epochs", "1", "--quiet"]
        assert call("annotate", in_file, tmp_path / "out.h5ad", *options)[0] == 0

    def test_number_of_categories_is_found_and_said_when_it_is_known(self, in_file, tmp_path):
        options = ["--layer", "counts", "--max-epochs", "1", "--accelerator", "cpu", "--n-arms", "1"]
        status, line, err = call("annotate", in_file, tmp_path / "out.h5ad", *options)
        assert status == 0
        result = ad.read_h5ad(tmp_path / "out.h5ad").uns["cplmixvi"]
        number = result["n_categories"]
        assert json.loads(line)["n_categories"] == number
        tried = result["selection"]["n_categories"]
        assert number == tried[result["selection"]["score"].argmax()]
        said = [text for text in err.splitlines() if text.startswith("cplmixvi: ")]
        assert said[0].endswith("fitting 30 genes with a number of categories to be found and 1 arm")
        assert said[1].startswith("cplmixvi: finding the number of categories")
        found = [text for text in said if " categories found" in text]
        assert len(found) == 1
        assert found[0].startswith(f"cplmixvi: {number} categories found, of {len(tried)} numbers tried (")
        # Before training, which ends with advice on a fit of one epoch.
        assert err.index(found[0]) < err.index("Epoch 1/1")

    # The cells are noise, and both say so.
    @pytest.mark.filterwarnings("ignore:Two halves", "ignore:All cells", "ignore:Probabilities")
    @pytest.mark.parametrize(("option", "looks"), [([], True), (["--no-find-condition"], False)])
    def test_a_condition_is_not_looked_for_where_it_is_not_wanted(self, in_file, tmp_path, monkeypatch, option, looks):
        looked = []
        monkeypatch.setattr(_selection, "crossing", lambda *args, **kwargs: looked.append("before"))
        monkeypatch.setattr(_guide, "find_condition", lambda *args, **kwargs: looked.append("in training"))
        options = ["--layer", "counts", "--n-categories", "auto", "--max-epochs", "1", "--quiet", *option]
        assert call("annotate", in_file, tmp_path / "out.h5ad", *options)[0] == 0
        assert looked == (["before", "in training"] if looks else [])

    # Whether halves of noise agree a little is a matter of the last digits, which differ from machine to machine.
    @pytest.mark.filterwarnings("ignore:Two halves", "ignore:All cells", "ignore:Probabilities")
    def test_the_number_found_is_that_of_the_library(self, in_file, tmp_path):
        options = ["--layer", "counts", "--max-epochs", "1", "--accelerator", "cpu", "--quiet", "--seed", "3"]
        assert call("annotate", in_file, tmp_path / "out.h5ad", *options)[0] == 0
        scvi.settings.seed = 3
        adata = ad.read_h5ad(in_file)
        cplmixvi.CplMixVI.setup_anndata(adata, layer="counts")
        model = cplmixvi.CplMixVI(adata)
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
        cplmixvi.tl.annotate(adata, model)
        out = ad.read_h5ad(tmp_path / "out.h5ad")
        np.testing.assert_array_equal(out.obsm["cplmixvi_proba"], adata.obsm["cplmixvi_proba"])
