"""Cells in a file: the same cells in the same order as in memory, minibatches of all of them, and flat memory."""

import anndata
import lightning.pytorch
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi
import torch
from scvi import REGISTRY_KEYS

import cplmixvi as cpl
from cplmixvi._constants import CELL_KEY
from cplmixvi.model._settings import settled
from cplmixvi.train import _loader

pytestmark = pytest.mark.usefixtures("small_committee")


@pytest.fixture
def on_disk(make_counts, tmp_path):
    """A factory of the same cells in memory and in a file."""

    def make(kind="csr", **options):
        adata = make_counts(**options)
        del adata.layers["counts"]
        adata.X = {"csr": sp.csr_matrix, "dense": lambda x: x.toarray(), "int": lambda x: x.astype(np.int32)}[kind](
            adata.X
        )
        path = tmp_path / f"{kind}.h5ad"
        adata.write_h5ad(path, compression="gzip")
        return adata, anndata.read_h5ad(path, backed="r")

    return make


def ready(adata, **options):
    cpl.CplMixVI.setup_anndata(adata, batch_key="batch")
    return cpl.CplMixVI(adata, n_categories=3, n_hidden=16, **options)


@pytest.mark.parametrize("kind", ["csr", "dense", "int"])
def test_cells_come_in_the_order_that_is_asked_for(on_disk, kind):
    memory, disk = on_disk(kind)
    rows = np.random.default_rng(0).permutation(memory.n_obs)[:50]
    loader = ready(disk)._make_data_loader(adata=disk, indices=rows, batch_size=20)
    tensors = [*loader]
    read = torch.cat([part[REGISTRY_KEYS.X_KEY] for part in tensors]).numpy()
    dense = memory.X.toarray() if sp.issparse(memory.X) else memory.X
    np.testing.assert_array_equal(read, dense[rows])
    batches = torch.cat([part[REGISTRY_KEYS.BATCH_KEY] for part in tensors]).view(-1).numpy()
    np.testing.assert_array_equal(batches, memory.obs["batch"].cat.codes.to_numpy()[rows])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("sparse_tensors", [False, True])
@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_an_epoch_has_every_training_cell_once_with_its_row(on_disk, monkeypatch, kind, sparse_tensors):
    monkeypatch.setattr(_loader, "BLOCK_ROWS", 7)
    monkeypatch.setattr(_loader, "BUFFER_ENTRIES", 30 * 60)
    memory, disk = on_disk(kind)
    dense = memory.X.toarray() if sp.issparse(memory.X) else memory.X
    model = ready(disk)
    splitter = cpl.train.CplMixSplitter(
        model.adata_manager, train_size=0.9, batch_size=16, load_sparse_tensor=sparse_tensors
    )
    splitter.setup()
    loader = splitter.train_dataloader()
    orders = []
    for _ in range(2):
        batches = [*loader]
        assert len(batches) == len(loader) == 7
        assert [len(batch[CELL_KEY]) for batch in batches[:-1]] == [16] * 6
        for batch in batches:
            rows = batch[CELL_KEY].numpy()
            values = batch[REGISTRY_KEYS.X_KEY]
            values = values if values.layout is torch.strided else values.to_dense()
            np.testing.assert_array_equal(values.numpy(), dense[rows])
        orders.append(torch.cat([batch[CELL_KEY] for batch in batches]).tolist())
        assert sorted(orders[-1]) == sorted(splitter.train_idx)
    assert orders[0] != orders[1]


def test_the_start_sees_cells_of_rare_labels(on_disk):
    memory, disk = on_disk(n_obs=400)
    disk.obs["some"] = np.where(np.arange(400) % 133 == 0, "rare", "unknown")
    cpl.CplMixVI.setup_anndata(disk, labels_key="some")
    splitter = cpl.train.CplMixSplitter(cpl.CplMixVI(disk, n_categories=3).adata_manager, train_size=1.0, batch_size=16)
    splitter.setup()
    rows = torch.cat([batch[CELL_KEY] for batch in splitter.start_dataloader(20, 1)]).tolist()
    assert len(rows) < 30
    assert {0, 133, 266, 399} <= set(rows)


def test_training_from_a_file_finds_what_it_finds_in_memory(on_disk):
    found = []
    for adata in on_disk(n_obs=300):
        scvi.settings.seed = 0
        model = ready(adata)
        model.train(max_epochs=20, enable_progress_bar=False)
        cpl.tl.annotate(adata, model)
        found.append(adata.obs["cplmixvi"].astype(str).to_numpy())
    truth = adata.obs["type"].astype(str).to_numpy()
    assert min(cpl.metrics.accuracy(truth, labels) for labels in found) > 0.95


def test_what_a_guide_says_is_kept_for_the_right_cells(on_disk):
    memory, disk = on_disk(n_obs=200)
    model = ready(disk)
    model.train(max_epochs=2, enable_progress_bar=False, batch_size=32)
    plan = model.trainer.lightning_module
    kept = plan._guide[0]._kept
    assert not kept.isnan().any()
    # Asked anew, of each cell alone.
    loader = model._make_data_loader(adata=disk, indices=np.arange(200))
    fresh = torch.cat([plan._guide[0].guide(*_loader_input(model, tensors)) for tensors in loader])
    torch.testing.assert_close(kept, fresh, atol=1e-4, rtol=1e-4)


def _loader_input(model, tensors):
    from cplmixvi.train._guide import guide_input

    return guide_input(model.module, tensors)


class Pieces(lightning.pytorch.LightningDataModule):
    """Minibatches of an AnnData, as data modules of stores that are no AnnData give them."""

    def __init__(self, adata, batch_size=32):
        super().__init__()
        self.cells, self.batch_size, self.n_obs = adata, batch_size, adata.n_obs

    def minibatches(self):
        for rows in np.array_split(np.random.default_rng(0).permutation(self.n_obs), self.n_obs // self.batch_size):
            yield {
                REGISTRY_KEYS.X_KEY: torch.from_numpy(self.cells.X[rows].toarray()),
                REGISTRY_KEYS.BATCH_KEY: torch.from_numpy(self.cells.obs["batch"].cat.codes.to_numpy()[rows].copy())
                .long()
                .view(-1, 1),
                REGISTRY_KEYS.LABELS_KEY: torch.zeros(len(rows), 1, dtype=torch.long),
            }

    def train_dataloader(self):
        return torch.utils.data.DataLoader([*self.minibatches()], batch_size=None)


def few_cells(adata):
    """A model's registry, from some cells that have every batch."""
    few = adata[:40].copy()
    few.obs["batch"] = few.obs["batch"].cat.set_categories(adata.obs["batch"].cat.categories)
    cpl.CplMixVI.setup_anndata(few, batch_key="batch")
    return cpl.CplMixVI(few, n_categories=3).registry


def test_a_model_trains_on_a_data_module_and_labels_cells_of_its_genes(make_counts):
    adata = make_counts(n_obs=320)
    model = cpl.CplMixVI(registry=few_cells(adata), n_categories=3, n_hidden=16, target_library=1_200.0)
    model.train(datamodule=Pieces(adata), max_epochs=20, enable_progress_bar=False)
    assert cpl.metrics.accuracy(adata.obs["type"], model.predict(adata)) > 0.95
    cpl.tl.annotate(adata, model)
    assert adata.uns["cplmixvi"]["n_categories"] == 3


def test_epochs_by_default_are_ours_for_data_modules_too(make_counts):
    pieces = Pieces(make_counts(n_obs=320))
    settings = {"max_epochs": None, "datamodule": pieces, "plan_kwargs": {}}
    assert settled(settings, 0, is_trained=False)["max_epochs"] == cpl.train.default_max_epochs(320, 32)
    del pieces.n_obs
    with pytest.raises(ValueError, match="max_epochs must be given"):
        settled(settings, 0, is_trained=False)


class RawPieces(Pieces):
    """The same, but a hook makes tensors of what is read, and adds sizes that nobody registered, as of annbatch."""

    def train_dataloader(self):
        x = REGISTRY_KEYS.X_KEY
        read = [{"sparse": sp.csr_matrix(batch.pop(x)), **batch} for batch in self.minibatches()]
        return torch.utils.data.DataLoader(read, batch_size=None, collate_fn=lambda batch: batch)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        x = torch.from_numpy(batch["sparse"].toarray())
        library = x.sum(1, keepdim=True)
        given = {REGISTRY_KEYS.X_KEY: x, REGISTRY_KEYS.SIZE_FACTOR_KEY: library / library.mean()}
        return {**given, **{key: value for key, value in batch.items() if key != "sparse"}}


def test_what_hooks_of_a_data_module_do_is_done_before_the_training_too(make_counts):
    adata = make_counts(n_obs=200)
    histories = []
    for pieces in (Pieces, RawPieces):
        scvi.settings.seed = 0
        model = cpl.CplMixVI(registry=few_cells(adata), n_categories=3, n_hidden=16, target_library=1_200.0)
        model.train(datamodule=pieces(adata), max_epochs=3, enable_progress_bar=False)
        histories.append(model.history["elbo_train"].to_numpy())
    np.testing.assert_array_equal(*histories)
    with pytest.raises(ValueError, match="no cells of its own"):
        model.report()
    sorted_cells = RawPieces(adata)
    sorted_cells.shuffle = False
    with pytest.warns(UserWarning, match="in the order in which they are stored"):
        model.train(datamodule=sorted_cells, max_epochs=1, warm_start=False, enable_progress_bar=False)


def test_cells_without_a_batch_are_labelled_whatever_a_data_module_calls_theirs(make_counts):
    adata = make_counts(n_obs=100)
    cpl.CplMixVI.setup_anndata(adata)
    registry = cpl.CplMixVI(adata, n_categories=3).registry
    registry["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"] |= {
        "categorical_mapping": np.array(["batch_0"]),
        "original_key": "batch",
    }
    model = cpl.CplMixVI(registry=registry, n_categories=3, n_hidden=16, target_library=1_200.0)
    adata.obs["batch"] = pd.Categorical(["0"] * adata.n_obs)
    model.train(datamodule=Pieces(adata), max_epochs=1, warm_start=False, enable_progress_bar=False)
    assert len(model.predict(make_counts(n_obs=30))) == 30


def test_labels_of_a_registry_must_end_with_those_that_are_none(make_counts):
    registry = few_cells(make_counts(n_obs=100))
    labels = registry["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"]
    labels["categorical_mapping"] = np.array(["T", "unknown", "z"], dtype=object)
    with pytest.raises(ValueError, match="'unknown', the cells without a label, must be the last"):
        cpl.CplMixVI(registry=registry, n_categories=3, target_library=1_200.0)


@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_a_collection_of_files_is_trained_on_by_annbatch(make_counts, tmp_path, batch_key):
    pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")
    adata = make_counts(n_obs=512)
    adata[:256].copy().write_h5ad(tmp_path / "a.h5ad")
    adata[256:].copy().write_h5ad(tmp_path / "b.h5ad")
    files = [str(tmp_path / name) for name in ("a.h5ad", "b.h5ad")]
    options = {"batch_size": 64, "chunk_size": 32, "preload_nchunks": 8, "preload_to_gpu": False, "shuffle": True}
    datamodule = cpl.CplMixVI.setup_annbatch(str(tmp_path / "all.zarr"), files, batch_key=batch_key, **options)
    model = cpl.CplMixVI(registry=datamodule.registry, n_categories=3, n_hidden=16, target_library=1_200.0)
    model.train(datamodule=datamodule, max_epochs=20, enable_progress_bar=False)
    assert cpl.metrics.accuracy(adata.obs["type"], model.predict(adata)) > 0.95
    model.save(tmp_path / "model")
    again = cpl.CplMixVI.load(tmp_path / "model", adata=adata)
    np.testing.assert_array_equal(again.predict(), model.predict(adata))
