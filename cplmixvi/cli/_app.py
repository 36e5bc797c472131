"""The commands and their options, and what becomes of errors."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cplmixvi.cli._errors import InputError, is_message, one_line, signals_exit

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "cplmixvi"
_EXIT_BAD_INPUT = 2
_EXIT_INTERRUPTED = 130

# typer brings its own copy of click since 0.16 and depends on click before; its errors have this base in both.
_UsageError = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
_FLAGS = re.compile(
    r"\b(n_categories|n_state|n_arms|batch_key|labels_key|unlabeled_category|key_added|likelihood|layer|augment|"
    r"max_epochs|categories|gene_sets|n_steps|checkpoint_dir|checkpoint_every|seed)="
)
#: What the library says to do in Python, and what that is on the command line.
_IN_PYTHON = re.compile(
    r"(call|run) cplmixvi\.tl\.annotate(\(.*?\))?( with this one)? first( or pass the key of a result)?"
)
_LARGEST_SEED = 2**32 - 1

app = typer.Typer(name=PROGRAM, add_completion=False, help="Cell types and their states from coupled mixture VAEs.")


def run(argv: Sequence[str] | None) -> int:
    """Run a command and turn its outcome into an exit status; a bug keeps its traceback."""
    command = typer.main.get_command(app)
    _hide_types_of_flags(command)
    try:
        with signals_exit():
            status = command(args=argv, prog_name=PROGRAM, standalone_mode=False)
    except _UsageError as error:
        return _refuse(_usage(error))
    except (InputError, ValueError) as error:
        if not is_message(error):
            raise
        text = _IN_PYTHON.sub("annotate with this model first, or name its annotation with --key-added", str(error))
        return _refuse(_FLAGS.sub(_flag, text).replace("overwrite=True", "--overwrite"))
    except (KeyboardInterrupt, typer.Abort):
        return _EXIT_INTERRUPTED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    return status if isinstance(status, int) else 0


def _hide_types_of_flags(command) -> None:
    """Leave out of the help that flags are truth values, as if one had to be given: some versions of typer say so."""
    for part in (command, *getattr(command, "commands", {}).values()):
        for option in part.get_params(typer.Context(part)):
            if getattr(option, "is_flag", False):
                option.metavar = ""


def _usage(error) -> str:
    """Say what typer says about wrong options, and the place where the right ones are listed."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    commands = "" if " " in path else "; commands are annotate, traverse and demo"
    return f"{error.format_message().strip().rstrip('.')}{commands}; see '{path} --help'."


def _flag(match: re.Match) -> str:
    """Name the option on the command line for an argument of the library."""
    name = "steps" if match[1] == "n_steps" else match[1].replace("_", "-")
    return f"--{name} "


def _refuse(text: str) -> int:
    sys.stderr.write(f"{PROGRAM}: error: {one_line(text)}\n")
    return _EXIT_BAD_INPUT


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {installed_version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Cell types and their states from coupled mixture VAEs."""


def _n_categories(text: str) -> str:
    """Check ``K`` or ``auto``; typer has no type for either-or."""
    if text != "auto" and not (text.isdecimal() and int(text) >= 1):
        raise typer.BadParameter(f"{text!r} is neither a whole number of at least 1 nor 'auto'")
    return text


def _probability(value: float) -> float:
    """Check a probability; a range of typer's lets ``nan`` pass."""
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"{value} is not a probability from 0 to 1")
    return value


@app.command()
def annotate(
    source: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Cells to annotate (.h5ad or .zarr).")],
    output: Annotated[Path, typer.Argument(metavar="OUT.h5ad", help="Output file (.h5ad or .zarr).")],
    layer: Annotated[str | None, typer.Option(help="Layer to fit; X by default.")] = None,
    n_categories: Annotated[
        str,
        typer.Option(
            metavar="K|auto", callback=_n_categories, help="Number of types; auto finds one that the data support."
        ),
    ] = "auto",
    n_state: Annotated[int, typer.Option(min=1, help="Number of dimensions of the state.")] = 2,
    n_arms: Annotated[int, typer.Option(min=1, help="Number of coupled arms; two or more give a consensus.")] = 2,
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with the batches.")] = None,
    labels_key: Annotated[
        str | None, typer.Option(help="Column of obs with the types of some cells; they guide and name categories.")
    ] = None,
    unlabeled_category: Annotated[
        str, typer.Option(help="Label of unlabelled cells in that column; missing values also count as unlabelled.")
    ] = "unknown",
    likelihood: Annotated[
        str,
        typer.Option(
            help="nb, zinb or poisson for counts; normal or mse for log values; bernoulli for values from 0 to 1."
        ),
    ] = "nb",
    augment: Annotated[
        str,
        typer.Option(
            help="How the arms' copies of a cell are made: auto, thin, mask, noise, neighbours, neighbours=KEY "
            "(coordinates in obsm), across=COLUMN (a condition that types must not follow), learned, affine (images), "
            "none, or several joined by +."
        ),
    ] = "auto",
    no_find_condition: Annotated[
        bool,
        typer.Option(
            "--no-find-condition", help="Do not look for a strong condition that types should not follow, see the docs."
        ),
    ] = False,
    hvg: Annotated[int, typer.Option(min=0, help="Number of highly variable genes to fit; 0 for all genes.")] = 2000,
    max_epochs: Annotated[
        int | None, typer.Option(min=1, help="Training epochs; by default chosen from the number of cells.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="Random seed.")] = 0,
    key_added: Annotated[str, typer.Option(help="Key of the result in the AnnData.")] = "cplmixvi",
    min_confidence: Annotated[
        float,
        typer.Option(metavar="P", callback=_probability, help="Label cells with a confidence below P 'unassigned'."),
    ] = 0.0,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Write only this many largest probabilities per cell, sparse; by default all."),
    ] = None,
    backed: Annotated[
        bool, typer.Option("--backed", help="Keep the values on disk (.h5ad, X only), for millions of cells.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace IN itself, an existing store, existing entries, or the model in a folder."
        ),
    ] = False,
    model_dir: Annotated[Path | None, typer.Option(help="Folder in which to save the trained model.")] = None,
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints during training; they are removed once OUT is written.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Epochs between checkpoints; by default a twentieth of all epochs.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in --checkpoint-dir, if there is one.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of CPU threads; by default half of the cores.")
    ] = None,
    accelerator: Annotated[str, typer.Option(help="Device for training: auto, cpu, gpu, cuda or mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no advice on stderr.")] = False,
) -> None:
    """Find the types and states of the cells in IN, and write them to OUT with everything else in IN.

    Prints one line of JSON: cells, genes, genes_used, n_categories,
    categories_used, unassigned, consensus, found_again, seconds, device,
    key, output.
    """
    from cplmixvi.cli._annotate import Options, annotate_file

    summary = annotate_file(
        Options(
            source=source,
            output=output,
            layer=layer,
            n_categories=None if n_categories == "auto" else int(n_categories),
            n_state=n_state,
            n_arms=n_arms,
            batch_key=batch_key,
            labels_key=labels_key,
            unlabeled_category=unlabeled_category,
            likelihood=likelihood,
            augment=augment,
            find_condition=not no_find_condition,
            hvg=hvg,
            max_epochs=max_epochs,
            seed=seed,
            key_added=key_added,
            min_confidence=min_confidence,
            top_k=top_k,
            backed=backed,
            overwrite=overwrite,
            model_dir=model_dir,
            checkpoint_dir=checkpoint_dir,
            checkpoint_every=checkpoint_every,
            resume=resume,
            threads=threads,
            accelerator=accelerator,
            quiet=quiet,
        )
    )
    typer.echo(json.dumps(summary, allow_nan=False))


@app.command()
def traverse(
    source: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Cells, annotated or not (.h5ad or .zarr).")],
    output: Annotated[Path, typer.Argument(metavar="OUT.h5ad", help="Output file (.h5ad or .zarr).")],
    model_dir: Annotated[Path, typer.Option(help="Folder written by annotate --model-dir.")],
    categories: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Types to traverse, separated by commas; by default all.")
    ] = None,
    gene_sets: Annotated[
        Path | None, typer.Option(metavar="FILE.gmt", help="Gene sets to summarise, in addition to the built-in ones.")
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="Number of steps along a path.")] = 11,
    state_genes: Annotated[
        int, typer.Option(min=0, help="Number of genes to rank per type and dimension; 0 for none.")
    ] = 100,
    key_added: Annotated[str, typer.Option(help="Key of the annotation in the AnnData.")] = "cplmixvi",
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace IN itself, an existing store, or entries that cplmixvi did not write."
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of CPU threads; by default half of the cores.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no advice on stderr.")] = False,
) -> None:
    """Hold the type, move the state, and write what changes to OUT with everything else in IN.

    Prints one line of JSON: cells, categories, paths, genes, markers_moved,
    flip_rate, seconds, key, output.
    """
    from cplmixvi.cli._traverse import Options, traverse_file

    summary = traverse_file(
        Options(
            source=source,
            output=output,
            model_dir=model_dir,
            categories=categories,
            gene_sets=gene_sets,
            n_steps=steps,
            state_genes=state_genes,
            key_added=key_added,
            overwrite=overwrite,
            threads=threads,
            quiet=quiet,
        )
    )
    typer.echo(json.dumps(summary, allow_nan=False))


@app.command()
def demo(
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Data set: pbmc68k comes with scanpy; kang2018, zeisel2015, pbmc4k, worm_neurons, human_kidney, "
            "mouse_bladder, cbmc, paul2015, tasic2016, tasic2018, scmix and scmix_rna are downloaded.",
        ),
    ] = "pbmc68k",
    out: Annotated[Path, typer.Option(help="Folder for the annotated cells and two figures.")] = Path("demo"),
    labels: Annotated[
        str | None, typer.Option(help="Column of obs with the reference types; by default the data set's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="Random seed.")] = 0,
    max_epochs: Annotated[
        int | None, typer.Option(min=1, help="Training epochs; by default chosen from the number of cells.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of CPU threads; by default half of the cores.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no advice on stderr.")] = False,
) -> None:
    """Annotate a real data set and compare the result with its reference types, k-means and Leiden.

    Finds as many types as the reference has, and prints a table: number
    of categories, consensus of the arms, accuracy of one-to-one matching
    (ACC), normalised mutual information (NMI) and adjusted Rand index (ARI).
    """
    from cplmixvi.cli._demo import run_demo

    typer.echo(
        run_demo(dataset, out, labels=labels, seed=seed, max_epochs=max_epochs, threads=threads, quiet=quiet), nl=False
    )
