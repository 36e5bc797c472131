"""The command line as a whole: streams, help, failures that leave nothing half-written, the demo."""

import errno
import json
import os
import signal
import subprocess
import sys

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from _command_line import FAST, call
from scipy import sparse

import cplmixvi
from cplmixvi import baselines, datasets
from cplmixvi.cli import _annotate, _errors, _files
from cplmixvi.cli._report import thread_limit

pytestmark = pytest.mark.usefixtures("small_committee")


class TestFailure:
    def test_interrupt_leaves_nothing(self, in_file, monkeypatch):
        from lightning.pytorch.callbacks import Callback

        class Interrupt(Callback):
            def on_train_epoch_end(self, trainer, module):
                os.kill(os.getpid(), signal.SIGINT)

        train, handler = cplmixvi.CplMixVI.train, signal.getsignal(signal.SIGINT)
        monkeypatch.setattr(
            cplmixvi.CplMixVI, "train", lambda self, **options: train(self, callbacks=[Interrupt()], **options)
        )
        status, out, err = call("annotate", in_file, in_file.with_name("out.h5ad"), *FAST, "--quiet")
        assert (status, out) == (130, "")
        assert err.startswith("cplmixvi: interrupted")
        assert err.count("\n") == 1
        assert [path.name for path in in_file.parent.iterdir()] == ["in.h5ad"]
        assert signal.getsignal(signal.SIGINT) is handler

    def test_full_disk_keeps_the_old_output(self, in_file, monkeypatch):
        def half_written(adata, path):
            path.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

        old = in_file.with_name("out.h5ad")
        old.write_text("old")
        monkeypatch.setattr(_files, "write", half_written)
        status, out, err = call("annotate", in_file, old, *FAST, "--quiet")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "No space left" in err
        assert sorted(path.name for path in in_file.parent.iterdir()) == ["in.h5ad", "out.h5ad"]
        assert old.read_text() == "old"

    @pytest.mark.parametrize("bug", [ValueError("from nowhere"), KeyError("x"), RuntimeError("broken")])
    def test_a_bug_keeps_its_traceback(self, in_file, monkeypatch, bug):
        def train(self, **options):
            raise bug

        monkeypatch.setattr(cplmixvi.CplMixVI, "train", train)
        with pytest.raises(type(bug)):
            call("annotate", in_file, in_file.with_name("out.h5ad"), *FAST)
        assert [path.name for path in in_file.parent.iterdir()] == ["in.h5ad"]

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


def test_whole_process_keeps_the_streams_apart(in_file):
    """Libraries speak when they are imported, which a call in this process cannot show."""
    program = [sys.executable, "-c", "import sys; from cplmixvi.cli import main; sys.exit(main(sys.argv[1:]))"]
    arguments = ["annotate", "in.h5ad", "out.h5ad", *FAST, "--quiet"]
    ran = subprocess.run([*program, *arguments], cwd=in_file.parent, capture_output=True, text=True)
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


@pytest.mark.parametrize("command", ["annotate", "traverse", "demo"])
def test_help_gives_no_type_of_flags(command):
    _, out, _ = call(command, "--help")
    assert "--quiet" in out
    assert "<int" in out or "INTEGER" in out
    assert "bool" not in out.lower()


def test_help_of_the_demo_names_every_set_of_cells():
    words = call("demo", "--help")[1].replace("│", " ").replace(",", " ").replace(";", " ").split()
    assert set(datasets.available()) - set(words) == {"mnist", "dsprites"}


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


@pytest.mark.parametrize("as_written", [np.array, sparse.csr_matrix], ids=["all", "top_k"])
def test_share_found_again_counts_every_cell_under_its_own_category(as_written):
    # Three cells of the first category, of which one is unassigned, and one of the second.
    proba = as_written([[0.9, 0.1], [0.4, 0.3], [0.8, 0.0], [0.0, 0.6]])
    labels = pd.Categorical(["0", "unassigned", "0", "1"])
    adata = ad.AnnData(obs=pd.DataFrame({"cplmixvi": labels}, index=list("abcd")), obsm={"cplmixvi_proba": proba})
    adata.uns["cplmixvi"] = {"found_again_by_category": np.array([0.9, 0.5], dtype=np.float32)}
    assert _annotate.share_found_again(adata) == 0.8
    del adata.uns["cplmixvi"]["found_again_by_category"]
    assert _annotate.share_found_again(adata) is None


def test_no_more_threads_than_cores():
    before = torch.get_num_threads()
    with thread_limit(1_000):
        assert torch.get_num_threads() == joblib.cpu_count()
    with thread_limit(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


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
