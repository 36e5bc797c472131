"""The only room that writes into AnnData."""

from ._annotate import annotate

__all__ = ["annotate"]
