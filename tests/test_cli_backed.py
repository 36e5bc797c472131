"""``cplmixvi annotate --backed``: the same result, from cells that are never in memory all at once."""

import json

import anndata as ad
import numpy as np
import pytest
from _command_line import FAST, call, make_cells
from scipy import sparse

import cplmixvi

pytestmark = pytest.mark.usefixtures("small_committee")


class TestBacked:
    """``--backed``: the same result, from cells that are never in memory all at once."""

    @pytest.fixture(params=["csr", "dense"])
    def source(self, request, tmp_path, monkeypatch):
        from cplmixvi.pp import _values

        monkeypatch.setattr(_values, "CHUNK_ENTRIES", 7 * 30)
        adata = make_cells()
        adata.uns["mine"] = {"kept": 1}
        if request.param == "dense":
            adata.X = adata.X.toarray()
        adata.write_h5ad(tmp_path / "in.h5ad")
        return tmp_path / "in.h5ad"

    def test_the_output_has_what_the_input_has_and_the_result(self, source, tmp_path):
        options = ["--batch-key", "donor", "--hvg", "20", "--top-k", "2", "--model-dir", tmp_path / "model"]
        status, out, err = call("annotate", source, tmp_path / "out.h5ad", *FAST, *options, "--backed")
        assert status == 0, err
        assert json.loads(out)["genes_used"] == 20
        before, after = ad.read_h5ad(source), ad.read_h5ad(tmp_path / "out.h5ad")
        assert after.uns["mine"] == {"kept": 1}
        assert list(after.obs.columns) == ["donor", "cplmixvi", "cplmixvi_confidence", "cplmixvi_agreement"]
        for name in ("X", "raw"):
            parts = [getattr(adata, name) for adata in (before, after)]
            parts = [getattr(part, "X", part) for part in parts]
            np.testing.assert_array_equal(*(part.toarray() if sparse.issparse(part) else part for part in parts))
        np.testing.assert_array_equal(after.layers["counts"].toarray(), before.layers["counts"].toarray())
        np.testing.assert_array_equal(after.obsm["X_other"], before.obsm["X_other"])
        assert after.obsm["cplmixvi_proba"].format == "csr"
        # Genes were taken by their names, and rows are still those of the cells.
        again = cplmixvi.CplMixVI.load(str(tmp_path / "model"), adata=False)
        assert list(again.predict(before)) == list(after.obs["cplmixvi"])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "model", "out.h5ad"]

    def test_the_genes_are_those_that_are_selected_in_memory(self, source, tmp_path):
        chosen = []
        for name, options in (("memory", []), ("disk", ["--backed"])):
            folder = tmp_path / name
            status, _, err = call(
                "annotate", source, tmp_path / f"{name}.h5ad", *FAST, "--hvg", "12", "--model-dir", folder, *options
            )
            assert status == 0, err
            chosen.append(list(cplmixvi.CplMixVI.load(str(folder), adata=False).get_var_names()))
        assert chosen[0] == chosen[1]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--layer", "counts"], "--backed reads X"),
            (["--augment", "neighbours"], "in memory"),
        ],
    )
    def test_what_needs_all_cells_is_refused(self, in_file, tmp_path, options, message):
        status, _, err = call("annotate", in_file, tmp_path / "out.h5ad", *FAST, *options, "--backed")
        assert status == 2
        assert message in err
        assert not (tmp_path / "out.h5ad").exists()

    def test_values_that_are_no_counts_and_other_formats_are_refused(self, in_file, tmp_path):
        adata = make_cells()
        adata.X = adata.layers["log"]
        adata.write_h5ad(tmp_path / "log.h5ad")
        adata.X = sparse.csc_matrix(adata.layers["counts"])
        adata.write_h5ad(tmp_path / "columns.h5ad")
        for source, output, message in (
            ("log.h5ad", "out.h5ad", "a fraction"),
            ("columns.h5ad", "out.h5ad", "by columns"),
            ("in.h5ad", "out.zarr", "--backed reads and writes .h5ad"),
        ):
            status, _, err = call("annotate", tmp_path / source, tmp_path / output, *FAST, "--backed")
            assert (status, err.count("\n")) == (2, 1)
            assert message in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["columns.h5ad", "in.h5ad", "log.h5ad"]
