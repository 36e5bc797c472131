"""Getters of scvi-tools that are of some likelihoods only: they work there, and say so elsewhere."""

from __future__ import annotations

from functools import wraps

from scvi.model.base import RNASeqMixin

from ._mixin import Mixin


class InheritedMixin(RNASeqMixin, Mixin):
    """Getters that scvi-tools' own models have."""

    @wraps(RNASeqMixin.get_likelihood_parameters)
    def get_likelihood_parameters(self, *args, **kwargs):
        """See scvi-tools; of negative binomial counts only."""
        self._check_dispersion("get_likelihood_parameters")
        # By what scvi-tools' modules call it.
        self.module.gene_likelihood = self.likelihood
        return super().get_likelihood_parameters(*args, **kwargs)

    @wraps(RNASeqMixin.get_feature_correlation_matrix)
    def get_feature_correlation_matrix(self, *args, **kwargs):
        """See scvi-tools; of negative binomial counts only."""
        self._check_dispersion("get_feature_correlation_matrix")
        return super().get_feature_correlation_matrix(*args, **kwargs)

    @wraps(RNASeqMixin.get_latent_library_size)
    def get_latent_library_size(self, *args, **kwargs):
        """See scvi-tools; there is none here."""
        raise NotImplementedError("The library size is observed, or a size factor that is given, and has no posterior.")

    def _check_dispersion(self, name: str) -> None:
        if self.likelihood not in ("nb", "zinb"):
            raise NotImplementedError(
                f"{name} needs likelihood='nb' or 'zinb', and this model has {self.likelihood!r}."
            )
