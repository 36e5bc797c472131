"""Tables of the paper: which fits they are made of, and how they are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

#: Accuracy in percent that the paper reports, mean and standard deviation of 10 seeds.
REPORTED = {
    ("mnist", "cplmixvi"): "84.56 ± 6.47",
    ("mnist", "JointVAE"): "68.99 ± 11.76",
    ("mnist", "CascadeVAE"): "81.41 ± 9.54",
    ("mnist", "InfoGAN"): "77.87 ± 21.68",
    ("dsprites", "cplmixvi"): "96.30 ± 9.15",
    ("dsprites", "JointVAE"): "44.79 ± 3.88",
    ("dsprites", "CascadeVAE"): "78.84 ± 15.65",
    ("tasic2018", "cplmixvi"): "38.78 ± 1.26",
    ("tasic2018", "JointVAE"): "12.53 ± 1.83",
    ("tasic2018", "CascadeVAE"): "2.69 ± 0.05",
}
REPORTED_DISENTANGLEMENT = {"cplmixvi": "89.98 ± 4.09", "JointVAE": "74.51 ± 5.17", "CascadeVAE": "90.49 ± 5.28"}
NAMES = {
    "dsprites": "re-rendered dSprites",
    "mnist_tail": "mnist, long tail (0 commonest)",
    "mnist_tail_reversed": "mnist, long tail (9 commonest)",
    "tasic2018": "Tasic 2018",
}
COMPARED = ("cplmixvi", "JointVAE", "CascadeVAE")
#: What clusters of images are, as they are and freed of how they stand; nothing is trained.
CLUSTERS = tuple(f"{of} + {how}" for of in ("pixels", "normal form") for how in ("k-means", "Leiden at K"))
NOT_RUN = "not run"
#: What else is said above a table.
SAID = {
    "propositions": "Confidence (Definition 1) is the mean logarithm of the probability of a type's own category. That "
    "of the mean of several arms is never below the mean of theirs, for any arms, because the logarithm is concave: "
    "its rise from left to right says nothing of the method. That of the product may fall, and `types that gain` is "
    "the share of types in which it rises with one more arm. ",
}
BY_ARMS = ("cplmixvi, 1 arm", "cplmixvi", "cplmixvi, 3 arms", "cplmixvi, 5 arms")


@dataclass(frozen=True)
class Table:
    """Data sets and methods of a table, and what it says of each.

    Attributes
    ----------
    needs
        Scores that every fit must have: one without them, from before they were taken, is repeated.
    by_default
        Data sets that are fitted unless others are named; all if empty.
    only
        Data sets that a method is fitted to, of methods that are not for all.
    """

    data: tuple[str, ...]
    methods: tuple[str, ...]
    needs: tuple[str, ...] = ()
    by_default: tuple[str, ...] = ()
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def fits(self, data: list[str] | None, methods: list[str] | None, seeds: int) -> list[tuple[str, str, int]]:
        """Fits of the data sets and methods that are asked for, where these can be fitted."""
        return [
            (name, method, seed)
            for seed in range(seeds)
            for name in data or self.by_default or self.data
            for method in methods or self.methods
            if self.has(name, method)
        ]

    def has(self, name: str, method: str) -> bool:
        """Whether a method is for a data set."""
        return name in self.only.get(method, self.data)


TABLES = {
    # Fitted when they are asked for: the paper's own cells are a large download, and with 115 types every step of
    # CascadeVAE decodes its cells 115 times.
    "table1": Table(
        ("mnist", "dsprites", "tasic2016", "zeisel48", "simulated115", "tasic2018"),
        (*COMPARED, "InfoGAN", "paper's objective", *CLUSTERS),
        only={"InfoGAN": ("mnist",), **dict.fromkeys(CLUSTERS, ("mnist", "dsprites"))},
        by_default=("mnist", "dsprites", "tasic2016", "zeisel48"),
    ),
    "tableS1": Table(
        ("mnist",),
        (
            "cplmixvi",
            "cplmixvi, rotations only",
            "cplmixvi, no augmentation",
            "cplmixvi, state not given type",
            "cplmixvi, shared arms",
            "cplmixvi, no start",
            "JointVAE",
            "JointVAE, augmented",
            "JointVAE, convolutions",
        ),
    ),
    "arms": Table(("mnist", "tasic2016", "zeisel48"), (*BY_ARMS, "JointVAE"), by_default=("mnist",)),
    "tail": Table(("mnist_tail", "mnist_tail_reversed"), (*COMPARED, *CLUSTERS), needs=("balanced_accuracy",)),
    "disentanglement": Table(("dsprites",), COMPARED, needs=("disentanglement",)),
    "traversal": Table(("mnist",), ("cplmixvi", "JointVAE"), needs=("flips",)),
    "propositions": Table(("mnist",), BY_ARMS, needs=("confidence_mean",)),
}


def _percent(values: pd.Series) -> str:
    # One seed has no spread.
    return f"{100 * values.mean():.2f}" + (f" ± {100 * values.std(ddof=0):.2f}" if len(values) > 1 else "")


def _numbers(lists: pd.Series) -> str:
    """Means over seeds of lists of numbers."""
    return ", ".join(f"{value:.2f}" for value in pd.DataFrame(lists.tolist()).mean())


def _row(table: str, name: str, method: str, some: pd.DataFrame) -> dict[str, str | int]:
    row = {"data": NAMES.get(name, name), "method": method}
    if some.empty:
        score = "balanced accuracy %" if table == "tail" else "accuracy %"
        row |= {score: NOT_RUN, "seeds": 0}
        return row if TABLES[table].needs else row | {"paper, accuracy %": REPORTED.get((name, method), "")}
    if table == "propositions":
        for kind in ("mean", "product"):
            row[f"confidence, {kind} of 1 ... A arms"] = _numbers(some[f"confidence_{kind}"])
        row["types that gain, product"] = _numbers(some["types_more_confident_product"])
        if "bounds_hold" in some and some["bounds_hold"].notna().all():
            row |= {"bounds hold": f"{some['bounds_hold'].mean():.3f}"}
            for side in ("lower", "upper"):
                row[f"printed {side}"] = f"{some[f'printed_{side}_holds'].mean():.3f}"
        return row | {"accuracy %": _percent(some["accuracy"]), "seeds": len(some)}
    if table == "tail":
        worst = f"{100 * some['balanced_accuracy'].min():.2f}"
        return row | {"balanced accuracy %": _percent(some["balanced_accuracy"]), "worst": worst, "seeds": len(some)}
    row |= {"accuracy %": _percent(some["accuracy"]), "worst": f"{100 * some['accuracy'].min():.2f}"}
    if table == "disentanglement":
        row |= {"disentanglement %": _percent(some["disentanglement"]), "MIG": f"{some['mig'].mean():.3f}"}
        return row | {"seeds": len(some), "paper, disentanglement %": REPORTED_DISENTANGLEMENT.get(method, "")}
    if table == "traversal":
        row |= {f"{key} %": f"{100 * some[key].mean():.2f}" for key in ("flips_main", "flips")}
        return row | {"slant R2": f"{some['slant_r2'].mean():.2f}", "seeds": len(some)}
    row |= {"NMI": f"{some['nmi'].mean():.3f}", "used": f"{some['n_used'].mean():.1f}", "seeds": len(some)}
    row["epochs"] = f"{some['epochs'].iloc[0]:.0f}" if "epochs" in some else ""
    row |= {"observations": f"{some['n_images'].iloc[0]:.0f}", "seconds": f"{some['seconds'].mean():.0f}"}
    if "steps" in some and some["steps"].notna().all():
        row["it/s"] = f"{(some['steps'] / some['seconds']).mean():.1f}"
    return row | {"paper, accuracy %": REPORTED.get((name, method), "")}


def render(runs: list[dict], table: str, path: Path) -> None:
    """Mean, standard deviation and worst seed of every row, with what the paper reports, and which were not run."""
    rows, known = [], TABLES[table]
    for name in known.data:
        for method in known.methods:
            if not known.has(name, method):
                continue
            some = pd.DataFrame(
                [
                    entry
                    for entry in runs
                    if (entry["data"], entry["method"]) == (name, method) and set(known.needs) <= set(entry)
                ]
            )
            rows.append(_row(table, name, method, some))
    # Columns in the order of the fullest row: one that was not run has few of them.
    columns = dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row)
    text = pd.DataFrame(rows, columns=list(columns)).fillna("").to_markdown(index=False, disable_numparse=True)
    path.write_text(
        f"# {table}\n\nAccuracy by one-to-one matching, of images on those that were not trained on, of cells on all; "
        f"mean, standard deviation and worst of the seeds. {SAID.get(table, '')}Written by "
        f"`benchmarks/paper/run.py {table}`.\n\n{text}\n"
    )


@dataclass(frozen=True)
class Claim:
    """A number of the paper (or a bar of our own, where ``paper`` is empty) and the fits that answer it."""

    table: str
    data: str
    method: str
    score: str
    what: str
    paper: str = ""


def claims() -> list[Claim]:
    """Rows of the summary, in the order of the paper."""
    accuracies = [
        Claim("table1", data, method, "accuracy", "accuracy", REPORTED.get((data, method), ""))
        for data in TABLES["table1"].data
        for method in TABLES["table1"].methods
        if TABLES["table1"].has(data, method)
    ]
    votes = [
        Claim("disentanglement", "dsprites", method, "disentanglement", "disentanglement", paper)
        for method, paper in REPORTED_DISENTANGLEMENT.items()
    ]
    ablations = [
        Claim("tableS1", "mnist", method, "accuracy", "accuracy")
        for method in TABLES["tableS1"].methods
        if method not in TABLES["table1"].methods
    ]
    by_arms = [Claim("arms", "mnist", method, "accuracy", "accuracy") for method in BY_ARMS if method != "cplmixvi"]
    tails = [
        Claim("tail", data, method, "balanced_accuracy", "balanced accuracy")
        for data in TABLES["tail"].data
        for method in TABLES["tail"].methods
    ]
    walks = [
        Claim("traversal", "mnist", "cplmixvi", "flips_main", "type flips along the main path"),
        Claim("traversal", "mnist", "cplmixvi", "flips", "type flips along all paths"),
    ]
    return accuracies + votes + ablations + by_arms + tails + walks


def summarise(runs: list[dict], path: Path) -> None:
    """Write what the paper reports, what was found and the command that finds it, for every claim."""
    rows = []
    for claim in claims():
        values = [
            entry[claim.score]
            for entry in runs
            if (entry["data"], entry["method"]) == (claim.data, claim.method) and claim.score in entry
        ]
        found = pd.Series(values, dtype=float)
        command = f'run.py {claim.table} --data {claim.data} --methods "{claim.method}" --seeds {max(len(values), 1)}'
        rows.append(
            {
                "data": NAMES.get(claim.data, claim.data),
                "method": claim.method,
                "score, %": claim.what,
                "paper": claim.paper,
                "here": _percent(found) if values else NOT_RUN,
                "worst seed": f"{100 * (found.max() if 'flips' in claim.score else found.min()):.2f}" if values else "",
                "seeds": len(values),
                "command": f"`{command}`",
            }
        )
    text = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    path.write_text(f"# The paper's numbers\n\n{text}\n")
