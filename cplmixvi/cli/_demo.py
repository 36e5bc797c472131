"""``cplmixvi demo``: a real data set from loading to pictures, beside k-means and Leiden."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cplmixvi.cli import _files
from cplmixvi.cli._annotate import mean_consensus, select, write_back
from cplmixvi.cli._errors import InputError, one_line
from cplmixvi.cli._report import Reporter, calm_libraries, clean_stdout, swallowed, thread_limit

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cplmixvi import CplMixVI

_N_GENES = 2000
_NO_TYPE = ("(none)",)
# The set that is packaged with scanpy has no entry in the registry of files to fetch.
_PACKAGED = ("bulk_labels", "normal")
#: Data sets without cells.
_IMAGES = ("mnist", "dsprites")


@dataclass(frozen=True)
class _Task:
    """Cells with reference types, and the likelihood that their values call for."""

    name: str
    adata: AnnData
    labels: str
    likelihood: str

    @property
    def n_types(self) -> int:
        """Reference types in use."""
        return len(set(self.adata.obs[self.labels].dropna()) - set(_NO_TYPE))


def run_demo(
    dataset: str,
    out: Path,
    *,
    labels: str | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> str:
    """Annotate a data set with as many categories as it has reference types, and compare.

    Parameters
    ----------
    dataset
        One of :func:`cplmixvi.datasets.available`.
    out
        Folder for ``<dataset>.h5ad``, ``types.png`` and ``confusion.png``; made where it does not exist.
    labels
        Column of ``obs`` with the reference types; the data set's own by default.
    seed, max_epochs, threads, quiet
        See ``cplmixvi demo --help``.

    Returns
    -------
    The table to print.

    Raises
    ------
    InputError, ValueError
        If there is no such data set or column, it cannot be fetched, or ``out`` cannot be written.
    """
    reporter = Reporter(quiet=quiet)
    with calm_libraries(reporter), ExitStack() as stack:
        with swallowed():
            stack.enter_context(thread_limit(threads))
            task = _load(dataset, labels)
            _make_folder(out)
        reporter.release()
        with clean_stdout():
            reporter.say(f"{dataset}: {task.adata.n_obs:,} cells x {task.adata.n_vars:,} genes, {task.n_types} types")
            fitted = select(task.adata, _N_GENES, layer=None, likelihood=task.likelihood, batch_key=None)
            model = _fit(fitted, task, seed=seed, max_epochs=max_epochs, quiet=quiet)
            found = _annotated(task, model)
            reporter.say("k-means, Leiden and UMAP of the principal components")
            compared = _baselines(task, fitted, seed=seed)
            reporter.say(f"writing to {out}")
            with _files.replacing(out / f"{dataset}.h5ad") as path:
                _files.write(task.adata, path)
            _draw(task, out)
    return _table(task, {"cplmixvi": found, **compared}, out)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {str(out)!r} cannot be made ({one_line(error)}); name another folder.") from error


def _load(dataset: str, labels: str | None) -> _Task:
    from cplmixvi import datasets, pp

    if dataset in _IMAGES:
        raise InputError(f"--dataset {dataset!r} has images and no cells; see the tutorial on images, or name another.")
    try:
        adata = datasets.load(dataset)
    except OSError as error:
        raise InputError(
            f"--dataset {dataset!r} cannot be fetched ({one_line(error)[:160]}); connect to the network, or point "
            "CPLMIXVI_DATA_DIR at a folder with the prepared file, or use --dataset pbmc68k."
        ) from error
    info = datasets.REGISTRY.get(dataset)
    own_labels, likelihood = _PACKAGED if info is None else (info.labels[0], info.likelihood)
    column = own_labels if labels is None else labels
    if column not in adata.obs:
        raise InputError(
            f"Column {column!r} is not in {dataset}; columns there: {', '.join(adata.obs) or 'none'}; name one with "
            "--labels."
        )
    if info is not None and info.values == "RPKM":
        adata.X = pp.log_normalize(adata.X)
    return _Task(dataset, adata, column, likelihood)


def _fit(fitted: AnnData, task: _Task, *, seed: int, max_epochs: int | None, quiet: bool) -> CplMixVI:
    import scvi

    from cplmixvi import CplMixVI

    scvi.settings.seed = seed
    CplMixVI.setup_anndata(fitted)
    model = CplMixVI(fitted, n_categories=task.n_types, likelihood=task.likelihood)
    model.train(max_epochs=max_epochs, enable_progress_bar=not quiet)
    return model


def _annotated(task: _Task, model: CplMixVI) -> np.ndarray:
    """Write the annotation; its categories as strings ``(n_obs,)``."""
    write_back(task.adata, model)
    return task.adata.obs["cplmixvi"].astype(str).to_numpy(dtype=object)


def _baselines(task: _Task, fitted: AnnData, *, seed: int) -> dict[str, np.ndarray]:
    """Labels per method; leaves ``X_pca`` and ``X_umap`` in the AnnData."""
    import scanpy as sc

    from cplmixvi import baselines, pp
    from cplmixvi._constants import COUNT_LIKELIHOODS

    values = pp.log_normalize(fitted.X) if task.likelihood in COUNT_LIKELIHOODS else fitted.X
    components = baselines.principal_components(values, seed=seed)
    graph = baselines.neighbour_graph(components, seed=seed)
    sc.tl.umap(graph, random_state=seed)
    task.adata.obsm["X_pca"] = components
    task.adata.obsm["X_umap"] = graph.obsm["X_umap"].astype(np.float32)
    return {
        "PCA + k-means": baselines.kmeans(components, task.n_types, seed=seed),
        "PCA + Leiden": baselines.leiden(graph, seed=seed),
    }


def _draw(task: _Task, out: Path) -> None:
    import matplotlib.pyplot as plt

    from cplmixvi import pl

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    panels = {f"reference ({task.labels})": task.labels, "cplmixvi": "cplmixvi"}
    for ax, (title, column) in zip(axes, panels.items(), strict=True):
        pl.states(task.adata, color=column, basis="X_umap", ax=ax).set_title(title, loc="left", fontsize=9)
    confusion = pl.confusion(task.adata, task.labels, ignore=_NO_TYPE).figure
    for drawn, name in ((figure, "types.png"), (confusion, "confusion.png")):
        drawn.savefig(out / name, dpi=150)
        plt.close(drawn)


def _table(task: _Task, labels: dict[str, np.ndarray], out: Path) -> str:
    from cplmixvi import metrics

    reference = task.adata.obs[task.labels]
    consensus = mean_consensus(task.adata)
    lines = [
        f"{task.name}: {task.adata.n_obs:,} cells, {task.n_types} reference types ({task.labels})",
        f"{'method':<15}{'categories':>11}{'consensus':>11}{'ACC':>7}{'NMI':>7}{'ARI':>7}",
    ]
    for method, found in labels.items():
        scores = [score(reference, found, ignore=_NO_TYPE) for score in (metrics.accuracy, metrics.nmi, metrics.ari)]
        agreed = "-" if method != "cplmixvi" or consensus is None else f"{consensus:.2f}"
        lines.append(f"{method:<15}{len(set(found)):>11}{agreed:>11}" + "".join(f"{score:>7.2f}" for score in scores))
    files = ", ".join(str(out / name) for name in (f"{task.name}.h5ad", "types.png", "confusion.png"))
    return "\n".join([*lines, f"wrote {files}", ""])
