"""The only room that writes into AnnData."""

from ._annotate import annotate, check_destination
from ._markers import order_categories, rank_genes
from ._reference import Comparison, compare_to_reference, map_to_reference
from ._selection import read_selection, select_categories
from ._stability import Stability, stability
from ._state_genes import state_genes
from ._state_tests import compare_states
from ._traversal import Traversal
from ._traverse import traverse

__all__ = [
    "Comparison",
    "Stability",
    "Traversal",
    "annotate",
    "check_destination",
    "compare_states",
    "compare_to_reference",
    "map_to_reference",
    "order_categories",
    "rank_genes",
    "read_selection",
    "select_categories",
    "stability",
    "state_genes",
    "traverse",
]
