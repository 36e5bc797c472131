"""The command line: one JSON line on success, one line on stderr for bad input, never a half-written file."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
from scipy import sparse

import cplmixvi
from cplmixvi import baselines
from cplmixvi.cli import _annotate, _errors, _files, main

pytestmark = pytest.mark.usefixtures("small_committee")

FAST = ["--n-categories", "3", "--max-epochs", "2", "--accelerator", "cpu"]


def call(*arguments):
    """Exit status, stdout and stderr of the command line, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


def make_cells(n_obs=60, n_vars=30):
    """Counts in a layer and in raw, log values in X, a batch, and genes and cells with names."""
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(2.0, (n_obs, n_vars)).astype(np.float32))
    adata = ad.AnnData(
        counts.copy(),
        obs=pd.DataFrame({"donor": ["a", "b"] * (n_obs // 2)}, index=[f"cell{i}" for i in range(n_obs)]),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(n_vars)]),
    )
    adata.raw = adata
    adata.layers["counts"] = counts
    adata.layers["log"] = counts.log1p()
    adata.obsm["X_other"] = rng.normal(size=(n_obs, 2))
    return adata


@pytest.fixture
def cells(tmp_path):
    path = tmp_path / "in.h5ad"
    make_cells().write_h5ad(path)
    return path


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

    def test_zarr_one_arm_other_key(self, cells, tmp_path):
        out = tmp_path / "out.zarr"
        status, line, _ = call("annotate", cells, out, *FAST, "--n-arms", "1", "--key-added", "types", "--quiet")
        assert status == 0
        assert json.loads(line)["consensus"] is None
        assert "types" in ad.read_zarr(out).obs
        assert call("annotate", cells, out, *FAST)[0] == 2

    def test_overwrite_replaces_the_input(self, cells):
        status, _, _ = call("annotate", cells, cells, *FAST, "--overwrite", "--quiet")
        assert status == 0
        assert "cplmixvi" in ad.read_h5ad(cells).obs

    def test_labels_of_some_cells_name_categories(self, cells, tmp_path):
        adata = ad.read_h5ad(cells)
        adata.obs["some"] = ["B cell", "T cell", "?", None] * 15
        adata.write_h5ad(cells)
        out = tmp_path / "out.h5ad"
        options = ["--labels-key", "some", "--unlabeled-category", "?", "--model-dir", tmp_path / "model", "--quiet"]
        status, line, err = call("annotate", cells, out, *FAST, *options)
        assert (status, err) == (0, "")
        after = ad.read_h5ad(out)
        assert json.loads(line)["categories_used"] == len(after.uns["cplmixvi"]["categories"])
        model = cplmixvi.CplMixVI.load(tmp_path / "model", adata=False)
        assert list(model.category_names) == ["B cell", "T cell", "2"]
        found = set(after.obs["cplmixvi"].astype(str))
        assert found & {"B cell", "T cell"}
        assert found <= set(model.category_names)
        assert after.obs["some"].astype(object).equals(ad.read_h5ad(cells).obs["some"].astype(object))

    def test_a_model_takes_the_place_of_an_older_one_whole_or_not_at_all(self, cells, tmp_path, monkeypatch):
        folder = tmp_path / "model"
        folder.mkdir()
        for name in ("model.json", "model.pt", "adata.h5ad", "notes.txt"):
            (folder / name).write_text("old")
        options = [*FAST, "--model-dir", folder, "--overwrite", "--quiet"]
        with monkeypatch.context() as patch:
            # An OSError in the middle of writing.
            patch.setattr(cplmixvi.CplMixVI, "card", lambda self: os.close(10**6))
            status, _, err = call("annotate", cells, tmp_path / "out.h5ad", *options)
        assert status == 2
        assert err.count("\n") == 1
        assert "--model-dir: The model cannot be written" in err
        assert {path.read_text() for path in folder.iterdir()} == {"old"}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "model"]
        assert call("annotate", cells, tmp_path / "out.h5ad", *options)[::2] == (0, "")
        files = ["arrays.safetensors", "model.json", "model_card.md", "notes.txt", "weights.safetensors"]
        assert sorted(path.name for path in folder.iterdir()) == files
        assert f"`{ad.read_h5ad(tmp_path / 'out.h5ad').uns['cplmixvi']['input_sha256']}`" in (
            cplmixvi.CplMixVI.load(folder, adata=False).card()
        )

    @pytest.mark.parametrize("name", ["across=donor+thin", "neighbours=X_other"])
    def test_augmenters_get_what_they_look_at(self, cells, tmp_path, name):
        options = ["--layer", "counts", "--augment", name, "--model-dir", tmp_path / "model", "--quiet"]
        status, _, err = call("annotate", cells, tmp_path / "out.h5ad", *FAST, *options)
        assert (status, err) == (0, "")
        assert set(ad.read_h5ad(tmp_path / "out.h5ad").obsm) == {"X_other", "X_cplmixvi", "cplmixvi_proba"}
        cplmixvi.CplMixVI.load(tmp_path / "model", adata=False)

    def test_log_values_with_a_normal_likelihood(self, cells, tmp_path):
        options = ["--layer", "log", "--likelihood", "normal", "--n-categories", "auto", "--max-epochs", "1", "--quiet"]
        assert call("annotate", cells, tmp_path / "out.h5ad", *options)[0] == 0

    def test_number_of_categories_is_found_and_said_when_it_is_known(self, cells, tmp_path):
        options = ["--layer", "counts", "--max-epochs", "1", "--accelerator", "cpu", "--n-arms", "1"]
        status, line, err = call("annotate", cells, tmp_path / "out.h5ad", *options)
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
    def test_the_number_found_is_that_of_the_library(self, cells, tmp_path):
        options = ["--layer", "counts", "--max-epochs", "1", "--accelerator", "cpu", "--quiet", "--seed", "3"]
        assert call("annotate", cells, tmp_path / "out.h5ad", *options)[0] == 0
        scvi.settings.seed = 3
        adata = ad.read_h5ad(cells)
        cplmixvi.CplMixVI.setup_anndata(adata, layer="counts")
        model = cplmixvi.CplMixVI(adata)
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
        cplmixvi.tl.annotate(adata, model)
        out = ad.read_h5ad(tmp_path / "out.h5ad")
        np.testing.assert_array_equal(out.obsm["cplmixvi_proba"], adata.obsm["cplmixvi_proba"])


BAD_OPTIONS = {
    "no such layer": (["--layer", "spliced"], "--layer 'spliced' is not in IN; layers there: counts, log"),
    "no such batch": (["--batch-key", "plate"], "columns there: donor"),
    "no such labels": (["--labels-key", "type"], "--labels-key 'type' is not a column of obs; columns there: donor"),
    "more labels than categories": (
        ["--labels-key", "donor", "--n-categories", "1"],
        "--n-categories 1 given for 2 labels ('a', 'b')",
    ),
    "no such likelihood": (["--likelihood", "gauss"], "gauss"),
    "no such augmenter": (["--augment", "blur"], "'blur'"),
    "no such condition": (["--augment", "across=plate"], "across='plate' is not a column of obs; columns there: donor"),
    "no such coordinates": (["--augment", "neighbours=X_pca"], "'X_pca' is not in adata.obsm"),
    "no such accelerator": (["--accelerator", "abacus"], "use one of auto, cpu"),
    "fractions under nb": (["--layer", "log"], "layer 'log'"),
    "more categories than cells": (["--n-categories", "1000"], "1000"),
    "categories in words": (["--n-categories", "many"], "nor 'auto'"),
    "no categories": (["--n-categories", "0"], "nor 'auto'"),
    "no arms": (["--n-arms", "0"], "--n-arms"),
    "state in words": (["--n-state", "two"], "--n-state"),
    "no epochs": (["--max-epochs", "0"], "--max-epochs"),
    "no threads": (["--threads", "0"], "--threads"),
    "negative seed": (["--seed", "-1"], "--seed"),
    "key with a slash": (["--key-added", "a/b"], "--key-added 'a/b'"),
    "key that is taken": (["--key-added", "donor"], "--overwrite"),
    "confidence above one": (["--min-confidence", "90"], "90.0 is not a probability from 0 to 1"),
    "confidence below zero": (["--min-confidence", "-0.1"], "--min-confidence"),
    "confidence that is no number": (["--min-confidence", "nan"], "nan is not a probability"),
    "confidence in words": (["--min-confidence", "high"], "--min-confidence"),
    "unknown option": (["--depth", "3"], "--depth"),
    "surplus argument": (["more.h5ad"], "more.h5ad"),
}


def assert_refused(outcome, expected):
    status, out, err = outcome
    assert status == 2
    assert out == ""
    assert err.startswith("cplmixvi: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert expected in err


class TestBadInput:
    @pytest.mark.parametrize(("options", "expected"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
    def test_options(self, cells, options, expected):
        assert_refused(call("annotate", cells, cells.with_name("out.h5ad"), *options), expected)
        assert [path.name for path in cells.parent.iterdir()] == ["in.h5ad"]

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ([], "annotate, traverse and demo"),
            (["anotate"], "annotate"),
            (["annotate"], "IN.h5ad"),
            (["annotate", "in.h5ad"], "OUT.h5ad"),
            (["annotate", "none.h5ad", "out.h5ad"], "does not exist"),
            (["annotate", "in.csv", "out.h5ad"], ".h5ad or .zarr"),
            (["annotate", "in.h5ad", "out.csv"], ".h5ad or .zarr"),
            (["annotate", "in.h5ad", "no/out.h5ad"], "create it first"),
            (["annotate", "in.h5ad", "in.h5ad"], "same file as IN"),
            (["annotate", "in.h5ad", "out.h5ad", "--model-dir", "full"], "not empty"),
            (["annotate", "in.h5ad", "out.h5ad", "--model-dir", "in.h5ad"], "is a file"),
            (["annotate", "in.h5ad", "folder.h5ad"], "is a folder"),
            (["annotate", "in.h5ad", "full.zarr", "--overwrite"], "no zarr store"),
            (["demo", "--dataset", "nothing", "--out", "demo"], "pbmc68k"),
            (["demo", "--labels", "nothing", "--out", "demo"], "bulk_labels"),
            (["demo", "--out", "in.h5ad"], "--out 'in.h5ad'"),
        ],
    )
    def test_arguments(self, cells, monkeypatch, arguments, expected):
        monkeypatch.chdir(cells.parent)
        cells.with_name("folder.h5ad").mkdir()
        for name in ("full", "full.zarr"):
            cells.with_name(name).mkdir()
            cells.with_name(name).joinpath("precious.txt").touch()
        assert_refused(call(*arguments), expected)
        assert cells.with_name("full.zarr").joinpath("precious.txt").exists()

    def test_read_only_folder(self, cells, monkeypatch):
        # The superuser may write anywhere, so that the system call is asked instead of a real folder.
        monkeypatch.setattr(_files.os, "access", lambda path, mode: not mode & os.W_OK)
        assert_refused(call("annotate", cells, cells.with_name("out.h5ad")), "read-only")

    @pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + b"\0" * 600])
    def test_files_that_are_no_h5ad(self, cells, content):
        cells.write_bytes(content)
        assert_refused(call("annotate", cells, cells.with_name("out.h5ad")), "in.h5ad")

    def test_hdf5_without_an_anndata(self, cells):
        import h5py

        with h5py.File(cells, "w") as file:
            file["matrix"] = [1, 2]
        assert_refused(call("annotate", cells, cells.with_name("out.h5ad")), "without X and obs and var")

    def test_truncated_file(self, cells):
        cells.write_bytes(cells.read_bytes()[:-2000])
        assert_refused(call("annotate", cells, cells.with_name("out.h5ad")), "cannot be read")

    @pytest.mark.parametrize(
        ("spoil", "expected"),
        [
            (lambda a: a.X.data.__setitem__(0, -1.0), "-1"),
            (lambda a: a.X.data.__setitem__(0, np.nan), "nan"),
            (lambda a: setattr(a, "var_names", ["same"] * a.n_vars), "not unique"),
            (lambda a: setattr(a, "X", None), "no X"),
        ],
        ids=["negative", "nan", "gene names", "no X"],
    )
    def test_values(self, cells, spoil, expected):
        adata = make_cells()
        spoil(adata)
        adata.write_h5ad(cells)
        assert_refused(call("annotate", cells, cells.with_name("out.h5ad")), expected)

    def test_label_that_is_called_unassigned(self, cells):
        adata = make_cells()
        adata.obs["some"] = ["B cell", "unassigned"] * 30
        adata.write_h5ad(cells)
        outcome = call("annotate", cells, cells.with_name("out.h5ad"), "--labels-key", "some")
        assert_refused(outcome, "--unlabeled-category 'unassigned'")

    def test_cell_that_is_empty_in_the_selected_genes_only(self, cells):
        adata = make_cells()
        dense = adata.X.toarray()
        dense[:, 10:] = 1
        dense[0, :10] = 0
        adata.X = sparse.csr_matrix(dense)
        adata.write_h5ad(cells)
        assert_refused(call("annotate", cells, cells.with_name("out.h5ad"), "--hvg", "10"), "raise --hvg")


class TestFailure:
    def test_interrupt_leaves_nothing(self, cells, monkeypatch):
        from lightning.pytorch.callbacks import Callback

        class Interrupt(Callback):
            def on_train_epoch_end(self, trainer, module):
                os.kill(os.getpid(), signal.SIGINT)

        train, handler = cplmixvi.CplMixVI.train, signal.getsignal(signal.SIGINT)
        monkeypatch.setattr(
            cplmixvi.CplMixVI, "train", lambda self, **options: train(self, callbacks=[Interrupt()], **options)
        )
        status, out, _ = call("annotate", cells, cells.with_name("out.h5ad"), *FAST)
        assert (status, out) == (130, "")
        assert [path.name for path in cells.parent.iterdir()] == ["in.h5ad"]
        assert signal.getsignal(signal.SIGINT) is handler

    def test_full_disk_keeps_the_old_output(self, cells, monkeypatch):
        def half_written(adata, path):
            path.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

        old = cells.with_name("out.h5ad")
        old.write_text("old")
        monkeypatch.setattr(_files, "write", half_written)
        status, out, err = call("annotate", cells, old, *FAST, "--quiet")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "No space left" in err
        assert sorted(path.name for path in cells.parent.iterdir()) == ["in.h5ad", "out.h5ad"]
        assert old.read_text() == "old"

    @pytest.mark.parametrize("bug", [ValueError("from nowhere"), KeyError("x"), RuntimeError("broken")])
    def test_a_bug_keeps_its_traceback(self, cells, monkeypatch, bug):
        def train(self, **options):
            raise bug

        monkeypatch.setattr(cplmixvi.CplMixVI, "train", train)
        with pytest.raises(type(bug)):
            call("annotate", cells, cells.with_name("out.h5ad"), *FAST)
        assert [path.name for path in cells.parent.iterdir()] == ["in.h5ad"]

    def test_only_raise_statements_of_the_package_are_messages(self):
        def caught(function, *arguments):
            with pytest.raises(ValueError) as info:
                function(*arguments)
            return info.value

        assert _errors.is_message(caught(cplmixvi.datasets.load, "nothing"))
        assert not _errors.is_message(caught(int, "x"))
        assert not _errors.is_message(caught(baselines.kmeans, np.zeros((3, 2)), 5))


def test_nothing_heavy_is_imported_before_a_command_runs(tmp_path):
    code = "import sys; from cplmixvi.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for arguments in (["--help"], ["--version"], ["annotate", "--help"], ["annotate", "no.h5ad", "out.h5ad"]):
        ran = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, f"torch was imported for {arguments}: {ran.stderr}"


def test_whole_process_keeps_the_streams_apart(cells):
    """Libraries speak when they are imported, which a call in this process cannot show."""
    program = [sys.executable, "-c", "import sys; from cplmixvi.cli import main; sys.exit(main(sys.argv[1:]))"]
    arguments = ["annotate", "in.h5ad", "out.h5ad", *FAST, "--quiet"]
    ran = subprocess.run([*program, *arguments], cwd=cells.parent, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["cells"] == 60


def test_version():
    assert call("--version") == (0, f"cplmixvi {cplmixvi.__version__}\n", "")


def test_help_names_every_option_of_the_interface():
    _, out, _ = call("annotate", "--help")
    for option in (
        "--layer",
        "--n-categories",
        "--hvg",
        "--model-dir",
        "--key-added",
        "--overwrite",
        "--threads",
        "--labels-key",
        "--unlabeled-category",
        "--min-confidence",
    ):
        assert option in out


def test_replaced_folder_comes_back_when_the_move_fails(tmp_path, monkeypatch):
    store = tmp_path / "out.zarr"
    store.mkdir()
    (store / "zarr.json").write_text("old")
    with pytest.raises(_errors.InputError, match="cannot be written"), _files.replacing(store) as new:
        pass  # nothing was written at ``new``, so moving it fails
    assert (store / "zarr.json").read_text() == "old"
    assert not new.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


@pytest.mark.parametrize(
    ("by_category", "expected"), [([0.5, np.nan, 1.0], 0.75), ([np.nan], None)], ids=["some", "none"]
)
def test_categories_that_no_arm_uses_have_no_consensus(by_category, expected):
    adata = ad.AnnData(uns={"cplmixvi": {"consensus_by_category": np.array(by_category)}})
    assert _annotate.mean_consensus(adata) == expected


class TestBaselines:
    def test_clusters_far_apart_are_found(self):
        rng = np.random.default_rng(0)
        truth = np.repeat([0, 1, 2], 40)
        values = rng.normal(size=(120, 20)) + 8 * np.eye(3, 20)[truth]
        components = baselines.principal_components(values, 5)
        assert components.shape == (120, 5)
        for labels in (
            baselines.kmeans(components, 3),
            baselines.leiden(baselines.neighbour_graph(components), resolution=0.1),
        ):
            assert cplmixvi.metrics.accuracy(truth, labels) == 1.0


def test_demo(tmp_path):
    status, out, err = call("demo", "--out", tmp_path / "demo", "--max-epochs", "2", "--quiet")
    assert (status, err) == (0, "")
    rows = {line[:15].strip(): line[15:].split() for line in out.splitlines()}
    assert rows["method"] == ["categories", "consensus", "ACC", "NMI", "ARI"]
    assert rows["PCA + k-means"][:2] == ["10", "-"]
    assert float(rows["PCA + Leiden"][3]) > 0.5
    assert "cplmixvi" in rows
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["confusion.png", "pbmc68k.h5ad", "types.png"]
    assert {"cplmixvi", "bulk_labels"} <= set(ad.read_h5ad(tmp_path / "demo" / "pbmc68k.h5ad").obs)


class TestBacked:
    """``--backed``: the same result, from cells that are never in memory all at once."""

    @pytest.fixture(params=["csr", "dense"])
    def source(self, request, tmp_path, monkeypatch):
        from cplmixvi.pp import _values

        monkeypatch.setattr(_values, "CHUNK_ENTRIES", 7 * 30)
        adata = make_cells()
        adata.uns["mine"] = {"kept": 1}
        if request.param == "dense":
            adata.X = adata.X.toarray()
        adata.write_h5ad(tmp_path / "in.h5ad")
        return tmp_path / "in.h5ad"

    def test_the_output_has_what_the_input_has_and_the_result(self, source, tmp_path):
        options = ["--batch-key", "donor", "--hvg", "20", "--top-k", "2", "--model-dir", tmp_path / "model"]
        status, out, err = call("annotate", source, tmp_path / "out.h5ad", *FAST, *options, "--backed")
        assert status == 0, err
        assert json.loads(out)["genes_used"] == 20
        before, after = ad.read_h5ad(source), ad.read_h5ad(tmp_path / "out.h5ad")
        assert after.uns["mine"] == {"kept": 1}
        assert list(after.obs.columns) == ["donor", "cplmixvi", "cplmixvi_confidence", "cplmixvi_agreement"]
        for name in ("X", "raw"):
            parts = [getattr(adata, name) for adata in (before, after)]
            parts = [getattr(part, "X", part) for part in parts]
            np.testing.assert_array_equal(*(part.toarray() if sparse.issparse(part) else part for part in parts))
        np.testing.assert_array_equal(after.layers["counts"].toarray(), before.layers["counts"].toarray())
        np.testing.assert_array_equal(after.obsm["X_other"], before.obsm["X_other"])
        assert after.obsm["cplmixvi_proba"].format == "csr"
        # Genes were taken by their names, and rows are still those of the cells.
        again = cplmixvi.CplMixVI.load(str(tmp_path / "model"), adata=False)
        assert list(again.predict(before)) == list(after.obs["cplmixvi"])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "model", "out.h5ad"]

    def test_the_genes_are_those_that_are_selected_in_memory(self, source, tmp_path):
        chosen = []
        for name, options in (("memory", []), ("disk", ["--backed"])):
            folder = tmp_path / name
            status, _, err = call(
                "annotate", source, tmp_path / f"{name}.h5ad", *FAST, "--hvg", "12", "--model-dir", folder, *options
            )
            assert status == 0, err
            chosen.append(list(cplmixvi.CplMixVI.load(str(folder), adata=False).get_var_names()))
        assert chosen[0] == chosen[1]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--layer", "counts"], "--backed reads X"),
            (["--augment", "neighbours"], "in memory"),
        ],
    )
    def test_what_needs_all_cells_is_refused(self, cells, tmp_path, options, message):
        status, _, err = call("annotate", cells, tmp_path / "out.h5ad", *FAST, *options, "--backed")
        assert status == 2
        assert message in err
        assert not (tmp_path / "out.h5ad").exists()

    def test_values_that_are_no_counts_and_other_formats_are_refused(self, cells, tmp_path):
        adata = make_cells()
        adata.X = adata.layers["log"]
        adata.write_h5ad(tmp_path / "log.h5ad")
        adata.X = sparse.csc_matrix(adata.layers["counts"])
        adata.write_h5ad(tmp_path / "columns.h5ad")
        for source, output, message in (
            ("log.h5ad", "out.h5ad", "a fraction"),
            ("columns.h5ad", "out.h5ad", "by columns"),
            ("in.h5ad", "out.zarr", "--backed reads and writes .h5ad"),
        ):
            status, _, err = call("annotate", tmp_path / source, tmp_path / output, *FAST, "--backed")
            assert (status, err.count("\n")) == (2, 1)
            assert message in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["columns.h5ad", "in.h5ad", "log.h5ad"]
