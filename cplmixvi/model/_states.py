"""States of cells in coordinates that the arms share, and what cells with given states would express."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS

from cplmixvi import pp
from cplmixvi.module import Covariates, JointPosterior, StatePrograms, decode_states, infer_jointly, kl_normal

from ._inputs import checked_rows
from ._mixin import Mixin

#: Cells that the arms are aligned on, and cells whose covariates decoded states are averaged over.
MAX_ALIGNMENT_CELLS = 20_000
MAX_COVARIATE_CELLS = 100
#: Pairs of states and covariates that are decoded at a time.
_DECODED = 2_048


@dataclass(frozen=True)
class Decoded:
    """Expected values of cells with given states.

    Attributes
    ----------
    expression
        Expected values, averaged over arms and covariates, shape ``(n_states, n_genes)``: counts at the library size,
        log values or probabilities, depending on the likelihood.
    flips
        Fraction of re-encoded cells that are assigned to another category, shape ``(n_states,)``.
    """

    expression: np.ndarray
    flips: np.ndarray


class StatesMixin(Mixin):
    """Getters of the continuous states."""

    def get_state(
        self,
        adata: AnnData | None = None,
        *,
        arm: int | None = None,
        return_variance: bool = False,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Posterior mean of the continuous state, given each cell's category.

        Each arm has its own coordinates. They are mapped to shared coordinates by transformations that are fitted once,
        on the training cells, and saved with the model, so that new cells get the same coordinates; see
        :class:`~cplmixvi.module.StateAlignment`. A dimension is associated with the same genes in all categories, as
        far as the categories have such genes. Dimensions share as little information as possible, and cells of a type
        vary most along the first. ``get_latent_representation`` from scvi-tools returns arm 0 in its own coordinates.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_posterior`.
        arm
            State of this arm; of the equally weighted mixture of all arms if `None`.
        return_variance
            Also return the posterior variances. Those of the mixture include the disagreement between arms.

        Returns
        -------
        numpy.ndarray or tuple
            Shape ``(n_cells, n_state)``, float32, in units of the standard deviation of arm 0's prior; with
            ``return_variance``, a tuple of means and variances.

        Raises
        ------
        ValueError
            If there is no such arm.
        """
        if arm is not None and not (pp.is_whole(arm) and 0 <= arm < self.n_arms):
            raise ValueError(f"arm={arm!r} does not exist; the model has arms 0 to {self.n_arms - 1}.")
        posterior = self.get_posterior(adata, indices, batch_size, top_k=1)
        mean, variance = posterior.combined, posterior.combined_variance
        if arm is not None:
            mean, variance = posterior.state[:, arm], posterior.state_variance[:, arm]
        mean, variance = np.ascontiguousarray(mean), np.ascontiguousarray(variance)
        return (mean, variance) if return_variance else mean

    def get_state_activity(
        self, adata: AnnData | None = None, *, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> pd.DataFrame:
        """How strongly each category uses each dimension of the state.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_posterior`.

        Returns
        -------
        pandas.DataFrame
            One row per used category and dimension: ``category``, ``dimension`` (from 1), ``n_cells``,
            ``variance_share`` (variance of the combined posterior means over the category's cells, relative to the
            variance of the prior: near 0 if the dimension is not used), ``uncertainty`` (mean of the combined posterior
            variances, relative to the variance of the prior), ``kl`` (mean KL divergence, in nats, of the combined
            posterior, treated as a Gaussian, from the prior) and ``shared`` (whether the dimension means the same as in
            the other categories: cosine similarity between the category's covariances of state and genes over the
            training cells and those of all other categories together; near 1 if the same genes change with it in the
            same direction, near 0 if it means something else, and 0 if only one category is used; ``nan`` if the model
            was saved before this measure existed).
        """
        posterior = self.get_posterior(adata, indices, batch_size, top_k=1)
        return activity_table(
            posterior.combined,
            posterior.combined_variance,
            posterior.category,
            *self._prior(),
            self.module.alignment.likeness.cpu().numpy(),
            names=self.category_names,
        )

    @torch.inference_mode()
    def decode_state(
        self,
        state: np.ndarray,
        category: str,
        *,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        library_size: float | None = None,
        n_draws: int = 0,
    ) -> Decoded:
        """Expected expression of cells of a category in given states, and whether they would keep the category.

        Parameters
        ----------
        state
            Combined states, as returned by :meth:`get_state`, shape ``(n_states, n_state)``.
        category
            Name of the category, which is held fixed.
        adata
            Cells over whose batches and covariates the result is averaged, at most 100 of them, evenly spaced; the
            model's own if `None`. Without batches and covariates they have no effect.
        indices
            Which of these cells; all if `None`.
        library_size
            Total molecules over all of the model's genes; the median of the training cells if `None`.
        n_draws
            Number of cells to draw from the decoded distribution and re-encode; with 0, the expected values themselves
            are re-encoded.

        Returns
        -------
        Decoded

        Raises
        ------
        ValueError
            If the category is not one of the model's, the states have another number of dimensions or are not finite,
            or the library size or the number of draws is out of range.

        Examples
        --------
        >>> decoded = model.decode_state(np.zeros((1, 2)), model.category_names[0])
        >>> decoded.expression.shape == (1, adata.n_vars)
        True
        """
        self._check_if_trained(warn=False)
        z = torch.as_tensor(self._checked_states(state), device=self.module.device)
        names = list(self.category_names)
        if not isinstance(category, str) or category not in names:
            known = ", ".join(map(repr, names[:20]))
            raise ValueError(f"category={category!r} is not the name of one of the model's: {known}.")
        if not (pp.is_whole(n_draws) and n_draws >= 0):
            raise ValueError(f"n_draws={n_draws!r} must be a whole number of at least 0.")
        code = names.index(category)
        if library_size is None:
            library_size = float(self.module.target_library)
        if not (pp.is_number(library_size) and 0 < library_size < np.inf):
            raise ValueError(f"library_size={library_size!r} must be a positive number, or None for the median.")
        n = len(z)
        total, flips = z.new_zeros(n, self.module.n_input), z.new_zeros(n)
        rows, weights = self._covariate_rows(adata, indices)
        # All states with as many covariates at a time as make a minibatch.
        for some in torch.arange(len(weights)).split(max(1, _DECODED // max(n, 1))):
            its = rows.of_cells(some.repeat_interleave(n).to(z.device))
            held = torch.full((n * len(some),), code, device=z.device)
            library = torch.full((n * len(some), 1), float(library_size), device=z.device)
            px = decode_states(self.module, z.repeat(len(some), 1), held, library, its)
            seen = [px.sample() for _ in range(n_draws)] or [px.mean]
            other = torch.stack([self._category_of(values, its) != held for values in seen]).float().mean(0)
            weight = weights[some].to(z)
            total += torch.einsum("r,rng->ng", weight, px.mean.view(len(some), n, self.module.n_input))
            flips += weight @ other.view(len(some), n)
        return Decoded(total.cpu().numpy(), flips.cpu().numpy())

    def _checked_states(self, state: np.ndarray) -> np.ndarray:
        """States to decode, float32 ``(n_states, n_state)``."""
        values: np.ndarray | None = None
        with suppress(TypeError, ValueError):
            values = np.asarray(state)
        if values is None or values.dtype.kind not in "fiu":
            raise ValueError(f"state is a {type(state).__name__} that is no array of numbers; give those of get_state.")
        if values.ndim != 2 or values.shape[1] != self.n_state:
            raise ValueError(f"state has shape {values.shape}; (n_states, {self.n_state}) is needed.")
        if not np.isfinite(values).all():
            raise ValueError("state has values that are not finite.")
        return values.astype(np.float32)

    def _category_of(self, values: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        return infer_jointly(self.module, self.module.encoder_input(values), covariates).category

    def _covariate_rows(self, adata: AnnData | None, indices: Sequence[int] | None) -> tuple[Covariates, torch.Tensor]:
        """Distinct batches and covariates of some cells, ``(n_rows, ...)``, and their shares, ``(n_rows,)``."""
        adata = self._validate_anndata(adata)
        indices = np.arange(adata.n_obs) if indices is None else checked_rows(indices, adata.n_obs)
        some = indices[np.linspace(0, len(indices) - 1, min(len(indices), MAX_COVARIATE_CELLS)).astype(int)]
        rows: dict[tuple, list] = {}
        for tensors in self._make_data_loader(adata=adata, indices=some):
            given = Covariates.of({key: value.to(self.module.device) for key, value in tensors.items()})
            for i in range(len(tensors[REGISTRY_KEYS.X_KEY])):
                one = given.of_cells(slice(i, i + 1))
                key = (
                    *(int(code) for code in one.categorical),
                    *(one.continuous.view(-1).tolist() if one.continuous is not None else ()),
                )
                rows.setdefault(key, [one, 0])[1] += 1
        distinct, counts = zip(*rows.values(), strict=True)
        return Covariates.joined(distinct), torch.tensor(counts) / len(some)

    def _prior(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of arm 0's prior of every category in common coordinates, each ``(K, n_state)``."""
        each = torch.arange(self.n_categories, device=self.module.device)
        with torch.inference_mode():
            priors = [prior(torch.eye(self.n_categories, device=each.device)) for prior in self.module.priors]
            mean, variance = self.module.alignment(*map(torch.stack, zip(*priors, strict=True)), each)
        return mean[0].cpu().numpy(), variance[0].cpu().numpy()

    def _infer_jointly(self, tensors: dict[str, torch.Tensor]) -> JointPosterior:
        """Posterior of a minibatch."""
        return infer_jointly(self.module, *self._encoder_input(tensors))

    def _encoder_input(self, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Covariates]:
        """What encoders read of a minibatch."""
        tensors = {key: value.to(self.module.device) for key, value in tensors.items()}
        return self.module.encoder_input(tensors[REGISTRY_KEYS.X_KEY].float()), Covariates.of(tensors)

    @torch.inference_mode()
    def align_arms(self, batches: Iterable[dict[str, torch.Tensor]] | None = None) -> None:
        """Fit the coordinates that the arms share; :meth:`train` does this at the end.

        Parameters
        ----------
        batches
            Minibatches of cells to fit them on; at most 20,000 of the training cells if `None`.

        Examples
        --------
        >>> model.align_arms()
        """
        if batches is None:
            some = self.train_indices
            some = some[np.linspace(0, len(some) - 1, min(len(some), MAX_ALIGNMENT_CELLS)).astype(int)]
            batches = self._make_data_loader(adata=self.adata, indices=some)
        was_training = self.module.training
        self.module.eval()
        programs = StatePrograms(self.n_categories, self.n_state, self.module.n_input, self.module.device)
        states, categories = [], []
        for tensors in batches:
            x, covariates = self._encoder_input(tensors)
            joint = infer_jointly(self.module, x, covariates)
            programs.add(joint.mean[0], x, joint.category)
            states.append(joint.mean)
            categories.append(joint.category)
            if sum(map(len, categories)) >= MAX_ALIGNMENT_CELLS:
                break
        self.module.alignment.fit(torch.cat(states, dim=1), torch.cat(categories), programs.sums())
        self.module.train(was_training)


def activity_table(
    mean: np.ndarray,
    variance: np.ndarray,
    category: np.ndarray,
    prior_mean: np.ndarray,
    prior_variance: np.ndarray,
    shared: np.ndarray,
    *,
    names: np.ndarray,
) -> pd.DataFrame:
    """Table of :meth:`StatesMixin.get_state_activity`.

    Parameters
    ----------
    mean, variance
        Of the combined posteriors, ``(n_cells, n_state)``.
    category
        Integer, ``(n_cells,)``.
    prior_mean, prior_variance, shared
        ``(K, n_state)``.
    names
        Of the categories, ``(K,)``.
    """
    rows = []
    for k in np.unique(category):
        member = category == k
        for j in range(mean.shape[1]):
            m, v, prior = mean[member, j], variance[member, j], float(prior_variance[k, j])
            kl = kl_normal(
                torch.as_tensor(m)[:, None], torch.as_tensor(v)[:, None], float(prior_mean[k, j]), prior
            ).mean()
            rows.append(
                {
                    "category": names[k],
                    "dimension": j + 1,
                    "n_cells": int(member.sum()),
                    "variance_share": float(m.var()) / prior,
                    "uncertainty": float(v.mean()) / prior,
                    "kl": float(kl),
                    "shared": float(shared[k, j]),
                }
            )
    return pd.DataFrame(rows)
