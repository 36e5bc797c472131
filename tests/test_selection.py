"""The number of categories that halves of the data agree on."""

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata import AnnData

import cplmixvi as cpl
from cplmixvi.model._selection import WEAK
from cplmixvi.train import _graph, _guide, _halves, _mixture, _selection
from cplmixvi.train._selection import select_n_categories

pytestmark = pytest.mark.usefixtures("small_committee")


def encode(half):
    return torch.log1p(half * (1_000 / half.sum(1, keepdim=True).clamp_min(1)))


@pytest.fixture(scope="module")
def counts(make_counts):
    return torch.from_numpy(make_counts(n_obs=600, n_vars=80, n_types=4).X.toarray()).float()


@pytest.mark.parametrize("n_types", [3, 12])
def test_well_separated_types_are_counted(make_counts, n_types):
    x = torch.from_numpy(make_counts(n_obs=600, n_vars=90, n_types=n_types, seed=1).X.toarray()).float()
    selection = select_n_categories(x, on_counts=True, encode=encode, n_splits=2)
    assert abs(selection.n_categories - n_types) <= 1
    best = selection.table.loc[selection.n_categories]
    assert best["agreement"] > 0.9
    assert best["score"] == selection.table["score"].max()
    assert best["score"] == pytest.approx(best["agreement"] + 0.1 / np.log(2) * best["entropy"])
    assert best["entropy"] == pytest.approx(np.log(selection.n_categories), abs=0.1)
    assert best["n_stable"] > n_types - 1.5


def test_two_types_are_two_although_each_has_a_state_to_cut_it_by(seed):
    adata = cpl.datasets.simulate(n_obs=1_200, n_vars=500, n_types=2, seed=seed)
    x = torch.from_numpy(adata.X.toarray()).float()
    selection = select_n_categories(x, on_counts=True, encode=encode, candidates=[2, 3, 4], seed=seed)
    assert selection.table.loc[2, "agreement"] > 0.99
    assert selection.n_categories == 2


def test_genes_are_halved_where_values_are_not_counts(counts):
    selection = select_n_categories(encode(counts), on_counts=False, candidates=[2, 4, 12], n_splits=2)
    assert selection.n_categories == 4
    assert list(selection.table.index) == [2, 4, 12]


def test_halves_of_counts_add_up_and_share_no_noise():
    x = torch.poisson(torch.full((4_000, 2), 5.0), generator=torch.Generator().manual_seed(0))
    first, second = _halves.halves(x, True, torch.Generator().manual_seed(1))
    assert torch.equal(first + second, x)
    assert first.mean() == pytest.approx(2.5, abs=0.1)
    # Thinned copies of a Poisson count are correlated, complementary halves are not.
    assert abs(torch.corrcoef(torch.stack([first[:, 0], second[:, 0]]))[0, 1]) < 0.05


def test_halves_of_genes_are_disjoint_and_one_gene_is_no_trouble():
    x = torch.arange(12.0).reshape(2, 6)
    first, second = _halves.halves(x, False, torch.Generator().manual_seed(0))
    assert sorted(torch.cat([first[0], second[0]]).tolist()) == x[0].tolist()
    one = select_n_categories(torch.randn(40, 1), on_counts=False, n_splits=1)
    assert one.n_categories == 2


def test_halves_are_the_same_in_parts(monkeypatch):
    x = torch.poisson(torch.full((300, 3, 50), 70.0), generator=torch.Generator().manual_seed(0))
    together = _halves.encoded_halves(x, True, torch.log1p, torch.Generator().manual_seed(1))
    monkeypatch.setattr(_halves, "_CHUNK", 1_000)
    in_parts = _halves.encoded_halves(x, True, torch.log1p, torch.Generator().manual_seed(1))
    for whole, parts in zip(together, in_parts, strict=True):
        assert whole.shape == (300, 50)
        assert torch.equal(whole, parts)


def test_some_of_many_counterparts_are_drawn_for_each_cell():
    values = torch.arange(12.0)[:, None, None] + 100 * torch.arange(200.0)[:, None]
    assert torch.equal(_halves.some_levels(values[:8]), values[:8].movedim(0, 1))
    drawn = _halves.some_levels(values).squeeze(-1)
    assert drawn.shape == (200, 8)
    assert torch.equal((drawn // 100).long(), torch.arange(200)[:, None].expand(-1, 8))
    levels = (drawn % 100).long()
    assert all(len(row.unique()) == 8 for row in levels)
    assert torch.bincount(levels.flatten(), minlength=12).min() > 90


def test_noise_has_no_types():
    x = torch.poisson(torch.full((400, 50), 3.0), generator=torch.Generator().manual_seed(0))
    selection = select_n_categories(x, on_counts=True, encode=encode, candidates=[2, 3, 5], n_splits=2)
    assert selection.table["ari"].max() < WEAK
    # A single category scores 1.
    assert selection.table["score"].max() < 1
    assert selection.table["n_stable"].max() < 1


def test_agreement_of_labels_is_measured_after_matching():
    labels = np.repeat([0, 1, 2], 10)
    renamed = np.array([2, 0, 1])[labels]
    same = _halves.agreement([labels, renamed], 3)
    assert same["agreement"] == same["ari"] == same["similarity"] == 1
    assert same["n_stable"] == 3
    assert same["entropy"] == pytest.approx(np.log(3))
    assert same["score"] == pytest.approx(1 + 0.1 / np.log(2) * np.log(3))
    merged = np.where(labels == 2, 1, labels)
    half = _halves.agreement([labels, merged], 3)
    assert half["agreement"] == pytest.approx(2 / 3)
    # 1 for the first, 10 of 20 cells for the second, nothing for the third.
    assert half["similarity"] == pytest.approx(0.5)
    assert half["n_stable"] == 1


def search(score, smallest, largest):
    """Search by scores of which all could be chosen; what was tried, in this order."""
    tried = {}

    def noted(k):
        assert k not in tried
        tried[k] = score(k)
        return tried[k]

    _selection._search(noted, lambda: max(tried, key=tried.get), smallest, largest)
    return tried


def test_the_search_climbs_while_there_is_hope_and_looks_around_the_best():
    tried = search(lambda k: 1 - abs(k - 23) / 100, 2, 150)
    assert max(tried, key=tried.get) in range(22, 25)
    assert max(tried) < 60
    assert list(search(lambda k: 1 - abs(k - 23) / 100, 5, 6)) == [5, 6]
    # Halves agree on eight types, and no more categories are much worse.
    assert 20 <= max(search(lambda k: 1.0 if k == 8 else 0.98, 2, 150)) <= 24


@pytest.mark.parametrize("n_types", [9, 14, 30])
def test_a_few_bad_scores_are_no_reason_to_stop(n_types):
    # Two are found again, three or four of many that are as far apart as all are not.
    def score(k):
        rising = 1.1 if k == 2 else 0.7 + 0.02 * k if k <= n_types else 0.7 + 0.02 * n_types - 0.01 * (k - n_types)
        return rising + (0.4 if k > 0.6 * n_types else 0)

    tried = search(score, 2, 150)
    assert abs(max(tried, key=tried.get) - n_types) <= max(1, 0.1 * n_types)
    assert max(tried) < 2.5 * n_types


def test_where_there_is_nothing_to_find_the_search_ends_soon():
    tried = search(lambda k: 0.7 if k == 2 else 0.6 + 0.01 * (-1) ** k, 2, 150)
    assert len(tried) < 10
    assert max(tried) < 20


def test_numbers_with_many_categories_that_are_not_found_again_are_not_chosen():
    table = pd.DataFrame({"score": [1.0, 1.2, 1.3, 1.1], "n_stable": [2.0, 8.5, 14.0, 15.0]}, index=[2, 10, 20, 18])
    assert _selection.Selection(table).n_categories == 10
    # Where no number has enough that are, the score is all there is.
    assert _selection.Selection(table.assign(n_stable=1.0)).n_categories == 20
    # The search goes on from the number that would be chosen.
    scores = pd.Series({k: 1 + 0.06 * np.log(k) for k in range(2, 151)})
    rows = {}

    def chosen():
        table = pd.DataFrame({"score": scores[list(rows)], "n_stable": [min(k, 12) for k in rows]}, index=list(rows))
        return _selection.Selection(table).n_categories

    _selection._search(lambda k: rows.setdefault(k, scores[k]), chosen, 2, 150)
    assert chosen() in (14, 15)
    assert max(rows) < 40


def test_same_seed_same_table(counts):
    runs = [
        select_n_categories(counts[:200], on_counts=True, encode=encode, candidates=[3, 4], n_splits=1, seed=s)
        for s in (3, 3, 4)
    ]
    assert runs[0].table.equals(runs[1].table)
    assert not runs[0].table.equals(runs[2].table)


def test_a_model_without_a_number_finds_one_keeps_it_and_survives_files(make_counts, tmp_path):
    adata = make_counts(n_obs=400, n_vars=80, n_types=3)
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    model = cpl.CplMixVI(adata, n_hidden=16)
    bound = model.n_categories
    assert model.selection is None
    model.train(max_epochs=5, enable_progress_bar=False)
    found = model.n_categories
    assert 2 <= found <= 5 < bound
    assert model.selection.n_categories == found == model.module.n_categories
    assert f"n_categories: {found}" in model.summary_string
    assert model.predict(soft=True).shape == (400, found)
    model.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata)
    assert loaded.n_categories == found
    assert loaded.selection.table.equals(model.selection.table)
    assert (loaded.predict() == model.predict()).all()
    # More training does not change the number.
    model.train(max_epochs=1, enable_progress_bar=False)
    assert model.n_categories == found


def test_a_given_number_is_kept_and_can_be_looked_into(make_counts):
    adata = make_counts(n_obs=200, n_vars=60, n_types=3)
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    model = cpl.CplMixVI(adata, n_categories=5, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False)
    assert model.n_categories == 5
    assert model.selection is None
    selection = model.select_n_categories([3, 2, 3], seed=1)
    assert list(selection.table.index) == [2, 3]
    assert model.n_categories == 5
    for wrong in ([], [1, 2], [500]):
        with pytest.raises(ValueError, match="candidates"):
            model.select_n_categories(wrong)


def test_a_warning_where_there_are_no_types():
    rng = np.random.default_rng(0)
    adata = AnnData(rng.poisson(3.0, (300, 40)).astype(np.float32))
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_hidden=8)
    with pytest.warns(UserWarning, match="may be no distinct types"):
        model.select_n_categories([2, 3])
    with pytest.warns(UserWarning, match="may be no distinct types"):
        model.train(max_epochs=2, enable_progress_bar=False)
    report = model.report()
    assert not report.sound
    assert any("hardly agree on any categories" in problem for problem in report.problems)


@pytest.mark.parametrize(("share", "worthwhile"), [(0.88, False), (0.92, True)])
@pytest.mark.parametrize("n_cut", [400, 40])
def test_a_type_is_cut_where_halves_agree_on_nine_tenths_of_its_cells(share, worthwhile, n_cut):
    whole = np.repeat([0, 1], [n_cut, 1_000 - n_cut])
    first = np.where(whole == 0, np.arange(1_000) % 2, 2)
    second = first.copy()
    disputed = np.arange(round((1 - share) * n_cut))
    second[disputed] = 1 - first[disputed]
    cut, uncut = _halves.agreement([first, second], 3), _halves.agreement([whole, whole], 2)
    assert cut["agreement"] == pytest.approx(1 - len(disputed) / 1_000)
    assert (cut["score"] > uncut["score"]) == worthwhile


def test_halves_start_from_what_the_others_found_and_keep_what_is_likelier():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[-6.0, 0], [6, 0], [0, 9], [0, -9]])
    labels = torch.arange(400) // 100

    def view(index):
        points = centres[labels] + torch.randn(400, 2, generator=generator)
        return _halves.HalfView([points], torch.arange(index % 2, 400, 2), index)

    class Stuck(_mixture.SharedCovarianceMixture):
        """A search that ends where it was told to begin."""

        def __init__(self, begin):
            super().__init__(4, generator=torch.Generator().manual_seed(0))
            self.begin = begin

        def fit(self, views, starts=None, known=None):
            return self.maximise(views, self.begin[: len(views[0])], n_iterations=30)

    views = [view(index) for index in range(2)]
    right = torch.nn.functional.one_hot(labels, 4).float()
    # One component for two clouds, and two for one.
    wrong = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2])[labels], 4).float()
    wrong[labels == 3] = torch.tensor([0, 0, 0.5, 0.5]) + torch.rand(100, 4) * 1e-3
    fitters = [Stuck(right[views[0].seen]), Stuck(wrong[views[1].seen])]
    alone = _halves.labels_of_halves(views, fitters, exchange=False)
    together = _halves.labels_of_halves(views, fitters)
    assert _halves.agreement(alone, 4)["agreement"] < 0.9
    assert _halves.agreement(together, 4)["agreement"] > 0.99
    assert (together[0] == alone[0]).all()
    # Communities are not judged by likelihood.
    graph = _graph.GraphMixture(4)
    fit = graph.maximise(views[0].points, right, n_iterations=5)
    assert graph.improved(views[0].points, fit, [wrong]) is fit


def test_the_consensus_is_that_of_most_halves():
    table = pd.DataFrame({"score": [1.1, 1.2], "n_stable": [2.0, 3.0]}, index=[2, 3])
    base = np.arange(30) % 3
    other = np.where(base == 2, 1, base)
    selection = _selection.Selection(table, np.stack([other, (base + 1) % 3, (base + 2) % 3]))
    consensus = selection.consensus()
    assert consensus.shape == (30, 3) and np.allclose(consensus.sum(1), 1)
    named = consensus.argmax(1)
    assert (named == (base + 1) % 3).all()
    assert consensus.max(1)[base == 0] == pytest.approx(1) and consensus.max(1).min() == pytest.approx(2 / 3)
    assert _selection.Selection(table).consensus() is None


def test_categories_of_an_own_number_are_those_of_the_halves(make_counts, monkeypatch):
    adata = make_counts(n_obs=400, n_vars=80, n_types=4)
    cpl.CplMixVI.setup_anndata(adata, layer="counts")
    model = cpl.CplMixVI(adata, n_hidden=16)
    selection = model.select_n_categories([4], seed=3)
    begun = []
    fit_views = _guide.fit_views

    def spy(*args, **options):
        begun.append((options["begin"], fit_views(*args, **options)))
        return begun[-1][1]

    monkeypatch.setattr(_guide, "fit_views", spy)
    model.train(max_epochs=2, enable_progress_bar=False)
    (places, posterior), guide = begun[0]
    assert len(begun) == 1 and len(places) == 400
    # The same cells, in whatever order training reads them: one category of the halves is one of the answer.
    rows, consensus = model._consensus
    assert np.array_equal(consensus, selection.consensus())
    labels = np.empty(400, dtype=int)
    labels[rows] = consensus.argmax(1)
    assert pd.crosstab(model.predict(), labels).max(axis=1).sum() > 0.98 * 400
    assert torch.equal(posterior.argmax(1).sort().values, torch.from_numpy(np.sort(labels)))


def test_too_few_cells_are_no_beginning():
    posterior = np.eye(2, dtype=np.float32)[np.arange(60) % 2]
    some = np.arange(100, 160)
    assert _guide._found_in(np.arange(39) + 121, some, posterior) is None
    places, those = _guide._found_in(np.arange(200)[::-1].copy(), some, posterior)
    assert (199 - places.numpy() == some).all() and torch.equal(those, torch.from_numpy(posterior))


def test_a_seed_decides_which_counterparts_are_seen_and_none_is_kept(make_counts, monkeypatch):
    adata = make_counts(n_obs=160)
    adata.obs["site"] = np.where(np.arange(160) % 2, "a", "b")
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_hidden=8, augment="across=site+thin")
    tables = []
    for other in (1, 2):
        torch.manual_seed(other)
        tables.append(model.select_n_categories([2, 3], seed=5).table)
        assert torch.initial_seed() == other
    assert tables[0].equals(tables[1])
    across = model.module.augmenter.augmenters[0]
    monkeypatch.setattr(type(across), "neutral", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.select_n_categories([2, 3], seed=5)
    assert across.partners is None
