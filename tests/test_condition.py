"""A condition that nobody named: found where there is one, not elsewhere, and types do not follow it."""

import numpy as np
import pytest
import scvi
import torch

import cplmixvi as cpl
from cplmixvi._constants import CELL_KEY
from cplmixvi.augment import AcrossBatches, AcrossLevels, Cells, CountThinning, Neighbours
from cplmixvi.train import _condition
from cplmixvi.train import _plan as plan
from cplmixvi.train._condition import find_condition, its_batch
from cplmixvi.train._levels import MIN_SEPARATION, two_levels
from cplmixvi.train._views import batches_respond, fit_committee, no_batch

pytestmark = pytest.mark.usefixtures("medium_committee")


def treatment(*strength, n_obs=600, marker_fold=4.0, n_genes=15):
    """Five types; in half of the cells a programme of genes is multiplied by so much, in one type after the other."""
    adata = cpl.datasets.simulate(n_obs, 120, 5, n_markers=8, marker_fold=marker_fold, mean_counts=3_000, seed=1)
    generator = np.random.default_rng(0)
    is_treated = generator.random(n_obs) < 0.5
    counts = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    own_strength = np.asarray(strength)[adata.obs["type"].cat.codes]
    programme = generator.choice(120, n_genes, replace=False)
    counts[np.ix_(is_treated, programme)] = generator.poisson(
        (counts[:, programme].mean(0) + 0.3) * own_strength[is_treated, None]
    )
    adata.X = counts.astype(np.float32)
    adata.obs["treated"] = np.where(is_treated, "yes", "no")
    return adata


@pytest.fixture(scope="module")
def treated():
    """A shift that is larger in one type."""
    return treatment(5.0, 5.0, 5.0, 12.0, 5.0)


@pytest.fixture(scope="module")
def one_responds():
    """A shift that only one type has."""
    return treatment(1.0, 1.0, 1.0, 30.0, 1.0)


@pytest.fixture(scope="module")
def trained(treated, medium_committee):
    adata = treated.copy()
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=5, n_hidden=32)
    model.train(max_epochs=30, enable_progress_bar=False)
    return model


def blobs(shift, *, share=0.5, is_placed=True, n_types=6, n=200, d=8, seed=0):
    """Round types, a share of each moved by ``shift`` ``(n_types, d)``; placed: alike in dimension 0."""
    generator = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(n_types, d, generator=generator)
    if is_placed:
        centres[:, 0] = 0
    category = torch.arange(n_types).repeat_interleave(n)
    level = torch.rand(len(category), generator=generator) < torch.as_tensor(share).expand(n_types)[category]
    noise = torch.randn(len(category), d, generator=generator)
    return centres[category] + noise + level[:, None] * shift[category], category, level


def test_levels_of_a_shift_that_all_categories_have():
    shift = torch.zeros(6, 8)
    shift[:, 0] = 8.0
    z, category, level = blobs(shift)
    levels = two_levels(z, category, 6)
    assert levels.problem == ""
    assert levels.is_mixed.all()
    assert levels.separation.numpy() == pytest.approx(8.0, abs=0.6)
    found = levels.of(z, category) > 0.5
    is_turned = bool((found == level).double().mean() < 0.5)
    assert (found == (level != is_turned)).double().mean() > 0.99
    share = torch.stack([(level[category == k] != is_turned).double().mean() for k in range(6)])
    assert torch.allclose(levels.share, share, atol=0.02)


def test_a_category_of_one_level_is_half_of_a_type():
    shift = torch.zeros(6, 8)
    shift[:, 0] = 8.0
    z, category, level = blobs(shift)
    # The first type was split by its level.
    split = torch.where((category == 0) & level, 6, category)
    levels = two_levels(z, split, 7)
    assert levels.problem == ""
    assert levels.group.tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert levels.is_mixed.all()
    agreement = ((levels.of(z, split) > 0.5) == level).double().mean()
    assert max(agreement, 1 - agreement) > 0.99


def test_levels_of_a_shift_that_is_larger_in_some_categories():
    strength = torch.tensor([2.0, 1.5, 1.0, 1.0, 0.7, 0.0])
    shift = torch.zeros(6, 8)
    shift[:, 0] = 8.0 * strength
    z, category, level = blobs(shift, is_placed=False)
    for split in (category, torch.where((category == 0) & level, 6, category)):
        levels = two_levels(z, split, 7)
        assert levels.problem == ""
        assert levels.is_mixed[:6].tolist() == [True] * 5 + [False]
        assert levels.separation[:5].numpy() == pytest.approx(8 * strength[:5].numpy(), abs=1.2)
        responds = category < 5
        agreement = ((levels.of(z, split) > 0.5) == level)[responds].double().mean()
        assert max(agreement, 1 - agreement) > 0.99


@pytest.mark.parametrize("case", ["none", "weak", "one type", "own direction", "other shares"])
def test_what_is_no_condition(case):
    shift, share = torch.zeros(6, 8), 0.5
    if case == "weak":
        shift[:, 0] = 1.5
    elif case == "one type":
        shift[0, 0] = 10.0
    elif case == "own direction":
        shift = 10 * torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    elif case != "none":
        shift[:, 0] = 8.0
    if case == "other shares":
        share = torch.tensor([0.12, 0.88, 0.15, 0.85, 0.12, 0.88])
    z, category, _ = blobs(shift, share=share)
    assert two_levels(z, category, 6).problem


def test_one_category_with_few_cells_and_no_variation():
    levels = two_levels(torch.zeros(5, 3), torch.zeros(5, dtype=torch.long), 2)
    assert levels.problem
    assert (levels.separation < MIN_SEPARATION).all()


def test_a_committee_finds_the_treatment_and_nothing_without_it(treated):
    for name, expected in (("all", True), ("yes", False)):
        some = treated if name == "all" else treated[treated.obs["treated"] == name]
        x = torch.from_numpy(np.asarray(cpl.pp.log_normalize(some.X), dtype=np.float32))
        committee = fit_committee(x, 5, no_batch(x), seed=0)
        condition = find_condition(x, no_batch(x), committee)
        assert (condition is not None) is expected
        if expected:
            level_of, is_followed = condition
            # Types are told apart anyway.
            assert not is_followed
            level = level_of(x, no_batch(x)).numpy()
            agreement = np.mean(level == (some.obs["treated"] == "yes"))
            assert max(agreement, 1 - agreement) > 0.98


def test_types_do_not_follow_a_condition_that_nobody_named(treated, trained):
    labels = trained.predict()
    assert cpl.metrics.ari(treated.obs["type"], labels) > 0.9
    assert cpl.metrics.nmi(treated.obs["treated"], labels) < 0.05
    assert "two levels of one shift" in str(trained.report())
    # Only while it trains are copies of both levels.
    assert isinstance(trained.module.augmenter, CountThinning)


def test_types_do_not_follow_a_condition_that_changes_some_of_them_more():
    adata = treatment(12.0, 12.0, 3.0, 3.0, 3.0, n_obs=1_000, marker_fold=2.5, n_genes=30)
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=5, n_hidden=32)
    model.train(max_epochs=30, enable_progress_bar=False)
    level = model.condition_ > 0
    agreement = np.mean(level == (adata.obs["treated"] == "yes"))
    assert max(agreement, 1 - agreement) > 0.98
    # .74 if it is not looked for.
    assert cpl.metrics.ari(adata.obs["type"], model.predict()) > 0.9


@pytest.mark.parametrize(("blind_from", "looked_at"), [(9, [10, 8]), (8, [10, 8, 5])])
def test_what_many_categories_do_not_see_is_looked_for_with_fewer(monkeypatch, blind_from, looked_at):
    adata = treatment(5.0, 5.0, 5.0, 12.0, 5.0)
    x = torch.from_numpy(cpl.pp.log_normalize(adata.X))
    batch, tried, find = no_batch(x), [], _condition._find_levels

    def blind_with_many(x, batch, committee, min_seen=0.6):
        tried.append(len(committee[0].order))
        return find(x, batch, committee, min_seen) if tried[-1] < blind_from else None

    monkeypatch.setattr(_condition, "_find_levels", blind_with_many)
    committee = fit_committee(x, 10, batch, seed=0)
    level_of, is_followed = find_condition(x, batch, committee)
    assert is_followed
    agreement = np.mean(level_of(x, batch).numpy() == (adata.obs["treated"] == "yes"))
    assert max(agreement, 1 - agreement) > 0.98
    assert tried == looked_at
    # All types are known: with fewer categories than these, types would be cut.
    for n_known, others in ((10, []), (6, [8])):
        tried.clear()
        find_condition(x, batch, committee, n_known=n_known)
        assert tried == [10, *others]


def test_few_cells_have_no_counterparts_to_compare_them_with():
    adata = treatment(12.0, 12.0, 3.0, 3.0, 3.0, n_obs=1_000, marker_fold=2.5, n_genes=30)
    x = torch.from_numpy(cpl.pp.log_normalize(adata.X))
    committee = fit_committee(x, 5, no_batch(x), seed=0)
    found = [find_condition(x[:n], no_batch(x[:n]), committee) for n in (199, 1_000)]
    assert [condition is not None for condition in found] == [False, True]


def test_the_levels_are_written_for_the_cells_they_are_of(treated, trained, tmp_path):
    adata = trained.adata.copy()
    cpl.tl.annotate(adata, trained)
    level = adata.obs["cplmixvi_condition"]
    table = np.array([[np.sum((level == a) & (adata.obs["treated"] == b)) for b in ("no", "yes")] for a in "01"])
    assert max(np.trace(table), np.trace(table[::-1])) > 0.98 * adata.n_obs
    some = adata[:100].copy()
    cpl.tl.annotate(some, trained)
    assert "cplmixvi_condition" not in some.obs
    trained.save(tmp_path / "model")
    # A model without cells takes the first ones that it sees for its own.
    for cells in (some[:, ::-1].copy(), trained.adata[::-1].copy(), trained.adata[:, ::-1].copy()):
        model = cpl.CplMixVI.load(tmp_path / "model", adata=False)
        cpl.tl.annotate(cells, model, overwrite=True)
        same = cells.n_obs == adata.n_obs and cells.obs_names[0] == adata.obs_names[0]
        assert ("cplmixvi_condition" in cells.obs) == same
        if same:
            assert cells.obs["cplmixvi_condition"].equals(level)
    assert np.array_equal(cpl.CplMixVI.load(tmp_path / "model", trained.adata).condition_, trained.condition_)


def test_levels_go_where_a_model_learns_from_other_cells(trained, tmp_path):
    trained.save(tmp_path / "model")
    for cells, keeps in ((trained.adata[::-1].copy(), False), (trained.adata.copy(), True)):
        model = cpl.CplMixVI.load(tmp_path / "model", cells)
        model.train(max_epochs=1, enable_progress_bar=False)
        assert (model.condition_ is not None) == keeps
        cpl.tl.annotate(cells, model, overwrite=True)
        assert ("cplmixvi_condition" in cells.obs) == keeps


def test_it_can_be_left_out_or_named(treated, monkeypatch):
    looks = []

    def look(module, batches, adopt, begin):
        looks.append(adopt is not None)
        # Nothing after the look is of interest here, and fits take long.
        raise InterruptedError("seen")

    monkeypatch.setattr(plan, "fit_guide", look)
    adata = treated.copy()
    cpl.CplMixVI.setup_anndata(adata)
    cases = (("auto", True), ("auto", False), ("across=treated+thin", True), (Neighbours(), True))
    for augment, find in cases:
        model = cpl.CplMixVI(adata, n_categories=5, n_hidden=8, n_arms=1, augment=augment)
        with pytest.raises(InterruptedError, match="seen"):
            model.train(max_epochs=1, enable_progress_bar=False, find_condition=find)
    assert looks == [True, False, False, False]


def test_levels_stand_for_a_column_of_obs(treated):
    level = (treated.obs["treated"] == "yes").to_numpy().astype(np.int8)
    augmenter = AcrossLevels(level)
    augmenter.check(treated)
    assert np.array_equal(augmenter.conditions(None), level)


def test_a_condition_does_not_count_as_types(treated):
    cpl.CplMixVI.setup_anndata(treated)
    model = cpl.CplMixVI(treated)
    assert model.select_n_categories([5, 10], seed=0).n_categories == 5
    assert model.select_n_categories([5, 10], seed=0, find_condition=False).n_categories == 10


def codes(adata):
    return (adata.obs["treated"] == "yes").to_numpy().astype(np.int64)


def test_batches_that_change_some_types_more_are_told_from_others(one_responds):
    x, batch = torch.from_numpy(cpl.pp.log_normalize(one_responds.X)), torch.from_numpy(codes(one_responds))
    assert batches_respond(x, batch)
    assert not batches_respond(x, no_batch(x))
    # More than are compared.
    assert not batches_respond(x, batch + 2 * (torch.arange(len(x)) % 5))
    # The same of every type.
    generator = np.random.default_rng(1)
    shift = np.exp(generator.normal(0, 0.4, (2, 120)))
    counts = cpl.datasets.simulate(600, 120, 5, n_markers=8, mean_counts=3_000, seed=2).X.toarray()
    shifted = generator.poisson(counts * shift[batch.numpy()]).astype(np.float32)
    assert not batches_respond(torch.from_numpy(cpl.pp.log_normalize(shifted)), batch)


def test_counterparts_in_other_batches_are_of_the_same_type(one_responds):
    batch, values = codes(one_responds), one_responds.X
    augmenter = AcrossBatches(batch)
    augmenter.prepare(Cells(one_responds, values, np.arange(600), True, batch), "cpu")
    partners = augmenter.partners
    types = one_responds.obs["type"].cat.codes.to_numpy()
    for level in (0, 1):
        others = np.flatnonzero(batch != level)
        bounds = partners.bounds[level].numpy()
        of = np.repeat(np.arange(600), np.diff(bounds))
        drawn = partners.partner[bounds[0] : bounds[-1]].numpy()
        assert np.isin(others, of).mean() > 0.98
        assert (batch[drawn] == level).all()
        assert (types[drawn] == types[of]).mean() > 0.98
    # Copies stay those of the cell, whose batch decoders are given.
    x = torch.from_numpy(values)
    assert augmenter(x) is x
    neutral = augmenter.neutral(x, {CELL_KEY: torch.arange(600)})
    assert neutral.shape == (2, 600, 120)
    assert torch.equal(neutral[torch.from_numpy(batch), torch.arange(600)], x)


def test_batches_are_a_condition_where_categories_follow_what_they_add(one_responds):
    x, batch = torch.from_numpy(cpl.pp.log_normalize(one_responds.X)), torch.from_numpy(codes(one_responds))
    found = [find_condition(x, batch, fit_committee(x, k, batch, seed=0)) for k in (5, 6)]
    # With a category more than there are types, the one that responds is in two.
    assert found == [None, (its_batch, True)]
    assert find_condition(x, no_batch(x), fit_committee(x, 5, no_batch(x), seed=0)) is None


def test_levels_of_which_every_batch_has_one_are_no_condition(treated):
    x, batch = torch.from_numpy(cpl.pp.log_normalize(treated.X)), torch.from_numpy(codes(treated))
    committee = fit_committee(x, 5, no_batch(x), seed=0)
    assert find_condition(x, no_batch(x), committee) is not None
    assert find_condition(x, torch.arange(len(x)) % 2, committee) is not None
    assert find_condition(x, batch, committee) is None


def test_types_do_not_follow_batches_that_one_of_them_responds_to(one_responds):
    adata = one_responds.copy()
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata, batch_key="treated")
    model = cpl.CplMixVI(adata, n_categories=6, n_hidden=32)
    model.train(max_epochs=30, enable_progress_bar=False)
    np.testing.assert_array_equal(model.trainer.lightning_module.compared, codes(adata))
    assert cpl.metrics.nmi(adata.obs["treated"], model.predict()) < 0.02
    assert model.condition_ is None
    assert isinstance(model.module.augmenter, CountThinning)


@pytest.mark.parametrize(("batch_key", "augment"), [("treated", "auto"), (None, "across=treated+thin")])
def test_batches_that_types_respond_to_do_not_count_as_types(one_responds, batch_key, augment):
    adata = one_responds.copy()
    cpl.CplMixVI.setup_anndata(adata, batch_key=batch_key)
    model = cpl.CplMixVI(adata, augment=augment)
    assert model.select_n_categories([5, 6], seed=0).n_categories == 5
    # Counterparts are known while they are needed.
    assert all(getattr(part, "partners", None) is None for part in model.module.augmenter.modules())


def test_a_condition_that_is_a_covariate_is_compared_across_but_copies_are_of_the_cells_own(treated):
    adata = treated.copy()
    cpl.CplMixVI.setup_anndata(adata, categorical_covariate_keys=["treated"])
    model = cpl.CplMixVI(adata, n_categories=5, n_hidden=16)
    model.train(max_epochs=3, enable_progress_bar=False)
    level = (adata.obs["treated"] == "yes").to_numpy()
    assert max((model.condition_ == level).mean(), (model.condition_ != level).mean()) > 0.95
    trained = model.trainer.lightning_module
    if trained.crosses:
        assert trained.compared is not None
    assert cpl.metrics.nmi(adata.obs["treated"], model.predict()) < 0.05


def test_levels_of_a_group_are_told_from_levels_in_it():
    generator = torch.Generator().manual_seed(0)
    level = torch.randint(2, (400,), generator=generator)
    group = torch.randint(3, (400,), generator=generator)
    assert not _condition.are_of_groups(level, group)
    assert _condition.are_of_groups(level, level)
    almost = torch.where(torch.arange(400) % 50 == 0, 1 - level, level)
    assert _condition.are_of_groups(level, almost)
