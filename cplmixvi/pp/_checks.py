"""Is this matrix what the likelihood expects? Answers in one pass and one line."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from cplmixvi._constants import COUNT_LIKELIHOODS, LARGEST_LOG, LIKELIHOODS, LOG_LIKELIHOODS
from cplmixvi.pp._values import as_values, get_matrix, iter_blocks

if TYPE_CHECKING:
    from anndata import AnnData

# Squares of larger values are rounded away, or are none, in single precision.
_LARGEST = 1e8
_NAMED = 3


@dataclass(frozen=True)
class ValuesReport:
    """What :func:`check_values` found.

    Attributes
    ----------
    n_obs
        Number of cells.
    n_vars
        Number of genes.
    minimum
        Smallest value, zeros included.
    maximum
        Largest value, zeros included.
    integral
        Whether all values are whole numbers.
    density
        Fraction of non-zero entries.
    empty_genes
        Positions of genes that are zero in every cell. They are allowed, but nothing is learnt about them.
    """

    n_obs: int
    n_vars: int
    minimum: float
    maximum: float
    integral: bool
    density: float
    empty_genes: np.ndarray


def check_likelihood(likelihood: str) -> None:
    """Check that the package knows a likelihood.

    Parameters
    ----------
    likelihood
        Name: "nb", "zinb", "poisson", "normal", "mse" or "bernoulli".

    Raises
    ------
    ValueError
        If ``likelihood`` is not one of these names.

    Examples
    --------
    >>> check_likelihood("nb")
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"likelihood={likelihood!r} given, known are {', '.join(LIKELIHOODS)}: 'nb' suits raw counts, 'normal' log "
            f"values, 'bernoulli' values in [0, 1]"
        )


def is_whole(value: object) -> bool:
    """Whether a value is a whole number.

    Parameters
    ----------
    value
        Any object.

    Returns
    -------
    bool
        True for integers of Python or NumPy; False for True and False, and for floats such as 3.0.

    Examples
    --------
    >>> is_whole(3), is_whole(3.5), is_whole(True)
    (True, False, False)
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a real number.

    Parameters
    ----------
    value
        Any object.

    Returns
    -------
    bool
        True for numbers of Python or NumPy; False for True and False, and for text.

    Examples
    --------
    >>> is_number(3), is_number(3.5), is_number("3"), is_number(True)
    (True, True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def check_adata(adata: object) -> None:
    """Check that cells are given as an AnnData.

    Parameters
    ----------
    adata
        Any object.

    Raises
    ------
    ValueError
        If it is no AnnData.

    Examples
    --------
    >>> check_adata([1, 2])
    Traceback (most recent call last):
    ValueError: adata is a list, and an AnnData is needed: anndata.AnnData(values).
    """
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        raise ValueError(f"adata is a {type(adata).__name__}, and an AnnData is needed: anndata.AnnData(values).")


def check_n_categories(n_categories: int, n_obs: int, labels: Sequence[str] = ()) -> None:
    """Check that a number of categories suits the number of cells and the labels.

    Parameters
    ----------
    n_categories
        Number of categories.
    n_obs
        Number of cells.
    labels
        Names of the labels, each of which needs a category. Default: no labels.

    Raises
    ------
    ValueError
        If ``n_categories`` is not a whole number from 1 to ``n_obs``, or is smaller than the number of labels.

    Examples
    --------
    >>> check_n_categories(8, n_obs=4_000)
    """
    if not is_whole(n_categories) or not 1 <= n_categories <= n_obs:
        raise ValueError(
            f"n_categories={n_categories!r} given for {n_obs} cells, a whole number from 1 to {n_obs} is needed: lower "
            f"n_categories, or leave it out"
        )
    if n_categories < len(labels):
        named = ", ".join(map(repr, labels[:_NAMED])) + (", ..." if len(labels) > _NAMED else "")
        raise ValueError(
            f"n_categories={n_categories!r} given for {len(labels)} labels ({named}), each of which is a category: at "
            f"least {len(labels)} are needed: raise n_categories, or name what means no label as unlabeled_category"
        )


def _broken_rule(values: np.ndarray, likelihood: str) -> tuple[np.ndarray, str] | None:
    """Mask of the first kind of value that the likelihood cannot take, and its name."""
    rules = [
        (~np.isfinite(values), "a value that is not finite"),
    ]
    # Numbers of half precision are none so large, and cannot be compared with one.
    if values.dtype.itemsize > 2:
        rules.append((np.abs(values) > _LARGEST, "a value that is too large to compute with"))
    if likelihood in COUNT_LIKELIHOODS:
        rules.append((values < 0, "a negative value"))
        if values.dtype.kind == "f":
            rules.append((values != np.rint(values), "a fraction"))
    elif likelihood == "bernoulli":
        rules.append(((values < 0) | (values > 1), "a value outside [0, 1]"))
    return next(((bad, name) for bad, name in rules if bad.any()), None)


_NEEDS = {
    "count": ("whole counts >= 0", "name the layer of the raw counts with layer='...', or use likelihood='normal'"),
    "log": ("finite values", "replace NaN and infinity, or drop those cells or genes"),
    "bernoulli": ("values in [0, 1]", "scale or binarise the values, or use likelihood='normal'"),
}


def _raise_broken(block, bad, kind, start, likelihood, where, obs_names, var_names) -> None:
    first = int(np.flatnonzero(bad)[0])
    if sparse.issparse(block):
        entries = block.tocoo()
        row, column, value = entries.row[first], entries.col[first], entries.data[first]
    else:
        row, column = np.unravel_index(first, block.shape)
        value = block[row, column]
    row, column = int(row) + start[0], int(column) + start[1]
    cell = row if obs_names is None else repr(str(obs_names[row]))
    gene = column if var_names is None else repr(str(var_names[column]))
    group = "count" if likelihood in COUNT_LIKELIHOODS else "log" if likelihood in LOG_LIKELIHOODS else likelihood
    needs, mend = _NEEDS[group]
    if kind == "a value that is not finite":
        mend = _NEEDS["log"][1]
    elif "too large" in kind:
        needs, mend = f"values up to {_LARGEST:g}", "mend or drop that cell or gene"
    raise ValueError(
        f"{where} has {kind} ({value} at cell {cell}, gene {gene}); likelihood={likelihood!r} needs {needs}: {mend}"
    )


def _check_shape(X, where: str, min_cells: int) -> None:
    if X.shape[0] < min_cells or X.shape[1] < 1:
        raise ValueError(
            f"{where} has shape {tuple(X.shape)}; at least {min_cells} cells and 1 gene are needed: give more cells, "
            f"or check how the data were subset"
        )
    kind = np.dtype(X.dtype).kind
    if kind not in "fiub":
        raise ValueError(f"{where} holds {X.dtype}; real numbers are needed: convert with .astype('float32')")


def source_name(layer: str | None) -> str:
    """What to call the values of a layer, or of none, in messages.

    Parameters
    ----------
    layer
        Name of a layer; None for ``adata.X``.

    Returns
    -------
    str

    Examples
    --------
    >>> source_name(None)
    'adata.X'
    """
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def check_structure(X, where: str = "adata.X") -> None:
    """Check that a sparse matrix in memory does not refer to cells or genes that it does not have.

    SciPy checks this only on request, and arithmetic with such a matrix ends the process.

    Parameters
    ----------
    X
        Values, ``(n_obs, n_vars)``. Only CSR and CSC matrices and arrays in memory are checked; anything else passes.
    where
        What to call the matrix in the error message.

    Raises
    ------
    ValueError
        If the matrix is damaged.

    Examples
    --------
    >>> check_structure(adata.X)
    """
    if not sparse.issparse(X) or X.format not in ("csr", "csc"):
        return
    try:
        X.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(
            f"{where} is a damaged sparse matrix ({error}): make it anew from its source, or write the file again"
        ) from error


def check_values(
    X,
    likelihood: str = "nb",
    *,
    where: str = "adata.X",
    obs_names: Sequence[str] | None = None,
    var_names: Sequence[str] | None = None,
    allow_empty_cells: bool | None = None,
    min_cells: int = 2,
) -> ValuesReport:
    """Check that the values of a matrix suit a likelihood.

    The matrix is read in blocks: a sparse or backed matrix is never made dense as a whole.

    Parameters
    ----------
    X
        Values, ``(n_obs, n_vars)``: dense, CSR or CSC, matrix or array, any real type, in memory or backed.
    likelihood
        "nb", "zinb" or "poisson": whole counts; "normal" or "mse": finite values; "bernoulli": values in [0, 1].
    where
        What to call the matrix in messages.
    obs_names
        Names of cells for messages. Default: their positions.
    var_names
        Names of genes for messages. Default: their positions.
    allow_empty_cells
        Whether to accept cells that are zero in every gene. Default: only under "bernoulli", where they are empty
        pictures; under other likelihoods, nothing can be said about the type of such a cell.
    min_cells
        Smallest number of cells: two for training, one for inference with a trained model.

    Returns
    -------
    ValuesReport
        What was found, including the genes that are zero everywhere.

    Raises
    ------
    ValueError
        If there are fewer than ``min_cells`` cells, values that the likelihood does not allow, or empty cells, if the
        matrix is damaged or none, or if names are not as many as cells or genes.

    Warns
    -----
    UserWarning
        If values under "normal" or "mse" are too large to be logarithms.

    Examples
    --------
    >>> check_values(adata.X, "nb").integral
    True
    """
    check_likelihood(likelihood)
    if not is_whole(min_cells):
        raise ValueError(f"min_cells={min_cells!r} given, a whole number is needed")
    X = as_values(X, where)
    _check_shape(X, where, min_cells)
    for given, names, n_named in (("obs_names", obs_names, X.shape[0]), ("var_names", var_names, X.shape[1])):
        if names is not None and (isinstance(names, str) or not hasattr(names, "__len__") or len(names) != n_named):
            raise ValueError(
                f"{given} are not {n_named} names for {where} of shape {tuple(X.shape)}: pass one for each"
            )
    check_structure(X, where)
    n_obs, n_vars = X.shape
    in_cell = np.zeros(n_obs, dtype=np.int64)
    in_gene = np.zeros(n_vars, dtype=np.int64)
    lowest, highest, integral = np.inf, -np.inf, True
    for row, column, block in iter_blocks(X):
        values = block.data if sparse.issparse(block) else block
        broken = _broken_rule(values, likelihood)
        if broken is not None:
            _raise_broken(block, *broken, (row, column), likelihood, where, obs_names, var_names)
        if values.size:
            lowest, highest = min(lowest, values.min()), max(highest, values.max())
            integral = integral and (values.dtype.kind != "f" or bool((values == np.rint(values)).all()))
        # Stored zeros are zeros: count what is not zero, not what is stored.
        nonzero = block != 0
        rows, columns = slice(row, row + block.shape[0]), slice(column, column + block.shape[1])
        in_cell[rows] += np.asarray(nonzero.sum(axis=1)).ravel()
        in_gene[columns] += np.asarray(nonzero.sum(axis=0)).ravel()
    if in_cell.sum() < n_obs * n_vars:
        lowest, highest = min(lowest, 0.0), max(highest, 0.0)

    if not (likelihood == "bernoulli" if allow_empty_cells is None else allow_empty_cells):
        _check_empty_cells(np.flatnonzero(in_cell == 0), n_obs, where, obs_names)
    if likelihood in LOG_LIKELIHOODS and highest > LARGEST_LOG:
        warnings.warn(
            f"{where} has values up to {highest:g}; likelihood={likelihood!r} expects log values: take log1p of "
            f"normalised values, or use likelihood='nb' on raw counts",
            UserWarning,
            stacklevel=2,
        )
    return ValuesReport(
        n_obs=n_obs,
        n_vars=n_vars,
        minimum=float(lowest),
        maximum=float(highest),
        integral=integral,
        density=float(in_cell.sum() / (n_obs * n_vars)),
        empty_genes=np.flatnonzero(in_gene == 0),
    )


def _check_empty_cells(empty: np.ndarray, n_obs: int, where: str, obs_names: Sequence[str] | None) -> None:
    if not empty.size:
        return
    named = ", ".join(str(i) if obs_names is None else repr(str(obs_names[i])) for i in empty[:_NAMED])
    more = f" and {empty.size - _NAMED} more" if empty.size > _NAMED else ""
    raise ValueError(
        f"{where} has {empty.size} of {n_obs} cells without any value ({named}{more}); every cell needs at least one: "
        + (
            f"drop them with adata[np.asarray(({where} != 0).sum(1)).ravel() > 0].copy()"
            if where.startswith("adata.")
            else "drop them"
        )
    )


def check_setup(
    adata: AnnData,
    layer: str | None = None,
    obs_keys: Sequence[str] = (),
    *,
    complete_keys: Sequence[str] = (),
    number_keys: Sequence[str] = (),
) -> None:
    """Check that everything that :meth:`cplmixvi.CplMixVI.setup_anndata` is asked to register exists.

    Parameters
    ----------
    adata
        Annotated data.
    layer
        Name of a layer; None for ``adata.X``.
    obs_keys
        Columns of ``obs`` that must exist.
    complete_keys
        Columns of ``obs`` in which every cell needs a value, such as its batch.
    number_keys
        Columns of ``obs`` in which every cell needs a finite number.

    Raises
    ------
    ValueError
        If cells, genes, the layer, a column or a cell's value are missing, gene names repeat, or text and numbers mix.

    Examples
    --------
    >>> check_setup(adata, obs_keys=["batch"])
    """
    check_adata(adata)
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata has {adata.n_obs} cells and {adata.n_vars} genes; at least one of each is needed")
    get_matrix(adata, layer)
    if not adata.var_names.is_unique:
        raise ValueError("adata.var_names has repeated names; call adata.var_names_make_unique() first")
    keys = (*obs_keys, *complete_keys, *number_keys)
    missing = [key for key in keys if not isinstance(key, Hashable) or key not in adata.obs]
    if missing:
        raise ValueError(
            f"obs has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, adata.obs.columns[:20]))}"
            f": name one of them"
        )
    for key in (*complete_keys, *number_keys):
        column = adata.obs[key]
        if key in number_keys and not pd.api.types.is_numeric_dtype(column):
            raise ValueError(f"obs[{key!r}] holds {column.dtype}; numbers are needed: convert it, or leave it out")
        empty = np.flatnonzero(column.isna() if key in complete_keys else ~np.isfinite(column.to_numpy(dtype=float)))
        if empty.size:
            raise ValueError(
                f"obs[{key!r}] has no value for {empty.size} of {adata.n_obs} cells "
                f"({str(adata.obs_names[empty[0]])!r}); every cell needs one: fill it in, or drop those cells"
            )
        # scvi-tools sorts them, and text cannot be compared with numbers.
        if key in complete_keys and len({isinstance(value, str) for value in column.unique()}) > 1:
            raise ValueError(
                f"obs[{key!r}] has both text and numbers, of which only one kind is allowed: convert it, for instance "
                f"with adata.obs[{key!r}].astype(str)"
            )
