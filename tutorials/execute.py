"""Run tutorials from top to bottom and save their outputs: python tutorials/execute.py [NOTEBOOK ...], all by default.

With --check the notebooks are run but not written.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def executed(path: Path, timeout: int) -> nbformat.NotebookNode:
    """Run a notebook in its own folder; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        # When a cell ran says nothing to a reader and makes every run a change.
        cell.metadata.pop("execution", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--timeout", type=int, default=600, help="seconds that a cell may take")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    # Notebooks show no progress bars, for which this asks for one more package.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    # Commands that notebooks call come from the environment that this runs in.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for path in arguments.notebooks or sorted(HERE.glob("*.ipynb")):
        start = time.perf_counter()
        notebook = executed(path.resolve(), arguments.timeout)
        if not arguments.check:
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
