"""``cplmixvi annotate``: from a file of cells to the same file with types and states."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cplmixvi.cli import _backed, _files
from cplmixvi.cli._errors import InputError, check_chosen, one_line
from cplmixvi.cli._report import Reporter, calm_libraries, clean_stdout, swallowed, thread_limit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData

    from cplmixvi import CplMixVI

_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``cplmixvi annotate``; its help text says what each means."""

    source: Path
    output: Path
    layer: str | None
    n_categories: int | None
    n_state: int
    n_arms: int
    batch_key: str | None
    labels_key: str | None
    unlabeled_category: str
    likelihood: str
    augment: str
    find_condition: bool
    hvg: int
    max_epochs: int | None
    seed: int
    key_added: str
    min_confidence: float
    top_k: int | None
    backed: bool
    overwrite: bool
    model_dir: Path | None
    checkpoint_dir: Path | None
    checkpoint_every: int | None
    resume: bool
    threads: int | None
    accelerator: str
    quiet: bool


def annotate_file(options: Options) -> dict[str, str | int | float | None]:
    """Annotate the cells of one file.

    Returns
    -------
    What happened, fit for JSON. ``n_categories`` is the number given or found, of which cells chose
    ``categories_used``; ``consensus`` is the mean over categories of their consensus (0 to 1), None for a
    model with one arm; ``found_again`` is the share of cells that fits to halves of the data put into the same
    category (0 to 1), None without such fits; ``seconds`` is wall clock.

    Raises
    ------
    InputError, ValueError
        If the input cannot be used; nothing is written then.
    """
    start = time.perf_counter()
    _check_paths(options)
    reporter = Reporter(quiet=options.quiet)
    with calm_libraries(reporter), ExitStack() as stack:
        with swallowed():
            stack.enter_context(thread_limit(options.threads))
            scratch = stack.enter_context(_files.scratch(options.output)) if options.backed else None
            adata, model = _prepare(options, reporter, scratch)
        reporter.release()
        with clean_stdout(), _saying_how_to_go_on(options):
            _train(model, options, reporter)
            try:
                write_back(
                    adata,
                    model,
                    options.key_added,
                    min_confidence=options.min_confidence,
                    top_k=options.top_k,
                    overwrite=options.overwrite,
                    values_of=model.adata if options.backed else None,
                )
            except ValueError as error:
                # All that the user could mend was checked before training: what is left is a bug.
                raise RuntimeError("the trained model could not annotate its own cells") from error
            reporter.say(f"writing {options.output}")
            _save(adata, model, options)
            _remove_checkpoints(options)
    return _summary(adata, model, options) | {
        "seconds": round(time.perf_counter() - start, 2),
        "device": str(model.device),
        "key": options.key_added,
        "output": str(options.output),
    }


def _check_paths(options: Options) -> None:
    """Refuse what can be refused without reading anything or importing torch."""
    _files.check_input(options.source)
    _files.check_output(options.output, options.source, overwrite=options.overwrite)
    if options.backed:
        _backed.check(options.source, options.output, options.layer)
    places = {"IN": options.source, "OUT": options.output}
    if options.model_dir is not None:
        _files.check_model_dir(options.model_dir, overwrite=options.overwrite)
        _files.check_apart(options.model_dir, "--model-dir", **places)
        _files.check_not_cells(options.model_dir, **places)
    if options.checkpoint_dir is not None:
        _files.check_checkpoint_dir(options.checkpoint_dir, resume=options.resume)
        _files.check_apart(options.checkpoint_dir, "--checkpoint-dir", **places)
        if options.model_dir is not None:
            # With checkpoints in it, it would not be empty when the training goes on.
            _files.check_apart(options.checkpoint_dir, "--checkpoint-dir", **{"--model-dir": options.model_dir})
    for option, given in (("--resume", options.resume), ("--checkpoint-every", options.checkpoint_every is not None)):
        if given and options.checkpoint_dir is None:
            raise InputError(f"{option} needs a folder of checkpoints; name it with --checkpoint-dir.")
    if options.accelerator not in _ACCELERATORS:
        raise InputError(f"--accelerator {options.accelerator!r} is not known; use one of {', '.join(_ACCELERATORS)}.")


def _prepare(options: Options, reporter: Reporter, scratch: Path | None) -> tuple[AnnData, CplMixVI]:
    """All cells and genes, and a model of the selected genes that is ready to train.

    With ``--backed``, all but the values, and a model of a file that is written to the folder ``scratch``.
    """
    import scvi

    from cplmixvi import CplMixVI

    _check_accelerator(options.accelerator)
    adata = _files.read(options.source) if scratch is None else _backed.read(options.source)
    _check_names(adata, options)
    _files.check_names(adata, options.output)
    _check_destination(adata, options)
    scvi.settings.seed = options.seed
    fitting = {"likelihood": options.likelihood, "batch_key": options.batch_key}
    if scratch is None:
        fitted = select(adata, options.hvg, layer=options.layer, **fitting)
    else:
        fitted = _backed.select(options.source, adata, scratch / "fitted.h5ad", options.hvg, **fitting)
    if options.labels_key is not None:
        fitted.obs[options.labels_key] = adata.obs[options.labels_key]
    _keep_for_augmenter(adata, fitted, options)
    CplMixVI.setup_anndata(
        fitted,
        layer=options.layer,
        batch_key=options.batch_key,
        labels_key=options.labels_key,
        unlabeled_category=options.unlabeled_category,
    )
    model = CplMixVI(
        fitted,
        n_categories=options.n_categories,
        n_state=options.n_state,
        n_arms=options.n_arms,
        likelihood=options.likelihood,
        augment=options.augment,
    )
    number = (
        "a number of categories to be found" if options.n_categories is None else f"{model.n_categories} categories"
    )
    reporter.say(
        f"{adata.n_obs:,} cells x {adata.n_vars:,} genes read, fitting {fitted.n_vars:,} genes with {number} and "
        f"{options.n_arms} {'arm' if options.n_arms == 1 else 'arms'}"
    )
    return adata, model


def _keep_for_augmenter(adata: AnnData, fitted: AnnData, options: Options) -> None:
    """Give the cells to fit the condition and the coordinates that the augmenter looks at."""
    from cplmixvi.augment import resolve

    augmenter = resolve(options.augment, options.likelihood)
    augmenter.check(adata)
    if options.backed:
        _backed.check_augmenter(augmenter)
    for key in augmenter.nuisance_keys:
        fitted.obs[key] = adata.obs[key]
    for part in augmenter.modules():
        use_rep = getattr(part, "use_rep", None)
        if use_rep is not None:
            fitted.obsm[use_rep] = adata.obsm[use_rep]


def _train(model: CplMixVI, options: Options, reporter: Reporter) -> None:
    """Train from the start or from the last checkpoint, and write checkpoints where they are wanted."""
    folder = options.checkpoint_dir
    resumes = options.resume and _files.has_checkpoints(folder)
    if options.resume:
        reporter.say(f"{'going on from the last' if resumes else 'no'} checkpoint in {folder}")
    if options.n_categories is None and not resumes:
        _find_n_categories(model, reporter, options.find_condition)
    checkpoints = {"resume": folder} if resumes else {"checkpoint_dir": folder}
    try:
        model.train(
            max_epochs=options.max_epochs,
            find_condition=options.find_condition,
            accelerator=options.accelerator,
            enable_progress_bar=not options.quiet,
            checkpoint_every=options.checkpoint_every,
            **checkpoints,
        )
    except OSError as error:
        if folder is None:
            raise
        raise InputError(f"--checkpoint-dir: {one_line(error.strerror)}.") from error


@contextmanager
def _saying_how_to_go_on(options: Options) -> Iterator[None]:
    """Say on a signal what there is and what there is not: see :func:`cplmixvi.cli._errors.signals_exit`."""
    try:
        yield
    except SystemExit:
        how = "give --checkpoint-dir to be able to go on next time"
        if options.checkpoint_dir is not None and _files.has_checkpoints(options.checkpoint_dir):
            how = "the same command with --resume goes on from the last checkpoint"
        sys.stderr.write(f"cplmixvi: interrupted; OUT was not written; {how}\n")
        raise


def _remove_checkpoints(options: Options) -> None:
    """Remove what is of no use once the result is there."""
    from cplmixvi import io

    if options.checkpoint_dir is not None:
        io.remove_checkpoints(options.checkpoint_dir)


def _find_n_categories(model: CplMixVI, reporter: Reporter, find_condition: bool) -> None:
    """Find the number that training will take, and say so before: it takes long and has no progress bar."""
    start = time.perf_counter()
    reporter.say("finding the number of categories, which takes minutes for thousands of cells")
    selection = model.select_n_categories(find_condition=find_condition)
    reporter.say(
        f"{selection.n_categories} categories found, of {len(selection.table)} numbers tried "
        f"({time.perf_counter() - start:.0f} s)"
    )


def _check_accelerator(accelerator: str) -> None:
    import torch

    there = {"gpu": torch.cuda.is_available() or torch.backends.mps.is_available()}
    there |= {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(accelerator, True):
        raise InputError(f"--accelerator {accelerator} was given but there is none here; use auto or cpu.")


def _check_names(adata: AnnData, options: Options) -> None:
    """Refuse, in terms of the command line, a layer or a column that is not there, and genes without names."""
    if options.layer is not None and options.layer not in adata.layers:
        raise InputError(
            f"--layer {options.layer!r} is not in IN; layers there: {_files.layers_in(adata)}; name one of "
            "these, or leave the option out to use X."
        )
    if options.backed and adata.X is None:
        raise InputError("--backed reads X, and IN has no X; leave --backed out, and name a layer with --layer.")
    if options.layer is None and adata.X is None:
        raise InputError(f"IN has no X; layers there: {_files.layers_in(adata)}; name one with --layer.")
    for option, column in (("--batch-key", options.batch_key), ("--labels-key", options.labels_key)):
        if column is not None and column not in adata.obs:
            raise InputError(
                f"{option} {column!r} is not a column of obs; columns there: "
                f"{', '.join(map(str, adata.obs.columns[:12])) or 'none'}; name one of these."
            )
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()][0]
        raise InputError(
            f"gene names of IN are not unique ({str(twice)!r} is there twice); unique ones are needed; call "
            "adata.var_names_make_unique() and write IN again."
        )


def _check_destination(adata: AnnData, options: Options) -> None:
    """Refuse a key that cannot be written before minutes of training and not after."""
    from cplmixvi.tl import check_destination

    check_destination(adata, options.key_added, overwrite=options.overwrite)


def select(adata: AnnData, n_top: int, *, layer: str | None, likelihood: str, batch_key: str | None) -> AnnData:
    """Copy the genes to fit and nothing else, which keeps memory low next to a large ``adata``.

    Parameters
    ----------
    n_top
        Number of highly variable genes; 0, or as many as there are or more, keeps all genes.
    layer, likelihood, batch_key
        Which values are fitted and how, see :func:`cplmixvi.pp.select_genes`.

    Raises
    ------
    InputError, ValueError
        If the values do not fit the likelihood, or a cell has none in the selected genes.
    """
    from anndata import AnnData

    from cplmixvi import pp

    values = adata.X if layer is None else adata.layers[layer]
    where = "X" if layer is None else f"layer {layer!r}"
    pp.check_values(values, likelihood, where=where, obs_names=adata.obs_names, var_names=adata.var_names)
    genes = np.ones(adata.n_vars, dtype=bool)
    if 0 < n_top < adata.n_vars:
        genes = pp.select_genes(adata, n_top, layer=layer, likelihood=likelihood, batch_key=batch_key)
    chosen = values[:, np.flatnonzero(genes)]
    check_chosen(adata, np.flatnonzero(np.asarray((chosen != 0).sum(axis=1)).ravel() == 0), genes, likelihood)
    obs = adata.obs[[] if batch_key is None else [batch_key]].copy()
    var = adata.var.loc[genes, []].copy()
    # The same layer name as in IN, so that the saved model finds its values in IN again.
    return AnnData(chosen if layer is None else None, obs=obs, var=var, layers={layer: chosen} if layer else None)


def write_back(
    adata: AnnData,
    model: CplMixVI,
    key: str = "cplmixvi",
    *,
    min_confidence: float = 0.0,
    top_k: int | None = None,
    overwrite: bool = False,
    values_of: AnnData | None = None,
) -> None:
    """Annotate all cells. Values are those of ``values_of`` where ``adata`` has none."""
    from cplmixvi import tl

    options = {"min_confidence": min_confidence, "top_k": top_k, "overwrite": overwrite}
    with without_traces(adata):
        tl.annotate(adata, model, key_added=key, values_of=values_of, **options)


@contextmanager
def without_traces(adata: AnnData) -> Iterator[None]:
    """Take out in the end what scvi-tools leaves behind in an AnnData that it has seen in the block."""
    before = set(adata.obs) | set(adata.uns)
    yield
    for entries in (adata.obs, adata.uns):
        for name in [name for name in entries if str(name).startswith("_scvi") and name not in before]:
            del entries[name]


def _save(adata: AnnData, model: CplMixVI, options: Options) -> None:
    """Model first, cells last: where the output is, everything is. What one disk has no space for, another may have."""
    failed = None
    if options.model_dir is not None:
        try:
            # What the folder may have was checked before the training.
            model.save(str(options.model_dir), overwrite=True)
        except OSError as error:
            failed = error
    with _files.replacing(options.output) as output:
        if options.backed:
            _backed.write(options.source, adata, output)
        else:
            _files.write(adata, output)
    if failed is not None:
        raise InputError(f"--model-dir: {one_line(failed.strerror)}; OUT was written.") from failed


def mean_consensus(adata: AnnData, key: str = "cplmixvi") -> float | None:
    """Mean over categories of their consensus (0 to 1); None where there is none, as with one arm."""
    by_category = np.asarray(adata.uns[key].get("consensus_by_category", []), dtype=float)
    # A category that only the average of the arms chooses has no consensus.
    known = by_category[np.isfinite(by_category)]
    return round(float(known.mean()), 4) if known.size else None


def share_found_again(adata: AnnData, key: str = "cplmixvi") -> float | None:
    """Share of cells that fits to halves of the data put into the same category (0 to 1); None without such fits.

    It is the mean over cells of the share of their category, as in :class:`cplmixvi.model.Report`.
    """
    by_category = adata.uns[key].get("found_again_by_category")
    if by_category is None:
        return None
    # Not the labels: cells that are too uncertain for one have a category too.
    category = np.asarray(adata.obsm[f"{key}_proba"].argmax(axis=1)).ravel()
    return round(float(np.asarray(by_category, dtype=float)[category].mean()), 4)


def _summary(adata: AnnData, model: CplMixVI, options: Options) -> dict[str, str | int | float | None]:
    result = adata.uns[options.key_added]
    return {
        "cells": int(adata.n_obs),
        "genes": int(adata.n_vars),
        "genes_used": int(model.summary_stats.n_vars),
        "n_categories": int(model.n_categories),
        "categories_used": len(result["categories"]),
        "unassigned": result["n_unassigned"],
        "consensus": mean_consensus(adata, options.key_added),
        "found_again": share_found_again(adata, options.key_added),
    }
