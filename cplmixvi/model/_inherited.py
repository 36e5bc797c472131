"""Getters of scvi-tools that are of some likelihoods only: they work there, and say so elsewhere."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scvi.model.base import RNASeqMixin

from ._mixin import Mixin


class InheritedMixin(RNASeqMixin, Mixin):
    """Getters that scvi-tools' own models have."""

    def get_likelihood_parameters(self, *args, **kwargs) -> dict[str, np.ndarray]:
        """Parameters of the likelihood of counts, averaged over the arms.

        Parameters
        ----------
        *args, **kwargs
            Of :meth:`scvi.model.base.RNASeqMixin.get_likelihood_parameters`.

        Returns
        -------
        dict
            ``mean`` and ``dispersions``, ``(n_cells, n_genes)``, and ``dropout`` with ``likelihood="zinb"``.

        Raises
        ------
        NotImplementedError
            If the likelihood is not negative binomial.

        Examples
        --------
        >>> sorted(model.get_likelihood_parameters())
        ['dispersions', 'mean']
        """
        self._check_dispersion("get_likelihood_parameters")
        # By what scvi-tools' modules call it.
        self.module.gene_likelihood = self.likelihood
        return super().get_likelihood_parameters(*args, **kwargs)

    def get_feature_correlation_matrix(self, *args, **kwargs) -> pd.DataFrame:
        """Correlation of genes in denoised counts.

        Parameters
        ----------
        *args, **kwargs
            Of :meth:`scvi.model.base.RNASeqMixin.get_feature_correlation_matrix`.

        Returns
        -------
        pandas.DataFrame
            ``(n_genes, n_genes)``.

        Raises
        ------
        NotImplementedError
            If the likelihood is not negative binomial.

        Examples
        --------
        >>> model.get_feature_correlation_matrix(n_samples=2).shape == (adata.n_vars, adata.n_vars)
        True
        """
        self._check_dispersion("get_feature_correlation_matrix")
        return super().get_feature_correlation_matrix(*args, **kwargs)

    def get_latent_library_size(self, *args, **kwargs) -> np.ndarray:
        """Not available: the library size is observed, or given as a size factor.

        Raises
        ------
        NotImplementedError
            Always.

        Examples
        --------
        >>> model.get_latent_library_size()
        Traceback (most recent call last):
        NotImplementedError: The library size is observed, or a size factor that is given, and has no posterior.
        """
        raise NotImplementedError("The library size is observed, or a size factor that is given, and has no posterior.")

    def differential_abundance(self, *args, **kwargs) -> None:
        """Not available: it would compare densities of one arm's states within types, and not the shares of types.

        Raises
        ------
        NotImplementedError
            Always.

        Examples
        --------
        >>> model.differential_abundance()
        Traceback (most recent call last):
        NotImplementedError: To compare shares of types: pandas.crosstab(obs[sample], obs['cplmixvi']).
        """
        raise NotImplementedError("To compare shares of types: pandas.crosstab(obs[sample], obs['cplmixvi']).")

    def get_aggregated_posterior(self, *args, **kwargs) -> None:
        """Not available: it would be that of one arm's states within types, and say nothing of these.

        Raises
        ------
        NotImplementedError
            Always.

        Examples
        --------
        >>> model.get_aggregated_posterior()
        Traceback (most recent call last):
        NotImplementedError: States are those within a type: get_posterior() has them and the types.
        """
        raise NotImplementedError("States are those within a type: get_posterior() has them and the types.")

    def get_marginal_ll(self, *args, **kwargs) -> None:
        """Not available: only a lower bound is computed.

        Raises
        ------
        NotImplementedError
            Always.

        Examples
        --------
        >>> model.get_marginal_ll()
        Traceback (most recent call last):
        NotImplementedError: Only a lower bound of the likelihood is computed: get_elbo() or get_reconstruction_error().
        """
        raise NotImplementedError(
            "Only a lower bound of the likelihood is computed: get_elbo() or get_reconstruction_error()."
        )

    def _check_dispersion(self, name: str) -> None:
        if self.likelihood not in ("nb", "zinb"):
            raise NotImplementedError(
                f"{name} needs likelihood='nb' or 'zinb', and this model has {self.likelihood!r}."
            )
