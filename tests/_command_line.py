"""What tests of the command line share: a call in this process, cells for it, and what every refusal looks like."""

import io
from contextlib import redirect_stderr, redirect_stdout

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cplmixvi.cli import main

#: Options of a fit that takes a second.
FAST = ["--n-categories", "3", "--max-epochs", "2", "--accelerator", "cpu"]


def call(*arguments):
    """Exit status, stdout and stderr of the command line, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


def make_cells(n_obs=60, n_vars=30):
    """Counts in a layer and in raw, log values in X, a batch, and genes and cells with names."""
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(2.0, (n_obs, n_vars)).astype(np.float32))
    adata = ad.AnnData(
        counts.copy(),
        obs=pd.DataFrame({"donor": ["a", "b"] * (n_obs // 2)}, index=[f"cell{i}" for i in range(n_obs)]),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(n_vars)]),
    )
    adata.raw = adata
    adata.layers["counts"] = counts
    adata.layers["log"] = counts.log1p()
    adata.obsm["X_other"] = rng.normal(size=(n_obs, 2))
    return adata


def assert_refused(outcome, expected):
    status, out, err = outcome
    assert status == 2
    assert out == ""
    assert err.startswith("cplmixvi: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert expected in err
