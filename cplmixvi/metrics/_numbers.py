"""What is given as numbers, as an array of them."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def numbers(values, name: str) -> np.ndarray:
    """Numbers of any kind, also sparse as ``tl.annotate(top_k=...)`` writes them, as a float64 array.

    Raises
    ------
    ValueError
        When they are something else; ``name`` is what the caller calls them.
    """
    try:
        return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is a {type(values).__name__} that is no array of numbers: pass one") from error
