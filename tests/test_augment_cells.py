"""Augmenters whose copies are other cells: which cells stand in, how they are read, and what training makes of it."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import cplmixvi as cpl
from cplmixvi import augment
from cplmixvi._constants import CELL_KEY, COPIES_KEY
from cplmixvi.augment._across import _mutual
from cplmixvi.augment._cells import CellStore
from cplmixvi.augment._partners import Partners, as_pairs

pytestmark = pytest.mark.usefixtures("small_committee")


@pytest.fixture(scope="module")
def shifted(make_counts):
    """Three types under two conditions, of which the second raises genes of its own, most of all in one type."""
    adata = make_counts(n_obs=240, n_vars=60, n_batches=1, n_state=0)
    rng = np.random.default_rng(0)
    adata.obs["stim"] = pd.Categorical(np.where(np.arange(240) % 2, "yes", "no"))
    counts = adata.X.toarray()
    rows = np.flatnonzero(adata.obs["stim"] == "yes")
    strength = np.where(adata.obs["type"] == "type0", 40, 15)[rows]
    counts[np.ix_(rows, range(30, 36))] += rng.poisson(strength[:, None], size=(len(rows), 6))
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    return adata


def as_cells(adata, rows=None, group=None):
    n = adata.n_obs
    rows = np.arange(n) if rows is None else np.asarray(rows)
    return augment.Cells(adata, adata.X, rows, True, np.zeros(n, int) if group is None else group)


def minibatch(rows):
    return {CELL_KEY: torch.as_tensor(rows)}


@pytest.mark.parametrize("share", [0.05, 0.6])
@pytest.mark.parametrize("dense", [True, False])
def test_stored_cells_are_read_as_they_were(share, dense):
    rng = np.random.default_rng(1)
    values = ((rng.random((30, 80)) < share) * rng.poisson(3, (30, 80))).astype(np.float32)
    store = CellStore(values if dense else sparse.csr_matrix(values))
    assert (store.genes is not None) == (share == 0.05 and not dense)
    rows = np.array([3, 3, 0, 29])
    np.testing.assert_array_equal(store.read(torch.from_numpy(rows)), values[rows])


def test_cells_without_any_value_can_be_stored():
    assert CellStore(sparse.csr_matrix((3, 10), dtype=np.float32)).read(torch.tensor([0, 2])).sum() == 0


def test_partners_are_equally_likely_and_cells_without_one_stay():
    values = np.arange(5, dtype=np.float32)[:, None]
    partners = Partners([as_pairs(np.array([0, 0, 0, 1]), np.array([1, 2, 4, 0]), 5)], values)
    drawn = torch.cat([partners.draw(torch.zeros(300, dtype=torch.long)) for _ in range(10)]).squeeze()
    assert set(drawn.tolist()) == {1, 2, 4}
    assert all(abs((drawn == j).float().mean() - 1 / 3) < 0.05 for j in (1, 2, 4))
    assert partners.draw(torch.tensor([1, 2, 3])).squeeze().tolist() == [0, 2, 3]


def test_copies_are_neighbours_of_the_same_type_and_group(make_counts):
    adata = make_counts(n_obs=150)
    group = adata.obs["batch"].cat.codes.to_numpy()
    rows = np.arange(0, 150, 2)
    (pairs,) = augment.Neighbours(4).find(as_cells(adata, rows, group))
    first, second = pairs.nonzero()
    assert (np.bincount(first, minlength=150)[rows] == 4).all()
    assert set(second) <= set(rows)
    assert (group[first] == group[second]).all()
    assert (first != second).all()
    types = adata.obs["type"].to_numpy()
    assert (types[first] == types[second]).mean() > 0.9


def test_neighbours_come_from_coordinates_or_a_graph(make_counts):
    adata = make_counts(n_obs=20)
    adata.obsm["X_line"] = np.arange(20.0)[:, None] ** 1.1
    (pairs,) = augment.Neighbours(1, use_rep="X_line").find(as_cells(adata))
    assert pairs.indices[5] == 4
    adata.obsp["g"] = sparse.csr_matrix(([0.1, 0.9, 0.5, 1.0], ([0, 0, 0, 1], [1, 2, 3, 1])), shape=(20, 20))
    (pairs,) = augment.Neighbours(2, graph="g").find(as_cells(adata))
    assert pairs[0].indices.tolist() == [2, 3]
    assert pairs.nnz == 2
    (pairs,) = augment.Neighbours(2, graph="g").find(as_cells(adata, rows=[0, 1, 2]))
    assert sorted(pairs[0].indices) == [1, 2]


def test_more_neighbours_than_cells_are_all_cells(make_counts):
    adata = make_counts(n_obs=6, n_vars=20)
    (pairs,) = augment.Neighbours(50).find(as_cells(adata))
    assert (np.diff(pairs.indptr) == 5).all()
    (alone,) = augment.Neighbours().find(as_cells(adata, group=np.arange(6)))
    assert alone.nnz == 0


def test_counterparts_are_of_the_other_condition_and_the_same_type(shifted):
    to_no, to_yes = augment.AcrossCondition("stim").find(as_cells(shifted))
    condition, types = shifted.obs["stim"].to_numpy(), shifted.obs["type"].to_numpy()
    for pairs, name in ((to_no, "no"), (to_yes, "yes")):
        first, second = pairs.nonzero()
        assert (condition[second] == name).all()
        assert (condition[first] != name).all()
        assert (types[first] == types[second]).mean() > 0.95
        assert len(np.unique(first)) > 110


def test_copies_are_of_both_conditions_and_a_condition_cannot_be_told_from_their_mean(shifted):
    across = augment.AcrossCondition("stim")
    across.prepare(as_cells(shifted), "cpu")
    x = torch.from_numpy(shifted.X.toarray())
    copies = across(x, minibatch(range(240)))
    source = (copies[:, None] == x).all(-1).float().argmax(1)
    yes = torch.from_numpy((shifted.obs["stim"] == "yes").to_numpy())
    for some in (yes, ~yes):
        assert 0.3 < yes[source[some]].float().mean() < 0.7
    views = across.neutral(x, minibatch(range(240)))
    assert views.shape == (2, 240, 60)
    means = views[..., 30:36].mean(0)
    assert abs(means[yes].mean() / means[~yes].mean() - 1) < 0.1
    across.release()
    with pytest.raises(ValueError, match="draws copies in"):
        across(x, minibatch(range(240)))


def test_arms_see_different_neighbours(shifted):
    cpl.CplMixVI.setup_anndata(shifted)
    model = cpl.CplMixVI(shifted, n_categories=3, augment="neighbours", n_hidden=8)
    model.module.augmenter.prepare(as_cells(shifted), "cpu")
    x = torch.from_numpy(shifted.X.toarray())
    first, second = model.module.with_copies({"X": x, **minibatch(range(240))})[COPIES_KEY]
    assert (first != x).any(1).all()
    assert 0.6 < (first != second).any(1).float().mean() < 0.95


def test_types_do_not_follow_a_condition_that_is_given(shifted, caplog):
    cpl.CplMixVI.setup_anndata(shifted)
    model = cpl.CplMixVI(shifted, n_categories=3, augment="across=stim+thin", n_hidden=32)
    with caplog.at_level(logging.INFO, logger="cplmixvi"):
        model.train(max_epochs=50, enable_progress_bar=False)
    assert "counterpart across obs['stim']" in caplog.text
    labels = model.predict()
    assert cpl.metrics.ari(shifted.obs["type"], labels) > 0.8
    for name in ("type0", "type1", "type2"):
        of_type = (shifted.obs["type"] == name).to_numpy()
        assert abs(cpl.metrics.ari(shifted.obs["stim"][of_type], labels[of_type])) < 0.1
    # The training cells are not kept, and new cells need no condition.
    assert model.module.augmenter.augmenters[0].partners is None
    assert model.predict(AnnData(shifted.X[:9], var=shifted.var)).shape == (9,)


@pytest.mark.parametrize("sparse_tensors", [True, False])
def test_training_with_neighbours_saves_and_loads(shifted, tmp_path, sparse_tensors):
    cpl.CplMixVI.setup_anndata(shifted)
    model = cpl.CplMixVI(shifted, n_categories=3, augment=[augment.Neighbours(3), "thin"], n_hidden=8)
    model.train(
        max_epochs=3,
        train_size=0.8,
        warm_start=sparse_tensors,
        enable_progress_bar=False,
        check_val_every_n_epoch=1,
        load_sparse_tensor=sparse_tensors,
    )
    model.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata=shifted)
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
    loaded.train(max_epochs=1, enable_progress_bar=False)


def test_refits_compare_cells_as_the_model_does(shifted):
    adata = shifted.copy()
    adata.obsm["X_given"] = np.log1p(adata.X.toarray())[:, :30]
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=3, augment="neighbours=X_given", n_hidden=8)
    short = {"max_epochs": 1, "warm_start": False, "enable_progress_bar": False}
    model.train(**short)
    cpl.tl.annotate(adata, model)
    assert cpl.tl.stability(adata, model, n_repeats=1, train_kwargs=short).n_repeats == 1


def test_selection_does_not_see_the_condition(shifted):
    scores = []
    for options in ({"augment": "across=stim"}, {}):
        cpl.CplMixVI.setup_anndata(shifted, batch_key=None if options else "stim")
        model = cpl.CplMixVI(shifted, **options)
        scores.append(model.select_n_categories(candidates=[3], seed=0).table["score"][3])
    assert scores[0] == scores[1] > 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("across=treatment", "not a column of obs"),
        ("across=one", "one value only"),
        ("neighbours=X_pca", "not in adata.obsm"),
        ("neighbours=text", "finite numbers"),
        (augment.Neighbours(graph="connectivities"), "not in adata.obsp"),
        (["thin", "neighbours"], "put it first"),
        (["thin", "across=stim"], "put it first"),
        ("across", "not known"),
        ("thin=3", "not known"),
    ],
)
def test_what_is_not_there_is_refused_before_training(shifted, given, message):
    adata = shifted.copy()
    adata.obs["one"] = "same"
    adata.obsm["text"] = np.full((240, 2), np.nan)
    cpl.CplMixVI.setup_anndata(adata)
    with pytest.raises(ValueError, match=message):
        cpl.CplMixVI(adata, n_categories=3, augment=given).train(max_epochs=1)


def test_a_model_is_loaded_for_cells_without_the_condition(shifted, tmp_path):
    cpl.CplMixVI.setup_anndata(shifted)
    model = cpl.CplMixVI(shifted, n_categories=3, augment="across=stim", n_hidden=8)
    model.train(max_epochs=1, warm_start=False, enable_progress_bar=False)
    model.save(tmp_path / "model")
    new = AnnData(shifted.X.copy(), var=shifted.var)
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata=new)
    assert list(loaded.predict()) == list(model.predict())
    for call in (loaded.train, loaded.select_n_categories):
        with pytest.raises(ValueError, match="across='stim' is not a column"):
            call()


def test_conditions_that_are_the_batches_are_refused(shifted):
    cpl.CplMixVI.setup_anndata(shifted, batch_key="stim")
    model = cpl.CplMixVI(shifted, n_categories=3, augment="across=stim", n_hidden=8)
    with pytest.raises(ValueError, match="not both"):
        model.train(max_epochs=1, enable_progress_bar=False)


@pytest.mark.parametrize("n_neighbors", [0, 1.5])
@pytest.mark.parametrize("make", [augment.Neighbours, lambda k: augment.AcrossCondition("stim", k)])
def test_numbers_of_neighbours_must_be_whole(make, n_neighbors):
    with pytest.raises(ValueError, match="whole number"):
        make(n_neighbors)


def test_one_way_of_comparing_cells_is_enough():
    with pytest.raises(ValueError, match="give one"):
        augment.Neighbours(use_rep="X_pca", graph="connectivities")


def test_images_of_several_conditions_are_seen_in_their_normal_form_in_each(make_counts):
    adata = make_counts(n_obs=80, n_vars=64, n_batches=1)
    adata.obs["site"] = np.where(np.arange(80) % 2, "a", "b")
    adata.X = (adata.X.toarray() > 1).astype(np.float32)
    both = augment.resolve("across=site+affine", "bernoulli")
    both.build(64, "bernoulli", 1.0)
    both.prepare(as_cells(adata), "cpu")
    x = torch.from_numpy(adata.X)
    torch.manual_seed(0)
    seen = both.neutral(x, minibatch(range(80)))
    torch.manual_seed(0)
    across, affine = both.augmenters
    expected = [affine.normal_form(values) for values in across.neutral(x, minibatch(range(80)))]
    assert len(expected) == 2
    torch.testing.assert_close(seen, torch.stack(expected))


def test_pairs_of_many_conditions_are_each_among_the_nearest_of_the_other():
    rng = np.random.default_rng(0)
    points, condition = rng.normal(size=(60, 4)), np.arange(60) % 5
    members = [np.flatnonzero(condition == code) for code in range(5)]
    found = _mutual(points, members, 3).toarray() > 0
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    nearest = np.zeros((60, 60), dtype=bool)
    for inside in members:
        near = inside[np.argsort(distance[:, inside], axis=1)[:, :3]]
        nearest[np.arange(60)[:, None], near] = True
    nearest &= condition[:, None] != condition
    np.testing.assert_array_equal(found, nearest & nearest.T)
