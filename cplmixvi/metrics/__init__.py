"""Scores of labels, probabilities and states, computed from plain arrays.

Missing labels: a cell whose reference is NaN, None or one of ``ignore`` (such as ``("unknown", "(none)")``) is left out
of every score. A cell without a predicted label is kept and never counts as correct; in :func:`nmi`, :func:`ami` and
:func:`ari`, such cells form a category of their own.
"""

from cplmixvi.metrics._arms import agreement, consensus_matrix
from cplmixvi.metrics._calibration import brier, confidence, expected_calibration_error
from cplmixvi.metrics._disentanglement import disentanglement_score, mutual_information_gap
from cplmixvi.metrics._evaluate import correct_cells, evaluate
from cplmixvi.metrics._information import ami, ari, nmi
from cplmixvi.metrics._matching import (
    accuracy,
    balanced_accuracy,
    confusion,
    match_categories,
    purity,
    rare_recall,
    recall_by_type,
)

__all__ = [
    "accuracy",
    "agreement",
    "ami",
    "ari",
    "balanced_accuracy",
    "brier",
    "confidence",
    "confusion",
    "consensus_matrix",
    "correct_cells",
    "disentanglement_score",
    "evaluate",
    "expected_calibration_error",
    "match_categories",
    "mutual_information_gap",
    "nmi",
    "purity",
    "rare_recall",
    "recall_by_type",
]
