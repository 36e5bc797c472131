"""Bad input on the command line: status 2, one line on stderr, nothing written."""

import os

import numpy as np
import pytest
from _command_line import assert_refused, call, make_cells
from scipy import sparse

from cplmixvi.cli import _files

pytestmark = pytest.mark.usefixtures("small_committee")


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
    "seed that NumPy does not take": (["--seed", str(2**32)], "--seed"),
    "key with a slash": (["--key-added", "a/b"], "--key-added 'a/b'"),
    "key that is taken": (["--key-added", "donor"], "--overwrite"),
    "confidence above one": (["--min-confidence", "90"], "90.0 is not a probability from 0 to 1"),
    "confidence below zero": (["--min-confidence", "-0.1"], "--min-confidence"),
    "confidence that is no number": (["--min-confidence", "nan"], "nan is not a probability"),
    "confidence in words": (["--min-confidence", "high"], "--min-confidence"),
    "unknown option": (["--depth", "3"], "--depth"),
    "surplus argument": (["more.h5ad"], "more.h5ad"),
}


class TestBadInput:
    @pytest.mark.parametrize(("options", "expected"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
    def test_options(self, in_file, options, expected):
        assert_refused(call("annotate", in_file, in_file.with_name("out.h5ad"), *options), expected)
        assert [path.name for path in in_file.parent.iterdir()] == ["in.h5ad"]

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
            (["annotate", "in.h5ad", "new.zarr", "--model-dir", "new.zarr"], "is in OUT"),
            (
                ["annotate", "m/adata.h5ad", "new.h5ad", "--model-dir", "m", "--overwrite"],
                "IN 'm/adata.h5ad' is where a",
            ),
            (["annotate", "in.h5ad", "m/adata.h5ad", "--model-dir", "m", "--overwrite"], "OUT 'm/adata.h5ad' is where"),
            (["annotate", "store.zarr", "store.zarr/out.h5ad"], "OUT 'store.zarr/out.h5ad' is in IN"),
            (["annotate", "store.zarr/in.h5ad", "store.zarr", "--overwrite"], "IN 'store.zarr/in.h5ad' is in OUT"),
            (
                ["annotate", "in.h5ad", "new.h5ad", "--model-dir", "empty", "--checkpoint-dir", "empty/run"],
                "in --model-",
            ),
            (["annotate", "in.h5ad", "new.zarr", "--checkpoint-dir", "new.zarr/run"], "create it first"),
            (["annotate", "in.h5ad", "folder.h5ad"], "is a folder"),
            (["annotate", "in.h5ad", "full.zarr", "--overwrite"], "no zarr store"),
            (["demo", "--dataset", "nothing", "--out", "demo"], "pbmc68k"),
            (["demo", "--labels", "nothing", "--out", "demo"], "bulk_labels"),
            (["demo", "--out", "in.h5ad"], "--out 'in.h5ad'"),
        ],
    )
    def test_arguments(self, in_file, monkeypatch, arguments, expected):
        monkeypatch.chdir(in_file.parent)
        in_file.with_name("folder.h5ad").mkdir()
        for name in ("full", "full.zarr"):
            in_file.with_name(name).mkdir()
            in_file.with_name(name).joinpath("precious.txt").touch()
        in_file.with_name("empty").mkdir()
        for name, inside in (("m", "adata.h5ad"), ("store.zarr", "in.h5ad")):
            in_file.with_name(name).mkdir()
            in_file.with_name(name).joinpath(inside).write_bytes(in_file.read_bytes())
        in_file.with_name("store.zarr").joinpath(".zgroup").touch()
        assert_refused(call(*arguments), expected)
        assert in_file.with_name("full.zarr").joinpath("precious.txt").exists()

    def test_read_only_folder(self, in_file, monkeypatch):
        # The superuser may write anywhere, so that the system call is asked instead of a real folder.
        monkeypatch.setattr(_files.os, "access", lambda path, mode: not mode & os.W_OK)
        assert_refused(call("annotate", in_file, in_file.with_name("out.h5ad")), "read-only")

    @pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + b"\0" * 600])
    def test_files_that_are_no_h5ad(self, in_file, content):
        in_file.write_bytes(content)
        assert_refused(call("annotate", in_file, in_file.with_name("out.h5ad")), "in.h5ad")

    def test_hdf5_without_an_anndata(self, in_file):
        import h5py

        with h5py.File(in_file, "w") as file:
            file["matrix"] = [1, 2]
        assert_refused(call("annotate", in_file, in_file.with_name("out.h5ad")), "without X and obs and var")

    def test_truncated_file(self, in_file):
        in_file.write_bytes(in_file.read_bytes()[:-2000])
        assert_refused(call("annotate", in_file, in_file.with_name("out.h5ad")), "cannot be read")

    @pytest.mark.parametrize(
        ("spoil", "expected"),
        [
            (lambda a: a.X.data.__setitem__(0, -1.0), "-1"),
            (lambda a: a.X.data.__setitem__(0, np.nan), "nan"),
            (lambda a: a.X.data.__setitem__(0, 1e20), "too large to compute with"),
            (lambda a: setattr(a, "var_names", ["same"] * a.n_vars), "not unique"),
            (lambda a: setattr(a, "X", None), "no X"),
        ],
        ids=["negative", "nan", "too large", "gene names", "no X"],
    )
    def test_values(self, in_file, spoil, expected):
        adata = make_cells()
        spoil(adata)
        adata.write_h5ad(in_file)
        assert_refused(call("annotate", in_file, in_file.with_name("out.h5ad")), expected)

    def test_names_that_a_zarr_store_cannot_keep(self, in_file):
        adata = make_cells()
        adata.obs["a/b"] = 1
        try:
            adata.write_h5ad(in_file)
        except ValueError:
            pytest.skip("AnnData writes no such names since 0.13")
        assert_refused(call("annotate", in_file, in_file.with_name("out.zarr")), "slash in its name")

    def test_label_that_is_called_unassigned(self, in_file):
        adata = make_cells()
        adata.obs["some"] = ["B cell", "unassigned"] * 30
        adata.write_h5ad(in_file)
        outcome = call("annotate", in_file, in_file.with_name("out.h5ad"), "--labels-key", "some")
        assert_refused(outcome, "--unlabeled-category 'unassigned'")

    def test_cell_that_is_empty_in_the_selected_genes_only(self, in_file):
        adata = make_cells()
        dense = adata.X.toarray()
        dense[:, 10:] = 1
        dense[0, :10] = 0
        adata.X = sparse.csr_matrix(dense)
        adata.write_h5ad(in_file)
        assert_refused(call("annotate", in_file, in_file.with_name("out.h5ad"), "--hvg", "10"), "raise --hvg")
