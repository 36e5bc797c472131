"""``cplmixvi traverse``: what the states of types move, added to annotated cells."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cplmixvi._constants import LEGACY_MODEL_FILE, MODEL_FILE
from cplmixvi.cli import _files
from cplmixvi.cli._annotate import without_traces, write_back
from cplmixvi.cli._errors import InputError, one_line
from cplmixvi.cli._report import Reporter, calm_libraries, clean_stdout, swallowed, thread_limit

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cplmixvi import CplMixVI


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``cplmixvi traverse``; its help text says what each means."""

    source: Path
    output: Path
    model_dir: Path
    categories: str | None
    gene_sets: Path | None
    n_steps: int
    key_added: str
    state_genes: int
    overwrite: bool
    threads: int | None
    quiet: bool


def traverse_file(options: Options) -> dict[str, str | int | float | None]:
    """Walk through the states of the cells of one file.

    Returns
    -------
    What happened, fit for JSON. ``markers_moved`` and ``flip_rate`` are means over types and paths; None where no type
    has markers.

    Raises
    ------
    InputError, ValueError
        If the input cannot be used; nothing is written then.
    """
    from cplmixvi import tl
    from cplmixvi.tl._annotate import read_labels
    from cplmixvi.tl._state_genes import MIN_CELLS

    start = time.perf_counter()
    _check_paths(options)
    reporter = Reporter(quiet=options.quiet)
    with calm_libraries(reporter), ExitStack() as stack:
        with swallowed():
            stack.enter_context(thread_limit(options.threads))
            adata, model, layer = _read(options)
        with clean_stdout(), without_traces(adata):
            is_annotated = options.key_added in adata.uns
            if not is_annotated:
                write_back(adata, model, options.key_added, overwrite=options.overwrite)
            chosen = _named(options.categories, [str(name) for name in adata.uns[options.key_added]["categories"]])
            result = tl.traverse(adata, model, chosen, options.gene_sets, options.n_steps, key_added=options.key_added)
            n_large = (read_labels(adata, options.key_added).value_counts() >= MIN_CELLS).sum()
            if options.state_genes and n_large:
                tl.state_genes(adata, options.key_added, layer=layer, n_genes=options.state_genes)
            if n_large > 1:
                tl.compare_states(adata, options.key_added)
        reporter.release()
        if not is_annotated:
            reporter.say("the cells had no annotation of that name and have been annotated first")
        if options.state_genes and not n_large:
            reporter.say(f"no category has {MIN_CELLS} cells, as a ranking of genes needs: none is written")
        reporter.say(f"writing {options.output}")
        with _files.replacing(options.output) as path:
            _files.write(adata, path)
    moved = result.leakage["markers_moved"].mean()
    return {
        "cells": int(adata.n_obs),
        "categories": len(result.categories),
        "paths": len(result.paths),
        "genes": len(result.genes),
        "markers_moved": round(float(moved), 4) if np.isfinite(moved) else None,
        "flip_rate": round(float(result.leakage["flip_rate"].mean()), 4),
        "seconds": round(time.perf_counter() - start, 2),
        "key": options.key_added,
        "output": str(options.output),
    }


def _check_paths(options: Options) -> None:
    """Refuse what can be refused without reading anything or importing torch."""
    _files.check_input(options.source)
    _files.check_output(options.output, options.source, overwrite=options.overwrite)
    if not any((options.model_dir / name).is_file() for name in (MODEL_FILE, LEGACY_MODEL_FILE)):
        raise InputError(
            f"--model-dir {str(options.model_dir)!r} has no model ({MODEL_FILE}); a folder that annotate "
            "--model-dir or model.save has written is needed."
        )
    if options.gene_sets is not None and not options.gene_sets.is_file():
        raise InputError(f"--gene-sets {str(options.gene_sets)!r} is no file; a GMT file is needed; check the path.")


def _read(options: Options) -> tuple[AnnData, CplMixVI, str | None]:
    """All cells, the model, and the layer that it reads."""
    from cplmixvi import CplMixVI

    adata = _files.read(options.source)
    try:
        model = CplMixVI.load(str(options.model_dir), adata=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--model-dir {str(options.model_dir)!r} cannot be read as a model of cplmixvi: {one_line(error)}"
        ) from error
    layer = model.registry_["setup_args"].get("layer")
    if layer is not None and layer not in adata.layers:
        raise InputError(
            f"The model reads layer {layer!r}, which is not in IN; layers there: {_files.layers_in(adata)}."
        )
    if not adata.var_names.is_unique:
        raise InputError("gene names of IN are not unique; call adata.var_names_make_unique() and write IN again.")
    return adata, model, layer


def _named(text: str | None, names: list[str]) -> list[str] | None:
    """Names between commas, which may have commas themselves; `None` for all."""
    if text is None:
        return None
    parts, found = text.split(","), []
    while parts:
        lengths = (n for n in range(len(parts), 1, -1) if ",".join(parts[:n]).strip() in names)
        length = next(lengths, 1)
        found.append(",".join(parts[:length]).strip())
        parts = parts[length:]
    return found
