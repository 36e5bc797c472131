"""A training step of the reference in plain PyTorch, written from its equations, to compare speeds with."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-8
HIDDEN, NARROW = 100, 10
#: The reference's temperature of q(c|x), and the value above which a gene counts as detected.
TAU, DETECTED = 0.005, 0.1


class Block(nn.Module):
    """Linear, ReLU and, in the encoder, batch normalisation after it."""

    def __init__(self, n_in: int, n_out: int, normed: bool):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.norm = nn.BatchNorm1d(n_out, eps=EPS, momentum=0.01, affine=False) if normed else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(F.relu(self.linear(x)))


class ReferenceArm(nn.Module):
    """Five layers to ten dimensions, a head each for category and state, and six layers back to the genes."""

    def __init__(self, n_genes: int, n_categories: int, n_state: int):
        super().__init__()
        widths = (n_genes, HIDDEN, HIDDEN, HIDDEN, HIDDEN, NARROW)
        back = (n_categories + n_state, NARROW, HIDDEN, HIDDEN, HIDDEN, HIDDEN, n_genes)
        self.encoder = nn.Sequential(*(Block(a, b, True) for a, b in zip(widths, widths[1:], strict=False)))
        self.decoder = nn.Sequential(*(Block(a, b, False) for a, b in zip(back, back[1:], strict=False)))
        self.category = nn.Linear(NARROW, n_categories)
        self.mean = nn.Linear(NARROW + n_categories, n_state)
        self.variance = nn.Linear(NARROW + n_categories, n_state)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.encoder(x)
        # Twice a softmax, as the reference has it.
        q = torch.softmax(torch.softmax(self.category(hidden), -1) / TAU, -1)
        noise = -torch.log(-torch.log(torch.rand_like(q) + EPS) + EPS)
        c = torch.softmax(torch.log(q + EPS) + noise, -1)
        both = torch.cat([hidden, c], -1)
        mean, variance = self.mean(both), torch.sigmoid(self.variance(both))
        s = mean + variance.sqrt() * torch.randn_like(mean)
        return self.decoder(torch.cat([c, s], -1)), q, mean, variance


class Reference(nn.Module):
    """Arms and the objective of the reference for log values that all arms see (no augmentation).

    ``detection`` adds the cross-entropy of detected genes, which has no gradient but is part of the reference's step.
    """

    def __init__(self, n_genes: int, n_categories: int, n_state: int = 2, n_arms: int = 2, *, detection: bool = True):
        super().__init__()
        self.arms = nn.ModuleList(ReferenceArm(n_genes, n_categories, n_state) for _ in range(n_arms))
        self.detection = detection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total, categories, n_arms = x.new_zeros(()), [], len(self.arms)
        for arm in self.arms:
            decoded, q, mean, variance = arm(x)
            per_arm = 0.5 * F.mse_loss(decoded, x, reduction="sum") / len(x)
            if self.detection:
                seen = [(values > DETECTED).float() for values in (decoded, x)]
                per_arm = per_arm + 0.5 * F.binary_cross_entropy(*seen)
            kl = 0.5 * (mean.square() + variance - 1 - torch.log(variance + EPS)).mean(0).sum()
            total = total + max(n_arms - 1, 1) * (per_arm + kl)
            categories.append((torch.log(q + EPS), q))
        for (log_a, a), (log_b, b) in combinations(categories, 2):
            distance = log_a * torch.rsqrt(a.var(0) + EPS) - log_b * torch.rsqrt(b.var(0) + EPS)
            total = total + (distance.square() + a * log_a + b * log_b).sum(-1).mean()
        return total


def train_reference(model: Reference, values: torch.Tensor, batch_size: int, n_epochs: int) -> None:
    """Adam over shuffled minibatches of dense log values in memory, the last incomplete one left out."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(n_epochs):
        order = torch.randperm(len(values))
        for rows in order[: len(values) // batch_size * batch_size].split(batch_size):
            optimizer.zero_grad()
            model(values[rows]).backward()
            optimizer.step()
