"""Properties that hold for any cells and labels, on generated ones."""

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import cplmixvi as cpl
from cplmixvi import metrics
from cplmixvi.cli._errors import is_message

#: Always the same examples, as many as a CI can bear; fixtures do not change between them.
FEW = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
MANY = settings(FEW, max_examples=60)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=8)


@st.composite
def cells(draw):
    """AnnData of any shape: empty and equal cells and genes, counts up to a million, odd names, lone batches."""
    n_obs, n_vars = draw(st.integers(2, 25)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    counts = rng.poisson(draw(st.sampled_from([0.1, 1.0, 30.0])), (n_obs, n_vars)).astype(np.float32)
    if draw(st.booleans()):
        counts[rng.integers(n_obs), rng.integers(n_vars)] = draw(st.sampled_from([1e4, 1e6, 2**24]))
    if draw(st.booleans()):
        counts[rng.integers(n_obs)] = 0
    if draw(st.booleans()):
        counts[:, rng.integers(n_vars)] = 0
    if draw(st.booleans()):
        counts[1:] = counts[0]
    kind = draw(st.sampled_from([np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array]))
    genes = draw(st.lists(names, min_size=n_vars, max_size=n_vars, unique=True))
    batches = draw(st.lists(names, min_size=1, max_size=n_obs, unique=True))
    obs = pd.DataFrame(
        {"batch": [batches[i % len(batches)] if draw(st.booleans()) else batches[0] for i in range(n_obs)]},
        index=[f"cell{i}" for i in range(n_obs)],
    )
    return AnnData(kind(counts), obs=obs, var=pd.DataFrame(index=genes))


def fit(adata, **options):
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata, batch_key="batch")
    model = cpl.CplMixVI(adata, n_hidden=4, allow_empty_cells=True, **options)
    model.train(max_epochs=1, enable_progress_bar=False, warm_start=False)
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")
@FEW
@given(adata=cells(), data=st.data())
def test_any_cells_are_annotated_whatever_their_order(adata, data):
    likelihood = data.draw(st.sampled_from(["nb", "zinb", "poisson", "normal"]))
    # From one category to one per cell.
    model = fit(adata, n_categories=data.draw(st.integers(1, adata.n_obs)), likelihood=likelihood)
    proba = model.predict(soft=True)
    assert np.isfinite(proba.to_numpy()).all()
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-4)
    assert set(model.predict()) <= set(model.category_names)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    genes = np.random.default_rng(1).permutation(adata.n_vars)
    for other in (adata[order].copy(), adata[order][:, genes].copy(), adata[np.repeat(order, 2)].copy()):
        other.obs_names_make_unique()
        again = model.predict(other, soft=True, batch_size=data.draw(st.integers(1, 30)))
        step = len(again) // adata.n_obs
        np.testing.assert_allclose(again.to_numpy()[::step], proba.to_numpy()[order], atol=1e-4)
    before = adata.X.copy()
    cpl.tl.annotate(adata, model)
    assert (before != adata.X).sum() == 0
    assert list(adata.obs["cplmixvi"].astype(str)) == list(model.predict())
    assert adata.obs["cplmixvi_confidence"].between(0, 1 + 1e-6).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(FEW, max_examples=6)
@given(adata=cells(), n_categories=st.integers(1, 6))
def test_the_start_is_found_for_any_cells_or_refused_in_words(adata, n_categories):
    cpl.CplMixVI.setup_anndata(adata, batch_key="batch")
    model = cpl.CplMixVI(adata, n_categories=min(n_categories, adata.n_obs), n_hidden=4, allow_empty_cells=True)
    model.train(max_epochs=1, enable_progress_bar=False)
    assert np.isfinite(model.predict(soft=True).to_numpy()).all()


@MANY
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=2, max_size=60),
    st.permutations(range(7)),
    st.randoms(use_true_random=False),
)
def test_names_of_categories_and_order_of_cells_leave_scores_as_they_are(pairs, renaming, random):
    truth, labels = (np.array(column) for column in zip(*pairs, strict=True))
    # Of these, equal counts would let the matching choose among equals.
    unique = [metrics.nmi, metrics.ami, metrics.ari, metrics.accuracy, metrics.purity]
    expected = [score(truth, labels) for score in unique]
    renamed = np.array([f"Ω{renaming[label]}" for label in labels])
    np.testing.assert_allclose([score(truth, renamed) for score in unique], expected, atol=1e-12)
    order = random.sample(range(len(pairs)), len(pairs))
    np.testing.assert_allclose([score(truth[order], labels[order]) for score in unique], expected, atol=1e-12)
    assert all(-1 <= value <= 1 + 1e-12 for value in expected)
    for score in (metrics.nmi, metrics.ari):
        assert score(truth, labels) == pytest.approx(score(labels, truth), abs=1e-9)
    assert metrics.accuracy(truth, [f"x{label}" for label in truth]) == 1


@MANY
@given(
    st.integers(1, 4).flatmap(
        lambda arms: st.lists(st.lists(st.integers(0, 4), min_size=arms, max_size=arms), min_size=1, max_size=40)
    ),
    st.permutations(range(5)),
)
def test_agreement_of_arms_knows_no_names(rows, renaming):
    by_arm = np.array(rows).T
    renamed = np.array(renaming)[by_arm]
    np.testing.assert_array_equal(metrics.agreement(renamed), metrics.agreement(by_arm))
    if len(by_arm) < 2:
        return
    consensus = metrics.consensus_matrix(by_arm, 5)
    np.testing.assert_allclose(metrics.consensus_matrix(renamed, 5)[np.ix_(renaming, renaming)], consensus)
    np.testing.assert_allclose(consensus, consensus.T)


@MANY
@given(
    st.lists(st.lists(st.floats(allow_nan=True, width=32), min_size=2, max_size=2), min_size=2, max_size=8),
    st.sampled_from(["nb", "zinb", "poisson", "normal", "mse", "bernoulli"]),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_any_values_are_accepted_or_refused_in_words(values, likelihood, as_sparse):
    matrix = np.array(values, dtype=np.float32)
    given_matrix = sparse.csr_matrix(matrix) if as_sparse else matrix
    try:
        report = cpl.pp.check_values(given_matrix, likelihood)
    except ValueError as error:
        assert is_message(error)
        assert "\n" not in str(error)
        # Larger values are refused, as single precision cannot compute with them.
        fits = (np.abs(matrix) <= 1e8).all() and (matrix != 0).any(1).all()
        if likelihood in ("normal", "mse"):
            assert not fits
        return
    assert np.isfinite(matrix).all()
    assert (report.minimum, report.maximum) == (matrix.min(), matrix.max())
    if likelihood in ("nb", "zinb", "poisson"):
        assert (matrix >= 0).all()
        assert report.integral
