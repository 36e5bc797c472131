"""What batches add, where they have types in unequal shares."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import cplmixvi as cpl
from cplmixvi.train import _views
from cplmixvi.train._offsets import OffsetMixture, batch_means, shifts
from cplmixvi.train._selection import select_n_categories
from cplmixvi.train._views import Projection, fit_views

pytestmark = pytest.mark.usefixtures("medium_committee")


@pytest.fixture(scope="module")
def counted():
    """Counts, types and batches of cells whose types have very different shares in two batches."""
    rng = np.random.default_rng(0)
    adata = cpl.datasets.simulate(n_obs=900, n_vars=200, n_types=5, seed=0)
    types = adata.obs["type"].cat.codes.to_numpy()
    batch = (rng.random(900) < np.array([0.05, 0.95, 0.5, 0.1, 0.8])[types]).astype(int)
    shift = rng.normal(0, 0.3, (2, 200))
    counts = rng.poisson(adata.X.toarray() * np.exp(shift)[batch]).astype(np.float32)
    return counts, types, torch.from_numpy(batch)


@pytest.fixture(scope="module")
def unequal(counted):
    """The same with log values."""
    counts, types, batch = counted
    return torch.as_tensor(cpl.pp.log_normalize(counts)), types, batch


def _between(levels: torch.Tensor) -> torch.Tensor:
    return levels[1] - levels[0]


def test_levels_of_batches_do_not_follow_their_types(unequal):
    x, types, batch = unequal
    # What the batches add to the same types, as the mean over types of the difference between batches.
    true = torch.stack(
        [
            x[(types == t) & (batch == 1).numpy()].mean(0) - x[(types == t) & (batch == 0).numpy()].mean(0)
            for t in (1, 2, 4)
        ]
    ).mean(0)
    found = _between(Projection(x, batch, 10, 0.5).mean)
    means = _between(batch_means(x, batch, 2))
    assert (found - true).norm() < 0.5 * (means - true).norm()
    assert torch.corrcoef(torch.stack([found, true]))[0, 1] > 0.9


def test_types_of_unequal_batches_are_found(unequal):
    x, types, batch = unequal
    guide = fit_views(x, 5, batch=batch)
    assert cpl.metrics.ari(types, guide(x, batch).argmax(1).numpy()) > 0.95


def test_batches_that_share_no_cluster_are_left_where_they_are():
    z = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    apart = torch.arange(200) % 2
    members = torch.nn.functional.one_hot(apart, 2).float()
    assert shifts(z + 5 * apart[:, None], members, members).abs().max() < 1e-3


def test_offsets_are_told_from_means_of_clusters():
    generator = torch.Generator().manual_seed(1)
    batch = torch.arange(600) % 3
    cluster = (torch.rand(600, generator=generator) < torch.tensor([0.1, 0.5, 0.9])[batch]).long()
    offsets = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-2.0, 4.0]])
    z = (
        0.3 * torch.randn(600, 2, generator=generator)
        + torch.tensor([[0.0, 0.0], [8.0, 0.0]])[cluster]
        + offsets[batch]
    )
    members = torch.nn.functional.one_hot(batch, 3).float()
    found = OffsetMixture(2, generator=generator).fit_offsets(z, members)
    assert torch.allclose(found.offsets - found.offsets[0], offsets, atol=0.15)
    assert cpl.metrics.ari(cluster.numpy(), found.posterior.argmax(1).numpy()) > 0.99


@pytest.mark.parametrize("rare", [1, 3])
def test_a_batch_of_few_cells(unequal, rare):
    x, _, batch = unequal
    batch = batch.clone()
    batch[:rare] = 3
    levels = Projection(x, batch, 10, 0.5).mean
    assert levels.shape == (5, 200)
    assert torch.isfinite(levels).all()
    # Codes 2 and 4 have no cells.
    assert torch.allclose(levels[[2, 4]], x.mean(0).expand(2, -1), atol=1e-5)


def test_few_cells_are_centred_by_their_means(unequal):
    x, _, batch = unequal
    levels = Projection(x[:60], batch[:60], 5, 0.5).mean
    assert torch.allclose(levels[:2], batch_means(x[:60], batch[:60], 2))


def test_a_number_is_that_of_types_and_not_of_types_by_batch(counted, monkeypatch):
    counts, types, batch = counted

    def select():
        return select_n_categories(
            torch.from_numpy(counts),
            on_counts=True,
            encode=lambda half: torch.as_tensor(cpl.pp.log_normalize(half.numpy())),
            batch=batch,
            candidates=[5, 6],
            n_splits=1,
        )

    found = select()
    assert found.n_categories == 5
    assert cpl.metrics.ari(types, found.consensus().argmax(1)) > 0.95
    monkeypatch.setattr(_views, "batch_levels", lambda x, batch, n_batches, *_: batch_means(x, batch, n_batches))
    assert select().n_categories == 6  # a type that means move apart counts twice


@pytest.mark.parametrize("shares", [(0.5, 0.0, 1.0), (0.5, 0.5, 0.5)])
@pytest.mark.parametrize("effect", [0.0, 0.6])
def test_types_that_one_batch_has_for_itself(shares, effect):
    rng = np.random.default_rng(1)
    adata = cpl.datasets.simulate(n_obs=600, n_vars=200, n_types=3, seed=1)
    types = adata.obs["type"].cat.codes.to_numpy()
    batch = (rng.random(600) < np.array(shares)[types]).astype(int)
    counts = rng.poisson(adata.X.toarray() * np.exp(rng.normal(0, effect, (2, 200)))[batch])
    x, batch = torch.as_tensor(cpl.pp.log_normalize(counts.astype(np.float32))), torch.from_numpy(batch)
    assert cpl.metrics.ari(types, fit_views(x, 3, batch=batch)(x, batch).argmax(1).numpy()) > 0.95


def test_a_response_of_some_types_is_no_offset():
    # Half of the cells are treated; the first of three types answers five times as much as the others.
    rng = np.random.default_rng(0)
    adata = cpl.datasets.simulate(n_obs=900, n_vars=200, n_types=3, seed=0)
    types = adata.obs["type"].cat.codes.to_numpy()
    batch = rng.permutation(np.arange(900) % 2)
    genes = np.zeros(200)
    genes[:40] = rng.normal(0, 0.4, 40)
    strength = batch * np.array([5.0, 1.0, 1.0])[types]
    counts = rng.poisson(adata.X.toarray() * np.exp(strength[:, None] * genes)).astype(np.float32)
    x, batch = torch.as_tensor(cpl.pp.log_normalize(counts)), torch.from_numpy(batch)
    assert torch.equal(Projection(x, batch, 10, 0.5).mean[:2], batch_means(x, batch, 2))
    assert cpl.metrics.ari(types, fit_views(x, 3, batch=batch)(x, batch).argmax(1).numpy()) > 0.95


def test_unequal_batches_of_a_model(counted):
    counts, types, batch = counted
    adata = AnnData(counts, obs=pd.DataFrame({"batch": batch.numpy().astype(str)}, index=np.arange(900).astype(str)))
    cpl.CplMixVI.setup_anndata(adata, batch_key="batch")
    model = cpl.CplMixVI(adata, n_categories=5)
    model.train(max_epochs=5, enable_progress_bar=False)
    assert cpl.metrics.ari(types, model.predict()) > 0.9
