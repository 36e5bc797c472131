"""Methods with which cplmixvi is compared."""

from ._assignment import assign_categories
from ._cascade import CascadeModule, CascadeVAE
from ._clustering import kmeans, leiden, neighbour_graph, principal_components
from ._infogan import InfoGAN, InfoGANModule
from ._joint import JointModule, JointVAE

__all__ = [
    "CascadeModule",
    "CascadeVAE",
    "InfoGAN",
    "InfoGANModule",
    "JointModule",
    "JointVAE",
    "assign_categories",
    "kmeans",
    "leiden",
    "neighbour_graph",
    "principal_components",
]
