"""Observation models: what a decoder's output means."""

from __future__ import annotations

import math

import torch
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from torch import nn
from torch.autograd import Function
from torch.distributions import Bernoulli, Distribution

from cplmixvi._constants import LIKELIHOODS

from ._dense import WideLinear
from ._losses import half_squared_error
from ._moments import CategoryMoments
from ._scores import NegativeBinomialScore, SquaresScore, precise

#: Penalty on squared weights of an output layer that starts at given means, as a share of the hidden layer's variance.
_RIDGE = 1e-3
#: Smallest share of molecules, or probability of detection, that an output starts at.
_LEAST = 1e-6
#: Inverse dispersions that a gene can start with: moments of few molecules may say anything.
_THETA_RANGE = (0.01, 100.0)
#: Logarithm of the largest inverse dispersion: beyond, counts are Poisson, and single precision fails.
_LARGEST_LOG_THETA = 20.0
#: Standard deviation above the smallest that a gene starts with at least.
_LEAST_SCALE = 0.01


class GeneBernoulli(Bernoulli):
    """Bernoulli with the accessor that scvi-tools' expression getters call."""

    def get_normalized(self, key: str) -> torch.Tensor:
        """Probability of detection, whatever the ``key``."""
        return self.probs

    def __getitem__(self, index) -> GeneBernoulli:
        """Index the parameters, as the distributions of scvi-tools allow."""
        return GeneBernoulli(logits=self.logits[index], validate_args=False)


class Likelihood(nn.Module):
    r"""One arm's :math:`p(x\mid s, c)` given the decoder's last hidden layer.

    Parameters
    ----------
    n_hidden
        Width of the decoder's last layer.
    n_genes
        Number of genes.
    """

    #: Number of decoder outputs per gene.
    n_outputs: int = 1

    def __init__(self, n_hidden: int, n_genes: int):
        super().__init__()
        self.n_genes = n_genes
        self.output = WideLinear(n_hidden, n_genes * self.n_outputs)

    def forward(self, hidden: torch.Tensor, library: torch.Tensor) -> Distribution:
        """Distribution of the values.

        Parameters
        ----------
        hidden
            Shape ``(..., n_cells, n_hidden)``.
        library
            Molecules per cell, shape ``(n_cells, 1)``; only count likelihoods use it.

        Returns
        -------
        torch.distributions.Distribution
            Batch shape ``(..., n_cells, n_genes)``.
        """
        raise NotImplementedError

    def log_prob(self, px: Distribution, x: torch.Tensor) -> torch.Tensor:
        """Log-likelihood summed over genes, nats, shape ``(..., n_cells)``."""
        return px.log_prob(x).sum(-1)

    def score(self, hidden: torch.Tensor, library: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Log-likelihood of ``x`` without the distribution, see :meth:`forward` and :meth:`log_prob`."""
        # Of one draw per cell, as in training, there may be a quicker way.
        return (self._score if hidden.dim() == 2 else self._score_by_distribution)(hidden, library, x)

    def _score_by_distribution(self, hidden: torch.Tensor, library: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.log_prob(self(hidden, library), x)

    #: The same for a matrix of cells.
    _score = _score_by_distribution

    def _from_weights(
        self, score: type[Function], hidden: torch.Tensor, *arguments: torch.Tensor | None
    ) -> torch.Tensor:
        """Apply a function of this hidden layer, the output layer's weights, and what it needs besides."""
        # Sums over thousands of genes need single precision at least.
        with torch.autocast(hidden.device.type, enabled=False):
            weight, bias = self.output.weight, self.output.bias
            return score.apply(hidden.to(weight.dtype), weight, bias, *arguments)

    @torch.no_grad()
    def start_at(self, hidden: torch.Tensor, moments: CategoryMoments) -> None:
        """Give categories their mean values, whatever else the decoder sees, and genes what these leave of variance.

        The output layer by ridge regression. Nothing happens where the decoder ends in the output itself.

        Parameters
        ----------
        hidden
            Decoder's last hidden layer for draws of all else, ``(n_draws, n_categories, n_hidden)``.
        moments
            Of the categories' values.
        """
        if not isinstance(self.output, nn.Linear):
            return
        # In double precision, which not all devices have: hidden layers of categories may be close to each other.
        wanted, features = self._output_at(moments.rates.cpu().double()), hidden.cpu().double()
        centre, level = features.mean((0, 1)), wanted.mean(0)
        features = features - centre
        products = torch.einsum("dki,dkj->ij", features, features) / features[..., 0].numel()
        products.diagonal().add_(_RIDGE * products.diagonal().mean().clamp_min(1e-12))
        weight = torch.linalg.solve(products, features.mean(0).T @ (wanted - level) / len(wanted))
        # Other outputs of a gene stay as they are.
        self.output.weight[: self.n_genes] = weight.T.to(self.output.weight)
        self.output.bias[: self.n_genes] = (level - centre @ weight).to(self.output.bias)
        self._start_spread(moments)

    def _output_at(self, rates: torch.Tensor) -> torch.Tensor:
        """The first ``n_genes`` outputs at which values have these means, or molecules these shares, shape of both."""
        raise NotImplementedError

    def _start_spread(self, moments: CategoryMoments) -> None:
        """Set what the likelihood has besides the output layer."""

    def mean_over_arms(self, distributions: list[Distribution]) -> Distribution:
        """The distribution whose parameters are the arms' averages, for getters."""
        raise NotImplementedError


def _average(distributions: list[Distribution], name: str) -> torch.Tensor:
    return torch.stack([getattr(px, name) for px in distributions]).mean(0)


class PoissonLikelihood(Likelihood):
    r""":math:`x_g\sim\mathrm{Poisson}(\ell\,\rho_g)`, :math:`\rho=\mathrm{softmax}(\cdot)`."""

    def _output_at(self, rates: torch.Tensor) -> torch.Tensor:
        return rates.clamp_min(_LEAST).log()

    def forward(self, hidden: torch.Tensor, library: torch.Tensor) -> Distribution:
        """See :meth:`Likelihood.forward`."""
        scale = torch.softmax(self.output(hidden), dim=-1)
        return Poisson(rate=library * scale, scale=scale)

    def _score(self, hidden: torch.Tensor, library: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        # From logarithms, which are finite where a share is too small for a number. Shares add up to one.
        log_rate = torch.log_softmax(self.output(hidden), dim=-1) + library.log()
        return (x * log_rate - torch.lgamma(x + 1)).sum(-1) - library.squeeze(-1)

    def mean_over_arms(self, distributions: list[Distribution]) -> Distribution:
        """See :meth:`Likelihood.mean_over_arms`."""
        return Poisson(rate=_average(distributions, "rate"), scale=_average(distributions, "scale"))


class NegativeBinomialLikelihood(Likelihood):
    r""":math:`x_g\sim\mathrm{NB}(\ell\,\rho_g, \theta_g)`, :math:`\rho=\mathrm{softmax}(\cdot)`."""

    _distribution: type[Distribution] = NegativeBinomial
    _of_arm: tuple[str, ...] = ("mu", "theta", "scale")

    def __init__(self, n_hidden: int, n_genes: int):
        super().__init__(n_hidden, n_genes)
        self.log_theta = nn.Parameter(torch.zeros(n_genes))

    @property
    def _log_theta(self) -> torch.Tensor:
        """Within what single precision can tell from Poisson counts."""
        return self.log_theta.clamp(max=_LARGEST_LOG_THETA)

    def forward(self, hidden: torch.Tensor, library: torch.Tensor) -> Distribution:
        """See :meth:`Likelihood.forward`."""
        scale = torch.softmax(self.output(hidden), dim=-1)
        return NegativeBinomial(mu=library * scale, theta=self._log_theta.exp(), scale=scale)

    _output_at = PoissonLikelihood._output_at

    def _start_spread(self, moments: CategoryMoments) -> None:
        self.log_theta.copy_(moments.inverse_dispersion().clamp(*_THETA_RANGE).log())

    def _score(self, hidden: torch.Tensor, library: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._from_weights(NegativeBinomialScore, hidden, self._log_theta, library, x)

    def log_prob(self, px: Distribution, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Likelihood.log_prob`."""
        # Gamma functions of large numbers differ by little.
        exact = self._distribution(**{name: getattr(px, name).to(precise(x)) for name in self._of_arm})
        return exact.log_prob(x.to(precise(x))).sum(-1).to(x.dtype)

    def mean_over_arms(self, distributions: list[Distribution]) -> Distribution:
        """See :meth:`Likelihood.mean_over_arms`."""
        return self._distribution(**{name: _average(distributions, name) for name in self._of_arm})


class ZeroInflatedLikelihood(NegativeBinomialLikelihood):
    """Negative binomial with a decoded probability of an extra zero per gene."""

    n_outputs = 2
    _distribution = ZeroInflatedNegativeBinomial
    _of_arm = ("mu", "theta", "zi_logits", "scale")

    def forward(self, hidden: torch.Tensor, library: torch.Tensor) -> Distribution:
        """See :meth:`Likelihood.forward`."""
        logits, zero_logits = self.output(hidden).split(self.n_genes, dim=-1)
        scale = torch.softmax(logits, dim=-1)
        return ZeroInflatedNegativeBinomial(
            mu=library * scale, theta=self._log_theta.exp(), zi_logits=zero_logits, scale=scale
        )

    _score = Likelihood._score_by_distribution


class NormalLikelihood(Likelihood):
    r""":math:`x_g\sim\mathcal N(\mu_g, \sigma_g^2)` on log values, one learnt variance per gene."""

    #: Smallest standard deviation: a gene that is constant must not have an unbounded likelihood.
    min_scale = 0.05

    def __init__(self, n_hidden: int, n_genes: int):
        super().__init__(n_hidden, n_genes)
        self.log_scale = nn.Parameter(torch.zeros(n_genes))

    def forward(self, hidden: torch.Tensor, library: torch.Tensor) -> Distribution:
        """See :meth:`Likelihood.forward`."""
        mean = self.output(hidden)
        scale = (self.log_scale.exp() + self.min_scale).expand_as(mean)
        return Normal(mean, scale, normal_mu=mean)

    def _output_at(self, rates: torch.Tensor) -> torch.Tensor:
        return rates

    def _start_spread(self, moments: CategoryMoments) -> None:
        self.log_scale.copy_((moments.variance().sqrt() - self.min_scale).clamp_min(_LEAST_SCALE).log())

    def _score(self, hidden: torch.Tensor, library: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        scale = self.log_scale.exp() + self.min_scale
        constant = scale.log().sum() + 0.5 * self.n_genes * math.log(2 * math.pi)
        return self._from_weights(SquaresScore, hidden, scale.reciprocal(), x) - constant

    def mean_over_arms(self, distributions: list[Distribution]) -> Distribution:
        """See :meth:`Likelihood.mean_over_arms`."""
        mean = _average(distributions, "loc")
        return Normal(mean, _average(distributions, "scale"), normal_mu=mean)


class SquaredErrorLikelihood(NormalLikelihood):
    r"""Normal of unit variance without its constant: :math:`-\tfrac12\sum_g(x_g-\hat x_g)^2`, as in the paper."""

    def __init__(self, n_hidden: int, n_genes: int):
        Likelihood.__init__(self, n_hidden, n_genes)

    def forward(self, hidden: torch.Tensor, library: torch.Tensor) -> Distribution:
        """See :meth:`Likelihood.forward`."""
        mean = self.output(hidden)
        return Normal(mean, torch.ones_like(mean), normal_mu=mean)

    def _start_spread(self, moments: CategoryMoments) -> None:
        """The variance is one."""

    def log_prob(self, px: Distribution, x: torch.Tensor) -> torch.Tensor:
        """Minus half the squared error, shape ``(..., n_cells)``."""
        return -half_squared_error(x, px.mean)

    def _score(self, hidden: torch.Tensor, library: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._from_weights(SquaresScore, hidden, None, x)


class BernoulliLikelihood(Likelihood):
    r""":math:`x_g\sim\mathrm{Bernoulli}(\pi_g)` on values in ``[0, 1]`` (binary pixels, detection)."""

    def forward(self, hidden: torch.Tensor, library: torch.Tensor) -> Distribution:
        """See :meth:`Likelihood.forward`."""
        # Greyscale pixels lie between 0 and 1: the cross-entropy is defined there, the distribution's check is not.
        return GeneBernoulli(logits=self.output(hidden), validate_args=False)

    def _output_at(self, rates: torch.Tensor) -> torch.Tensor:
        return torch.logit(rates, eps=_LEAST)

    def mean_over_arms(self, distributions: list[Distribution]) -> Distribution:
        """See :meth:`Likelihood.mean_over_arms`."""
        return GeneBernoulli(probs=_average(distributions, "probs"), validate_args=False)


_CLASSES: dict[str, type[Likelihood]] = {
    "nb": NegativeBinomialLikelihood,
    "zinb": ZeroInflatedLikelihood,
    "poisson": PoissonLikelihood,
    "normal": NormalLikelihood,
    "mse": SquaredErrorLikelihood,
    "bernoulli": BernoulliLikelihood,
}


def likelihood_class(name: str) -> type[Likelihood]:
    """Class of a likelihood, by name.

    Parameters
    ----------
    name
        ``"nb"``, ``"zinb"`` or ``"poisson"`` for counts, ``"normal"`` or ``"mse"`` for log values, ``"bernoulli"`` for
        values in ``[0, 1]``.

    Returns
    -------
    type
        Subclass of :class:`Likelihood`.

    Raises
    ------
    ValueError
        If ``name`` is none of these.
    """
    if name not in _CLASSES:
        raise ValueError(
            f"likelihood={name!r} is not known; use {', '.join(map(repr, LIKELIHOODS))} "
            "('nb' for raw counts, 'normal' for log values, 'bernoulli' for values in [0, 1])."
        )
    return _CLASSES[name]
