"""Loaders, the readers of published formats, and simulated data."""

import gzip
import io
import tarfile
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.io import mmwrite

from cplmixvi import datasets
from cplmixvi.datasets import _fetch, _readers

#: Sets that are downloaded only, for which the folder of prepared files may have no file.
TO_DOWNLOAD = {"tasic2018", "human_kidney", "mouse_bladder", "cbmc"}


def dense(adata):
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    return adata.X.toarray()


class TestPrepared:
    @pytest.mark.parametrize("name", sorted(datasets.REGISTRY))
    def test_file_is_what_the_registry_says(self, name, data_dir):
        info = datasets.REGISTRY[name]
        if name in TO_DOWNLOAD and not (data_dir / info.file).is_file():
            pytest.skip("no test should download it")
        adata = datasets.load(name)
        assert adata.shape == info.shape
        assert set(info.labels) <= set(adata.obs)
        assert adata.X.dtype == np.float32
        values = adata.X.data[:100_000]
        assert (info.likelihood == "nb") == bool((values == np.rint(values)).all())

    def test_another_shape_is_refused(self, tmp_path, monkeypatch, make_counts):
        monkeypatch.setenv("CPLMIXVI_DATA_DIR", str(tmp_path))
        make_counts().write_h5ad(tmp_path / datasets.REGISTRY["scmix"].file)
        with pytest.raises(ValueError, match=r"shape \(120, 60\), scmix has \(274, 28204\)"):
            datasets.scmix()


class TestPackaged:
    def test_pbmc68k_has_log_values_and_needs_no_network(self):
        adata = datasets.pbmc68k()
        values = dense(adata)
        assert adata.shape == (700, 765)
        assert values.min() == 0 and 1 < values.max() < 10
        assert (values == 0).mean() > 0.3  # the scaled matrix has no zeros
        assert adata.obs["bulk_labels"].nunique() == 10
        assert set(adata.obs["phase"]) == {"G1", "S", "G2M"}


class TestFetching:
    def test_names(self):
        assert {*datasets.REGISTRY, "pbmc68k", "mnist", "dsprites"} == set(datasets.available())
        with pytest.raises(ValueError, match="'pbmc' given, known are cbmc, dsprites, human_kidney, "):
            datasets.load("pbmc")

    @pytest.mark.parametrize("error", [OSError("no route"), ValueError("no such scheme")])
    def test_without_network_the_message_says_what_to_put_where(self, error, monkeypatch, tmp_path):
        def fail(*args, **kwargs):
            raise error

        monkeypatch.setenv("CPLMIXVI_DATA_DIR", str(tmp_path))
        monkeypatch.setattr("pooch.retrieve", fail)
        with pytest.raises(FileNotFoundError) as caught:
            datasets.kang2018()
        text = str(caught.value)
        assert "put kang2018_ifnb_pbmc.h5ad into a folder" in text
        assert "GSE96583_RAW.tar could not be downloaded" in text
        assert "\n" not in text

    def test_public_files_are_read_and_their_shape_is_watched(self, monkeypatch, tmp_path):
        path = tmp_path / "small.h5"
        with h5py.File(path, "w") as file:
            file["X"], file["Y"] = np.eye(3), [1, 2, 2]
        monkeypatch.delenv("CPLMIXVI_DATA_DIR", raising=False)
        monkeypatch.setattr("pooch.retrieve", lambda url, **kwargs: str(path))
        with pytest.warns(UserWarning, match=r"shape \(3, 3\), expected \(4186, 13488\)"):
            adata = datasets.worm_neurons()
        assert adata.uns["X_is"] == "raw counts"
        assert adata.uns["source"].startswith("https://")

    def test_a_broken_download_is_named(self, monkeypatch, tmp_path):
        (tmp_path / "page.html").write_text("<html>moved</html>")
        monkeypatch.delenv("CPLMIXVI_DATA_DIR", raising=False)
        monkeypatch.setattr("pooch.retrieve", lambda url, **kwargs: str(tmp_path / "page.html"))
        for name in datasets.REGISTRY:
            with pytest.raises(ValueError, match=rf"^{name}: what was downloaded, .*page.html.* delete it"):
                datasets.load(name)

    @pytest.mark.parametrize("info", datasets.REGISTRY.values(), ids=list(datasets.REGISTRY))
    def test_every_entry_has_its_reader_and_its_files(self, info):
        assert callable(getattr(_readers, info.reader))
        assert all(url.startswith("https://") for url in info.urls)
        assert (info.likelihood, info.values) in {("nb", "raw counts"), ("normal", "RPKM")}
        assert _fetch.prepared_file(info) is None or _fetch.prepared_file(info).name == info.file


class TestReaders:
    """Each on a tiny file of the published layout."""

    @pytest.fixture
    def kang(self, tmp_path):
        control, stimulated = np.array([[1, 0], [0, 2], [3, 0]]), np.array([[0, 5], [4, 0], [0, 6]])
        with tarfile.open(tmp_path / "raw.tar", "w") as archive:
            for name, values in [("GSM2560248_2.1.mtx.gz", control), ("GSM2560249_2.2.mtx.gz", stimulated)]:
                text = io.BytesIO()
                mmwrite(text, sparse.coo_matrix(values))
                packed = gzip.compress(text.getvalue())
                member = tarfile.TarInfo(name)
                member.size = len(packed)
                archive.addfile(member, io.BytesIO(packed))
        (tmp_path / "genes.tsv").write_text("ENSG1\tA\nENSG2\tB\nENSG3\tA\n")
        rows = [
            "tsne1\ttsne2\tind\tstim\tcluster\tcell\tmultiplets",  # one name fewer than there are columns
            "AAA-1\t0\t0\t107\tctrl\t1\tB cells\tsinglet",
            "CCC-1\t0\t0\t107\tctrl\t1\tNK cells\tdoublet",
            "AAA-11\t0\t0\t1015\tstim\t1\tB cells\tsinglet",
            "GGG-1\t0\t0\t1015\tstim\t1\tNA\tsinglet",
        ]
        (tmp_path / "cells.tsv").write_text("\n".join(rows) + "\n")
        return tmp_path / "raw.tar", tmp_path / "genes.tsv", tmp_path / "cells.tsv"

    def test_kang2018(self, kang):
        adata = _readers.read_kang2018(*kang)
        np.testing.assert_array_equal(dense(adata), [[1, 0, 3], [0, 4, 0]])
        assert adata.obs_names.tolist() == ["AAA-1", "AAA-11"]
        assert adata.obs["stim"].tolist() == ["CTRL", "STIM"]
        assert adata.obs["cell_type"].cat.categories.tolist() == ["B cells"]
        assert adata.var_names.tolist() == ["A", "B", "A-1"]
        assert adata.var["gene_id"].tolist() == ["ENSG1", "ENSG2", "ENSG3"]

    def test_kang2018_with_cells_in_another_order(self, kang):
        lines = kang[2].read_text().splitlines()
        kang[2].write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
        with pytest.raises(ValueError, match="do not line up"):
            _readers.read_kang2018(*kang)

    @pytest.fixture
    def zeisel(self, tmp_path):
        path = tmp_path / "zeisel.txt"
        meta = {
            "tissue": ["sscortex", "ca1hippocampus"],
            "group #": ["1", "2"],
            "sex": ["1", "-1"],
            "age": ["21", "26"],
            "cell_id": ["1772071015_C02", "1772071017_G12"],
            "level1class": ["interneurons", "microglia"],
            "level2class": ["Int10", "(none)"],
        }
        rows = [["", name, *values] for name, values in meta.items()]
        rows += [["", "", "", ""], ["Tspan12", "1", "0", "3"], ["Tshz1", "1", "2", "0"], ["NaN", "0", "1", "1"]]
        path.write_text("\n".join("\t".join(row) for row in rows) + "\n")
        return path

    def test_zeisel2015(self, zeisel):
        adata = _readers.read_zeisel2015(zeisel)
        np.testing.assert_array_equal(dense(adata), [[0, 2, 1], [3, 0, 1]])
        assert adata.obs_names.tolist() == ["1772071015_C02", "1772071017_G12"]
        assert adata.obs["cell_type"].tolist() == ["Int10", "(none)"]
        assert adata.obs["cell_class"].tolist() == ["interneurons", "microglia"]
        assert adata.var_names.tolist() == ["Tspan12", "Tshz1", "NaN"]

    def test_zeisel2015_of_another_layout(self, zeisel):
        zeisel.write_text(zeisel.read_text().replace("level2class", "subclass"))
        with pytest.raises(ValueError, match="lacks level2class"):
            _readers.read_zeisel2015(zeisel)

    def test_paul2015(self, tmp_path):
        path = tmp_path / "paul15.h5"
        with h5py.File(path, "w") as file:
            file["data.debatched"] = [[1, 2, 3], [0, 0, 4]]
            file["data.debatched_rownames"] = [b"Gata1;Gf1", b"Elane"]
            file["data.debatched_colnames"] = [b"W1", b"W2", b"W3"]
            file["cluster.id"] = [[7], [19], [1]]
        adata = _readers.read_paul2015(path)
        np.testing.assert_array_equal(dense(adata), [[1, 0], [2, 0], [3, 4]])
        assert adata.obs["cell_type"].tolist() == ["7MEP", "19Lymph", "1Ery"]
        assert adata.var_names.tolist() == ["Gata1", "Elane"]

    def test_paul2015_names_its_types_as_the_prepared_file_does(self, data_dir):
        named = {f"{i + 1}{name}" for i, name in enumerate(_readers._PAUL_TYPES)}
        assert named == set(datasets.paul2015().obs["cell_type"])

    def test_tasic2016(self, tmp_path):
        values, clusters = tmp_path / "rpkm.csv", tmp_path / "clusters.csv"
        values.write_text("gene,cell-1,cell-2,cell-3\nGad1,1.5,0,2\nSlc17a7,0,9,0.25\n")
        clusters.write_text(
            "sample_title,broad_type,primary_type\n"
            "cell-3,GABA-ergic Neuron,Sst Chodl\n"
            "cell-2,Glutamatergic Neuron,L4 Arf5\n"
            "cell-1,GABA-ergic Neuron,Vip Chat\n"
        )
        adata = _readers.read_tasic2016(values, clusters)
        np.testing.assert_array_equal(dense(adata), [[2, 0.25], [1.5, 0]])
        assert adata.obs["cell_type"].tolist() == ["Sst_Chodl", "Vip_Chat"]

    def test_tasic2018(self, tmp_path):
        """Two areas: neurons only, clusters that the paper drops or joins, genes by symbol, areas kept apart in obs."""
        columns = "sample_name,class,subclass,cluster\n"
        cells = {
            "VISp": "v1,GABAergic,Sst,Sst Chodl\nv2,Glutamatergic,L6b,L6b VISp Col8a1 Rprm\n"
            "v3,Non-Neuronal,Astro,Astro\nv4,Glutamatergic,CR,CR Lhx5\n",
            "ALM": "a1,Glutamatergic,L6b,L6b Col8a1 Rprm\na2,GABAergic,Low Quality,Low Quality\n",
        }
        matrix = {"VISp": '"","v4","v1","v2","v3"\n7,9,1,0,5\n3,9,0,4,5\n', "ALM": '"","a2","a1"\n7,9,2\n3,9,6\n'}
        paths = []
        for area, samples in cells.items():
            paths.append(tmp_path / area)
            with zipfile.ZipFile(paths[-1], "w") as archive:
                archive.writestr(f"mouse_{area}_exon-matrix.csv", matrix[area])
                archive.writestr(f"mouse_{area}_intron-matrix.csv", "")
                archive.writestr(f"mouse_{area}_genes-rows.csv", "gene_symbol,gene_entrez_id\nGad1,3\nNan,7\n")
                archive.writestr(f"mouse_{area}_samples-columns.csv", columns + samples)
        adata = _readers.read_tasic2018(*paths)
        np.testing.assert_array_equal(dense(adata), [[1, 0], [0, 4], [2, 6]])
        assert adata.var_names.tolist() == ["Nan", "Gad1"]
        assert adata.obs_names.tolist() == ["v1", "v2", "a1"]
        assert adata.obs["cell_type"].tolist() == ["Sst Chodl", "L6b Col8a1 Rprm", "L6b Col8a1 Rprm"]
        assert adata.obs["area"].tolist() == ["VISp", "VISp", "ALM"]
        with zipfile.ZipFile(paths[0], "w") as archive:
            archive.writestr("something.csv", "")
        with pytest.raises(ValueError, match="lacks exon-matrix.csv"):
            _readers.read_tasic2018(*paths)

    @pytest.mark.parametrize("corner", ["", '"",'], ids=["header without corner", "header with corner"])
    def test_scmix(self, tmp_path, corner):
        counts, metadata = tmp_path / "counts.csv", tmp_path / "metadata.csv"
        counts.write_text(f'{corner}"A1","A2"\n"ENSG1",1,0\n"ENSG2",0,7\n')
        metadata.write_text(f'{corner}"cell_line","cell_line_demuxlet"\n"A2","x","H2228"\n"A1","x","HCC827"\n')
        adata = _readers.read_scmix(counts, metadata)
        np.testing.assert_array_equal(dense(adata), [[1, 0], [0, 7]])
        assert adata.obs["cell_type"].tolist() == ["HCC827", "H2228"]
        assert adata.var_names.tolist() == ["ENSG1", "ENSG2"]

    def test_scmix_rna(self, tmp_path):
        counts, metadata = tmp_path / "counts.csv", tmp_path / "metadata.csv"
        counts.write_text('"L1","L2"\n"ENSG1",1,0\n')
        metadata.write_text(
            '"mRNA_amount","H2228_prop","H1975_prop","HCC827_prop"\n"L1",30,0.68,0.16,0.16\n"L2",3.75,1,0,0\n'
        )
        adata = _readers.read_scmix_rna(counts, metadata)
        assert adata.obs["cell_type"].tolist() == [
            "H2228:0.68|H1975:0.16|HCC827:0.16",
            "H2228:1.0|H1975:0.0|HCC827:0.0",
        ]
        assert adata.obs["mRNA_amount"].tolist() == [30, 3.75]

    def test_scmix_rna_names_its_mixes_as_the_prepared_file_does(self, data_dir):
        obs = datasets.scmix_rna().obs
        columns = ["H2228_prop", "H1975_prop", "HCC827_prop"]
        built = ["|".join(f"{name.split('_')[0]}:{row[name]}" for name in columns) for _, row in obs.iterrows()]
        assert built == obs["cell_type"].tolist()

    def test_labelled_h5_lacking_labels(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["X"] = np.eye(2)
        with pytest.raises(ValueError, match="lacks Y"):
            _readers.read_labelled_h5(tmp_path / "x.h5")


class TestSimulate:
    def test_layout(self):
        adata = datasets.simulate(50, 40, 4, n_state=3, n_markers=5, n_batches=2)
        values = dense(adata)
        assert adata.shape == (50, 40)
        assert (values >= 0).all() and (values == np.rint(values)).all()
        assert adata.obsm["state"].shape == (50, 3)
        assert adata.varm["type_log_fold"].shape == (40, 4)
        assert adata.uns["state_loadings"].shape == (12, 40)
        assert adata.obs["type"].value_counts().sort_index().tolist() == [13, 13, 12, 12]

    def test_seed(self):
        first, again, other = (datasets.simulate(60, 30, seed=seed).X for seed in (1, 1, 2))
        assert (first != again).nnz == 0
        assert (first != other).nnz > 0

    def test_h5ad_round_trip(self, tmp_path):
        import anndata

        adata = datasets.simulate(30, 25, 2)
        adata.write_h5ad(tmp_path / "x.h5ad")
        again = anndata.read_h5ad(tmp_path / "x.h5ad")
        assert (again.X != adata.X).nnz == 0
        pd.testing.assert_frame_equal(again.obs, adata.obs)

    def test_library_size_and_dispersion(self):
        options = {"n_types": 1, "n_state": 0, "library_sigma": 0.0, "n_markers": 0, "mean_counts": 20_000}
        counts = dense(datasets.simulate(4_000, 30, inverse_dispersion=2.0, **options))
        mean, variance = counts.mean(axis=0), counts.var(axis=0)
        assert mean.sum() == pytest.approx(20_000, rel=0.02)
        np.testing.assert_allclose(variance / (mean + mean**2 / 2), 1, atol=0.25)

    def test_markers_are_raised_in_their_type(self):
        adata = datasets.simulate(900, 90, 3, n_markers=10, marker_fold=6, n_state_genes=1, inverse_dispersion=50)
        rates = dense(adata) / np.asarray(adata.X.sum(axis=1))
        raised = np.stack([rates[adata.obs["type"] == f"type{t}"].mean(axis=0) for t in range(3)])
        markers = adata.varm["type_log_fold"].T > 0
        assert (markers.sum(axis=0) <= 1).all()
        for t in range(3):
            fold = raised[t] / np.delete(raised, t, axis=0).mean(axis=0)
            # Rates are shares of a total: what markers gain the others lose.
            fold /= np.median(fold[~markers.any(axis=0)])
            assert np.median(fold[markers[t]]) == pytest.approx(6, rel=0.35)

    def test_states_move_the_genes_of_their_own_type_only(self):
        adata = datasets.simulate(
            3_000, 80, 2, n_state=1, n_state_genes=8, state_scale=0.8, inverse_dispersion=50, mean_counts=40_000
        )
        log_rate = np.log1p(dense(adata) / np.asarray(adata.X.sum(axis=1)) * 1e4)
        loadings = adata.uns["state_loadings"].toarray()
        assert not np.array_equal(loadings[0] != 0, loadings[1] != 0)
        for t in range(2):
            cells = (adata.obs["type"] == f"type{t}").to_numpy()
            state = adata.obsm["state"][cells, 0]
            slope = np.array([np.corrcoef(state, log_rate[cells, j])[0, 1] for j in range(80)])
            moved = loadings[t] != 0
            assert np.abs(slope[moved]).min() > 0.4
            assert (np.sign(slope[moved]) == np.sign(loadings[t, moved])).all()

    def test_imbalanced_sizes_of_tasic(self):
        sizes = datasets.imbalanced_sizes(22_365, 115, smallest=16, largest=1_404)
        assert sizes.sum() == 22_365 and sizes.shape == (115,)
        assert (sizes[0], sizes[-1]) == (16, 1_404)
        assert (np.diff(sizes) >= 0).all()
        adata = datasets.simulate(300, 30, 3, type_sizes=[10, 90, 200])
        assert adata.obs["type"].value_counts().sort_index().tolist() == [10, 90, 200]

    @pytest.mark.parametrize("options", [{"n_obs": 3, "n_types": 5}, {"n_vars": 5}, {"n_batches": 0}, {"n_state": -1}])
    def test_too_small(self, options):
        with pytest.raises(ValueError, match="at least"):
            datasets.simulate(**options)

    @pytest.mark.parametrize(
        "option",
        [
            {"n_markers": -1},
            {"n_state_genes": -1},
            {"library_sigma": -0.1},
            {"batch_scale": np.inf},
            {"state_scale": np.nan},
            {"marker_fold": 0},
            {"mean_counts": -5},
            {"inverse_dispersion": 0},
        ],
    )
    def test_out_of_range(self, option):
        with pytest.raises(ValueError, match=f"{next(iter(option))}=.* given"):
            datasets.simulate(50, 30, 2, **{"n_markers": 3, "n_state_genes": 3, **option})

    @pytest.mark.parametrize("sizes", [[5, 5], [5, 5, 0], [4, 4, 4]])
    def test_sizes_that_do_not_fit(self, sizes):
        with pytest.raises(ValueError, match="add up to n_obs=10"):
            datasets.simulate(10, 30, 3, type_sizes=sizes)

    def test_sizes_that_cannot_be(self):
        with pytest.raises(ValueError, match="change one of them"):
            datasets.imbalanced_sizes(100, 10, smallest=20, largest=30)
