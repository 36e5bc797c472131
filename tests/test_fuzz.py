"""Hundreds of broken files, always the same ones: never a traceback, never a partial output, exit status 2."""

import gzip
import io
import json
import pickle
import shutil
from contextlib import redirect_stderr, redirect_stdout

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cplmixvi
from cplmixvi.cli import main

pytestmark = pytest.mark.usefixtures("small_committee")

N_OBS, N_VARS = 40, 12
N_BYTES, N_PARTS, N_MODELS = 100, 140, 60


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A file that works, with the model that was fitted to it."""
    folder = tmp_path_factory.mktemp("good")
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(3.0, (N_OBS, N_VARS)).astype(np.float32))
    obs = pd.DataFrame(
        {"donor": pd.Categorical(["a", "β"] * (N_OBS // 2)), "age": rng.random(N_OBS)},
        index=[f"cell{i}" for i in range(N_OBS)],
    )
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(N_VARS)]))
    adata.layers["counts"] = counts
    adata.obsm["X_pca"] = rng.random((N_OBS, 2))
    adata.uns["note"] = {"text": "x"}
    adata.write_h5ad(folder / "in.h5ad")
    status, _, err = call(
        "annotate", folder / "in.h5ad", folder / "out.h5ad", *OPTIONS, "--model-dir", folder / "model"
    )
    assert (status, err) == (0, "")
    return folder


OPTIONS = ["--n-categories", "2", "--batch-key", "donor", "--max-epochs", "1", "--accelerator", "cpu", "--quiet"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What still is a good file after all is fitted, without the start that takes seconds."""
    train = cplmixvi.CplMixVI.train
    monkeypatch.setattr(cplmixvi.CplMixVI, "train", lambda self, **options: train(self, warm_start=False, **options))


def call(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


def check(folder, case, outcome):
    """Refused in one line with nothing written, or done in full; returns whether it was refused."""
    status, out, err = outcome
    assert status in (0, 2), f"{case}: status {status}"
    if status == 0:
        assert json.loads(out)["cells"] > 0, case
        assert ad.read_h5ad(folder / "out.h5ad").n_obs > 0, case
        (folder / "out.h5ad").unlink()
        return False
    assert (out, err.count("\n")) == ("", 1), f"{case}: {err}"
    assert err.startswith("cplmixvi: error: "), f"{case}: {err}"
    assert "Traceback" not in err, f"{case}: {err}"
    assert not [path.name for path in folder.iterdir() if path.name not in ("in.h5ad", "model")], case
    return True


def bytes_broken(rng, content, spans=()):
    """Random damage to the bytes of a file, with what was done.

    Not to the tables of an HDF5 file themselves: the HDF5 library may not come back from those.
    """
    kind = rng.choice(["cut", "cut", "start", "other"] + ["noise", "zeros"] * bool(spans))
    data = bytearray(content)
    if kind == "cut":
        where = int(rng.integers(len(data)))
        data = data[:where]
    elif kind == "start":
        where = int(rng.integers(8))
        data[where] ^= int(rng.integers(1, 256))
    elif kind == "other":
        made = [b"", b"\0" * 4096, b"gene,cell\n1,2\n", gzip.compress(content), pickle.dumps({"X": 1}), content[8:]]
        where = int(rng.integers(len(made)))
        data = made[where]
    else:
        name, first, last = spans[int(rng.integers(len(spans)))]
        start = int(rng.integers(first, last))
        stop = min(last, start + int(rng.integers(1, 64)))
        data[start:stop] = rng.bytes(stop - start) if kind == "noise" else bytes(stop - start)
        where = f"{start}:{stop} of {name}"
    return f"{kind} {where}", bytes(data)


def values_in(path):
    """Where in an HDF5 file the values of its arrays lie: name, first and last byte."""
    spans = []

    def look(name, item):
        # Not those of strings, which are addresses.
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" and item.id.get_offset() is not None:
            spans.append((name, item.id.get_offset(), item.id.get_offset() + item.id.get_storage_size()))

    with h5py.File(path) as file:
        file.visititems(look)
    return spans


def parts_broken(rng, path):
    """Random damage to what is in an HDF5 file, with what was done."""
    with h5py.File(path, "r+") as file:
        names = []
        file.visit(names.append)
        name = str(rng.choice(names))
        item = file[name]
        kinds = ["delete", "attribute", "replace"] + ["values", "shape", "type"] * isinstance(item, h5py.Dataset)
        kind = str(rng.choice(kinds))
        if kind == "delete":
            del file[name]
        elif kind == "attribute":
            keys = sorted(item.attrs) or ["encoding-type"]
            key = str(rng.choice(keys))
            values = ["array", "csr_matrix", "csc_matrix", "nonsense", -1, [3, 4], [N_OBS, N_VARS, 1], 1.5, "9.9.9"]
            if rng.random() < 0.3 and key in item.attrs:
                del item.attrs[key]
            else:
                item.attrs[key] = values[int(rng.integers(len(values)))]
            kind = f"attribute {key}"
        elif kind == "replace":
            attributes = dict(item.attrs)
            del file[name]
            made = [np.arange(3), np.zeros((2, 2)), np.array([b"a", b"b"]), np.float64(1), np.zeros((N_OBS, N_VARS, 2))]
            choice = int(rng.integers(len(made) + 1))
            if choice == len(made):
                file.create_group(name)
            else:
                file[name] = made[choice]
            if rng.random() < 0.5:
                file[name].attrs.update(attributes)
        else:
            attributes, values = dict(item.attrs), item[()]
            values = np.atleast_1d(values)
            if kind == "values" and values.dtype.kind in "iuf":
                wrong = [-1, 10**6, 2**31 - 1] + [np.nan, np.inf, 0.5, -1e30] * (values.dtype.kind == "f")
                values[tuple(rng.integers(size) for size in values.shape)] = np.array(
                    wrong[int(rng.integers(len(wrong)))]
                ).astype(values.dtype)
            elif kind == "shape":
                values = [values[:-1], values[:0], np.concatenate([values, values]), values[None]][int(rng.integers(4))]
            elif kind == "type":
                values = (
                    values.astype([np.dtype("S8"), np.float64, np.complex64][int(rng.integers(3))], copy=True)
                    if (values.dtype.kind in "iuf")
                    else np.arange(len(values))
                )
            del file[name]
            file[name] = values
            file[name].attrs.update(attributes)
    return f"{kind} {name}"


def annotate_broken(folder, n, break_file):
    """Annotate ``n`` files that ``break_file`` writes to a path, and says how; the number that was refused."""
    refused = 0
    for i in range(n):
        case = break_file(folder / "in.h5ad")
        outcome = call("annotate", folder / "in.h5ad", folder / "out.h5ad", *OPTIONS)
        refused += check(folder, f"{i}: {case}", outcome)
    return refused


@pytest.mark.slow
def test_files_with_damaged_bytes(good, tmp_path):
    rng = np.random.default_rng(1)
    content, spans = (good / "in.h5ad").read_bytes(), values_in(good / "in.h5ad")

    def break_file(path):
        case, data = bytes_broken(rng, content, spans)
        path.write_bytes(data)
        return case

    assert annotate_broken(tmp_path, N_BYTES, break_file) > N_BYTES / 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_files_with_damaged_parts(good, tmp_path):
    rng = np.random.default_rng(2)

    def break_file(path):
        shutil.copy(good / "in.h5ad", path)
        return parts_broken(rng, path)

    assert annotate_broken(tmp_path, N_PARTS, break_file) > N_PARTS / 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_traverse_with_damaged_cells_or_models(good, tmp_path):
    rng = np.random.default_rng(3)
    options = ["--steps", "3", "--state-genes", "0", "--quiet"]
    refused = 0
    for i in range(N_MODELS):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(good / "model", tmp_path / "model")
        shutil.copy(good / "in.h5ad", tmp_path / "in.h5ad")
        if i % 3 == 0:
            case = parts_broken(rng, tmp_path / "in.h5ad")
        else:
            path = sorted((tmp_path / "model").iterdir())[int(rng.integers(4))]
            case, data = bytes_broken(rng, path.read_bytes())
            path.write_bytes(data)
            case = f"{case} of {path.name}"
        arguments = ["traverse", tmp_path / "in.h5ad", tmp_path / "out.h5ad", "--model-dir", tmp_path / "model"]
        refused += check(tmp_path, f"{i}: {case}", call(*arguments, *options))
    assert refused > N_MODELS / 3
