"""Images of the paper's experiments, and the methods that are compared on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import scvi
from anndata import AnnData

import cplmixvi as cpl
from cplmixvi.augment import Affine

QUIET = {"enable_progress_bar": False, "logger": False}
#: Images that are trained on and epochs, by setting. The full ones are for a machine with a GPU.
SETTINGS = {
    "short": {"mnist": (10_000, 40), "dsprites": (4_000, 20)},
    "full": {"mnist": (60_000, 100), "dsprites": (50_000, 50)},
}


@dataclass(frozen=True)
class Images:
    """A data set: what is known of it beside the images."""

    label: str
    n_types: int
    n_state: int
    affine: Affine
    capacities: dict[str, float]
    cascade: dict[str, float] = field(default_factory=dict)


IMAGES = {
    "mnist": Images("digit", 10, 10, Affine(), {"capacity_state": 5, "capacity_category": 5, "gamma": 30}),
    "dsprites": Images(
        "shape",
        3,
        6,
        Affine(rotation=180, shear=0, scale=0.3, translation=0.2),
        {"capacity_state": 40, "capacity_category": 1.1, "gamma": 150},
        {"category_stage": 4},
    ),
}


@cache
def load(name: str, setting: str) -> tuple[AnnData, AnnData]:
    """Images to train on, the same for all methods and seeds, and others to score on."""
    n = SETTINGS[setting][name][0]
    if name == "dsprites":
        everything = cpl.datasets.dsprites(n + 5_000)
        order = np.random.default_rng(0).permutation(everything.n_obs)
        return everything[order[:n]].copy(), everything[order[n:]].copy()
    digits = cpl.datasets.mnist()
    train = np.flatnonzero(digits.obs["split"] == "train")
    chosen = np.random.default_rng(0).permutation(train)[:n]
    return digits[chosen].copy(), digits[(digits.obs["split"] == "test").to_numpy()].copy()


Fit = Callable[[AnnData, str, int, int], cpl.CplMixVI]


def arms(*, augment: object = "affine", train: dict | None = None, **options) -> Fit:
    """The package's own model; ``augment="affine"`` is the one that suits the images."""

    def fit(adata: AnnData, name: str, seed: int, epochs: int) -> cpl.CplMixVI:
        case = IMAGES[name]
        scvi.settings.seed = seed
        cpl.CplMixVI.setup_anndata(adata)
        copies = case.affine if isinstance(augment, str) and augment == "affine" else augment
        given = {"n_state": case.n_state, "likelihood": "bernoulli", "augment": copies, **options}
        model = cpl.CplMixVI(adata, case.n_types, **given)
        model.train(epochs, **QUIET, **(train or {}))
        return model

    return fit


def single(kind: str, *, augmented: bool = False) -> Fit:
    """A baseline with the published settings of the data set, on the same network."""

    def fit(adata: AnnData, name: str, seed: int, epochs: int) -> cpl.CplMixVI:
        case, cls = IMAGES[name], getattr(cpl.baselines, kind)
        scvi.settings.seed = seed
        cls.setup_anndata(adata)
        options = case.capacities if kind == "JointVAE" else case.cascade
        copies = case.affine if augmented else "none"
        model = cls(adata, case.n_types, n_state=case.n_state, likelihood="bernoulli", augment=copies, **options)
        model.train(epochs, **QUIET)
        return model

    return fit


#: The paper's objective alone: Eq. 8 with the perturbed distance, lambda 1, no start and no guide.
PAPER = {"distance": "perturbed", "epsilon": None, "train": {"warm_start": False}}
ROTATION = Affine(rotation=20, shear=0, scale=0, translation=0)

METHODS: dict[str, Fit] = {
    "cplmixvi": arms(),
    "JointVAE": single("JointVAE"),
    "CascadeVAE": single("CascadeVAE"),
    "paper's objective": arms(**PAPER),
    "JointVAE, augmented": single("JointVAE", augmented=True),
    "cplmixvi, rotations only": arms(augment=ROTATION),
    "cplmixvi, no augmentation": arms(augment="none"),
    "cplmixvi, state not given type": arms(state_given_category=False),
    "cplmixvi, no start": arms(train={"warm_start": False}),
    **{f"cplmixvi, {n} arm{'s' if n > 1 else ''}": arms(n_arms=n) for n in (1, 3, 5)},
}

#: Rows of every table: data sets and methods.
TABLES = {
    "table1": (("mnist", "dsprites"), ("cplmixvi", "JointVAE", "CascadeVAE", "paper's objective")),
    "tableS1": (
        ("mnist",),
        (
            "cplmixvi",
            "cplmixvi, rotations only",
            "cplmixvi, no augmentation",
            "cplmixvi, state not given type",
            "cplmixvi, no start",
            "JointVAE",
            "JointVAE, augmented",
        ),
    ),
    "arms": (("mnist",), ("cplmixvi, 1 arm", "cplmixvi", "cplmixvi, 3 arms", "cplmixvi, 5 arms")),
}

#: Accuracy in percent that the paper reports, mean and standard deviation of 10 seeds.
REPORTED = {
    ("mnist", "cplmixvi"): "84.56 ± 6.47",
    ("mnist", "JointVAE"): "68.99 ± 11.76",
    ("mnist", "CascadeVAE"): "81.41 ± 9.54",
    ("dsprites", "cplmixvi"): "96.30 ± 9.15",
    ("dsprites", "JointVAE"): "44.79 ± 3.88",
    ("dsprites", "CascadeVAE"): "78.84 ± 15.65",
}
