"""How well the arms of a model agree with each other; no reference is needed."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from cplmixvi import pp


def _checked(labels_by_arm) -> np.ndarray:
    labels = np.asarray(labels_by_arm)
    if labels.ndim != 2 or labels.shape[0] < 1 or labels.shape[1] < 1:
        raise ValueError(
            f"labels_by_arm has shape {labels.shape}; (n_arms, n_obs) is needed: one row of labels for each arm"
        )
    return labels


def agreement(labels_by_arm) -> np.ndarray:
    """Fraction of cells to which each pair of arms gives the same label.

    Parameters
    ----------
    labels_by_arm
        Labels, ``(n_arms, n_obs)``.

    Returns
    -------
    numpy.ndarray
        Symmetric, ``(n_arms, n_arms)``, with ones on the diagonal.

    Raises
    ------
    ValueError
        If ``labels_by_arm`` is not two-dimensional, or has no arm or no cell.

    Examples
    --------
    >>> agreement([[0, 0, 1, 1], [0, 0, 1, 0]])
    array([[1.  , 0.75],
           [0.75, 1.  ]])
    """
    labels = _checked(labels_by_arm)
    result = np.eye(len(labels))
    for a, b in combinations(range(len(labels)), 2):
        result[a, b] = result[b, a] = np.mean(labels[a] == labels[b])
    return result


def consensus_matrix(labels_by_arm, n_categories: int) -> np.ndarray:
    r"""Where arms agree, and which categories they confuse with each other.

    For arms a and b, :math:`M_{ij}` is the number of cells that a assigns to category i and b to category j. Entry ij
    of the matrix is :math:`M_{ij} / \max(\sum_j M_{ij}, \sum_i M_{ij})`, averaged over ordered pairs of arms. The
    matrix is therefore symmetric, and its diagonal is the consensus of each category: 1 if the arms assign it to the
    same cells.

    Parameters
    ----------
    labels_by_arm
        Category indices, ``(n_arms, n_obs)``, from 0 to ``n_categories - 1``.
    n_categories
        Number of categories K.

    Returns
    -------
    numpy.ndarray
        ``(n_categories, n_categories)``. A pair of arms that uses neither i (as row) nor j (as column) carries no
        information about entry ij and is left out of its mean; the entry is 0 if no pair carries any.

    Raises
    ------
    ValueError
        If there are fewer than two arms, or an index is out of range.

    Examples
    --------
    >>> consensus_matrix([[0, 0, 1, 1], [0, 0, 1, 0]], 2).round(2)
    array([[0.67, 0.17],
           [0.17, 0.5 ]])
    """
    labels = _checked(labels_by_arm)
    if not pp.is_whole(n_categories) or n_categories < 1:
        raise ValueError(f"n_categories={n_categories!r} given, a whole number of at least 1 is needed: the model's")
    if len(labels) < 2:
        raise ValueError("labels of 1 arm given, at least 2 are needed for a consensus: train with n_arms >= 2")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= n_categories:
        raise ValueError(
            f"labels_by_arm holds {labels.dtype} from {labels.min()} to {labels.max()}; integers from 0 to "
            f"{n_categories - 1} are needed: pass category indices and the number of categories"
        )
    # Of thousands of categories, many may have no cell: nothing is told about these.
    used, codes = np.unique(labels, return_inverse=True)
    n_used, codes = len(used), codes.reshape(labels.shape).astype(np.int64)
    total = np.zeros((n_used, n_used))
    told = np.zeros_like(total)
    for a, b in combinations(codes, 2):
        shared = np.bincount(a * n_used + b, minlength=n_used**2).reshape(n_used, n_used)
        larger = np.maximum.outer(shared.sum(axis=1), shared.sum(axis=0))
        share = np.divide(shared, larger, out=np.zeros_like(total), where=larger > 0)
        total += share + share.T
        told += (larger > 0).astype(float) + (larger > 0).T
    matrix = np.zeros((n_categories, n_categories))
    matrix[np.ix_(used, used)] = np.divide(total, told, out=np.zeros_like(total), where=told > 0)
    return matrix
