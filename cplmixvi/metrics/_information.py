"""Scores that need no matching: how much two partitions tell about each other.

Cells without a predicted label form one category of their own here.
"""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

from cplmixvi.metrics._labels import encode, paired


def _codes(y_true, y_pred, ignore: Sequence):
    return tuple(encode(labels)[0] for labels in paired(y_true, y_pred, ignore))


def nmi(y_true, y_pred, *, ignore: Sequence = ()) -> float:
    r"""Mutual information normalised by the mean of both entropies; its expectation for a random partition is not zero.

    .. math:: \mathrm{NMI}(T, C) = \frac{I(T; C)}{\tfrac12\big(H(T) + H(C)\big)}

    for types :math:`T` and categories :math:`C`. No matching is involved.

    Parameters
    ----------
    y_true
        Reference cell types, ``(n_obs,)``.
    y_pred
        Predicted categories, ``(n_obs,)``. Cells without a predicted label form a category of their own.
    ignore
        Reference labels that mean "unknown".

    Returns
    -------
    float
        In [0, 1]; 1 for identical partitions.

    Raises
    ------
    ValueError
        If the lengths differ, labels are not one-dimensional, or no cell has a reference label.

    Examples
    --------
    >>> round(nmi(["a", "a", "b", "b"], [1, 1, 0, 0]), 6)
    1.0
    """
    return float(normalized_mutual_info_score(*_codes(y_true, y_pred, ignore)))


def ami(y_true, y_pred, *, ignore: Sequence = ()) -> float:
    r"""Mutual information adjusted for chance: its expectation is 0 for a random partition, and 1 means identical ones.

    .. math:: \mathrm{AMI}(T, C) = \frac{I(T; C) - E[I]}{\tfrac12\big(H(T) + H(C)\big) - E[I]}

    for types :math:`T` and categories :math:`C`, with :math:`E[I]` the mean over random partitions with the same sizes.
    No matching is involved.

    Parameters
    ----------
    y_true
        Reference cell types, ``(n_obs,)``.
    y_pred
        Predicted categories, ``(n_obs,)``. Cells without a predicted label form a category of their own.
    ignore
        Reference labels that mean "unknown".

    Returns
    -------
    float
        At most 1; may be negative.

    Raises
    ------
    ValueError
        If the lengths differ, labels are not one-dimensional, or no cell has a reference label.

    Examples
    --------
    >>> ami(["a", "a", "b", "b"], [1, 1, 0, 0])
    1.0
    """
    return float(adjusted_mutual_info_score(*_codes(y_true, y_pred, ignore)))


def ari(y_true, y_pred, *, ignore: Sequence = ()) -> float:
    r"""Rand index adjusted for chance: its expectation is 0 for a random partition, and 1 means identical ones.

    .. math:: \mathrm{ARI} = \frac{R - E[R]}{1 - E[R]}

    with the Rand index :math:`R`, the share of pairs of cells that both partitions put together or both keep apart, and
    :math:`E[R]` its mean over random partitions with the same sizes. No matching is involved.

    Parameters
    ----------
    y_true
        Reference cell types, ``(n_obs,)``.
    y_pred
        Predicted categories, ``(n_obs,)``. Cells without a predicted label form a category of their own.
    ignore
        Reference labels that mean "unknown".

    Returns
    -------
    float
        At most 1; may be negative.

    Raises
    ------
    ValueError
        If the lengths differ, labels are not one-dimensional, or no cell has a reference label.

    Examples
    --------
    >>> ari(["a", "a", "b", "b"], [1, 1, 0, 0])
    1.0
    """
    return float(adjusted_rand_score(*_codes(y_true, y_pred, ignore)))
