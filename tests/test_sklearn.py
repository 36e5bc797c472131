"""The estimator of scikit-learn: its own checks, and what they do not check."""

import logging
import os
import pickle
import random
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_clustering, parametrize_with_checks

import cplmixvi as cpl
from cplmixvi.sklearn import CplMixVICluster

QUICK = {
    "max_epochs": 1,
    "model_kwargs": {"n_hidden": 4},
    "train_kwargs": {"warm_start": False},
    "random_state": 0,
    "accelerator": "cpu",
}
#: Checks that fail, and why.
EXPECTED = dict.fromkeys(
    ["check_estimator_sparse_array", "check_estimator_sparse_matrix"],
    "the check reads classifier_tags of whatever has predict_proba, and a clusterer has none; own test below",
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("small_committee"),
]


@parametrize_with_checks([CplMixVICluster(3, **QUICK)], expected_failed_checks=lambda estimator: EXPECTED)
def test_checks_of_scikit_learn(estimator, check):
    if getattr(check, "func", check) is check_clustering:
        # The only check that asks for good clusters, which need the start.
        estimator.set_params(train_kwargs=None, model_kwargs=None)
    check(estimator)


@pytest.fixture(scope="module")
def blobs():
    X, y = make_blobs(120, 12, centers=3, random_state=1)
    return StandardScaler().fit_transform(X), y


def state_of_the_process():
    """What fitting must leave alone."""
    kind, keys, *rest = np.random.get_state()
    return {
        "numpy": (kind, keys.tolist(), *rest),
        "python": random.getstate(),
        "torch": torch.get_rng_state().tolist(),
        "scvi": scvi.settings.seed,
        "filters": list(warnings.filters),
        "threads": torch.get_num_threads(),
        "cudnn": torch.backends.cudnn.benchmark,
        "environment": dict(os.environ),
        "files": sorted(os.listdir()),
        "loggers": [logging.getLogger(name).level for name in ("lightning.pytorch", "scvi", "cplmixvi")],
    }


def test_clusters_are_found_in_silence_and_the_process_is_left_alone(blobs, tmp_path, monkeypatch, capfd):
    X, y = blobs
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    before = state_of_the_process()
    estimator = CplMixVICluster(3, max_epochs=10, random_state=0).fit(X)
    after = state_of_the_process()
    assert {key for key in before if before[key] != after[key]} == set()
    assert capfd.readouterr() == ("", "")
    assert adjusted_rand_score(y, estimator.labels_) > 0.95
    assert estimator.n_clusters_ == 3
    assert np.array_equal(estimator.predict(X), estimator.labels_)
    proba = estimator.predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert np.array_equal(proba.argmax(1), estimator.labels_)
    again = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(again.predict_proba(X), proba)
    assert again.get_params() == estimator.get_params() == clone(estimator).get_params()
    scvi.settings.seed = 7
    repeated = clone(estimator).fit(X)
    assert np.array_equal(repeated.predict_proba(X), proba), "whatever the seed of scvi-tools"


def test_no_seed_means_that_of_numpy(blobs):
    def fit(seed):
        np.random.seed(seed)
        return CplMixVICluster(3, **QUICK | {"random_state": None}).fit(blobs[0]).predict_proba(blobs[0])

    assert np.array_equal(fit(1), fit(1))
    assert not np.array_equal(fit(1), fit(2))


def test_the_model_is_there_and_has_no_cells(blobs):
    frame = pd.DataFrame(blobs[0], columns=[f"gene {i}" for i in range(12)])
    kept = set(cpl.CplMixVI._setup_adata_manager_store)
    estimator = CplMixVICluster(3, **QUICK).fit(frame)
    assert set(cpl.CplMixVI._setup_adata_manager_store) == kept, "scvi-tools would keep the values for ever"
    assert estimator.model_.adata is None
    adata = ad.AnnData(frame.to_numpy(np.float32), var=pd.DataFrame(index=frame.columns))
    assert list(estimator.model_.predict(adata[:, ::-1].copy())) == list(
        estimator.model_.category_names[estimator.categories_[estimator.predict(frame)]]
    )
    assert list(estimator.get_feature_names_out()) == ["cplmixvicluster0", "cplmixvicluster1"]
    assert estimator.transform(frame).shape == (120, 2)
    assert estimator.transform(frame.astype(np.float32)).dtype == np.float32


def test_probabilities_are_as_sure_as_those_of_the_model():
    values = np.random.default_rng(0).normal(size=(150, 10)).astype(np.float32)
    estimator = CplMixVICluster(4, max_epochs=2, accelerator="cpu", random_state=0).fit(values)
    model = estimator.model_
    assert (model.calibration_["exponent"] < 1).any(), "nothing in this noise is found twice"
    proba = model.predict(ad.AnnData(values, var=pd.DataFrame(index=[f"x{i}" for i in range(10)])), soft=True)
    expected = proba.to_numpy()[:, estimator.categories_]
    np.testing.assert_allclose(estimator.predict_proba(values), expected / expected.sum(1, keepdims=True), atol=1e-4)


def test_counts_and_sparse_matrices():
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (60, 10)).astype(float)
    options = QUICK | {"likelihood": "nb"}
    dense = CplMixVICluster(3, **options).fit(counts)
    for kind in (sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix):
        other = CplMixVICluster(3, **options).fit(kind(counts))
        assert np.array_equal(other.labels_, dense.labels_)
        for method in ("predict", "predict_proba", "transform"):
            np.testing.assert_allclose(getattr(other, method)(kind(counts)), getattr(dense, method)(counts))
    with pytest.raises(ValueError, match="fraction"):
        CplMixVICluster(3, **options).fit(counts + 0.5)
    with pytest.raises(ValueError, match="fraction"):
        dense.predict(counts + 0.5)
    counts[3] = 0
    with pytest.raises(ValueError, match="without any value"):
        CplMixVICluster(3, **options).fit(counts)
    values = sparse.csr_matrix(counts)
    assert CplMixVICluster(3, **QUICK).fit(values).predict(values).shape == (60,)


def test_a_number_of_clusters_of_its_own(blobs):
    estimator = CplMixVICluster(**QUICK).fit(blobs[0])
    assert estimator.model_.n_categories == estimator.model_.selection.n_categories
    assert 1 <= estimator.n_clusters_ <= estimator.model_.n_categories


def test_what_is_unsound_is_warned_of(blobs):
    with pytest.warns(ConvergenceWarning, match="report"):
        CplMixVICluster(3, **QUICK).fit(blobs[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "n_clusters=0"),
        ({"n_clusters": "3"}, "n_clusters='3'"),
        ({"n_clusters": 121}, "from 1 to 120"),
        ({"likelihood": "gauss"}, "likelihood='gauss'"),
        ({"n_arms": 0}, "n_arms=0"),
        ({"augment": "thin"}, "thins counts"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(blobs, options, message):
    with pytest.raises(ValueError, match=message):
        CplMixVICluster(**{"n_clusters": 3} | QUICK | options).fit(blobs[0])
    with pytest.raises(NotFittedError):
        CplMixVICluster(**options).predict(blobs[0])


def test_pipelines_and_grid_searches(blobs):
    X, y = blobs
    pipeline = make_pipeline(StandardScaler(), CplMixVICluster(3, **QUICK))
    search = GridSearchCV(pipeline, {"cplmixvicluster__n_state": [1, 3]}, scoring="adjusted_rand_score", cv=2)
    search.fit(X, y)
    assert search.best_estimator_.transform(X).shape[1] == search.best_params_["cplmixvicluster__n_state"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_kwargs": {"max_epochs": 3}}, "max_epochs="),
        ({"train_kwargs": {"early_stopping": True}}, "all rows are trained on"),
        ({"train_kwargs": {"train_size": 0.5}}, "all rows are trained on"),
        ({"train_kwargs": "fast"}, "train_kwargs is a str"),
        ({"model_kwargs": {"n_state": 3}}, "n_state="),
        ({"model_kwargs": {"n_categories": 3}}, "n_clusters="),
    ],
)
def test_further_arguments_that_mean_something_else_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        CplMixVICluster(n_clusters=2, **given).fit(np.random.default_rng(0).normal(size=(30, 4)))
