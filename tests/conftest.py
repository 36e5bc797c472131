"""Fixtures for all tests: one thread, fixed seeds, no windows, and a small AnnData whose truth is known."""

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Numba, under scanpy's neighbours, sets the threads of the whole process to its own number, torch's among them. Where a
# plugin of pytest has imported it, it takes no other number any more.
if "numba" in sys.modules:
    sys.modules["numba"].set_num_threads(1)
else:
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest
import scvi
import torch
from _quick_start import quick_start

torch.set_num_threads(1)
scvi.settings.dl_num_workers = 0
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # What a script starts in the background ignores interrupts, and tests send them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seed():
    """The same seeds before every test, whatever ran before it."""
    scvi.settings.seed = 0
    return 0


@pytest.fixture(autouse=True)
def _close_figures():
    """No figure of a test is left to the next one."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="module")
def small_committee():
    """For tests that ask what is done with a guide and not how good it is."""
    with quick_start():
        yield


@pytest.fixture(scope="module")
def medium_committee():
    """For tests of what members of a committee have in common."""
    with quick_start(members=5):
        yield


@pytest.fixture(scope="session")
def data_dir():
    """The folder of prepared data sets; skips without it, unless CPLMIXVI_REQUIRE_DATA=1 says it must be there."""
    given = os.environ.get("CPLMIXVI_DATA_DIR", "")
    if given and Path(given).is_dir():
        return Path(given)
    reason = f"CPLMIXVI_DATA_DIR is {given!r}, not a folder: point it at the prepared data sets"
    if os.environ.get("CPLMIXVI_REQUIRE_DATA") == "1":
        pytest.fail(f"{reason}, or unset CPLMIXVI_REQUIRE_DATA")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def make_counts():
    """A factory of small AnnData of negative binomial counts, so that each test states only what matters to it."""
    from cplmixvi import datasets

    def make(n_obs=120, n_vars=60, n_types=3, seed=0, **options):
        options = {"n_batches": 2, "n_markers": min(10, n_vars // n_types), "mean_counts": 20 * n_vars} | options
        adata = datasets.simulate(n_obs, n_vars, n_types, seed=seed, **options)
        adata.layers["counts"] = adata.X.copy()
        return adata

    return make


@pytest.fixture(scope="session")
def fitted_states(make_counts):
    """Cells of three types that each have a state moving twelve genes of its own, and a model with a prior per type."""
    import cplmixvi as cpl

    adata = make_counts(n_obs=400, n_state=1, n_state_genes=12, state_scale=1.0)
    scvi.settings.seed = 1
    cpl.CplMixVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = cpl.CplMixVI(adata, n_categories=3, n_hidden=32, state_prior="type")
    with quick_start():
        model.train(max_epochs=300, enable_progress_bar=False)
    return adata, model


@pytest.fixture(scope="session")
def make_annotated():
    """A factory of AnnData that look as ``tl.annotate`` leaves them, with known sizes and consensus."""

    import anndata as ad
    import numpy as np
    import pandas as pd

    def make(n_categories=3, n_arms=2, key="cplmixvi", sizes=None):
        sizes = np.arange(1, n_categories + 1) * 10 if sizes is None else np.asarray(sizes)
        codes = np.repeat(np.arange(n_categories), sizes)
        categories = np.array([str(2 * i) for i in range(n_categories)], dtype=object)
        adata = ad.AnnData(np.zeros((len(codes), 2), dtype=np.float32))
        adata.obs[key] = pd.Categorical(categories[codes], categories=categories)
        adata.obs[f"{key}_confidence"] = np.linspace(0, 1, len(codes), dtype=np.float32)
        adata.obs["truth"] = pd.Categorical([f"type {'abcdefghijklmnopqrstuvwxyz'[c % 26]}{c // 26}" for c in codes])
        adata.obsm[f"X_{key}"] = np.stack([codes, -codes], axis=1).astype(np.float32)
        epochs = np.arange(1, 6)
        result = {
            "origin": "cplmixvi",
            "categories": categories,
            "history": {"elbo_train": 100.0 / epochs, "elbo_validation": 110.0 / epochs, "entropy_train": 1.0 / epochs},
        }
        if n_arms > 1:
            matrix = np.full((n_categories, n_categories), 0.1, dtype=np.float32)
            np.fill_diagonal(matrix, 0.9 - 0.5 * np.arange(n_categories) / n_categories)
            result |= {"consensus": matrix, "consensus_by_category": np.diag(matrix).copy()}
        adata.uns[key] = result
        return adata

    return make


@pytest.fixture
def in_file(tmp_path):
    """Cells for the command line, in the folder that a test may write to."""
    from _command_line import make_cells

    make_cells().write_h5ad(tmp_path / "in.h5ad")
    return tmp_path / "in.h5ad"
