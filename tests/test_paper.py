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
    (row,) = [line for line in (tmp_path / "traversal.md").read_text(encoding="utf-8").splitlines() if "mnist" in line]
    cells = ["mnist", "cplmixvi", "98.00", "98.00", "0.40", "1.00", "0.70", "1"]
    assert [cell.strip() for cell in row.strip("|").split("|")] == cells
    tables.render(runs, "table1", tmp_path / "table1.md")
    assert "94.00 ± 4.00 | 90.00" in (tmp_path / "table1.md").read_text(encoding="utf-8")


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
