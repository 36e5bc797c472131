"""The Python of the README and of the how-tos runs, on small cells and with few steps."""

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import cplmixvi as cpl
from cplmixvi.train import _views
from cplmixvi.train._mixture import SharedCovarianceMixture

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not part of the sdist")

PAGES = (
    "README.md",
    "docs/howto/augmenters.md",
    "docs/howto/batches.md",
    "docs/howto/choosing_k.md",
    "docs/howto/interrupted.md",
    "docs/howto/labels.md",
    "docs/howto/new_data.md",
    "docs/howto/sklearn.md",
    "docs/howto/states.md",
)


@pytest.fixture
def names(monkeypatch, tmp_path):
    """What snippets take for granted: cells, a model of them, new cells; trainings are a few steps."""
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    cells = cells_like_those_of_kang(0)
    monkeypatch.setattr(cpl.datasets, "kang2018", lambda: cells.copy())
    # A start that is quick and poor.
    monkeypatch.setattr(_views, "MEMBERS", {"mixture": 1, "graph": 1})
    monkeypatch.setattr(SharedCovarianceMixture, "fit", without_search(SharedCovarianceMixture.fit))
    for name in ("train", "train_augmenter"):
        monkeypatch.setattr(cpl.CplMixVI, name, shortened(getattr(cpl.CplMixVI, name)))
    select = cpl.CplMixVI.select_n_categories
    monkeypatch.setattr(cpl.CplMixVI, "select_n_categories", lambda self, *_, **__: select(self, [2, 3], seed=0))
    cpl.CplMixVI.setup_anndata(cells)
    model = cpl.CplMixVI(cells, n_categories=3)
    model.train()
    cpl.tl.annotate(cells, model)
    return {"cpl": cpl, "adata": cells, "model": model, "new": cells_like_those_of_kang(1)}


def cells_like_those_of_kang(seed):
    adata = cpl.datasets.simulate(160, 80, 3, n_batches=2, mean_counts=2_000, seed=seed)
    rng = np.random.default_rng(seed)
    adata.obs["stim"] = rng.choice(["CTRL", "STIM"], adata.n_obs)
    adata.obs["known"] = np.where(rng.random(adata.n_obs) < 0.2, adata.obs["type"].astype(str), "unknown")
    # A gene set that is built in has some of the genes.
    adata.var_names = ["ISG15", "IFI6", *adata.var_names[2:]]
    return adata


def without_search(fit):
    def quick(self, *args, **kwargs):
        self.n_starts, self.n_moves = 1, 0
        return fit(self, *args, **kwargs)

    return quick


def shortened(train):
    def few_epochs(self, *args, **kwargs):
        return train(self, *args[1:], **{**kwargs, "max_epochs": 2, "enable_progress_bar": False})

    return few_epochs


@pytest.mark.filterwarnings("ignore::UserWarning")  # two epochs do not make a sound model
@pytest.mark.parametrize("page", PAGES)
def test_snippets_run_one_after_the_other(page, names):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)
