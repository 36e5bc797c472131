"""Values as JSON and arrays and back; folders that appear whole or not at all; versions of the format."""

import json
import math
import os
from collections import defaultdict, namedtuple

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch

from cplmixvi import augment, io


def round_trip(value, tmp_path):
    """Encode, write both files, read them and decode."""
    arrays = {}
    encoded = json.dumps(io.encode(value, "v", arrays), allow_nan=False)
    safetensors.numpy.save_file(arrays, tmp_path / "arrays")
    return io.decode(json.loads(encoded), safetensors.numpy.load_file(tmp_path / "arrays"))


PLAIN = [
    None,
    True,
    3,
    2**70,
    0.1,
    -0.0,
    math.inf,
    "naïve \u2028 😀",
    [],
    [1, [2.5, None]],
    [0.1 * i for i in range(40)],
    (1, ("a", [2])),
    {"a": {"b": (1,)}},
    {"@": 1},
    {1: "a", None: 2, (1, 2): 3},
    np.float32(0.1),
    np.float64(math.inf),
    np.int8(-3),
    np.bool_(True),
    np.dtype("float32"),
    np.dtype("O"),
    pd.CategoricalDtype(["b", "a"], ordered=True),
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_come_back_equal_and_of_their_type(value, tmp_path):
    back = round_trip(value, tmp_path)
    assert back == value
    assert type(back) is type(value)
    assert math.isnan(round_trip(math.nan, tmp_path))


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.int8).reshape(2, 3),
        np.asfortranarray(np.random.default_rng(0).normal(size=(3, 2))),
        np.array([np.nan, np.inf, 1e-40], dtype=np.float32),
        np.array(2.5),
        np.zeros((0, 3)),
        np.array([True, False]),
        np.array(["a", "bc", "é"]),
        np.array(["a", None, 1, 2.5, True, (1, 2)], dtype=object),
        np.array([["a"], ["b"]], dtype=object),
        np.array([], dtype=object),
        np.linspace(0, 1, 40).astype(object),
        np.array(["2026-01-02", "NaT"], dtype="datetime64[D]"),
        np.arange(3, dtype=">i4"),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_arrays_come_back_equal(value, tmp_path):
    back = round_trip({"x": value, "y": value}, tmp_path)["x"]
    assert back.dtype == value.dtype.newbyteorder("=")
    assert back.shape == value.shape
    np.testing.assert_array_equal(back, value)
    assert back.flags.writeable


def test_tables_and_indexes_come_back_equal(tmp_path):
    frame = pd.DataFrame(
        {"loss": [1.0, np.nan], "n": [1, 2], "name": ["a", None]}, index=pd.Index([1, 2], name="epoch")
    )
    pd.testing.assert_frame_equal(round_trip(frame, tmp_path), frame)
    empty = pd.DataFrame({"a": []})
    pd.testing.assert_frame_equal(round_trip(empty, tmp_path), empty)
    pd.testing.assert_index_equal(round_trip(frame.columns, tmp_path), frame.columns)
    tensor = torch.tensor([1.5, 2.5], requires_grad=True)
    assert torch.equal(round_trip(tensor, tmp_path), tensor.detach())
    assert round_trip(defaultdict(dict, a={}), tmp_path) == {"a": {}}


@pytest.mark.parametrize(
    "given",
    [
        augment.CountThinning((0.3, 0.6)),
        augment.GeneMasking(0.1),
        augment.GaussianNoise(0.3),
        augment.Neighbours(7, use_rep="X_pca"),
        augment.AcrossCondition("stim", 9, use_rep="X_pca"),
        augment.LearnedAugmenter(4, 8),
        augment.Identity(),
        augment.Compose([augment.GeneMasking(0.1), augment.Compose([augment.GaussianNoise(0.2)])]),
    ],
    ids=lambda given: type(given).__name__,
)
def test_augmenters_come_back_with_their_arguments(given, tmp_path):
    back = round_trip(given, tmp_path)
    assert repr(back) == repr(given)
    public = {name: value for name, value in vars(given).items() if not name.startswith("_")}
    assert {name: getattr(back, name) for name in public} == public


class Doubled(augment.Augmenter):
    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor


class Forgetful(augment.Augmenter):
    def __init__(self, factor):
        super().__init__()


def test_augmenters_of_users_come_back_where_their_class_is_there(tmp_path):
    assert round_trip(Doubled(3.0), tmp_path).factor == 3.0
    with pytest.raises(io.ModelFileError, match="'factor' is in no attribute"):
        io.encode(Forgetful(1), "v", {})
    for encoded, message in (
        ({"class": "os:system", "arguments": {"command": "true"}}, "not there"),
        ({"class": "GeneMasking", "arguments": {"speed": 1}}, "does not take"),
    ):
        with pytest.raises(io.ModelFileError, match=message):
            io.decode({"@": "augmenter", **encoded}, {})


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        object(),
        len,
        namedtuple("Point", "x")(1),
        b"bytes",
        1j,
        np.array([1j]),
        np.longdouble(1),
        pd.MultiIndex.from_tuples([(1, 2)]),
        pd.DataFrame({"a": pd.array(["x"], dtype="string")}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused_and_named(value):
    with pytest.raises(io.ModelFileError, match=r"settings\.deep\.0 is"):
        io.encode({"deep": [value]}, "settings", {})


@pytest.mark.parametrize(
    "damaged",
    [
        {"@": "module", "name": "os"},
        {"@": ["x"]},
        {"@": "array", "name": "gone"},
        {"@": "array"},
        {"@": "dtype", "name": "V8"},
        {"@": "scalar", "dtype": "O", "value": 1},
        {"@": "float", "value": "x"},
        {"@": "dict", "items": [[[], 1]]},
        {"@": "strings", "dtype": "U1", "shape": [7], "items": ["a"]},
    ],
    ids=str,
)
def test_damaged_values_are_refused(damaged):
    with pytest.raises(io.ModelFileError):
        io.decode({"a": [damaged]}, {})


def fail_at(monkeypatch, move, after, error):
    """Let a move of files, counted from 1, fail before or after it was made; returns the list that all are added to."""
    replace, moves = os.replace, []

    def fail(source, target):
        moves.append(source)
        if after or len(moves) != move:
            replace(source, target)
        if len(moves) == move:
            raise error

    monkeypatch.setattr(os, "replace", fail)
    return moves


class TestWholeFolder:
    def test_files_of_others_stay_and_ours_are_replaced(self, tmp_path):
        path = tmp_path / "there"
        path.mkdir()
        for name in ("ours", "old", "theirs"):
            (path / name).write_text("before")
        (path / "deep").mkdir()
        with io.whole_folder(path, {"ours", "old"}) as folder:
            (folder / "ours").write_text("after")
        assert sorted(item.name for item in path.iterdir()) == ["deep", "ours", "theirs"]
        assert (path / "ours").read_text() == "after"
        assert [item.name for item in tmp_path.iterdir()] == ["there"]

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=str)
    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("move", range(6))
    def test_on_failure_all_is_as_it_was(self, tmp_path, monkeypatch, move, after, error):
        """Whichever file is moved, before or after it was; ``move`` 0 is while files are written."""
        path = tmp_path / "there"
        path.mkdir()
        before = {"ours": "before", "old": "before", "theirs": "before"}
        for name, text in before.items():
            (path / name).write_text(text)
        with pytest.raises(OSError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            with io.whole_folder(path, {"ours", "old", "fresh"}) as folder:
                for name in ("ours", "fresh"):
                    (folder / name).write_text("after")
                if move == 0:
                    raise error
                moves = fail_at(monkeypatch, move, after, error)
            # Two files go aside and two come.
            assert len(moves) == 4
            raise error
        if isinstance(error, OSError) and move < 5:
            assert caught.match("check space and permissions")
            assert caught.value.errno == 28
        after_all = {"ours": "after", "fresh": "after", "theirs": "before"}
        assert {item.name: item.read_text() for item in path.iterdir()} == (before if move < 5 else after_all)
        assert [item.name for item in tmp_path.iterdir()] == ["there"]

    def test_a_folder_that_somebody_works_in_stays(self, tmp_path, monkeypatch):
        path = tmp_path / "there"
        path.mkdir()
        monkeypatch.chdir(path)
        with io.whole_folder(path, {"ours"}) as folder:
            (folder / "ours").write_text("after")
        assert os.path.samefile(os.getcwd(), path)
        assert os.listdir() == ["ours"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("move", [1, 2])
def test_a_store_is_replaced_or_stays(tmp_path, monkeypatch, move, after):
    store, scratch = tmp_path / "a.zarr", tmp_path / "scratch"
    for folder, text in ((store, "before"), (scratch / "a.zarr", "after")):
        folder.mkdir(parents=True)
        (folder / "data").write_text(text)
    fail_at(monkeypatch, move, after, SystemExit(143))
    with pytest.raises(SystemExit):
        io.swap(scratch / "a.zarr", store, aside=scratch / "old")
    assert (store / "data").read_text() == ("after" if (move, after) == (2, True) else "before")


def test_older_versions_are_migrated_step_by_step(tmp_path, monkeypatch):
    io.write_files(tmp_path, io.Saved({"a": 1}, {"old": torch.ones(2)}, {}))

    def rename(saved):
        saved.weights["new"] = saved.weights.pop("old")
        return saved

    def count(saved):
        saved.meta["a"] += 1
        return saved

    present = io.FORMAT_VERSION
    monkeypatch.setattr("cplmixvi.io._format.FORMAT_VERSION", present + 2)
    with pytest.raises(io.ModelFileError, match=f"version {present} are no longer read"):
        io.read_files(tmp_path)
    monkeypatch.setitem(io.MIGRATIONS, present, rename)
    monkeypatch.setitem(io.MIGRATIONS, present + 1, count)
    saved = io.read_files(tmp_path)
    assert (saved.meta["format_version"], saved.meta["a"], list(saved.weights)) == (present + 2, 2, ["new"])


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path):
    """The first byte is the lowest of the header's length, which is that of a pickle in one model of 32."""
    for length in range(1, 300):
        io.write_files(tmp_path, io.Saved({}, {"x" * length: torch.ones(1)}, {}))
        if (tmp_path / "weights.safetensors").read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header of that length")
    assert list(io.read_files(tmp_path).weights) == ["x" * length]
