"""Augmenters against each other, on types and on the copies themselves; resumable.

python benchmarks/augmenters.py types --data pbmc4k worm --augmenters thin neighbours learned --seeds 3
python benchmarks/augmenters.py copies --data scmix pbmc4k

Every run is a line of ``results/augmenters.jsonl`` or ``results/augmenter_copies.jsonl``; runs that are there are not
repeated, but into another file (``--out``). ``--render`` only writes the tables. The guide of a data set and seed does
not depend on the augmenter, but for ``across``, so it is fitted once for all of them, and so is the learned augmenter.
"""

from __future__ import annotations

import sys

# The folder has a module called types: it must come after the standard library, whose module of that name is wanted.
sys.path.append(sys.path.pop(0))

import argparse
import json
import os
import time
import warnings
from copy import deepcopy
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import _lines
import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results"
CACHE = Path(__file__).parent / "cache"
AUGMENTERS = ["thin", "mask", "noise", "none", "neighbours", "neighbours+thin", "learned", "learned+thin"]
#: A condition that types should not follow, for data that have one.
CONDITIONS = {"kang": "stim"}
SCORES = ["accuracy", "ari", "nmi", "rare_recall", "consensus", "expected_calibration_error", "condition_nmi"]
#: As in ``states.py``; all sets have the first three, and those whose states are known something to compare them with.
STATES = ["arms_r2", "elbo", "flips", "stim_auc", "isg_rank", "mix_r2", "amount_rho", "s_rho", "g2m_rho", "gap"]
COPIES = ["real_accuracy", "copy_accuracy", "sure", "real_accuracy_sure", "copy_accuracy_sure"]
COPIES += ["variance_ratio", "variance_least", "variance_most", "auc_linear", "auc_forest", "auc_boosting", "auc_genes"]


class Shared:
    """Guides and learned augmenters that runs of the same data set and seed have in common."""

    def __init__(self):
        from cplmixvi.train import _plan

        self.fit_guide, self.kept, self.key = _plan.fit_guide, {}, None
        _plan.fit_guide = self.guide

    def guide(self, module, batches, adopt=None, **options):
        """Fit the guide where that was not done; one that is not for all augmenters has a key of its own.

        One of a fit that found a condition is not kept: what finds it changes the copies too.
        """
        import torch

        # The same guide in another process, and the same random numbers after it whether it was fitted or kept.
        torch.manual_seed(self.key[1])
        conditions = []

        def noted(condition, is_followed) -> None:
            conditions.append(condition)
            adopt(condition, is_followed)

        guide = self.kept.get(self.key) or self.fit_guide(module, batches, adopt=adopt and noted, **options)
        if not conditions:
            self.kept[self.key] = guide
        torch.manual_seed(self.key[1])
        return deepcopy(guide)

    def learn(self, model, name: str, seed: int) -> None:
        """Train the model's learned augmenter, or give it the weights that were learned before; kept in files."""
        import torch

        from cplmixvi.augment import learned_parts

        kept = CACHE / f"augmenter_{name}_{seed}.pt"
        for part in learned_parts(model.module.augmenter):
            if not kept.exists():
                model.train_augmenter(enable_progress_bar=False, logger=False)
                CACHE.mkdir(exist_ok=True)
                torch.save(part.state_dict(), kept)
            part.load_state_dict(torch.load(kept))


def condition_nmi(condition: np.ndarray, labels: np.ndarray, truth: np.ndarray) -> float:
    """Mean over types of the mutual information of categories and condition inside a type, normalised."""
    from sklearn.metrics import normalized_mutual_info_score

    inside = [truth == name for name in np.unique(truth)]
    return float(np.mean([normalized_mutual_info_score(condition[some], labels[some]) for some in inside]))


def labelled(name: str):
    """Cells, their labels, the number of types and the likelihood, also of the sets that are for states only."""
    from _data import CASES, load
    from _states_models import cells

    adata, n_types, likelihood = cells(name)
    return adata, load(name)[1] if name in CASES else adata.obs["cell_type"].to_numpy(), n_types, likelihood


def run_types(name: str, augmenter: str, seed: int, shared: Shared) -> dict:
    """One fit and its scores. ``batch=KEY`` stands for thinning with the condition as ``batch_key``."""
    import scvi
    from _data import CASES

    import cplmixvi as cpl

    adata, truth, n_types, likelihood = labelled(name)
    given = augmenter.removeprefix("batch=") if augmenter.startswith("batch=") else None
    own = augmenter if given or "across" in augmenter else None
    scvi.settings.seed = seed
    cpl.CplMixVI.setup_anndata(adata, batch_key=given)
    model = cpl.CplMixVI(adata, n_categories=n_types, likelihood=likelihood, augment="thin" if given else augmenter)
    started = time.perf_counter()
    shared.learn(model, name, seed)
    learnt = time.perf_counter()
    shared.key = (name, seed, own)
    model.train(enable_progress_bar=False, logger=False)
    finished = time.perf_counter()
    posterior = model.get_posterior()
    labels = posterior.proba.argmax(1).astype(str)
    scores = cpl.metrics.evaluate(
        truth,
        labels,
        proba=posterior.proba,
        confidence=posterior.proba.max(1),
        categories=np.arange(n_types).astype(str),
        ignore=CASES[name].ignore if name in CASES else (),
    )
    scores["consensus"] = model.get_consensus().mean
    if name in CONDITIONS:
        scores["condition_nmi"] = condition_nmi(adata.obs[CONDITIONS[name]].to_numpy(), labels, truth)
    scores |= state_scores(name, adata, model, posterior)
    return {
        **{key: float(value) for key, value in scores.items()},
        "seconds_augmenter": round(learnt - started, 1),
        "seconds": round(finished - learnt, 1),
    }


def state_scores(name: str, adata, model, posterior) -> dict[str, float]:
    """Scores of the states of a fit, those of ``states.py`` that are in ``STATES``."""
    import _states_scores as scores

    import cplmixvi as cpl

    cpl.tl.annotate(adata, model, overwrite=True)
    found = model.category_names[posterior.proba.argmax(1)].astype(str)
    of_states = {
        "arms_r2": scores.shared_variance(posterior.state, found),
        "elbo": float(model.get_elbo()),
        **scores.traversal_scores(cpl.tl.traverse(adata, model), adata),
        **scores.factor_scores(name, adata, found, posterior.combined, posterior.proba),
    }
    return {key: of_states[key] for key in STATES if key in of_states}


def run_copies(name: str, augmenter: str, seed: int, shared: Shared) -> dict:
    """Whether copies keep the type, vary like cells and can be told from cells. Labels are for scoring only."""
    import scvi
    import torch
    from sklearn.model_selection import train_test_split

    import cplmixvi as cpl
    from cplmixvi.augment import Cells, LearnedAugmenter

    adata, truth, n_types, likelihood = labelled(name)
    scvi.settings.seed = seed
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=n_types, likelihood=likelihood, augment=augmenter)
    shared.learn(model, name, seed)
    values = cpl.pp.to_csr(adata.X)
    everyone = np.arange(adata.n_obs)
    cells = Cells(adata, values, everyone, model.module.on_counts, np.zeros(adata.n_obs, int))
    model.module.augmenter.prepare(cells, "cpu")
    x = torch.from_numpy(values.toarray())
    scale = LearnedAugmenter()
    # Values that are log values already stay as they are.
    scale.build(adata.n_vars, likelihood, float(model.module.target_library))
    real = scale.log_values(x).numpy()
    copies = scale.log_values(model.module.augmenter(x, {"cell": torch.from_numpy(everyone)})).numpy()
    train, test = train_test_split(everyone, test_size=0.3, random_state=0, stratify=truth)
    return {**_types_of_copies(real, copies, truth, train, test), **_spread(real, copies, truth), **_told(real, copies)}


def _types_of_copies(real, copies, truth, train, test) -> dict[str, float]:
    """Accuracy of a classifier of real cells on held-out cells and their copies; also where it is sure of the cell."""
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(C=0.05, max_iter=300).fit(real[train], truth[train])
    sure = classifier.predict_proba(real[test]).max(1) > 0.9
    of_real = classifier.predict(real[test]) == truth[test]
    of_copies = classifier.predict(copies[test]) == truth[test]
    return {
        "real_accuracy": of_real.mean(),
        "copy_accuracy": of_copies.mean(),
        "sure": sure.mean(),
        "real_accuracy_sure": of_real[sure].mean(),
        "copy_accuracy_sure": of_copies[sure].mean(),
    }


def _spread(real, copies, truth) -> dict[str, float]:
    """Variance of the copies inside types over that of the cells, summed over genes: mean over cells, and extremes."""
    types, sizes = np.unique(truth, return_counts=True)
    types, sizes = types[sizes >= 10], sizes[sizes >= 10]
    ratio = [copies[truth == name].var(0).sum() / real[truth == name].var(0).sum() for name in types]
    return {
        "variance_ratio": np.average(ratio, weights=sizes),
        "variance_least": min(ratio),
        "variance_most": max(ratio),
    }


def _told(real, copies) -> dict[str, float]:
    """Area under the curve of classifiers that tell copies from other real cells, on held-out ones.

    Half of the cells are shown as they are and half as their copies, so that no pair gives a copy away. In 50
    principal components: logistic regression, random forest and gradient boosting. On all genes: gradient boosting.
    """
    from sklearn.decomposition import PCA
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    first, second = np.array_split(np.random.default_rng(0).permutation(len(real)), 2)
    values = np.vstack([real[first], copies[second]])
    is_copy = np.repeat([0, 1], [len(first), len(second)])
    train, test = train_test_split(np.arange(len(values)), test_size=0.4, stratify=is_copy, random_state=0)
    components = PCA(50, random_state=0).fit(values[train]).transform(values)
    classifiers = {
        "auc_linear": (components, make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))),
        "auc_forest": (components, RandomForestClassifier(300, random_state=0)),
        "auc_boosting": (components, HistGradientBoostingClassifier(random_state=0)),
        "auc_genes": (values, HistGradientBoostingClassifier(random_state=0)),
    }
    return {
        key: roc_auc_score(is_copy[test], model.fit(points[train], is_copy[train]).predict_proba(points[test])[:, 1])
        for key, (points, model) in classifiers.items()
    }


def render(runs: list[dict], path: Path, scores: list[str], title: str) -> None:
    """Markdown: means over seeds of every score, per data set and augmenter."""
    table = pd.DataFrame(runs)
    scores = [score for score in (*scores, "seconds_augmenter", "seconds") if score in table]
    grouped = table.groupby(["data", "augmenter"], sort=False)
    summary = grouped[scores].mean()
    summary.insert(0, "seeds", grouped.size())
    text = summary.round(3).reset_index().sort_values("data", kind="stable").to_markdown(index=False)
    path.write_text(f"# {title}\n\nMeans over seeds. Written by `benchmarks/augmenters.py`.\n\n{text}\n")


def main() -> None:
    """Run what is missing and write the table."""
    import logging

    import scvi
    import torch
    from _data import CASES
    from _states_models import MORE

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["types", "copies"])
    parser.add_argument("--data", nargs="+", default=["scmix", "pbmc4k", "worm", "rnamix"], choices=[*CASES, *MORE])
    parser.add_argument("--augmenters", nargs="+", default=AUGMENTERS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="file of the runs, beside which the table is written")
    parser.add_argument("--render", action="store_true", help="write the table from the runs that are there")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    torch.set_num_threads(1)
    if options.what == "types":
        path, run, scores, title = RESULTS / "augmenters.jsonl", run_types, SCORES + STATES, "Augmenters"
    else:
        path, run, scores, title = RESULTS / "augmenter_copies.jsonl", run_copies, COPIES, "Augmenters: copies"
    path = options.out or path
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = _lines.read(path)
    done = {(entry["data"], entry["augmenter"], entry["seed"]) for entry in runs}
    shared = Shared()
    wanted = [(d, a, s) for d in options.data for s in options.seeds for a in options.augmenters]
    for data, augmenter, seed in [] if options.render else _lines.missing(wanted, done, path):
        scored = run(data, augmenter, seed, shared)
        scored = {key: round(float(value), 4) for key, value in scored.items() if np.isfinite(value)}
        entry = {"data": data, "augmenter": augmenter, "seed": seed, **scored}
        runs.append(entry)
        _lines.add(path, entry)
        print(json.dumps(entry), flush=True)
    if runs:
        render(runs, path.with_suffix(".md"), scores, title)


if __name__ == "__main__":
    main()
