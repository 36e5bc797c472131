"""The documentation says what is there: names, tests, commands and imports that it mentions exist."""

import ast
import importlib.util
import inspect
import json
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import cplmixvi as cpl
from cplmixvi.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCS, TUTORIALS = ROOT / "docs", ROOT / "tutorials"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not part of the sdist")

ECE = "expected_calibration_error"
ROOMS = ("model", "pp", "tl", "pl", "metrics", "datasets", "augment", "io", "sklearn", "baselines", "train", "module")


def text(path):
    return (ROOT / path).read_text(encoding="utf-8")


def code_of(notebook):
    """Source of the code cells, without the lines that are not Python."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(line for source in sources for line in source.splitlines() if not line.startswith(("!", "%")))


def python_blocks(path):
    return "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL))


PAGES = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("*/*.md")), ROOT / "README.md"]
PAGES = [page for page in PAGES if page.parent.name != "generated"]
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))


@pytest.mark.parametrize("room", ROOMS)
def test_reference_lists_all_public_names_and_no_others(room):
    page = text(f"docs/api/{room}.md")
    listed = {line.strip() for line in page.splitlines() if re.fullmatch(r"   [A-Za-z]\w*", line)}
    listed |= set(re.findall(r"`([A-Za-z_]+)`", page)) & set(import_module(f"cplmixvi.{room}").__all__)
    assert listed == set(import_module(f"cplmixvi.{room}").__all__)


def test_reference_lists_the_top_level():
    listed = set(re.findall(r"^   (\w+)$", text("docs/api/model.md"), flags=re.MULTILINE))
    assert listed | {room for room in ROOMS if f"{{doc}}`{room}`" in text("docs/api/index.md")} >= set(cpl.__all__)


def test_attributes_are_described_one_by_one():
    """Sphinx makes an entry of each attribute of a class, but not of two that share a description."""
    n_described = 0
    for room in ("model", "pp", "tl", "metrics", "augment", "io", "sklearn"):
        module = import_module(f"cplmixvi.{room}")
        for member in filter(inspect.isclass, (getattr(module, name) for name in module.__all__)):
            doc = inspect.getdoc(member) or ""
            section = re.search(r"^Attributes\n-+\n(.*?)(?=\n\n\w|\Z)", doc, flags=re.DOTALL | re.MULTILINE)
            heads = re.findall(r"^\S.*$", section[1], flags=re.MULTILINE) if section else []
            assert not [head for head in heads if "," in head.partition(":")[0]], member
            n_described += len(heads)
    assert n_described > 40


def test_files_name_one_version_and_the_changelog_has_it():
    version = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    for file in ("CITATION.cff", ".github/scverse/meta.yaml"):
        assert re.search(r"^version: (.*)$", text(file), flags=re.MULTILINE)[1] == version
    headings = re.findall(r"^## \[(.*?)\](?: - (.*))?$", text("CHANGELOG.md"), flags=re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    latest, released = headings[1]
    # Between releases the version is that of the next one with ".dev".
    assert version == latest or (".dev" in version and version > latest)
    assert f'date-released: "{released}"' in text("CITATION.cff")


def test_tests_that_keep_promises_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text("docs/promises.md"))
    assert len(named) > 30
    for file, name in named:
        assert re.search(rf"^\s*def {name}\(", text(f"tests/{file}"), flags=re.MULTILINE), f"{file} has no {name}"


#: Names that scvi-tools has from 1.5 on, which needs Python 3.12.
NEWER = {"setup_annbatch"}


@pytest.mark.parametrize("source", [*NOTEBOOKS, *PAGES], ids=lambda path: path.name)
def test_names_in_code_exist(source):
    code = code_of(source) if source.suffix == ".ipynb" else python_blocks(source)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node).split(".")
            if dotted[0] in ("cpl", "cplmixvi") and all(part.isidentifier() for part in dotted):
                found = cpl
                for part in dotted[1:]:
                    if part in NEWER and not hasattr(found, part):
                        break
                    found = getattr(found, part)


@pytest.mark.parametrize("source", PAGES, ids=lambda path: path.name)
def test_links_to_the_reference_lead_somewhere(source):
    for name in re.findall(r"\{(?:func|class|meth|mod)\}`([\w.]+)`", source.read_text(encoding="utf-8")):
        module, found = cpl, None
        for part in name.split(".")[1:]:
            try:
                found = getattr(module, part)
            except AttributeError:
                found = import_module(f"cplmixvi.{part}")
            module = found
        assert module is not None, name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_were_run_from_top_to_bottom_without_an_error(notebook):
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert notebook.stat().st_size < 1_000_000


def test_every_notebook_is_listed_twice_in_the_page_of_tutorials():
    # In the table and in the table of contents.
    assert len(NOTEBOOKS) >= 6
    listed = re.findall(r"tutorials/(\w+)", text("docs/tutorials.md"))
    assert sorted(listed) == sorted(2 * [notebook.stem for notebook in NOTEBOOKS])


def test_drawing_of_the_rooms_is_that_of_the_imports():
    drawn, alone = {}, ("_constants", "_processes", "_memory", "_compiled", "_isolation")
    for line in text("docs/contributing.md").splitlines():
        match = re.match(r" (\w+) +\S.*?(?:<- (.*))?$", line)
        if match and ((ROOT / "cplmixvi" / match[1]).exists() or match[1] in alone):
            drawn[match[1]] = set((match[2] or "").replace(" ", "").split(",")) - {""}
    imports = {room: imports_of(room) for room in drawn}
    assert set(drawn) == {path.name for path in (ROOT / "cplmixvi").iterdir() if (path / "__init__.py").exists()} | {
        *alone
    }
    assert drawn == imports
    order = list(drawn)
    for room, above in drawn.items():
        assert all(order.index(other) < order.index(room) for other in above), room


def imports_of(room):
    """Rooms that the files of a room import, wherever in the file; what is imported for type checkers alone too."""
    package = ROOT / "cplmixvi"
    found = set()
    for file in (
        [package / f"{room}.py"] if (package / f"{room}.py").exists() else sorted((package / room).rglob("*.py"))
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level == 0 and (node.module or "").split(".")[0] == "cplmixvi":
                parts = node.module.split(".")[1:]
                found |= {parts[0]} if parts else {alias.name for alias in node.names}
    # The class itself is imported from the top in some places.
    return {"model" if name == "CplMixVI" else name for name in found} - {room}


def keys_on_the_page(command):
    """Keys of the line of JSON that the page on pipelines explains."""
    table = re.search(rf"\| key \| `{command}` \|\n(.*?)\n\n", text("docs/howto/pipeline.md"), flags=re.DOTALL)[1]
    return {key for line in table.splitlines() for key in re.findall(r"`(\w+)`", line.split("|")[1])}


@pytest.mark.parametrize("command", ["annotate", "traverse"])
def test_help_names_the_keys_that_the_page_explains(command, capsys):
    main([command, "--help"])
    words = " ".join(capsys.readouterr().out.split())
    named = re.search(r"one line of JSON: (.*?)\.", words)[1]
    assert set(named.split(", ")) == keys_on_the_page(command)


def commands_of_snippets():
    """Commands of the workflow languages with their variables filled in."""
    page = text("docs/howto/pipeline.md")
    snakemake = re.search(r'shell:\s+"(cplmixvi .*?)"', page)[1]
    options = re.search(r'options="(.*?)"', page)[1]
    filled = {"{input}": "IN", "{output.cells}": "OUT", "{params.options}": options, "{threads}": "1"}
    filled["{output.summary}"] = "SUMMARY"
    nextflow = re.search(r'"""\s+(cplmixvi .*?)\s+"""', page)[1]
    filled |= {"${counts}": "IN", "${counts.baseName}_annotated.h5ad": "OUT", "${counts.baseName}.json": "SUMMARY"}
    filled["${task.cpus}"] = "1"
    commands = []
    for workflow, command in (("snakemake", snakemake), ("nextflow", nextflow)):
        for name, value in sorted(filled.items(), key=lambda item: -len(item[0])):
            command = command.replace(name, value)
        commands.append(pytest.param(command, id=workflow))
    return commands


@pytest.mark.parametrize("command", commands_of_snippets() if DOCS.is_dir() else [])
def test_commands_of_workflows_run(command, make_counts, tmp_path, capsys):
    make_counts(n_obs=80).write_h5ad(tmp_path / "in.h5ad")
    command, summary = command.split(" > ")
    assert summary == "SUMMARY"
    assert "{" not in command
    paths = {"IN": str(tmp_path / "in.h5ad"), "OUT": str(tmp_path / "out.h5ad")}
    arguments = [paths.get(word, word) for word in command.split()[1:]]
    assert main([*arguments, "--max-epochs", "2"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert set(line) == keys_on_the_page("annotate")
    gate = re.search(r"jq -e '(.*?)'", text("docs/howto/pipeline.md"))[1]
    read = set(re.findall(r"\.([a-z_]+)", gate))
    assert "found_again" in read
    assert read <= set(line)
    assert (tmp_path / "out.h5ad").exists()


def pages_and_rows():
    """The module that makes pages from results, and the results of the benchmark of types."""
    spec = importlib.util.spec_from_file_location("docs_pages", DOCS / "_pages.py")
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    return pages, pages.read_lines(ROOT / "benchmarks" / "results" / "types.jsonl")


def test_results_of_the_readme_are_those_of_the_harness(tmp_path):
    pages, rows = pages_and_rows()
    copy = tmp_path / "README.md"
    copy.write_text(text("README.md"), encoding="utf-8")
    pages.write_readme(copy, rows)
    assert copy.read_text(encoding="utf-8") == text("README.md"), "run python benchmarks/types.py --render"
    # One more seed of one method and one set changes its number, and no other in its line.
    row = max((row for row in rows if row["method"] == "cplmixvi" and row["data"] == "worm"), key=lambda r: r["seed"])
    pages.write_readme(copy, [*rows, row | {"seed": row["seed"] + 1, "ari": 0.0}])
    before, after = (re.search(r"\*\*cplmixvi\*\*.*", page)[0] for page in (text("README.md"), copy.read_text()))
    changed = [pair for pair in zip(before.split("|"), after.split("|"), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1


def test_numbers_in_the_text_of_the_readme_are_those_of_the_harness():
    pages, rows = pages_and_rows()

    def short(value):
        return f"{value:.2f}".lstrip("0")

    def span(values):
        low, high = short(min(values)), short(max(values))
        return low if low == high else f"{low} to {high}"

    kang = [row for row in rows if row["data"] == "kang" and row["method"] == "cplmixvi"]
    accuracy, ari = (span([row[score] for row in kang]) for score in ("accuracy", "ari"))
    others = [by["kang"][0] for name, by in pages.means(rows, "accuracy").items() if name.startswith(pages.BASELINES)]
    readme = " ".join(text("README.md").split())
    assert f"accuracy {accuracy} and ARI {ari} on {len(kang)} seeds" in readme
    assert f"(mean accuracy at most {short(max(others))})" in readme
    states = pages.read_lines(ROOT / "benchmarks" / "results" / "states.jsonl")
    found = [row["stim_auc_dim1"] for row in states if (row["data"], row["variant"]) == ("kang", "default")]
    low, high = (f"{auc:.3f}".lstrip("0") for auc in (min(found), max(found)))
    assert f"(mean AUC within types {low} to {high})" in readme
    errors = {pages.DATA[data].split(" ")[0]: error for data, (error, _) in pages.means(rows, ECE)["cplmixvi"].items()}
    said = re.search(r"\(expected calibration error (.*?)\)", readme)[1].replace("kang2018", "kang")
    groups = re.findall(r"((?:[.\d]+ to )?[.\d]+) on (.*?)(?=, [.\d]|$)", said)
    named = [{name for name in errors if re.search(rf"\b{name}\b", sets)} for _, sets in groups]
    assert sorted(name for names in named for name in names) == sorted(errors)
    assert [numbers for numbers, _ in groups] == [span([errors[name] for name in names]) for names in named]


def test_calibration_with_a_number_of_its_own_is_that_of_the_harness():
    pages, rows = pages_and_rows()
    page = text("docs/user_guide/answers.md")
    own, given = (pages.means(rows, ECE)[method] for method in ("cplmixvi_own_k", "cplmixvi"))
    said = re.search(r"error is then (.*?), instead of (.*?) with the reference's number", page)
    named = dict.fromkeys(re.findall(r"\.\d\d on (\w+)", said[1]))
    assert len(named) == 4
    assert re.findall(r"(\.\d\d) on", said[1]) == [f"{own[data][0]:.2f}"[1:] for data in named]
    assert re.findall(r"\.\d\d", said[2]) == [f"{given[data][0]:.2f}"[1:] for data in named]
    found = {
        data: [row["n_categories"] for row in rows if (row["method"], row["data"]) == ("cplmixvi_own_k", data)]
        for data in named
    }
    types = {row["data"]: row["n_types"] for row in rows}
    for data, numbers in found.items():
        least, most = f"{min(numbers):g}", f"{max(numbers):g}"
        span = least if least == most else f"{least} to {most}"
        assert re.search(rf"on {data} \({span} (categories )?for {types[data]:g}( types)?\)", said[1]), data
    others = [f"{own[data][0]:.2f}"[1:] for data in own if data not in named]
    assert f"closer to the reference's, the error is {min(others)} to {max(others)}" in page
    assert len(others) == 7


def test_page_on_speed_has_the_ratios_of_the_harness():
    table = text("benchmarks/results/speed.md")
    head, _, *lines = re.search(r"## reference\n[^|]*\n((?:\|.*\n)+)", table)[1].splitlines()
    column = [name.strip() for name in head.split("|")].index("ratio")
    ratio = {line.split("|")[1].strip(): line.split("|")[column].strip() for line in lines}
    said = re.search(
        r"a step with two arms is (\S+) times .*? 512 cells and (\S+) times .*? it is (\S+) times",
        text("docs/howto/speed.md"),
    )
    assert said.groups() == tuple(
        ratio[name] for name in ("2 arms, batch 512", "2 arms, batch 1000", "3 arms, batch 1000")
    )


def test_benchmark_page_has_the_numbers_of_the_harness(tmp_path):
    pages, rows = pages_and_rows()
    results = ROOT / "benchmarks" / "results"
    table = re.search(r"## ARI\n\n(.*?)\n\n", (results / "types.md").read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    ari, n_compared = pages.means(rows, "ari"), 0
    for method, *values in lines:
        for data, value in zip(head[1:-1], values[:-1], strict=True):
            if value != "nan":
                assert ari[method][data][0] == pytest.approx(float(value), abs=6e-4), (method, data)
                n_compared += 1
    assert n_compared > 50
    pages.draw_types(rows, tmp_path / "types.png")
    assert (tmp_path / "types.png").stat().st_size > 10_000
    assert set(pages.METHODS) >= set(ari)
    assert set(pages.DATA) >= {row["data"] for row in rows}


def test_benchmark_page_explains_every_column_of_the_states():
    page = text("docs/benchmarks.md")
    explained = set(re.findall(r"`(\w+)`", page[page.index("## States") :]))
    n_columns = 0
    for table in ("states", "states_held_out"):
        for line in text(f"benchmarks/results/{table}.md").splitlines():
            names = [cell.strip() for cell in line.strip("|").split("|")]
            if {"data", "variant"} & set(names):
                columns = {name for name in names if not re.fullmatch(r"variance_\d", name)} - {
                    "data",
                    "variant",
                    "seeds",
                }
                assert columns <= explained, columns - explained
                n_columns += len(columns)
    assert n_columns > 30


def fits_of_the_paper():
    """Fits of the short setting by data set and method, a later line in the place of an earlier one."""
    lines = text("benchmarks/paper/results/short.jsonl").splitlines()
    fits = {(fit["data"], fit["method"], fit["seed"]): fit for fit in map(json.loads, lines)}
    found = {}
    for (data, method, _), fit in fits.items():
        found.setdefault((data, method), []).append(fit)
    return found


def table_below(page, heading):
    """Rows of the first table below a heading, without its head."""
    lines = page[page.index(f"### {heading}") :].split("\n\n|", 1)[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_what_the_normal_form_of_images_is_worth_is_said_with_the_numbers_of_the_harness():
    fits, page = fits_of_the_paper(), text("docs/benchmarks.md")
    methods = [f"{of} + {how}" for of in ("pixels", "normal form") for how in ("k-means", "Leiden at K")]
    data = {"MNIST": "mnist", "re-rendered dSprites": "dsprites"}
    data |= {
        f"MNIST, long tail, {n} the most common (balanced)": f"mnist_tail{s}" for n, s in ((0, ""), (9, "_reversed"))
    }

    def mean(name, method, digits=1):
        score = "balanced_accuracy" if name.startswith("mnist_tail") else "accuracy"
        # Where seeds were fitted before a score was taken, there are others that have it.
        values = [100 * fit[score] for fit in fits[name, method] if score in fit]
        assert len(values) == (10 if (name, method) == ("mnist", "cplmixvi") else 5)
        return f"{sum(values) / len(values):.{digits}f}"

    rows = table_below(page, "What images are freed of")
    assert [row[0] for row in rows] == list(data)
    for label, *numbers in rows:
        assert numbers == [mean(data[label], method) for method in (*methods, "cplmixvi")], label
    assert f"(accuracy {mean('mnist', 'cplmixvi, no start', 2)} %, five seeds)" in page
    assert f"{mean('mnist', 'normal form + Leiden at K')} % on MNIST (Leiden" in text("docs/howto/images.md")
    assert f"{mean('dsprites', 'normal form + k-means')} % on dSprites (k-means)" in text("docs/howto/images.md")


def test_steps_of_the_baselines_are_those_that_were_made():
    fits = fits_of_the_paper()
    rows = table_below(text("docs/benchmarks.md"), "Steps of the baselines")
    names = {"MNIST": ["mnist"], "dSprites": ["dsprites"], "cells": ["tasic2016", "zeisel48"]}
    assert len(rows) == 7
    for data, method, here, theirs, share in rows:
        each = [method] if "convolutions" in method else method.split(", ")
        for name in each:
            made = {fit["steps"] for of in names[data] for fit in fits[of, name] if "steps" in fit}
            # Of cells, whole epochs that come to about so many.
            assert made and all(abs(steps / int(here.replace(",", "")) - 1) < 0.01 for steps in made), (data, name)
        ratios = [int(number.replace(",", "")) / int(here.replace(",", "")) for number in re.findall(r"[\d,]+", theirs)]
        said = [float(number) for number in re.findall(r"1/([\d.]+)", share)]
        assert len(said) == len(ratios)
        assert all(abs(a / b - 1) < 0.07 for a, b in zip(said, ratios, strict=True)), (data, method)
