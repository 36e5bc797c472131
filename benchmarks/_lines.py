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


def missing(wanted: list[tuple], done: set[tuple], path: Path) -> list[tuple]:
    """Runs that are wanted and not in a file yet; says so if there are none, since nothing else will happen."""
    left = [each for each in wanted if each not in done]
    if not wanted:
        print("nothing to do: none of these methods is for these data")
    elif not left:
        print(f"nothing to do: all {len(wanted)} rows are in {path}; --out FILE runs them again, into another file")
    return left
