"""Files of results: a line of JSON for each fit."""

from __future__ import annotations

import json
from pathlib import Path


def read(path: Path) -> list[dict]:
    """Fits that are there, none without the file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, entry: dict) -> None:
    """Write a fit below those that are there."""
    with path.open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
