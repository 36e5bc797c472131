"""Trainings in one process or in several, for ``test_processes.py``; what becomes of them goes to a file.

``same``: minibatches are in the order of the cells and noise is drawn for the whole minibatch, of which each process
takes the rows of its cells: cells ``rank::n_processes``, which is what :class:`torch.utils.data.DistributedSampler`
gives it. So processes that do together what one does have the same losses.
``file``: nothing is changed; cells are read from the file that is named.
"""

import os
import sys
from functools import partial
from unittest import mock

import anndata
import numpy as np
import scvi
import torch
from _quick_start import quick_start
from lightning.pytorch.callbacks import Callback

import cplmixvi as cpl
from cplmixvi._constants import CELL_KEY
from cplmixvi._processes import averaged
from cplmixvi.train import CellLoader, CplMixSplitter

N_CELLS, N_TOGETHER = 200, 50


class InOrder(CellLoader):
    """Cells in their order."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "shuffle": False})


class Watch(Callback):
    """Mean loss over processes and rows of the cells, step by step."""

    def __init__(self):
        self.losses, self.rows = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(averaged(outputs["loss"].detach())))
        self.rows += batch[CELL_KEY].tolist()


class Shared(Callback):
    """Noise for all cells of a minibatch, of which this process takes its rows, from the first step on."""

    def __init__(self, rank, n_processes):
        self.rank, self.n_processes, self.n_own = rank, n_processes, N_TOGETHER // n_processes
        self.generator = torch.Generator().manual_seed(7)
        self.drawers = {"randn": torch.randn, "rand": torch.rand}
        self.multinomial = torch.multinomial
        changed = {name: partial(self.drawn, name) for name in self.drawers}
        changed |= {f"{name}_like": partial(self.like, name) for name in self.drawers}
        self.patch = mock.patch.multiple(torch, multinomial=self.chosen, **changed)

    def on_fit_start(self, *args):
        # Lightning sets the seed anew where there are several processes, and only there.
        torch.manual_seed(0)

    def on_train_start(self, *args):
        self.patch.start()

    def on_train_end(self, *args):
        self.patch.stop()

    def drawn(self, name, *shape, **options):
        shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        draw = self.drawers[name]
        if self.n_own not in shape:
            return draw(shape, **options)
        axis = shape.index(self.n_own)
        whole = draw([N_TOGETHER if i == axis else size for i, size in enumerate(shape)], generator=self.generator)
        return whole[(slice(None),) * axis + (slice(self.rank, None, self.n_processes),)]

    def like(self, name, tensor, **options):
        return self.drawn(name, tuple(tensor.shape))

    def chosen(self, weights, n_samples, *args, **options):
        if weights.ndim != 2 or len(weights) != self.n_own:
            return self.multinomial(weights, n_samples, *args, **options)
        cumulative = weights.cumsum(1) / weights.sum(1, keepdim=True)
        return (cumulative < self.drawn("rand", len(weights), 1)).sum(1, keepdim=True).clamp_max(weights.shape[1] - 1)


def train(adata, n_processes, callbacks, max_epochs, **options):
    scvi.settings.seed = 0
    cpl.CplMixVI.setup_anndata(adata, batch_key="batch")
    model = cpl.CplMixVI(adata, n_categories=4, n_hidden=16, **options)
    several = {"strategy": "ddp", "devices": n_processes} if n_processes > 1 else {"devices": 1}
    model.train(
        max_epochs=max_epochs,
        accelerator="cpu",
        batch_size=N_TOGETHER // n_processes,
        enable_progress_bar=False,
        shuffle_set_split=False,
        callbacks=callbacks,
        # Decoders start near the data: larger steps, so that losses still fall.
        plan_kwargs={"lr": 4e-3},
        **several,
    )
    return model


def found(model, watch):
    state = {f"state.{name}": value.float().numpy() for name, value in model.module.state_dict().items()}
    history = {f"history.{name}": frame.to_numpy(float).ravel() for name, frame in (model.history or {}).items()}
    return {"losses": watch.losses, "rows": watch.rows, "labels": model.predict().astype(str), **state, **history}


def main(kind, n_processes, folder):
    rank = int(os.environ.get("RANK", 0))
    if kind == "file":
        watch = Watch()
        adata = anndata.read_h5ad(f"{folder}/cells.h5ad", backed="r")
        np.savez(f"{folder}/file_{rank}.npz", **found(train(adata, n_processes, [watch], 5), watch))
        return
    adata = cpl.datasets.simulate(N_CELLS, 60, 4, n_markers=10, mean_counts=600, n_batches=2, seed=0)
    CplMixSplitter.data_loader_cls = InOrder
    for distance in ("aitchison", "perturbed"):
        watch = Watch()
        callbacks = [watch, Shared(rank, n_processes)]
        model = train(adata, n_processes, callbacks, 13, augment="none", distance=distance)
        np.savez(f"{folder}/{distance}_{rank}_of_{n_processes}.npz", **found(model, watch))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with quick_start():
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
