"""Does moving the state move what marks the type?"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.utils.sparsefuncs import mean_variance_axis

from cplmixvi.tl._traversal import effects

#: Share of the type's cells that are at an end of a path.
TAIL = 0.2
#: Of fewer cells of a type, the ends of a path have too few for their means to be told from each other.
MIN_OBSERVED = 30


class TypeMarkers:
    """Markers of a type in its own cells and in all others.

    Parameters
    ----------
    values
        Of all cells, ``(n_obs, n_genes)``.
    member
        The type's cells.
    markers
        Positions of its markers.
    deviation
        Of all genes, ``(n_genes,)``.
    on_counts
        Whether values are logarithms of counts, whose means are taken before the logarithm, as a decoder does.
    """

    def __init__(
        self, values: sparse.csr_matrix, member: np.ndarray, markers: np.ndarray, deviation: np.ndarray, on_counts: bool
    ):
        rates = values[:, markers].toarray().astype(float)
        self.rates = np.expm1(rates) if on_counts else rates
        self.member, self.markers, self.on_counts = member, markers, on_counts
        self.deviation = deviation[markers]
        other = np.setdiff1d(np.arange(values.shape[0]), member)
        self.outside = self._level(other) if len(other) else np.full(len(markers), -np.inf)

    def _level(self, cells: np.ndarray) -> np.ndarray:
        mean = self.rates[cells].mean(0)
        return np.log1p(mean) if self.on_counts else mean

    def leakage(self, steps: np.ndarray, along: np.ndarray, moved: float) -> dict[str, float]:
        """Shares of markers that move, decoded and among the cells, and that stop marking the type.

        Parameters
        ----------
        steps
            Decoded expression of the markers, ``(n_steps, n_markers)``.
        along
            Where the type's cells are along the path, ``(n_cells,)``.
        moved
            Standard deviations from which a change counts.
        """
        names = ("markers_moved", "markers_observed", "markers_lost")
        if not len(self.markers):
            return {"n_markers": 0} | dict.fromkeys(names, np.nan)
        low, high = np.quantile(along, (TAIL, 1 - TAIL))
        seen = self._level(self.member[along >= high]) - self._level(self.member[along <= low])
        shares = (
            np.abs(effects(steps[-1] - steps[0], self.deviation)) >= moved,
            np.abs(effects(seen, self.deviation)) >= moved if len(along) >= MIN_OBSERVED else np.array([np.nan]),
            np.any(steps < (steps[len(steps) // 2] + self.outside) / 2, axis=0),
        )
        return {"n_markers": len(self.markers)} | {
            name: float(share.mean()) for name, share in zip(names, shares, strict=True)
        }


def standard_deviation(values: sparse.csr_matrix) -> np.ndarray:
    """Standard deviation of every gene over all cells, ``(n_genes,)``."""
    # In two passes and double precision: in single precision a million cells would leave nothing of a small deviation.
    return np.sqrt(mean_variance_axis(values.astype(np.float64), axis=0)[1])
