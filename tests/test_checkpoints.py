"""Interrupted trainings: what is resumed ends as if it had never stopped, and nothing is half-written or run."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback

import cplmixvi as cpl
from cplmixvi import io
from cplmixvi.cli import main
from cplmixvi.train import _guide
from cplmixvi.train._condition import its_batch
from cplmixvi.train._guide_state import guide_of, guide_state
from cplmixvi.train._views import fit_views

pytestmark = pytest.mark.usefixtures("small_committee")

QUIET = {"enable_progress_bar": False}
#: Without a guide, which takes most of the time of a fit as short as these.
FAST = {**QUIET, "warm_start": False}
#: Options that bring most of what a training keeps: a guide and duals, a warm-up, a scheduler, early stopping, a split.
KEEPING = {
    "max_epochs": 9,
    "batch_size": 40,
    "early_stopping": True,
    "plan_kwargs": {"n_epochs_kl_warmup": 7, "reduce_lr_on_plateau": True, "lr_patience": 1},
}


class Crash(Callback):
    """Ends a training at a step, as an error in any library would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step >= self.step:
            raise RuntimeError("crash")


def make(make_counts, seed=3, **options):
    scvi.settings.seed = seed
    adata = make_counts(n_obs=160, n_vars=20)
    cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
    return cpl.CplMixVI(adata, **{"n_categories": 3, "n_hidden": 8} | options)


def prepare(model):
    """What training would do by itself before the first epoch, in less time."""
    if model._finds_n_categories:
        model.select_n_categories([2, 3])
    if cpl.augment.learned_parts(model.module.augmenter):
        model.train_augmenter(max_epochs=1, **QUIET)
    return model


def crashed(model, folder, step, **options):
    with pytest.raises(RuntimeError, match="crash"):
        model.train(**{"checkpoint_dir": folder, "callbacks": [Crash(step)]} | FAST | options)


def assert_same(model, other):
    """Bit by bit: weights, multipliers and buffers, history, labels."""
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[name]), name
    assert model.history.keys() == other.history.keys()
    for name, frame in model.history.items():
        pd.testing.assert_frame_equal(frame, other.history[name], check_exact=True)
    np.testing.assert_array_equal(model.predict(), other.predict())
    assert model.training_ == other.training_


class TestResume:
    @pytest.mark.parametrize(
        ("options", "training"),
        [
            ({"n_categories": None}, KEEPING),
            ({"augment": "learned+thin"}, {"max_epochs": 6, "warm_start": False, "train_size": 0.8}),
        ],
        ids=["number found", "learned augmenter"],
    )
    def test_ends_like_a_training_that_was_not_interrupted(self, make_counts, tmp_path, options, training):
        training = {"warm_start": True, **training}
        whole = prepare(make(make_counts, **options))
        whole.train(**QUIET, **training)
        crashed(prepare(make(make_counts, **options)), tmp_path / "run", 14, checkpoint_every=2, **training)
        resumed = make(make_counts, **options)
        # Whatever the process did before.
        torch.rand(7), np.random.rand(7), random.random()
        resumed.train(resume=tmp_path / "run", **QUIET)
        assert_same(whole, resumed)
        assert resumed.n_categories == whole.n_categories

    @pytest.mark.parametrize("is_followed", [True, False])
    def test_a_condition_that_was_found_stays_found(self, make_counts, tmp_path, monkeypatch, is_followed):
        def found(x, *_, **__):
            return (lambda values, _batch: values[:, 0] > x[:, 0].mean()), is_followed

        monkeypatch.setattr(_guide, "find_condition", found)
        training = {"max_epochs": 4, "batch_size": 40, "warm_start": True}
        whole = make(make_counts)
        whole.train(**QUIET, **training)
        assert set(whole.condition_) == {0, 1}
        crashed(make(make_counts), tmp_path / "run", 10, checkpoint_every=1, **training)
        resumed = make(make_counts)
        resumed.train(resume=tmp_path / "run", **QUIET)
        assert_same(whole, resumed)
        np.testing.assert_array_equal(whole.condition_, resumed.condition_)
        # Only levels that types would follow are compared.
        assert resumed.trainer.lightning_module.crosses is is_followed

    def test_batches_that_are_compared_stay_so(self, make_counts, tmp_path, monkeypatch):
        monkeypatch.setattr(_guide, "find_condition", lambda *_, **__: (its_batch, True))
        training = {"max_epochs": 4, "batch_size": 40, "warm_start": True}
        whole = make(make_counts)
        whole.train(**QUIET, **training)
        crashed(make(make_counts), tmp_path / "run", 10, checkpoint_every=1, **training)
        # Nothing is found anew.
        monkeypatch.setattr(_guide, "find_condition", lambda *_, **__: pytest.fail("looked for again"))
        resumed = make(make_counts)
        resumed.train(resume=tmp_path / "run", **QUIET)
        assert_same(whole, resumed)
        np.testing.assert_array_equal(
            resumed.trainer.lightning_module.compared, resumed.adata.obs["batch"].astype("category").cat.codes
        )
        assert resumed.condition_ is None

    def test_a_second_interruption_and_a_damaged_checkpoint(self, make_counts, tmp_path):
        training = {"max_epochs": 8, "batch_size": 40}
        whole = make(make_counts)
        whole.train(**FAST, **training)
        crashed(make(make_counts), tmp_path, 10, checkpoint_every=1, **training)
        first = [path.name for path in io.list_checkpoints(tmp_path)]
        with pytest.raises(RuntimeError, match="crash"):
            make(make_counts).train(resume=tmp_path, callbacks=[Crash(22)], **QUIET)
        earlier, last = io.list_checkpoints(tmp_path)
        assert first < [earlier.name, last.name]
        weights = last / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        resumed = make(make_counts)
        with pytest.warns(UserWarning, match=f"damaged.*goes on from {earlier.name}"):
            resumed.train(resume=tmp_path, max_epochs=8, **QUIET)
        assert_same(whole, resumed)

    def test_one_that_fails_again_leaves_a_model_that_can_be_saved(self, make_counts, tmp_path):
        training = {"warm_start": False, "max_epochs": 8}
        crashed(prepare(make(make_counts, n_categories=None)), tmp_path / "run", 8, checkpoint_every=1, **training)
        again = make(make_counts, n_categories=None)
        bound = again.n_categories
        assert bound > 3
        with pytest.raises(RuntimeError, match="crash"):
            again.train(resume=tmp_path / "run", callbacks=[Crash(14)], **QUIET)
        assert again.n_categories == bound
        again.save(tmp_path / "model")
        assert cpl.CplMixVI.load(tmp_path / "model", adata=again.adata).n_categories == bound

    def test_a_checkpoint_is_a_saved_model(self, make_counts, tmp_path):
        model = make(make_counts)
        crashed(model, tmp_path, 10, max_epochs=6, checkpoint_every=1)
        loaded = cpl.CplMixVI.load(io.list_checkpoints(tmp_path)[-1], adata=False)
        assert loaded.n_categories == 3
        assert all(bool(value.isfinite().all()) for value in loaded.module.parameters())

    def test_nothing_in_a_checkpoint_is_run(self, make_counts, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        crashed(make(make_counts), tmp_path / "run", 6, max_epochs=4, checkpoint_every=1)
        for path in io.list_checkpoints(tmp_path / "run"):
            (path / "arrays.safetensors").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(io.ModelFileError, match="is a pickle"):
            make(make_counts).train(resume=tmp_path / "run", **QUIET)
        assert not (tmp_path / "ran").exists()

    def test_what_is_not_of_the_same_training_is_refused(self, make_counts, tmp_path):
        crashed(make(make_counts), tmp_path / "run", 6, max_epochs=4, checkpoint_every=1, batch_size=40)

        def refused(message, model=None, **options):
            with pytest.raises(ValueError, match=message):
                (model or make(make_counts)).train(**{"resume": tmp_path / "run"} | FAST | options)

        refused("other settings .*n_state", make(make_counts, n_state=3))
        refused("seed=4", make(make_counts, seed=4))
        changed = make_counts(n_obs=160, n_vars=20)
        changed.layers["counts"].data[0] += 1
        moved = make_counts(n_obs=160, n_vars=20)
        moved.obs["batch"] = moved.obs["batch"].to_numpy()[::-1]
        for adata in (changed, moved):
            cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
            scvi.settings.seed = 3
            refused("other cells", cpl.CplMixVI(adata, n_categories=3, n_hidden=8))
        refused("max_epochs=5 .* 4", max_epochs=5)
        refused("plan_kwargs.lr=0.1", plan_kwargs={"lr": 0.1})
        refused("has no checkpoint", resume=tmp_path / "nothing")
        refused("not the folder that resume names", checkpoint_dir=tmp_path / "other")
        refused("has checkpoints of another training", resume=None, checkpoint_dir=tmp_path / "run")
        refused("needs a folder", resume=None, checkpoint_every=2)
        refused("at least 1", resume=None, checkpoint_dir=tmp_path / "other", checkpoint_every=0)
        refused("which a model file cannot hold", resume=None, checkpoint_dir=tmp_path / "other", limit=object())
        assert not (tmp_path / "other").exists()

    def test_a_guide_is_the_same_after_a_file(self, make_counts):
        counts = make_counts().X.toarray()
        values = torch.log1p(torch.as_tensor(counts, dtype=torch.float32))
        guide = fit_views(values, 3, seed=1, dimensions=(2, 5))
        arrays = {}
        text = json.dumps(io.encode(guide_state(guide), "guide", arrays))
        again = guide_of(io.decode(json.loads(text), arrays))
        torch.testing.assert_close(again(values), guide(values), rtol=0, atol=1e-6)


class TestWriting:
    def test_folders_that_cannot_go_stay(self, make_counts, tmp_path, monkeypatch):
        def busy(self):
            raise OSError(16, "Device or resource busy")

        (tmp_path / "mounted").mkdir()
        inode = (tmp_path / "mounted").stat().st_ino
        make(make_counts).train(checkpoint_dir=tmp_path / "mounted", max_epochs=1, **FAST)
        assert (tmp_path / "mounted").stat().st_ino == inode
        assert io.list_checkpoints(tmp_path / "mounted")
        monkeypatch.setattr(Path, "rmdir", busy)
        io.remove_checkpoints(tmp_path / "mounted")
        assert not list((tmp_path / "mounted").iterdir())

    def test_a_full_disk_ends_a_training_at_its_start_only(self, make_counts, tmp_path, monkeypatch):
        write, calls = io.write_checkpoint, []

        def full(folder, epoch, saved):
            calls.append(epoch)
            if len(calls) in fails:
                raise OSError(28, "No space left on device")
            write(folder, epoch, saved)

        monkeypatch.setattr(io, "write_checkpoint", full)
        fails = {1}
        with pytest.raises(OSError, match="No space left"):
            make(make_counts).train(max_epochs=3, checkpoint_dir=tmp_path / "first", **FAST)
        fails = {3}
        with pytest.warns(UserWarning, match="No checkpoint after epoch 1: No space left.*that after epoch 0"):
            make(make_counts).train(max_epochs=4, checkpoint_dir=tmp_path / "later", checkpoint_every=1, **FAST)
        assert [path.name for path in io.list_checkpoints(tmp_path / "later")] == ["epoch_000002", "epoch_000003"]

    def test_one_that_fails_half_way_leaves_the_earlier_ones(self, make_counts, tmp_path, monkeypatch):
        crashed(make(make_counts), tmp_path, 6, max_epochs=4, checkpoint_every=1)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        saved = io.read_checkpoint(tmp_path)

        def half(folder, saved, prefix=""):
            (folder / "weights.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("cplmixvi.io._checkpoints.write_files", half)
        with pytest.raises(OSError, match="check space and permissions"):
            io.write_checkpoint(tmp_path, 3, saved)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_ctrl_c_says_how_to_go_on(self, make_counts, tmp_path):
        class Interrupt(Callback):
            def on_train_epoch_end(self, trainer, module):
                os.kill(os.getpid(), signal.SIGINT)

        handler = signal.getsignal(signal.SIGINT)
        for options, message in (({}, "must begin anew"), ({"checkpoint_dir": tmp_path / "run"}, "train.resume=")):
            with pytest.raises(KeyboardInterrupt, match=message):
                make(make_counts).train(max_epochs=3, callbacks=[Interrupt()], **FAST, **options)
            assert signal.getsignal(signal.SIGINT) is handler


class TestDivergence:
    def poisoned(self, model, steps):
        """Make the loss of some steps not a number, and count steps."""
        loss, seen = model.module.loss, []

        def poison(*args, **kwargs):
            output = loss(*args, **kwargs)
            seen.append(len(seen))
            if seen[-1] in steps:
                output.loss = output.loss * torch.nan
            return output

        model.module.loss = poison

    def test_goes_back_to_the_last_good_epoch_at_a_lower_rate(self, make_counts):
        weights, rates = {}, []

        class Watch(Callback):
            def on_train_batch_end(self, trainer, plan, *args):
                values = [value.detach().clone() for value in plan.module.arms.parameters()]
                weights[trainer.fit_loop.epoch_loop.total_batch_idx + 1] = values
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        model = make(make_counts)
        self.poisoned(model, {6})
        with pytest.warns(UserWarning, match="diverged in epoch 2; .* rate of 0.0006"):
            # Four steps an epoch: the seventh step is the third of the second epoch.
            model.train(max_epochs=4, batch_size=40, callbacks=[Watch()], **FAST)
        for at_epoch_start, after in zip(weights[4], weights[7], strict=True):
            assert torch.equal(at_epoch_start, after)
        assert any(not torch.equal(a, b) for a, b in zip(weights[6], weights[7], strict=True))
        assert rates == pytest.approx([2e-3] * 6 + [6e-4] * 10)
        assert len(model.history["train_loss"]) == 4
        assert np.isfinite(model.history["train_loss"].to_numpy(float)).all()

    def test_an_absurd_rate_is_mended(self, make_counts):
        model = make(make_counts)
        with pytest.warns(UserWarning, match="diverged"):
            model.train(max_epochs=20, batch_size=40, plan_kwargs={"lr": 30.0}, **FAST)
        loss = model.history["reconstruction_loss_train"].to_numpy(float)
        assert np.isfinite(loss).all()
        assert loss[-1] < 2 * loss.min()

    @pytest.mark.filterwarnings("ignore:The training diverged:UserWarning")
    def test_gives_up_where_no_rate_helps(self, make_counts):
        model = make(make_counts)
        self.poisoned(model, range(1000))
        with pytest.raises(ValueError, match="diverges in epoch"):
            model.train(max_epochs=4, batch_size=20, **FAST)


def annotate(folder, output, *options):
    arguments = ["annotate", folder / "in.h5ad", folder / output, "--n-categories", "3", "--quiet", *options]
    return [str(argument) for argument in (*arguments, "--max-epochs", "60", "--accelerator", "cpu", "--threads", "1")]


@pytest.mark.slow
def test_kill_minus_nine_changes_nothing(make_counts, tmp_path, capsys):
    """A real process, killed at a random step; the file that the resumed one writes equals that of one left alone."""
    make_counts().write_h5ad(tmp_path / "in.h5ad")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from _quick_start import quick_start
from cplmixvi.cli import main
with quick_start():
    sys.exit(main(sys.argv[1:]))
"""
    program = [sys.executable, "-c", code]
    run, rng = tmp_path / "run", random.Random(time.time_ns())
    interrupted = ["--checkpoint-dir", run, "--checkpoint-every", "3"]
    process = subprocess.Popen([*program, *annotate(tmp_path, "out.h5ad", *interrupted)], stderr=subprocess.DEVNULL)
    wanted = rng.randrange(3, 30, 3)
    while process.poll() is None and not (found := io.list_checkpoints(run)) or int(found[-1].name[6:]) < wanted:
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(0.05 * rng.random())
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out.h5ad").exists()
    assert main(annotate(tmp_path, "out.h5ad", *interrupted)) == 2
    assert "pass --resume" in capsys.readouterr().err
    assert main(annotate(tmp_path, "out.h5ad", *interrupted, "--resume", "--seed", "1")) == 2
    assert "--seed 1" in capsys.readouterr().err
    assert main(annotate(tmp_path, "out.h5ad", *interrupted, "--resume", "--model-dir", tmp_path / "a")) == 0
    assert main(annotate(tmp_path, "whole.h5ad", "--model-dir", tmp_path / "b")) == 0
    resumed, whole = (ad.read_h5ad(tmp_path / name) for name in ("out.h5ad", "whole.h5ad"))
    assert list(resumed.obs["cplmixvi"]) == list(whole.obs["cplmixvi"])
    np.testing.assert_array_equal(resumed.obsm["cplmixvi_proba"], whole.obsm["cplmixvi_proba"])
    first, second = (io.read_files(tmp_path / name).weights for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())
    assert not run.exists()


def test_the_command_line_refuses_folders_that_it_cannot_use(make_counts, tmp_path, capsys):
    make_counts().write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "file").touch()
    for options, message in (
        (["--checkpoint-dir", tmp_path / "file"], "is a file"),
        (["--checkpoint-dir", tmp_path / "no" / "run"], "is no folder"),
        (["--resume"], "--resume needs a folder"),
        (["--checkpoint-every", "2"], "--checkpoint-every needs a folder"),
    ):
        assert main(annotate(tmp_path, "out.h5ad", *options)) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in.h5ad"]


def test_a_signal_is_answered_with_what_to_do(make_counts, tmp_path, monkeypatch, capsys):
    make_counts().write_h5ad(tmp_path / "in.h5ad")
    train = cpl.CplMixVI.train

    class Interrupt(Callback):
        def on_train_epoch_end(self, trainer, module):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cpl.CplMixVI, "train", lambda self, **options: train(self, callbacks=[Interrupt()], **options))
    run = tmp_path / "run"
    for options, message in (([], "give --checkpoint-dir"), (["--checkpoint-dir", run], "with --resume goes on")):
        assert main(annotate(tmp_path, "out.h5ad", *options)) == 128 + signal.SIGTERM
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "run"]
    shutil.rmtree(run)
