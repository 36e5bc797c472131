"""Models that earlier versions saved are loaded for ever, and say what they said.

``python tests/test_saved_models.py`` makes the one of the present version: run it for every release, and again whenever
what is saved changes before that release. Models of earlier releases are never made again.
"""

import json
import re
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch

import cplmixvi as cpl
from cplmixvi import augment, io

pytestmark = pytest.mark.usefixtures("small_committee")

MODELS = Path(__file__).parent / "data" / "models"
#: What was read and what must come out, beside the model's own files.
EXPECTED = "expected.json"


def cells(counts):
    """The cells of the model, with all that can be registered."""
    n_obs, n_vars = np.shape(counts)
    number = np.arange(n_obs)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(np.where(number % 2, "b", "a")),
            "known": pd.Categorical(np.where(number % 9 == 0, "first type", "unknown")),
            "site": pd.Categorical(np.where(number % 5, "x", "é")),
            "age": number / n_obs,
        },
        index=[f"cell{i}" for i in number],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_vars)])
    return ad.AnnData(np.asarray(counts, dtype=np.float32), obs=obs, var=var)


def make():
    """Train, save, and write down what the model says of its cells."""
    torch.set_num_threads(1)
    scvi.settings.seed = 0
    counts = np.random.default_rng(0).poisson(np.tile(2 + 20 * np.kron(np.eye(3), np.ones(3)), (20, 1)))
    adata = cells(counts)
    cpl.CplMixVI.setup_anndata(
        adata,
        batch_key="batch",
        labels_key="known",
        categorical_covariate_keys=["site"],
        continuous_covariate_keys=["age"],
    )
    copies = [augment.LearnedAugmenter(n_latent=3, n_hidden=12), "thin"]
    model = cpl.CplMixVI(adata, n_categories=3, augment=copies, n_hidden=6)
    # The last call is the one whose history is kept: a short one.
    for max_epochs in (500, 2):
        model.train_augmenter(max_epochs=max_epochs, enable_progress_bar=False)
    model.train(max_epochs=60, plan_kwargs={"lr": 0.01}, enable_progress_bar=False)
    folder = MODELS / cpl.__version__
    shutil.rmtree(folder, ignore_errors=True)
    model.save(folder)
    expected = {
        "counts": counts.tolist(),
        "names": list(model.category_names),
        "proba": model.predict(soft=True).to_numpy().tolist(),
        "state": model.get_state().tolist(),
    }
    (folder / EXPECTED).write_text(json.dumps(expected) + "\n")


FOLDERS = sorted(MODELS.iterdir()) if MODELS.is_dir() else []


@pytest.mark.parametrize("with_cells", [True, False])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_saved_model_says_what_it_said(folder, with_cells):
    expected = json.loads((folder / EXPECTED).read_text())
    adata = cells(expected["counts"])
    model = cpl.CplMixVI.load(folder, adata=adata if with_cells else False, accelerator="cpu")
    given = None if with_cells else adata
    assert list(model.category_names) == expected["names"]
    np.testing.assert_allclose(model.predict(given, soft=True), expected["proba"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(model.get_state(given), expected["state"], rtol=1e-3, atol=1e-4)
    assert len(np.unique(model.predict(given))) == 3, "a collapsed model would test little"
    assert f"`{cpl.pp.input_hash(adata.X, adata.var_names)}`" in model.card()
    if with_cells:
        model.train(max_epochs=1, enable_progress_bar=False)


def test_there_is_one_of_the_present_format_and_all_are_small():
    versions = {json.loads((folder / "model.json").read_text())["format_version"] for folder in FOLDERS}
    assert io.FORMAT_VERSION in versions, "run python tests/test_saved_models.py"
    for folder in FOLDERS:
        assert sum(file.stat().st_size for file in folder.iterdir()) < 80_000


def test_there_is_one_of_every_release():
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", changelog, flags=re.MULTILINE)
    assert "0.1.0" in releases
    assert set(releases) <= {folder.name for folder in FOLDERS}, "run python tests/test_saved_models.py"


if __name__ == "__main__":
    make()
