"""A fingerprint of the values that a model is given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from ._values import as_values, iter_blocks


def input_hash(X, var_names: Sequence[str]) -> str:
    """SHA-256 of values and gene names, the same for dense and sparse matrices, in memory or backed.

    Parameters
    ----------
    X
        Values, ``(n_obs, n_vars)``. They are hashed in single precision, as the model reads them. The order of cells
        and genes matters; the names of cells do not.
    var_names
        Names of the genes, ``(n_vars,)``.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    ValueError
        If there are no values, or not as many names as genes.

    Examples
    --------
    >>> len(input_hash(adata.X, adata.var_names))
    64
    """
    X = as_values(X)
    names = list(map(str, var_names)) if np.iterable(var_names) and not isinstance(var_names, str) else []
    if len(names) != X.shape[1]:
        raise ValueError(
            f"var_names is a {type(var_names).__name__} of {len(names)} names for {X.shape[1]} genes; pass one for each"
        )
    if getattr(X, "format", "csr") != "csr":
        # Blocks of rows are needed; a column-compressed matrix would be cut into blocks of columns.
        X = (X if sparse.issparse(X) else X.to_memory()).tocsr()
    # One stream for each, so that the size of the blocks does not matter.
    counts, columns, values = (hashlib.sha256() for _ in range(3))
    for _, _, block in iter_blocks(X):
        rows = sparse.csr_matrix(block, dtype=np.float32, copy=True)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        counts.update(np.diff(rows.indptr).astype("<i8").tobytes())
        columns.update(rows.indices.astype("<i8").tobytes())
        values.update(rows.data.astype("<f4").tobytes())
    total = hashlib.sha256(repr((tuple(map(int, X.shape)), names)).encode())
    for part in (counts, columns, values):
        total.update(part.digest())
    return total.hexdigest()
