"""A guide as arrays and numbers, and the guide again: what a checkpoint keeps, so that it is fitted once."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from ._views import Opinion, Projection, View, ViewConsensus

Kind = TypeVar("Kind", bound=nn.Module)


def guide_state(guide: ViewConsensus) -> dict[str, object]:
    """Everything that a guide is made of.

    Returns
    -------
    dict
        Of lists, dicts, numbers and tensors.
    """
    return {"opinions": [_opinion_state(opinion) for opinion in (guide.answer, *guide.committee)], "start": guide.start}


def guide_of(state: dict) -> ViewConsensus:
    """Make the guide that :func:`guide_state` was given, on the CPU and in evaluation mode."""
    answer, *committee = (_opinion_of(opinion) for opinion in state["opinions"])
    # Checkpoints of version 0.1.0 do not say it, and nothing asks after the guide is fitted.
    return ViewConsensus(answer, committee, state.get("start", "mixture")).eval()


def _opinion_state(opinion: Opinion) -> dict[str, object]:
    return {
        "projection": dict(opinion.projection.named_buffers()),
        "views": [{"dof": view.dof, "buffers": dict(view.named_buffers())} for view in opinion.views],
        "buffers": {"log_weight": opinion.log_weight, "order": opinion.order},
    }


def _opinion_of(state: dict) -> Opinion:
    opinion = _without_fit(Opinion, state["buffers"])
    opinion.projection = _without_fit(Projection, state["projection"])
    opinion.views = nn.ModuleList(_view_of(view["buffers"], view["dof"]) for view in state["views"])
    return opinion


def _view_of(buffers: dict[str, torch.Tensor], dof: float) -> View:
    view = _without_fit(View, buffers)
    view.dof, view.dimension = dof, buffers["mean"].shape[1]
    return view


def _without_fit(kind: type[Kind], buffers: dict[str, torch.Tensor]) -> Kind:
    """Make a module of what its constructor, which fits it to cells, would have found."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name, value in buffers.items():
        module.register_buffer(name, value)
    return module
