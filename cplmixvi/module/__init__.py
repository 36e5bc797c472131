"""The coupled mixture VAEs as pure torch: arms, simplex geometry, likelihoods and the objective."""

from ._arm import Arm, ArmOutput, Covariates
from ._coupling import Coupling, Disagreement
from ._cplmixvae import CplMixVAE, pairwise_agreement
from ._likelihoods import Likelihood, likelihood_class

__all__ = [
    "Arm",
    "ArmOutput",
    "Coupling",
    "Covariates",
    "CplMixVAE",
    "Disagreement",
    "Likelihood",
    "likelihood_class",
    "pairwise_agreement",
]
