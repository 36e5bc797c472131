"""Views of the data, their answer and its committee."""

import copy

import numpy as np
import pytest
import torch

import cplmixvi as cpl
from cplmixvi.train._em import matched
from cplmixvi.train._mixture import SharedCovarianceMixture
from cplmixvi.train._views import MEMBERS, Opinion, Projection, ViewConsensus, fit_member, fit_views


@pytest.fixture(scope="module")
def cells(make_counts):
    adata = make_counts(n_obs=400, n_vars=80, n_types=4)
    return adata, torch.from_numpy(cpl.pp.log_normalize(adata.X).toarray())


def fit(x, k=4, **options):
    return fit_views(x, k, **({"dimensions": (4, 8), "n_starts": 4, "n_moves": 4} | options))


@pytest.fixture(scope="module")
def guide(cells):
    return fit(cells[1])


# ------------------------------------------------------------ the answer and its committee


def test_views_find_the_types_and_members_use_the_same_names(cells, guide):
    adata, x = cells
    posterior = guide(x)
    assert posterior.shape == (400, 4)
    assert torch.allclose(posterior.sum(1), torch.ones(400), atol=1e-4)
    assert posterior.min() >= 0
    assert cpl.metrics.ari(adata.obs["type"], posterior.argmax(1)) > 0.9
    assert [view.dimension for view in guide.answer.views] == [4, 8]
    assert len(guide.committee) == MEMBERS["mixture"]
    opinions = guide.opinions(x)
    assert opinions.shape == (1 + MEMBERS["mixture"], 400, 4)
    for labels in opinions.argmax(-1):
        assert (labels == posterior.argmax(1)).float().mean() > 0.9


def test_members_see_views_of_their_own(guide):
    seen = [[view.dimension for view in member.views] for member in guide.committee]
    assert seen == [[4], [8]] * (MEMBERS["mixture"] // 2)
    scales = [member.projection.scale for member in guide.committee[:3]]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(scales[one], scales[other], rtol=1e-2)


def test_the_guide_is_half_the_answer_and_half_the_mean_of_its_committee(cells, guide):
    _, x = cells
    batch = torch.zeros(len(x), dtype=torch.long)
    members = torch.stack([member(x, batch) for member in guide.committee])
    assert torch.allclose(guide(x), (guide.answer(x, batch) + members.mean(0)) / 2, atol=1e-6)
    assert torch.allclose(members.sum(-1), torch.ones(members.shape[:-1]), atol=1e-4)
    # No such mean is as sure as its surest part.
    assert guide(x).max(1).values.mean() < guide.answer(x, batch).max(1).values.mean()


def test_a_member_that_disagrees_takes_its_share(cells, guide):
    _, x = cells
    batch = torch.zeros(len(x), dtype=torch.long)
    dissent = copy.deepcopy(guide.answer)
    dissent.order = guide.answer.order.roll(1)
    mixed = ViewConsensus(guide.answer, [guide.answer, dissent])(x)
    answer = guide.answer(x, batch)
    assert torch.allclose(mixed, 0.75 * answer + 0.25 * answer.roll(1, dims=1), atol=1e-6)


def test_an_opinion_is_the_posterior_of_its_fit(cells):
    _, x = cells
    batch = torch.zeros(len(x), dtype=torch.long)
    projection = Projection(x, batch, 6, 0.5)
    points = [projection(x, batch)[:, :3], projection(x, batch)]
    fitter = SharedCovarianceMixture(4)
    found = fitter.fit(points)
    opinion = Opinion(projection, found, fitter.dof)
    assert torch.allclose(opinion(x, batch), fitter.posterior(points, found), atol=1e-4)
    opinion.order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(opinion(x, batch), fitter.posterior(points, found)[:, [2, 0, 3, 1]], atol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 128, 399])
def test_the_guide_is_a_function_of_the_cell(cells, guide, size):
    _, x = cells
    batch = torch.arange(len(x)) % 2
    x, batch = x[:100], batch[:100]
    parts = [guide(x[i : i + size], batch[i : i + size]) for i in range(0, len(x), size)]
    assert torch.allclose(torch.cat(parts), guide(x, batch), atol=1e-5)
    order = torch.randperm(len(x))
    assert torch.allclose(guide(x, batch)[order], guide(x[order], batch[order]), atol=1e-5)


def test_nothing_to_learn_and_no_gradient(cells, guide):
    assert not list(guide.parameters())
    assert not guide(cells[1][:5].clone().requires_grad_()).requires_grad


def test_all_that_the_guide_needs_moves_and_is_saved_with_it(cells, guide):
    _, x = cells
    # The device without values stands for a GPU: a tensor left behind on the CPU would not mix with it.
    meta = copy.deepcopy(guide).to("meta")
    assert all(value.device.type == "meta" for value in meta.state_dict().values())
    left = [
        name
        for module in meta.modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor) and value.device.type != "meta"
    ]
    assert not left
    double = copy.deepcopy(guide).to(torch.float64)
    assert double(x.double()).dtype == torch.float64
    assert torch.allclose(double(x.double()).float(), guide(x), atol=1e-3)
    other = fit(x, seed=7)
    assert not torch.allclose(other(x), guide(x), atol=1e-5)
    other.load_state_dict(guide.state_dict())
    assert torch.equal(other(x), guide(x))


def test_same_seed_same_guide_and_other_seeds_nearly_the_same_labels(cells, guide):
    _, x = cells
    assert torch.equal(fit(x)(x), guide(x))
    for seed in (1, 2**31 - 2):
        other = fit(x, seed=seed)(x)
        assert not torch.equal(other, guide(x))
        assert cpl.metrics.ari(guide(x).argmax(1), other.argmax(1)) > 0.95


def test_a_seed_is_all_that_decides(cells, guide):
    _, x = cells
    torch.manual_seed(123)
    np.random.seed(123)
    before = torch.random.get_rng_state()
    assert torch.equal(fit(x)(x), guide(x))
    assert torch.equal(torch.random.get_rng_state(), before)


# -------------------------------------------------------------------------------- labels


def test_matched_finds_the_order_that_overlaps_most():
    reference = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 2, 2]), 3).float()
    soft = 0.5 * reference[:, [2, 0, 1]] + 0.5 / 3
    for posterior in (reference[:, [2, 0, 1]], soft):
        assert torch.equal(posterior[:, matched(reference, posterior)].argmax(1), reference.argmax(1))


def test_categories_of_labels_come_first_and_in_their_order(cells):
    adata, x = cells
    types = torch.from_numpy(adata.obs["type"].cat.codes.to_numpy().astype(np.int64))
    # One of the types has no label, the others are named the other way round.
    names = torch.tensor([2, 1, 0, -1])
    known = torch.where(torch.arange(len(x)) % 10 == 0, names[types], -1)
    guide = fit(x, known=known)
    expected = torch.tensor([2, 1, 0, 3])[types]
    for labels in (guide(x).argmax(1), *guide.opinions(x).argmax(-1)):
        assert (labels == expected).float().mean() > 0.9
    # No labels at all are as none given.
    nothing = torch.full((len(x),), -1)
    assert torch.equal(fit(x, known=nothing)(x), fit(x)(x))


# ------------------------------------------------------------------------ scale and batches


def test_scaling_runs_from_a_genes_own_deviation_to_the_usual_one(cells):
    _, x = cells
    batch = torch.zeros(len(x), dtype=torch.long)
    own, usual = (Projection(x, batch, 5, scaling).scale for scaling in (0.0, 1.0))
    assert torch.allclose(own, x.std(0, unbiased=False).clamp_min(1e-6), rtol=1e-4)
    assert usual.std() < own.std()
    between = Projection(x, batch, 5, 0.5).scale
    assert torch.allclose(between, (own * usual).sqrt(), rtol=1e-4)


def test_what_batches_add_is_taken_out(cells):
    adata, x = cells
    batch = torch.arange(len(x)) % 2
    shifted = x + 3.0 * batch[:, None]
    plain, corrected = Projection(x, batch, 5, 0.0), Projection(shifted, batch, 5, 0.0)
    added = corrected.mean[:2] - plain.mean[:2]
    assert torch.allclose(added, torch.tensor([[0.0], [3.0]]).expand_as(added), atol=0.1)
    z = corrected(shifted, batch)
    for cells_of_type in adata.obs.groupby("type", observed=True).indices.values():
        of_type, of_batch = z[cells_of_type], batch[cells_of_type]
        gap = of_type[of_batch == 1].mean(0) - of_type[of_batch == 0].mean(0)
        assert gap.norm() < 0.2 * z.std(0).norm()


def test_a_batch_that_projections_have_not_seen_is_centred_on_all_cells():
    x = torch.arange(8.0).reshape(4, 2)
    projection = Projection(x, torch.tensor([0, 0, 2, 2]), 1, 0.0)
    assert torch.allclose(projection.mean[0], x[:2].mean(0))
    assert torch.allclose(projection.mean[2], x[2:].mean(0))
    for unseen in (1, 3, 9):
        batch = torch.tensor([unseen, 0, 2, 2])
        first = ((x[0] - x.mean(0)) / projection.scale) @ projection.axes
        assert torch.allclose(projection(x, batch)[0], first, atol=1e-5)


@pytest.mark.parametrize("last", [False, True])
def test_a_batch_of_one_cell_that_a_member_does_not_see(cells, monkeypatch, last):
    adata, x = cells
    batch = (torch.arange(len(x)) >= 200).long() * (1 if last else 2)
    seen = []
    standard = Projection.__init__

    def spy(self, values, codes, *args, **kwargs):
        seen.append((values, codes))
        standard(self, values, codes, *args, **kwargs)

    monkeypatch.setattr(Projection, "__init__", spy)
    fit(x, batch=batch)
    # One cell that the first member lacks; its batch has the last code, or one in the middle.
    lacking = next(i for i in range(200) if not (seen[0][0] == x[i]).all(1).any())
    batch[lacking] = single = 2 if last else 1
    seen.clear()
    guide = fit(x, batch=batch)
    assert single not in seen[0][1]
    assert any(single in codes for _, codes in seen)
    for posterior in guide.opinions(x, batch):
        assert torch.allclose(posterior.sum(1), torch.ones(len(x)), atol=1e-4)
    assert cpl.metrics.ari(adata.obs["type"], guide(x, batch).argmax(1)) > 0.9


def test_batches_that_shift_every_gene_do_not_become_categories(cells):
    adata, x = cells
    batch = torch.arange(len(x)) % 2
    shifted = x + 3.0 * batch[:, None]
    labels = fit(shifted, batch=batch)(shifted, batch).argmax(1)
    assert cpl.metrics.ari(adata.obs["type"], labels) > 0.9


# ---------------------------------------------------------------------------- hard inputs


@pytest.mark.parametrize("k", [2, 30])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 20])
def test_few_cells_and_more_categories_than_cells(cells, n, k):
    x = cells[1][:n]
    posterior = fit(x, k=k)(x)
    assert posterior.shape == (n, k)
    assert torch.allclose(posterior.sum(1), torch.ones(n), atol=1e-4)


@pytest.mark.parametrize(("size", "pair"), [(10, (1, 3)), (20, (0, 1))])
def test_two_types_of_few_cells_are_found(cells, size, pair):
    adata, x = cells
    types = adata.obs["type"].cat.codes.to_numpy()
    rows = np.concatenate([np.flatnonzero(types == k)[:size] for k in pair])
    labels = fit(x[rows], k=2)(x[rows]).argmax(1)
    assert cpl.metrics.ari(types[rows], labels) > 0.9


def test_genes_that_do_not_vary_change_nothing_much(cells):
    adata, x = cells
    x = torch.cat([x, torch.zeros(len(x), 5), torch.full((len(x), 1), 2.5)], dim=1)
    x[:, 3] = 0
    posterior = fit(x)(x)
    assert torch.allclose(posterior.sum(1), torch.ones(len(x)), atol=1e-4)
    assert cpl.metrics.ari(adata.obs["type"], posterior.argmax(1)) > 0.9


@pytest.mark.parametrize("n_genes", [1, 2, 30])
def test_cells_that_are_all_the_same(n_genes):
    x = torch.full((40, n_genes), 2.5)
    batch = torch.arange(40) % 2
    posterior = fit(x, k=3, batch=batch)(x, batch)
    assert torch.allclose(posterior.sum(1), torch.ones(40), atol=1e-4)
    assert torch.allclose(posterior[::2], posterior[:1].expand(20, -1), atol=1e-4)


def test_one_gene_that_tells_two_types():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 2
    x = (5.0 * labels + 0.3 * torch.randn(100, generator=generator))[:, None]
    assert cpl.metrics.ari(labels, fit(x, k=2)(x).argmax(1)) == 1


def test_a_member_sees_as_many_cells_as_asked(cells, monkeypatch):
    _, x = cells
    batch = torch.zeros(len(x), dtype=torch.long)
    sizes = []
    standard = Projection.__init__

    def spy(self, values, *args, **kwargs):
        sizes.append(len(values))
        standard(self, values, *args, **kwargs)

    monkeypatch.setattr(Projection, "__init__", spy)
    for n_seen in (None, 50, 5, 1_000):
        member = fit_member(x, 4, batch, index=0, seed=0, n_seen=n_seen, dimensions=(4, 8), n_starts=2)
        assert member(x, batch).shape == (400, 4)
    fit_member(x[:22], 2, batch[:22], index=0, seed=0, dimensions=(4,), n_starts=2)
    assert sizes == [320, 50, 20, 400, 20]
