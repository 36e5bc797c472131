"""The only room that writes into AnnData."""

from ._annotate import annotate, check_destination

__all__ = ["annotate", "check_destination"]
