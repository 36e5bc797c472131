"""``cplmixvi traverse``: one JSON line on success, one line on stderr for bad input, the input stays as it was."""

import json
import re

import anndata
import pytest
from _command_line import assert_refused, call

import cplmixvi as cpl
from cplmixvi.cli._traverse import _named

pytestmark = pytest.mark.usefixtures("small_committee")


@pytest.fixture(scope="module")
def folder(fitted_states, tmp_path_factory):
    """Cells that are not annotated, and the folder of a model."""
    adata, model = fitted_states
    folder = tmp_path_factory.mktemp("traverse")
    cells = adata.copy()
    for name in ("_scvi_batch", "_scvi_labels"):
        del cells.obs[name]
    for name in [name for name in cells.uns if name.startswith("_scvi")]:
        del cells.uns[name]
    cells.write_h5ad(folder / "in.h5ad")
    model.save(folder / "model")
    for name, file in (("pickle", "model.pt"), ("half", "model.json")):
        (folder / name).mkdir()
        (folder / name / file).write_bytes(b"\x80")
    (folder / "sets.gmt").write_text("mine\tabout\tgene00\tgene01\tgene0\tgene1\n")
    return folder


def test_cells_are_annotated_where_they_are_not_and_walked_through(folder, tmp_path):
    out = tmp_path / "out.h5ad"
    status, line, err = call(
        *("traverse", folder / "in.h5ad", out, "--model-dir", folder / "model"),
        *("--gene-sets", folder / "sets.gmt", "--steps", 5, "--categories", "0,2"),
    )
    assert status == 0, err
    summary = json.loads(line)
    said = " ".join(call("traverse", "--help")[1].split())
    assert set(summary) == set(re.search(r"one line of JSON: (.*?)\.", said)[1].split(", "))
    assert (summary["cells"], summary["categories"], summary["paths"], summary["genes"]) == (400, 2, 3, 60)
    assert 0 <= summary["flip_rate"] <= 1
    assert "annotated first" in err
    before, after = anndata.read_h5ad(folder / "in.h5ad"), anndata.read_h5ad(out)
    assert (before.X != after.X).nnz == 0
    assert not [name for name in (*after.obs, *after.uns) if name.startswith("_scvi")]
    result = cpl.tl.Traversal.from_uns(after.uns["cplmixvi"]["traversals"])
    assert result.expression.shape == (2, 3, 5, 60)
    assert "mine" in set(result.gene_sets["gene_set"])
    assert {"state_genes", "state_tests"} <= set(after.uns["cplmixvi"])
    assert list(tmp_path.iterdir()) == [out]
    # What is annotated already stays so.
    status, _, err = call("traverse", out, tmp_path / "again.h5ad", "--model-dir", folder / "model", "--quiet")
    assert (status, err) == (0, "")
    again = anndata.read_h5ad(tmp_path / "again.h5ad")
    assert again.obs["cplmixvi"].equals(after.obs["cplmixvi"])


def test_types_too_small_to_compare_are_walked_through_all_the_same(folder, tmp_path):
    adata = anndata.read_h5ad(folder / "in.h5ad")
    few = adata.obs.groupby("type", observed=True).head(7).index
    adata[few].copy().write_h5ad(tmp_path / "few.h5ad")
    out = tmp_path / "out.h5ad"
    status, line, err = call("traverse", tmp_path / "few.h5ad", out, "--model-dir", folder / "model")
    assert status == 0, err
    assert json.loads(line)["categories"] > 1
    assert "no category has 10 cells" in err
    result = anndata.read_h5ad(out).uns["cplmixvi"]
    assert "traversals" in result
    assert "state_tests" not in result
    assert "state_genes" not in result


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model-dir", "{0}/no"], "has no model"),
        (["--model-dir", "{0}/pickle"], "is a pickle"),
        (["--model-dir", "{0}/half"], "no JSON"),
        (["--model-dir", "{0}/model", "--categories", "0,B"], "--categories 'B' names no category of the"),
        (["--model-dir", "{0}/model", "--gene-sets", "{0}/no.gmt"], "--gene-sets"),
        (["--model-dir", "{0}/model", "--gene-sets", "{0}/in.h5ad"], "--gene-sets"),
        (["--model-dir", "{0}/model", "--steps", "2"], "--steps"),
        (["--model-dir", "{0}/model", "--key-added", "1x"], "--key-added"),
        ([], "--model-dir"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, tmp_path, options, message):
    options = [option.format(folder) for option in options]
    status, out, err = call("traverse", folder / "in.h5ad", tmp_path / "out.h5ad", *options)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


def test_names_of_types_may_have_commas():
    names = ["T cell, CD4", "B cell", "T cell", "CD4"]
    assert _named(None, names) is None
    assert _named("T cell, CD4", names) == ["T cell, CD4"]
    assert _named("B cell, T cell, CD4 ,T cell", names) == ["B cell", "T cell, CD4", "T cell"]
    assert _named("no such", names) == ["no such"]


def test_gene_sets_of_one_name_are_refused(folder, tmp_path):
    for text, message in (("a\t\tgene00\na\t\tgene01\n", "another gene set 'a'"), ("markers\t\tgene00\n", "rename it")):
        (tmp_path / "sets.gmt").write_text(text)
        options = ["--model-dir", folder / "model", "--gene-sets", tmp_path / "sets.gmt"]
        outcome = call("traverse", folder / "in.h5ad", tmp_path / "out.h5ad", *options)
        assert_refused(outcome, message)
