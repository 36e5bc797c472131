"""Networks of the learned augmenter: a variational autoencoder whose latent noise makes the copies, and its critic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ._emission import emission_class

#: Bounds of the log variance of a latent.
_LOG_VARIANCE_RANGE = (-8.0, 2.0)


@dataclass(frozen=True)
class Copies:
    """Copies of a minibatch and what their losses are made of.

    Attributes
    ----------
    values
        Copies, ``(n_cells, n_genes)``.
    mean
        Where the cells are in the latent space, ``(n_cells, n_latent)``.
    latent
        Where their copies are decoded from, ``(n_cells, n_latent)``.
    log_prob
        Log-likelihood of the cells at ``latent``, nats, ``(n_cells,)``.
    divergence
        Divergence of the latent from its prior, nats, ``(n_cells,)``.
    """

    values: torch.Tensor
    mean: torch.Tensor
    latent: torch.Tensor
    log_prob: torch.Tensor
    divergence: torch.Tensor


class Generator(nn.Module):
    r"""Encoder, noise and decoder.

    .. math::
        h = f(\tilde x),\quad z = \mu(h) + \sigma(h) \odot M\epsilon,\ \epsilon\sim\mathcal N(0, I),\quad
        x_a \sim p(x\mid g(z))

    One path for the copy and for the reconstruction, so that both train the noise: how far it may go in each direction
    is what the cell's own values leave open, and no further.

    Parameters
    ----------
    n_genes
        Number of genes.
    likelihood
        Of the arms; decides what a copy's values are.
    n_latent
        Number of dimensions of the latent space.
    n_hidden
        Width of the hidden layers.
    """

    def __init__(self, n_genes: int, likelihood: str, n_latent: int, n_hidden: int):
        super().__init__()
        # Layer normalisation is the same in training and evaluation: a frozen generator stays what it was.
        self.encoder = _layers(n_genes, n_hidden, n_hidden)
        self.mean = nn.Linear(n_hidden, n_latent)
        self.log_variance = nn.Linear(n_hidden, n_latent)
        self.mix = nn.Linear(n_latent, n_latent, bias=False)
        nn.init.orthogonal_(self.mix.weight)
        self.decoder = _layers(n_latent, n_hidden, n_hidden)
        self.emission = emission_class(likelihood)(n_hidden, n_genes)

    def encode(self, log_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance scale of the latents, each ``(n_cells, n_latent)``."""
        hidden = self.encoder(log_values)
        return self.mean(hidden), self.log_variance(hidden).clamp(*_LOG_VARIANCE_RANGE)

    def forward(self, x: torch.Tensor, log_values: torch.Tensor) -> Copies:
        """Copy cells of values ``x`` and log values ``log_values``, each ``(n_cells, n_genes)``."""
        mean, log_variance = self.encode(log_values)
        latent = mean + (0.5 * log_variance).exp() * self.mix(torch.randn_like(mean))
        values, log_prob = self.emission(self.decoder(latent), x)
        return Copies(values, mean, latent, log_prob, self.divergence(mean, log_variance))

    def divergence(self, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        r"""Divergence of :math:`\mathcal N(\mu, D M M^\top D)` from the standard normal, nats, ``(n_cells,)``."""
        spread = self.mix.weight.square().sum(1)
        log_det = log_variance.sum(-1) + 2 * torch.linalg.slogdet(self.mix.weight)[1]
        return 0.5 * ((mean.square() + spread * log_variance.exp()).sum(-1) - mean.shape[1] - log_det)


class Discriminator(nn.Module):
    """Network that returns the logit of a cell being real.

    Parameters
    ----------
    n_genes
        Number of genes.
    n_hidden
        Width of the layers.
    dropout_rate
        Dropout rate of the input, so that no single gene can decide.
    """

    def __init__(self, n_genes: int, n_hidden: int = 128, dropout_rate: float = 0.2):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(dropout_rate),
            nn.Linear(n_genes, n_hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(n_hidden, n_hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(n_hidden, 1),
        )

    def forward(self, log_values: torch.Tensor) -> torch.Tensor:
        """Logits ``(n_cells,)`` for log values ``(n_cells, n_genes)``."""
        return self.layers(log_values).squeeze(-1)


def _layers(n_in: int, *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(n_in, width), nn.LayerNorm(width), nn.ReLU()]
        n_in = width
    return nn.Sequential(*layers)
