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
    """Mutual information normalised by the mean of both entropies, in [0, 1]; not zero for a random partition."""
    return float(normalized_mutual_info_score(*_codes(y_true, y_pred, ignore)))


def ami(y_true, y_pred, *, ignore: Sequence = ()) -> float:
    """Mutual information adjusted for chance: 0 expected for a random partition, 1 for an equal one.

    Examples
    --------
    >>> ami(["a", "a", "b", "b"], [1, 1, 0, 0])
    1.0
    """
    return float(adjusted_mutual_info_score(*_codes(y_true, y_pred, ignore)))


def ari(y_true, y_pred, *, ignore: Sequence = ()) -> float:
    """Rand index adjusted for chance: 0 expected for a random partition, 1 for an equal one."""
    return float(adjusted_rand_score(*_codes(y_true, y_pred, ignore)))
