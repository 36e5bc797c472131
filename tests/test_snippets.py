"""The Python of the README, the how-tos and the docstrings runs, on small cells and with few steps."""

import ast
import doctest
import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import scvi
from scvi.model.base import BaseModelClass

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


#: Modules for users. What is in `train` and `module` is for developers.
ROOMS = ("pp", "tl", "pl", "metrics", "datasets", "augment", "io", "sklearn", "baselines")
WITHOUT = {
    "convert_legacy_save": "a pickle of an older version is needed",
    "card_text": "takes what CplMixVI.card puts together",
    **dict.fromkeys(
        cpl.datasets.REGISTRY, "needs its file; test_datasets.py and test_images.py load it where there is one"
    ),
}


def is_model(value):
    return inspect.isclass(value) and issubclass(value, BaseModelClass)


def public_functions():
    """What is offered to users: functions and models by name."""
    found = {}
    for room in ROOMS:
        module = import_module(f"cplmixvi.{room}")
        found |= {name: value for name in module.__all__ if callable(value := getattr(module, name))}
    found = {name: value for name, value in found.items() if inspect.isfunction(value) or is_model(value)}
    own = (vars(base) for base in cpl.CplMixVI.__mro__ if base.__module__.startswith("cplmixvi"))
    methods = {name for names in own for name, value in names.items() if callable(value) or hasattr(value, "__func__")}
    found |= {name: getattr(cpl.CplMixVI, name) for name in methods if not name.startswith("_")}
    return found | {"CplMixVI": cpl.CplMixVI, "CplMixVICluster": import_module("cplmixvi.sklearn").CplMixVICluster}


FUNCTIONS = public_functions()
EXAMPLES = {
    name: examples
    for name, value in FUNCTIONS.items()
    if (examples := doctest.DocTestParser().get_examples(inspect.getdoc(value) or ""))
}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_examples_of_docstrings_run(names, monkeypatch):
    # What scvi-tools says of itself is no part of an example's output.
    monkeypatch.setattr(scvi.settings, "verbosity", "ERROR")
    names |= {"np": np, "Path": Path, "cplmixvi": cpl, "X": names["adata"].X.toarray()}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    for name, examples in EXAMPLES.items():
        # As if written where the function is.
        where = vars(inspect.getmodule(inspect.unwrap(FUNCTIONS[name])))
        given = {key: item for key, item in where.items() if not key.startswith("__")} | names
        given["adata"] = names["adata"].copy()
        runner.run(doctest.DocTest(examples, given, name, None, None, None), out=said.append)
    assert runner.tries > 50
    assert runner.failures == 0, "".join(said)


def test_every_public_function_has_an_example_that_runs():
    code = [example.source for examples in EXAMPLES.values() for example in examples]
    for notebook in (ROOT / "tutorials").glob("*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for page in PAGES:
        code += re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for text in code for line in text.splitlines() if not line.startswith(("!", "%"))]
    calls = [node.func for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.Call)]
    called = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", None) for call in calls}
    missing = sorted(FUNCTIONS.keys() - called - WITHOUT.keys())
    assert not missing, "give them an example in their docstring"
    assert WITHOUT.keys() <= FUNCTIONS.keys()
