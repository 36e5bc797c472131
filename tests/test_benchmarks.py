"""What the harnesses share with the package's internals: it must still fit them when these change."""

from pathlib import Path

import numpy as np
import pytest

import cplmixvi as cpl

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def shared(monkeypatch):
    """What fits a guide once for all augmenters of ``augmenters.py``; the package is as before afterwards."""
    from cplmixvi.train import _plan

    # Put back when the test ends: the harness, a process of its own, does not do that.
    monkeypatch.setattr(_plan, "fit_guide", _plan.fit_guide)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import augmenters

    return augmenters.Shared()


def noted(monkeypatch, owner, name):
    """What a function returns from now on, in the order of its calls."""
    function, returned = getattr(owner, name), []

    def call(*given, **options):
        returned.append(function(*given, **options))
        return returned[-1]

    monkeypatch.setattr(owner, name, call)
    return returned


def test_augmenters_are_compared_from_one_guide(shared, monkeypatch):
    from cplmixvi.train import _plan

    fitted, handed = noted(monkeypatch, shared, "fit_guide"), noted(monkeypatch, _plan, "fit_guide")
    adata = cpl.datasets.simulate(n_obs=150, n_vars=60, n_types=3, marker_fold=12, n_markers=10, seed=0)
    cpl.CplMixVI.setup_anndata(adata)
    for augment in ("thin", "noise"):
        model = cpl.CplMixVI(adata, n_categories=3, augment=augment)
        shared.key = ("simulated", 0, None)
        model.train(max_epochs=3, train_size=1, enable_progress_bar=False, logger=False)
    assert len(fitted) == 1 and len(handed) == 2
    first, second = (guide.answer.state_dict() for guide in handed)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
