"""A page that says what a model is and what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOT_RECORDED = "Trained; what on was not recorded."


def card_text(card: Mapping[str, Any]) -> str:
    """Write a model card, a page in Markdown.

    Parameters
    ----------
    card
        ``model`` (its name), ``settings``, ``categories``, ``training`` (see :attr:`cplmixvi.CplMixVI.training_`;
        `None` if there is no record), ``references`` (training records of the models that it was fine-tuned from, the
        latest first), ``trained`` and ``versions``.

    Returns
    -------
    str
        The page, ending in a newline.
    """
    lines = [f"# {card['model']}", ""]
    training = card["training"]
    if training is not None:
        lines += ["## Trained on", "", *_training(training)]
        if training["report"] is not None:
            lines += ["", "## At the end of training", "", *(f"- {line}" for line in training["report"].splitlines())]
    else:
        lines.append(_NOT_RECORDED if card["trained"] else "Not trained.")
    for index, reference in enumerate(card["references"]):
        lines += ["", f"## {'That one from' if index else 'Fine-tuned from'} a model that was trained on", ""]
        lines += [_NOT_RECORDED] if reference is None else _training(reference)
    lines += ["", "## Categories", "", ", ".join(map(str, card["categories"]))]
    for title in ("settings", "versions"):
        lines += ["", f"## {title.capitalize()}", "", *_table(card[title])]
    return "\n".join(lines) + "\n"


def _training(training: Mapping[str, object]) -> list[str]:
    seed, digest = training["seed"], training["input_sha256"]
    lines = [
        f"- {training['n_cells']:,} of {training['n_obs']:,} cells, {training['n_genes']:,} genes: "
        f"{training['values']} from {training['source']}",
        f"- {training['n_epochs']} epochs, seed {'not set' if seed is None else seed}",
    ]
    if digest is not None:
        lines.append(f"- SHA-256 of the values of all cells and the genes' names: `{digest}`")
    return lines


def _table(values: Mapping[str, object]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in values.items())]


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
