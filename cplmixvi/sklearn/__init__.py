"""The model as an estimator of scikit-learn, on arrays."""

from ._cluster import CplMixVICluster

__all__ = ["CplMixVICluster"]
