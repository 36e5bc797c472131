"""Pages that are made from other files of the repository each time the documentation is built.

The benchmark page is made from the lines of JSON that the harnesses in ``benchmarks/`` wrote, and the tutorials are the
notebooks in ``tutorials/``. Nothing of this is kept under version control, but for the results in the README, which
``benchmarks/types.py`` renders with its tables.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import defaultdict
from pathlib import Path

#: Data sets of the benchmark of types, with the number of reference types.
DATA = {
    "pbmc4k": "pbmc4k (8)",
    "worm": "worm (10)",
    "zeisel7": "zeisel7 (7)",
    "tasic2016": "tasic2016 (23)",
    "kang": "kang (13)",
    "zeisel48": "zeisel48 (47)",
    "paul": "paul (19)",
    "scmix": "scmix (3)",
    "kidney": "kidney (11)",
    "bladder": "bladder (16)",
    "cbmc": "cbmc (15)",
    "simulated115": "simulated (115)",
}
METHODS = {
    "pca_kmeans": "PCA + k-means",
    "pca_gmm": "PCA + Gaussian mixture",
    "pca_leiden": "PCA + Leiden at K",
    "pca_leiden1": "PCA + Leiden at resolution 1",
    "pca_scaled_kmeans": "PCA, genes scaled, + k-means",
    "pca_scaled_gmm": "PCA, genes scaled, + Gaussian mixture",
    "pca_scaled_leiden": "PCA, genes scaled, + Leiden at K",
    "pca_scaled_leiden1": "PCA, genes scaled, + Leiden at resolution 1",
    "scvi_kmeans": "scVI + k-means",
    "scvi_gmm": "scVI + Gaussian mixture",
    "scvi_leiden": "scVI + Leiden at K",
    "scvi_leiden1": "scVI + Leiden at resolution 1",
    "paper_1arm": "the paper's objective, 1 arm",
    "paper": "the paper's objective, 2 arms",
    "cplmixvi_1arm": "cplmixvi, 1 arm",
    "cplmixvi": "cplmixvi (2 arms, default)",
    "cplmixvi_3arms": "cplmixvi, 3 arms",
    "cplmixvi_5arms": "cplmixvi, 5 arms",
    "cplmixvi_own_k": "cplmixvi, number of types not given",
}
OURS = ("cplmixvi_1arm", "cplmixvi", "cplmixvi_3arms", "cplmixvi_5arms", "cplmixvi_own_k")
#: Those of ours that the figure has.
DRAWN = ("cplmixvi_1arm", "cplmixvi", "cplmixvi_own_k")
#: Rows and columns of the README. The baselines are those whose names begin with one of these.
README_METHODS = ("pca_leiden", "scvi_leiden", "best", "paper_1arm", "paper", "cplmixvi_1arm", "cplmixvi")
README_METHODS += ("cplmixvi_own_k",)
README_DATA = ("pbmc4k", "worm", "zeisel7", "tasic2016", "kang", "zeisel48", "kidney", "bladder", "cbmc")
#: Those that were first scored when the recipe was settled.
UNSEEN = ("kidney", "bladder", "cbmc")
README_SCORES = {"accuracy": "accuracy", "ari": "ARI"}
BASELINES = ("pca_", "scvi_")
README_MARKERS = (
    "<!-- Made by benchmarks/types.py --render from benchmarks/results/types.jsonl: do not edit. -->",
    "<!-- End of what is made. -->",
)
SCORES = {"ari": "Adjusted Rand index", "accuracy": "Accuracy of one-to-one matching", "nmi": "NMI"}


def write_all(docs: Path) -> None:
    """Write every page that is made from something else into ``docs``."""
    made = docs / "generated"
    made.mkdir(exist_ok=True)
    results = docs.parent / "benchmarks" / "results"
    rows = read_lines(results / "types.jsonl")
    (made / "benchmark_types.md").write_text(small_tables(types_page(rows)), encoding="utf-8")
    draw_types(rows, made / "benchmark_types.png")
    for name in ("augmenters", "augmenter_copies", "states", "states_held_out", "large", "speed"):
        page = small_tables(without_title(results / f"{name}.md"))
        (made / f"benchmark_{name}.md").write_text(page, encoding="utf-8")
    shutil.copy(results / "speed.png", made / "benchmark_speed.png")
    summary = docs.parent / "benchmarks" / "paper" / "results" / "summary.md"
    (made / "benchmark_paper.md").write_text(small_tables(without_title(summary)), encoding="utf-8")
    copy_tutorials(docs.parent / "tutorials", docs / "tutorials")


def read_lines(path: Path) -> list[dict]:
    """Read one run a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _by_seed(rows: list[dict], score: str) -> dict[str, dict[str, dict[int, float]]]:
    """What every seed scored, by method and data set."""
    values = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        value = row.get(score)
        if value is not None and not math.isnan(value):
            # A later line about the same run replaces an earlier one, as in the harness.
            values[row["method"]][row["data"]][row["seed"]] = value
    return values


def means(rows: list[dict], score: str) -> dict[str, dict[str, tuple[float, int]]]:
    """Mean over seeds and their number, by method and data set."""
    return {
        method: {data: (sum(seeds.values()) / len(seeds), len(seeds)) for data, seeds in by_data.items()}
        for method, by_data in _by_seed(rows, score).items()
    }


def types_page(rows: list[dict]) -> str:
    """Tables of the benchmark of types in Markdown."""
    known = [data for data in DATA if any(row["data"] == data for row in rows)]
    parts = []
    for score, title in SCORES.items():
        table = means(rows, score)
        best = {data: max(round(by[data][0], 2) for by in table.values() if data in by) for data in known}
        lines = [
            f"### {title}",
            "",
            "| | " + " | ".join(DATA[data] for data in known) + " |",
            "|---" * (len(known) + 1) + "|",
        ]
        for method, label in METHODS.items():
            if method not in table:
                continue
            cells = []
            for data in known:
                if data not in table[method]:
                    cells.append("-")
                    continue
                value, n_seeds = table[method][data]
                text = f"{value:.2f}"
                text = f"**{text}**" if round(value, 2) == best[data] else text
                cells.append(f"{text} <small>({n_seeds})</small>")
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    parts.append(_where_baselines_win(_with_best(rows)[0]))
    return "\n\n".join(parts) + "\n"


def write_readme(readme: Path, rows: list[dict]) -> None:
    """Put the results between the markers of the README."""
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(README_MARKERS[0])
    _, after = rest.split(README_MARKERS[1])
    made = "\n\n".join([README_MARKERS[0], readme_results(rows), README_MARKERS[1]])
    readme.write_text(before + made + after, encoding="utf-8")


def readme_results(rows: list[dict]) -> str:
    """Table of accuracy and ARI in Markdown, and what it leaves out: seeds, numbers found, and where baselines win."""
    scores, baselines = _with_best(rows)
    labels = METHODS | {"best": f"best of {len(baselines)} baselines, for each score"}
    labels["cplmixvi"] = labels["cplmixvi"].replace("cplmixvi", "**cplmixvi**", 1)
    lines = ["| accuracy / ARI | " + " | ".join(DATA[data] for data in README_DATA) + " |"]
    lines.append("|---" * (len(README_DATA) + 1) + "|")
    for method in README_METHODS:
        both = [[scores[score].get(method, {}).get(data) for score in scores] for data in README_DATA]
        cells = ["-" if None in pair else " / ".join(f"{value:.2f}" for value, _ in pair) for pair in both]
        lines.append(f"| {labels[method]} | " + " | ".join(cells) + " |")
    below = [_seeds(scores["ari"]), _unseen(scores, baselines), _numbers_found(rows), _where_baselines_win(scores)]
    return "\n".join([*lines, "", *below])


def _with_best(rows: list[dict]) -> tuple[dict[str, dict[str, dict[str, tuple[float, int]]]], list[str]]:
    """Means of accuracy and ARI, with those of the best baseline as one more method, and the names of the baselines."""
    scores = {score: means(rows, score) for score in README_SCORES}
    baselines = [method for method in METHODS if method.startswith(BASELINES) and method in scores["ari"]]
    for table in scores.values():
        table["best"] = {
            data: (max(table[method][data][0] for method in baselines if data in table[method]), 0)
            for data in README_DATA
            if any(data in table[method] for method in baselines)
        }
    return scores, baselines


def _seeds(table: dict[str, dict[str, tuple[float, int]]]) -> str:
    parts = []
    for method in README_METHODS:
        numbers = sorted({table[method][data][1] for data in README_DATA if data in table.get(method, {})} - {0})
        if numbers:
            shown = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
            parts.append(f"{METHODS[method]} ({shown})")
    return f"Seeds: {'; '.join(parts)}."


def _unseen(scores: dict[str, dict[str, dict[str, tuple[float, int]]]], baselines: list[str]) -> str:
    """Means over the sets that had no part in choices: of the default and of each score's best baseline."""

    def mean(score: str, method: str) -> float:
        return sum(scores[score][method][data][0] for data in UNSEEN) / len(UNSEEN)

    parts = []
    for score, name in README_SCORES.items():
        whole = [method for method in baselines if set(UNSEEN) <= set(scores[score][method])]
        best = max(whole, key=lambda method: mean(score, method))
        parts.append(f"{name} {mean(score, 'cplmixvi'):.2f} against {mean(score, best):.2f} ({METHODS[best]})")
    left_out = [data for data in README_DATA if data not in scores["ari"]["scvi_leiden"]]
    return (
        f"{', '.join(UNSEEN)} had no part in any choice of the recipe for a given number. Means over them, against the "
        f"best single baseline: {'; '.join(parts)}. scVI was not run on {', '.join(left_out)}."
    )


def _numbers_found(rows: list[dict]) -> str:
    """Numbers of its own, from the least to the most of the seeds, with the reference's in brackets."""
    found, given = _by_seed(rows, "n_categories")["cplmixvi_own_k"], {row["data"]: row["n_types"] for row in rows}
    shown = []
    for data in [data for data in DATA if data in found]:
        least, most = min(found[data].values()), max(found[data].values())
        several = f" to {most:g}" if most > least else ""
        shown.append(f"{DATA[data].split(' ')[0]} {least:g}{several} ({given[data]:g})")
    return f"Number of types found (reference): {', '.join(shown)}."


def _where_baselines_win(scores: dict[str, dict[str, dict[str, tuple[float, int]]]]) -> str:
    parts = []
    for score, name in README_SCORES.items():
        best, ours = (scores[score][method] for method in ("best", "cplmixvi"))
        ahead = [d for d in README_DATA if d in best and d in ours and f"{best[d][0]:.2f}" > f"{ours[d][0]:.2f}"]
        parts.append(f"in {name} on {', '.join(ahead) if ahead else 'none'}")
    return f"The best baseline beats the default {' and '.join(parts)}."


def draw_types(rows: list[dict], path: Path) -> None:
    """Draw the adjusted Rand index of every method on every data set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = means(rows, "ari")
    known = [data for data in DATA if data != "simulated115" and any(data in by for by in table.values())]
    colours = {"cplmixvi": "#0b4f8a", "cplmixvi_1arm": "#6ea6d7", "cplmixvi_own_k": "#d1742f"}
    figure, ax = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for x, data in enumerate(known):
        others = [by[data][0] for method, by in table.items() if data in by and method not in OURS]
        # Beside ours, which would hide those that are as good.
        ax.plot([x - 0.24] * len(others), others, "o", color="0.75", markersize=5, zorder=1)
        for shift, method in zip((-0.06, 0.1, 0.26), DRAWN, strict=True):
            if data in table.get(method, {}):
                ax.plot(x + shift, table[method][data][0], "D", color=colours[method], markersize=6, zorder=2)
    ax.plot([], [], "o", color="0.75", label="baselines and the paper's objective")
    for method in DRAWN:
        ax.plot([], [], "D", color=colours[method], label=METHODS[method])
    ax.set_xticks(range(len(known)), [DATA[data].replace(" ", "\n") for data in known], fontsize=8)
    ax.set(ylabel="adjusted Rand index", ylim=(0, 1.05))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=7.5, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.0)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def without_title(path: Path) -> str:
    """Text of a page of results whose headings are one level deeper, without its title."""
    lines = path.read_text(encoding="utf-8").splitlines()
    body = [line for line in lines if not line.startswith("# ")]
    return "\n".join(f"#{line}" if line.startswith("## ") else line for line in body).strip() + "\n"


def small_tables(page: str) -> str:
    """Give tables the class that the style sheet makes small, let names of columns break, and leave out what is not."""
    lines: list[str] = []
    was_row = False
    for line in [*page.splitlines(), ""]:
        is_row = line.startswith("|")
        if is_row and not was_row:
            lines += ["````{table}", ":class: bench", "", line.replace("_", "_<wbr>")]
        elif was_row and not is_row:
            lines += ["````", line]
        else:
            lines.append(re.sub(r"\|( +)nan +(?=\|)", r"|\1- ", line))
        was_row = is_row
    return "\n".join(lines)


def copy_tutorials(source: Path, target: Path) -> None:
    """Copy the notebooks, with their saved outputs."""
    target.mkdir(exist_ok=True)
    for old in target.glob("*.ipynb"):
        old.unlink()
    for notebook in sorted(source.glob("*.ipynb")):
        shutil.copy(notebook, target / notebook.name)
