"""What the harnesses share with the package's internals: it must still fit them when these change."""

from pathlib import Path

import numpy as np
import pytest

import cplmixvi as cpl

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def shared(monkeypatch):
    """What fits a guide once for all augmenters of ``augmenters.py``, and the guides that it hands out."""
    from cplmixvi.train import _plan

    # Put back when the test ends: the harness, a process of its own, does not do that.
    monkeypatch.setattr(_plan, "fit_guide", _plan.fit_guide)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import augmenters

    shared, handed = augmenters.Shared(), []
    hand_out = _plan.fit_guide
    _plan.fit_guide = lambda *given, **options: handed.append(hand_out(*given, **options)) or handed[-1]
    return shared, handed


def test_augmenters_are_compared_from_one_guide(shared):
    shared, handed = shared
    adata = cpl.datasets.simulate(n_obs=150, n_vars=60, n_types=3, marker_fold=12, n_markers=10, seed=0)
    cpl.CplMixVI.setup_anndata(adata)
    fitted, fit_guide = [], shared.fit_guide
    shared.fit_guide = lambda *given, **options: fitted.append(fit_guide(*given, **options)) or fitted[-1]
    for augment in ("thin", "noise"):
        model = cpl.CplMixVI(adata, n_categories=3, augment=augment)
        shared.key = ("simulated", 0, None)
        model.train(max_epochs=3, train_size=1, enable_progress_bar=False, logger=False)
    assert len(fitted) == 1 and len(handed) == 2
    first, second = (guide.answer.state_dict() for guide in handed)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
