"""The scores that the harness of the paper's experiments takes itself, and how it keeps its fits."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import cplmixvi as cpl

HARNESS = Path(__file__).parents[1] / "benchmarks" / "paper"


@pytest.fixture
def harness(monkeypatch):
    """Import a module of the harness."""
    monkeypatch.syspath_prepend(str(HARNESS))

    def load(name):
        return __import__(name)

    return load


def test_long_tail_falls_by_even_ratios_from_5400_to_61(harness):
    digits = np.repeat(list("0123456789"), 6_000)
    for reverse in (False, True):
        rows = harness("_cases").tail_rows(digits, reverse=reverse)
        sizes = pd.Series(digits[rows]).value_counts().sort_index().to_numpy()
        sizes = sizes[::-1] if reverse else sizes
        assert sizes[0] == 5_400 and sizes[-1] == 61
        np.testing.assert_allclose(sizes[1:] / sizes[:-1], (61 / 5_400) ** (1 / 9), rtol=0.02)
        assert len(set(rows)) == len(rows)
        np.testing.assert_array_equal(rows, harness("_cases").tail_rows(digits, reverse=reverse))


def test_slant_is_that_of_a_drawn_stroke(harness):
    down, across = np.mgrid[:28, :28]
    images = np.stack([np.abs(across - 14 - tilt * (down - 14)) < 1 for tilt in (-0.4, 0.0, 0.5)]).astype(float)
    np.testing.assert_allclose(harness("_scores").slant(images), [-0.4, 0, 0.5], atol=0.03)


def test_bounds_are_those_of_the_proposition(harness):
    """By hand: K = 2, unit deviations in one arm, so that g is zero there."""
    scores = harness("_scores")
    log_p, log_q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]]).log()
    lower, upper = scores.printed_bounds(log_p, log_q, torch.ones(2), torch.tensor([0.5, 0.5]))
    g, tau_c = -np.log([0.8, 0.2]), np.log(0.5) - np.log(0.2)
    assert upper.item() == pytest.approx(2 * (g.max() ** 2 + tau_c**2) + 2 * g.sum() * tau_c, rel=1e-5)
    assert lower.item() == pytest.approx(g.sum() ** 2 / 2 - 2 * (-g).max() ** 2, rel=1e-5)


def test_propositions_of_arms_that_are_right_and_sure(harness):
    """Two arms that say the same with .9 each: their average is as sure, their product surer, and nothing moves."""
    rng = np.random.default_rng(0)
    types = rng.integers(0, 2, 400)
    x = np.zeros((400, 12), dtype=np.float32)
    x[np.arange(400)[:, None], 6 * types[:, None] + np.arange(6)] = 1
    adata = AnnData(x, obs={"type": types.astype(str)})
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, 2, likelihood="bernoulli", augment="none", share_arms=True, n_hidden=8)
    model.train(1, enable_progress_bar=False, warm_start=False)

    def said(values, covariates):
        p = torch.where(values[:, :1] > 0, torch.tensor([[0.9, 0.1]]), torch.tensor([[0.1, 0.9]]))
        return values, p.log()

    for arm in model.module.arms:
        arm.encode = said
    found = harness("_scores").propositions(model, adata, adata.obs["type"])
    assert found["confidence_mean"] == pytest.approx([np.log(0.9)] * 2, abs=1e-3)
    assert found["confidence_product"] == pytest.approx([np.log(0.9), np.log(0.81 / 0.82)], abs=1e-3)
    assert found["types_more_confident_product"] == [1.0]
    assert found["bounds_hold"] == 1.0


def test_a_later_line_replaces_an_earlier_one_and_tables_say_what_fits_they_need(harness, tmp_path):
    run, tables = harness("run"), harness("_tables")
    fit = {"data": "mnist", "method": "cplmixvi", "seed": 0, "accuracy": 0.9, "nmi": 0.8, "n_used": 10}
    fit |= {"epochs": 4, "n_images": 100, "seconds": 3.0}
    later = {**fit, "accuracy": 0.98, "flips": 0.01, "flips_main": 0.004, "slant_r2": 0.7, "steps": 30}
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (fit, {**fit, "seed": 1}, later)))
    runs = run.read(path)
    assert sorted(entry["accuracy"] for entry in runs) == [0.9, 0.98]
    tables.render(runs, "traversal", tmp_path / "traversal.md")
    assert rows_of(tmp_path / "traversal.md") == [
        ["mnist", "cplmixvi", "98.00", "98.00", "0.40", "1.00", "0.70", "1"],
        ["mnist", "JointVAE", "not run", "", "", "", "", "0"],
    ]
    tables.render(runs, "table1", tmp_path / "table1.md")
    assert "94.00 ± 4.00 | 90.00" in (tmp_path / "table1.md").read_text(encoding="utf-8")


def rows_of(path):
    """Cells of the rows of a table."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_what_was_not_run_is_said_in_every_table(harness, tmp_path):
    tables = harness("_tables")
    for name, table in tables.TABLES.items():
        tables.render([], name, tmp_path / f"{name}.md")
        rows = rows_of(tmp_path / f"{name}.md")
        wanted = [(tables.NAMES.get(d, d), m) for d in table.data for m in table.methods if table.has(d, m)]
        assert [tuple(row[:2]) for row in rows] == wanted
        assert all("not run" in row for row in rows)
    tables.summarise([], tmp_path / "summary.md")
    summary = rows_of(tmp_path / "summary.md")
    assert ["mnist", "cplmixvi, no start", "accuracy", "", "not run", "", "0"] in [row[:-1] for row in summary]
    assert all("not run" in row for row in summary)


def test_clusters_of_the_normal_form_do_not_see_where_images_stand(harness, tmp_path):
    """Two shapes, shifted: pixels say where they are, their normal form which they are, also of other images."""
    cases, scores, run = harness("_cases"), harness("_scores"), harness("run")
    rng = np.random.default_rng(0)
    types, at = rng.integers(0, 2, 300), rng.integers(0, 10, (300, 2))
    images = np.zeros((300, 16, 16), dtype=np.float32)
    for image, kind, (row, column) in zip(images, types, at, strict=True):
        shape = np.zeros((6, 6))
        shape[[0, -1]] = 1
        if kind:
            shape[:, [0, -1]] = 1
        image[row : row + 6, column : column + 6] = shape
    adata = AnnData(images.reshape(300, -1), obs={"shape": types.astype(str)})
    case = cases.Case("shape", 2, 2, augment=cpl.augment.Affine(rotation=0, shear=0, scale=0, translation=0.3))
    cases.CASES["shifted"] = case
    try:
        for of, least, most in (("pixels", 0.5, 0.9), ("normal form", 0.99, 1.0)):
            for how in ("k-means", "Leiden at K"):
                found = cases.METHODS[f"{of} + {how}"](adata[:200].copy(), "shifted", 0, None)
                score = scores.score(found, "shifted", adata[:200], adata[200:].copy())
                assert least <= score["accuracy"] <= most, (of, how, score)
                assert run.trained(found) == {"n_used": found.n_used}
    finally:
        del cases.CASES["shifted"]


def test_every_table_is_of_data_and_methods_that_there_are(harness):
    cases, tables = harness("_cases"), harness("_tables")
    for table in tables.TABLES.values():
        assert set(table.data) <= set(cases.CASES)
        assert set(table.methods) <= set(cases.METHODS)
        assert set(table.by_default) <= set(table.data)
        assert set(table.only) <= set(table.methods)
        for data in table.only.values():
            assert set(data) <= set(table.data)


def test_a_method_of_images_is_fitted_to_these_only(harness):
    table = harness("_tables").TABLES["table1"]
    fits = table.fits(None, ["cplmixvi", "InfoGAN"], 2)
    assert fits[:2] == [("mnist", "cplmixvi", 0), ("mnist", "InfoGAN", 0)]
    assert [fit for fit in fits if fit[1] == "InfoGAN"] == [("mnist", "InfoGAN", 0), ("mnist", "InfoGAN", 1)]
    assert len(fits) == 2 * (len(table.by_default) + 1)
    assert table.fits(["zeisel48"], ["InfoGAN"], 3) == []
    claimed = [claim.data for claim in harness("_tables").claims() if claim.method == "InfoGAN"]
    assert claimed == ["mnist"]


def test_figures_follow_the_taxonomy_and_the_matching(harness):
    figures = harness("figures")
    x = np.array([[9, 0, 1], [8, 0, 1], [0, 9, 5], [0, 1, 9], [0, 2, 9.0]])
    adata = AnnData(x, obs={"type": ["a", "a", "b", "c", "c"], "cplmixvi": pd.Categorical(list("00122"))})
    leaves, tree = figures.taxonomy(x, adata.obs["type"].to_numpy(), ("none",))
    assert leaves in (["a", "b", "c"], ["c", "b", "a"], ["a", "c", "b"], ["b", "c", "a"])
    assert sorted(tree[0, :2]) == [1, 2]
    figures.named(adata, "type")
    assert adata.obs["cplmixvi"].tolist() == ["a", "a", "b", "c", "c"]


def test_fits_that_are_there_are_rendered_beside_their_file(harness, tmp_path, monkeypatch, capsys):
    run, path = harness("run"), tmp_path / "again" / "short.jsonl"
    path.parent.mkdir()
    fit = {"data": "mnist_tail", "method": "cplmixvi", "seed": 0, "balanced_accuracy": 0.876, "accuracy": 0.9}
    path.write_text(json.dumps(fit) + "\n")
    given = ["run.py", "tail", "--data", "mnist_tail", "--methods", "cplmixvi", "--seeds", "1", "--out", str(path)]
    monkeypatch.setattr("sys.argv", given)
    monkeypatch.setattr(run, "run", lambda *fit: pytest.fail("a fit that is there was repeated"))
    run.main()
    assert f"nothing to do: all 1 rows are in {path}" in capsys.readouterr().out
    assert ["mnist, long tail (0 commonest)", "cplmixvi", "87.60", "87.60", "1"] in rows_of(path.parent / "tail.md")
    assert (path.parent / "summary.md").exists()


def test_figures_have_the_epochs_of_the_tables(harness, monkeypatch):
    cases, figures = harness("_cases"), harness("figures")
    seen = {}

    class Fitted:
        def save(self, folder):
            pass

    def fit(adata, name, seed, epochs):
        seen[name] = epochs
        return Fitted()

    cells = AnnData(np.ones((3_005, 2), dtype=np.float32))
    monkeypatch.setattr(cases, "load", lambda name, setting: (cells, None))
    monkeypatch.setattr(cases, "kept", lambda *given: Path("/nowhere"))
    monkeypatch.setitem(cases.METHODS, "cplmixvi", fit)
    monkeypatch.setattr(cpl.tl, "annotate", lambda adata, model: None)
    for name in ("zeisel48", "mnist"):
        figures.annotated(name, 0)
    # What the table has, and not the default of a training with a start.
    assert seen == {"zeisel48": 104, "mnist": 40}
    fits = harness("run").read(HARNESS / "results" / "short.jsonl")
    assert {fit["epochs"] for fit in fits if fit["data"] == "zeisel48"} == {104}
