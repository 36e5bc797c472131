"""Methods that cplmixvi is compared with."""

from ._clustering import kmeans, leiden, neighbour_graph, principal_components

__all__ = ["kmeans", "leiden", "neighbour_graph", "principal_components"]
