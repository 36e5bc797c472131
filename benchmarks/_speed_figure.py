"""How the time of a cell grows, as a figure."""

from __future__ import annotations

from pathlib import Path

PANELS = {"arms": "arms", "categories": "categories", "genes": "genes", "cells": "cells"}


def draw(rows: list[dict], path: Path) -> None:
    """Microseconds of CPU time per cell and epoch, and peak memory, against what grows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_case = {case: [row for row in rows if row["case"] == case] for case in PANELS}
    by_case = {case: sorted(some, key=lambda row: int(row["name"])) for case, some in by_case.items() if some}
    if not by_case:
        return
    figure = Figure(figsize=(3 * len(by_case), 3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(by_case), squeeze=False)[0]
    for axes, (case, some) in zip(panels, by_case.items(), strict=True):
        x = [int(row["name"]) for row in some]
        axes.plot(x, [1e6 / row["cells_per_s"] for row in some], "o-", color="C0")
        memory = axes.twinx()
        memory.plot(x, [row["peak_gb"] for row in some], "s--", color="C1", markersize=3)
        axes.set_xlabel(PANELS[case])
        axes.set_ylim(bottom=0)
        memory.set_ylim(bottom=0)
        axes.set_ylabel("µs per cell", color="C0")
        memory.set_ylabel("peak GB", color="C1")
        if case != "arms":
            axes.set_xscale("log")
    figure.savefig(path, dpi=120)
