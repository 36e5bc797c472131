"""One arm: a variational autoencoder with a categorical and a continuous latent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pyro.distributions import RelaxedOneHotCategorical, RelaxedOneHotCategoricalStraightThrough
from scvi import REGISTRY_KEYS
from scvi.nn import FCLayers
from torch import nn
from torch.distributions import Distribution

from ._dense import Encoder
from ._likelihoods import Likelihood
from ._path import LinearPath

#: Bounds of log q(s|c,x)'s variance: beyond them exp under- or overflows in float32 long before it helps.
LOG_VARIANCE_RANGE = (-10.0, 4.0)
#: Standard deviation of the weights that keep categories apart. With 1, 48 types were learnt worse.
_SPREAD = 0.3


@dataclass(frozen=True)
class Covariates:
    """What is known of a cell beside its values; enters encoder and decoder.

    Attributes
    ----------
    categorical
        One tensor per covariate (the batch first), each ``(n_cells, 1)``, integer codes.
    continuous
        ``(n_cells, n_continuous)`` or `None`.
    """

    categorical: tuple[torch.Tensor, ...] = ()
    continuous: torch.Tensor | None = None

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor]) -> Covariates:
        """Take them from a minibatch."""
        categorical = [tensors[REGISTRY_KEYS.BATCH_KEY]]
        if REGISTRY_KEYS.CAT_COVS_KEY in tensors:
            categorical += torch.split(tensors[REGISTRY_KEYS.CAT_COVS_KEY], 1, dim=1)
        continuous = tensors.get(REGISTRY_KEYS.CONT_COVS_KEY)
        return cls(tuple(code.long() for code in categorical), None if continuous is None else continuous.float())

    @classmethod
    def joined(cls, parts: Sequence[Covariates]) -> Covariates:
        """Those of all cells of several minibatches."""
        categorical = zip(*(part.categorical for part in parts), strict=True)
        continuous = [part.continuous for part in parts if part.continuous is not None]
        return cls(tuple(torch.cat(codes) for codes in categorical), torch.cat(continuous) if continuous else None)

    @property
    def n_cells(self) -> int:
        """Number of cells; there is a batch at least."""
        return len(self.categorical[0])

    def of_cells(self, cells: torch.Tensor | slice) -> Covariates:
        """Those of some of the cells, by their positions."""
        continuous = None if self.continuous is None else self.continuous[cells]
        return Covariates(tuple(codes[cells] for codes in self.categorical), continuous)


@dataclass(frozen=True)
class ArmOutput:
    r"""Posterior of one arm for a minibatch.

    Attributes
    ----------
    log_qc
        :math:`\log q(c\mid x)`, shape ``(n_cells, K)``, nats.
    c
        Sample (relaxed or one-hot) or the most probable category, shape ``([n_samples,] n_cells, K)``.
    mean, variance
        Of :math:`q(s\mid c, x)`, shape ``([n_samples,] n_cells, n_state)``.
    s
        Sample, same shape.
    """

    log_qc: torch.Tensor
    c: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    s: torch.Tensor


class Arm(nn.Module):
    r"""Encoder, categorical head, state head and decoder of one arm (paper, Fig. 2b).

    .. math::
        h = f(x), \quad q(c\mid x) = \mathrm{softmax}(W h + b + \ell(x)), \quad
        q(s\mid c, x) = \mathcal N(\mu([h, c]), \sigma^2([h, c])), \quad p(x\mid s, c) = g([c, s])

    with a linear path :math:`\ell` (:class:`~cplmixvi.module.LinearPath`) that a guide sets.

    Parameters
    ----------
    n_input
        Number of genes.
    n_categories, n_state
        ``K`` and ``S``.
    likelihood
        Class of the observation model.
    n_cats_per_cov
        Number of levels of each categorical covariate, the batch first.
    n_continuous
        Number of continuous covariates.
    n_hidden, n_layers, dropout_rate
        Of encoder and decoder.
    state_given_category
        Whether the state head sees ``c`` (the paper's s not given c ablation sets it to False).
    normal_form
        Of :class:`~cplmixvi.module.LinearPath`.
    """

    def __init__(
        self,
        n_input: int,
        n_categories: int,
        n_state: int,
        likelihood: type[Likelihood],
        *,
        n_cats_per_cov: tuple[int, ...] = (),
        n_continuous: int = 0,
        n_hidden: int = 100,
        n_layers: int = 2,
        dropout_rate: float = 0.0,
        state_given_category: bool = True,
        normal_form: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        super().__init__()
        self.n_categories = n_categories
        self.state_given_category = state_given_category
        shared = {"n_cat_list": n_cats_per_cov, "n_cont": n_continuous, "n_layers": n_layers, "n_hidden": n_hidden}
        self.encoder = Encoder(n_input, dropout_rate=dropout_rate, **shared)
        self.category_head = nn.Linear(n_hidden, n_categories)
        self.path = LinearPath(n_input, n_categories, n_cats_per_cov[0] if n_cats_per_cov else 1, normal_form)
        n_head = n_hidden + (n_categories if state_given_category else 0)
        self.state_mean = nn.Linear(n_head, n_state)
        self.state_log_variance = nn.Linear(n_head, n_state)
        self.decoder = FCLayers(
            n_categories + n_state, n_hidden, dropout_rate=0.0, use_batch_norm=False, inject_covariates=False, **shared
        )
        self.likelihood = likelihood(n_hidden, n_input)

    def encode(self, x: torch.Tensor, covariates: Covariates) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden layer ``(n_cells, n_hidden)`` and log q(c|x) ``(n_cells, K)`` of encoder inputs ``x``."""
        hidden = self.encoder(x, *covariates.categorical, cont=covariates.continuous)
        batch = covariates.categorical[0].view(-1) if covariates.categorical else None
        return hidden, torch.log_softmax(self.category_head(hidden) + self.path(x, batch), dim=-1)

    def sample_category(self, log_qc: torch.Tensor, temperature: float, hard: bool) -> torch.Tensor:
        """Gumbel-softmax sample of ``c``, relaxed or straight-through, shape of ``log_qc``."""
        cls = RelaxedOneHotCategoricalStraightThrough if hard else RelaxedOneHotCategorical
        temperature = torch.as_tensor(temperature, device=log_qc.device, dtype=log_qc.dtype)
        return cls(temperature, logits=log_qc, validate_args=False).rsample()

    def state(self, hidden: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of q(s|c,x), each ``([n_samples,] n_cells, n_state)``."""
        head = hidden.expand(*c.shape[:-1], hidden.shape[-1])
        if self.state_given_category:
            head = torch.cat([head, c], dim=-1)
        log_variance = self.state_log_variance(head).clamp(*LOG_VARIANCE_RANGE)
        return self.state_mean(head), log_variance.exp()

    def decode_hidden(self, c: torch.Tensor, s: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """Decoder's last hidden layer for ``c`` ``([n_samples,] n_cells, K)`` and ``s``, what the likelihood reads."""
        return self.decoder(torch.cat([c, s], dim=-1), *covariates.categorical, cont=covariates.continuous)

    @torch.no_grad()
    def spread_categories(self) -> None:
        """Draw the decoder's first weights of the categories anew, larger than they are otherwise.

        Hidden layers of different categories are then apart, and small output weights can give each its own means.
        Large ones would pass on what the state does to the hidden layer before it means anything.
        """
        first = next(part for part in self.decoder.modules() if isinstance(part, nn.Linear))
        first.weight[:, : self.n_categories].normal_(std=_SPREAD)

    def decode(self, c: torch.Tensor, s: torch.Tensor, library: torch.Tensor, covariates: Covariates) -> Distribution:
        """Distribution of the values given ``c`` ``([n_samples,] n_cells, K)`` and ``s``."""
        return self.likelihood(self.decode_hidden(c, s, covariates), library)

    def forward(
        self,
        x: torch.Tensor,
        covariates: Covariates,
        *,
        temperature: float,
        hard: bool,
        sample: bool,
        n_samples: int = 1,
        guide: torch.Tensor | None = None,
    ) -> ArmOutput:
        """Infer category and state of encoder inputs ``x`` of shape ``(n_cells, n_genes)``.

        With ``sample`` the category is drawn (relaxed in training, exactly otherwise); without, it is the most
        probable one. The state is always drawn by the Gaussian reparameterisation.
        """
        hidden, log_qc = self.encode(x, covariates)
        if guide is not None:
            c = nn.functional.one_hot(torch.multinomial(guide, 1).squeeze(1), self.n_categories).to(log_qc.dtype)
        elif self.training:
            c = self.sample_category(log_qc, temperature, hard)
        else:
            logits = log_qc.expand(n_samples, *log_qc.shape) if n_samples > 1 else log_qc
            drawn = torch.distributions.Categorical(logits=logits).sample() if sample else logits.argmax(-1)
            c = nn.functional.one_hot(drawn, self.n_categories).to(log_qc.dtype)
        mean, variance = self.state(hidden, c)
        return ArmOutput(log_qc, c, mean, variance, mean + variance.sqrt() * torch.randn_like(mean))
