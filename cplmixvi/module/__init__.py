"""The coupled mixture VAEs as pure torch: arms, simplex geometry, likelihoods and the objective."""

from ._alignment import StateAlignment, mean_over_arms
from ._arm import Arm, ArmOutput, Covariates
from ._batch_norm import SyncedBatchNorm, synced
from ._batches import find_shift, train_new_batches_only, with_new_batches
from ._coupling import Coupling, Disagreement, pairwise_agreement
from ._cplmixvae import CplMixVAE
from ._likelihoods import Likelihood, likelihood_class
from ._losses import kl_normal
from ._moments import CategoryMoments
from ._path import LinearPath
from ._prior import StatePrior
from ._programs import StatePrograms, common_turns, likeness
from ._states import JointPosterior, decode_states, infer_jointly

__all__ = [
    "Arm",
    "ArmOutput",
    "CategoryMoments",
    "Coupling",
    "Covariates",
    "CplMixVAE",
    "Disagreement",
    "JointPosterior",
    "Likelihood",
    "LinearPath",
    "StateAlignment",
    "StatePrior",
    "StatePrograms",
    "SyncedBatchNorm",
    "common_turns",
    "decode_states",
    "find_shift",
    "infer_jointly",
    "kl_normal",
    "likelihood_class",
    "likeness",
    "mean_over_arms",
    "pairwise_agreement",
    "synced",
    "train_new_batches_only",
    "with_new_batches",
]
