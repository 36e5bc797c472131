"""Splits, schedules and the plan."""

import numpy as np
import pytest
import torch

import cplmixvi as cpl
from cplmixvi._constants import CELL_KEY
from cplmixvi.train import CplMixSplitter, default_batch_size, default_max_epochs
from cplmixvi.train._norms import WarmNorms
from cplmixvi.train._splitter import without_single_tail


@pytest.mark.parametrize("n_obs", [2, 3, 5, 128, 129, 257, 1000, 4097])
@pytest.mark.parametrize("batch_size", [2, 3, 16, 128])
def test_no_batch_has_a_single_cell(n_obs, batch_size):
    size = without_single_tail(n_obs, batch_size)
    assert n_obs % size != 1
    assert batch_size <= size <= batch_size + 2
    # In each of several processes.
    assert without_single_tail(1, batch_size) == batch_size


@pytest.mark.parametrize(("n_cells", "expected"), [(10, 16), (400, 100), (10_000, 128)])
def test_small_data_get_small_batches(n_cells, expected):
    assert default_batch_size(n_cells) == expected


@pytest.mark.parametrize(
    ("n_cells", "warm_start", "expected"),
    [
        (1_000, True, 1_250),
        (8_000, True, 1_250),
        # Twenty passes are more steps, but no more than without a start.
        (12_000, True, 1_880),
        (20_000, True, 2_500),
        (1_000, False, 2_500),
        (20_000, False, 2_500),
    ],
)
def test_default_runs_have_about_as_many_steps(n_cells, warm_start, expected):
    batch_size = default_batch_size(n_cells)
    steps = default_max_epochs(n_cells, batch_size, warm_start=warm_start) * -(-n_cells // batch_size)
    assert 0.85 * expected <= steps <= 1.15 * expected


def test_default_epochs_are_bounded():
    assert default_max_epochs(10, 16) == 200
    assert default_max_epochs(10, 16, warm_start=False) == 1_000
    assert default_max_epochs(10**7, 128) == 10


@pytest.mark.parametrize("sparse_tensors", [True, False])
def test_training_minibatches_say_which_cells_they_hold(make_counts, sparse_tensors):
    adata = make_counts(n_obs=50)
    cpl.CplMixVI.setup_anndata(adata)
    manager = cpl.CplMixVI(adata, n_categories=2).adata_manager
    splitter = CplMixSplitter(manager, train_size=0.8, batch_size=16, load_sparse_tensor=sparse_tensors)
    splitter.setup()
    seen = []
    for batch in splitter.train_dataloader():
        batch = splitter.on_after_batch_transfer(batch, 0)
        seen += batch[CELL_KEY].tolist()
        np.testing.assert_array_equal(batch["X"].numpy(), adata.X[batch[CELL_KEY].numpy()].toarray())
    assert sorted(seen) == sorted(splitter.train_idx)
    assert seen != sorted(seen)


def test_statistics_of_a_short_training_are_those_of_its_end():
    """Running statistics of batch normalisation start at 0 and 1, and scvi-tools' follow slowly."""
    n_steps = 100
    batches = torch.linspace(5, 15, n_steps)[:, None, None] + 2 * torch.randn(n_steps, 64, 3)
    norms = [torch.nn.Sequential(torch.nn.BatchNorm1d(3, momentum=0.01)).train() for _ in range(2)]
    warm = WarmNorms(norms[1])
    for n, batch in enumerate(batches):
        warm.step()
        for norm in norms:
            norm(batch)
        if n == 0:
            torch.testing.assert_close(norms[1][0].running_mean, batch.mean(0))
    slow, fast = (15 - norm[0].running_mean.mean() for norm in norms)
    assert slow > 7
    assert fast < 1.5
    warm.release()
    assert norms[1][0].momentum == 0.01
    # Where many have been seen nothing changes.
    norms[1][0].num_batches_tracked += 1_000
    again = WarmNorms(norms[1])
    again.step()
    assert norms[1][0].momentum == 0.01


def test_momenta_are_what_they_were_after_a_training(make_counts):
    adata = make_counts(n_obs=60)
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, 2, n_hidden=8)
    model.train(max_epochs=1, warm_start=False, enable_progress_bar=False)
    norms = [part for part in model.module.modules() if isinstance(part, torch.nn.BatchNorm1d)]
    assert {norm.momentum for norm in norms} == {0.01}
    assert all(norm.num_batches_tracked == 4 for norm in norms)


def test_what_a_step_leaves_out_is_looked_at_before_training(make_counts):
    adata = make_counts(n_obs=100)
    cpl.CplMixVI.setup_anndata(adata)
    manager = cpl.CplMixVI(adata, 3).adata_manager
    splitter = CplMixSplitter(manager, train_size=1.0, batch_size=32, drop_last=True)
    splitter.setup()
    assert sum(len(tensors["X"]) for tensors in splitter.train_dataloader()) == 96
    assert sum(len(tensors["X"]) for tensors in splitter.start_dataloader(100)) == 100
    # A tail of one cell, which is no reason to leave out more.
    splitter = CplMixSplitter(manager, train_size=1.0, batch_size=33, drop_last=True)
    splitter.setup()
    assert [len(tensors["X"]) for tensors in splitter.train_dataloader()] == [33, 33, 33]
    with pytest.raises(ValueError, match="drop_last=True leaves no minibatch of batch_size=128 of 100"):
        CplMixSplitter(manager, train_size=1.0, batch_size=128, drop_last=True)


@pytest.mark.parametrize("share", [-3.0, 7.0, float("nan")])
def test_a_share_of_the_epochs_is_a_share(make_counts, share):
    adata = make_counts()
    cpl.CplMixVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="guided_fraction=.* share of the epochs"):
        cpl.CplMixVI(adata, 3).train(1, plan_kwargs={"guided_fraction": share}, enable_progress_bar=False)


def test_names_that_a_plan_does_not_know_are_refused_at_once(make_counts):
    adata = make_counts()
    cpl.CplMixVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="plan_kwargs has 'learning_rate'.* known are .*lr,"):
        cpl.CplMixVI(adata, 3).train(1, plan_kwargs={"learning_rate": 1e-3}, enable_progress_bar=False)
