"""Networks of images: convolutions in the place of an arm's layers."""

from __future__ import annotations

import math

import torch
from torch import nn

from cplmixvi import pp


def refuse_what_images_lack(name: str, options: dict) -> None:
    """Convolutions read pixels only.

    Parameters
    ----------
    name
        What has these networks.
    options
        Of the module.

    Raises
    ------
    ValueError
        If there are batches or covariates, or settings are given that these networks do not have.
    """
    unknown = sorted({"n_layers", "dropout_rate"} & set(options))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: {name} has no such setting; leave it out.")
    levels = (options.get("n_batch", 1), *options.get("n_cats_per_cov", ()))
    if max(levels) > 1 or options.get("n_continuous_cov", 0):
        raise ValueError(f"{name} has no batches or covariates; leave them out of setup_anndata.")


class ImageEncoder(nn.Module):
    """Three convolutions that halve the sides, then one layer; called as :class:`~cplmixvi.module.Arm` calls its own.

    Those of JointVAE's authors, for whom ``n_channels`` is 32 and ``n_hidden`` 256. Images get a margin of zeros, up to
    the next multiple of 8.

    Parameters
    ----------
    rows, columns
        Of the images.
    n_channels
        Of the convolution next to the image; twice as many in the others.
    n_hidden
        Width of the layer after them.
    """

    def __init__(self, rows: int, columns: int, n_channels: int, n_hidden: int):
        super().__init__()
        margin, small = _margin(rows, columns)
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, rows, columns)),
            nn.ZeroPad2d(margin),
            nn.Conv2d(1, n_channels, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(n_channels, 2 * n_channels, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(2 * n_channels, 2 * n_channels, 4, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * n_channels * math.prod(small), n_hidden),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor, *codes: torch.Tensor, cont: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden layer ``(n_images, n_hidden)`` of pixels ``(n_images, n_pixels)``; of covariates there are none."""
        return self.layers(x)


class ImageDecoder(nn.Module):
    """The mirror image of :class:`ImageEncoder`: from categories and states to the pixels' logits.

    Parameters
    ----------
    n_latent
        Number of categories and states.
    rows, columns, n_channels, n_hidden
        Of :class:`ImageEncoder`.
    """

    def __init__(self, n_latent: int, rows: int, columns: int, n_channels: int, n_hidden: int):
        super().__init__()
        margin, small = _margin(rows, columns)
        self.layers = nn.Sequential(
            nn.Linear(n_latent, n_hidden),
            nn.ReLU(),
            nn.Linear(n_hidden, 2 * n_channels * math.prod(small)),
            nn.ReLU(),
            nn.Unflatten(1, (2 * n_channels, *small)),
            nn.ConvTranspose2d(2 * n_channels, n_channels, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(n_channels, n_channels, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(n_channels, 1, 4, 2, 1),
            # Less than no padding takes the margin off again.
            nn.ZeroPad2d(tuple(-side for side in margin)),
            nn.Flatten(),
        )

    def forward(self, latent: torch.Tensor, *codes: torch.Tensor, cont: torch.Tensor | None = None) -> torch.Tensor:
        """Logits ``([n_samples,] n_images, n_pixels)`` for ``([n_samples,] n_images, n_latent)``."""
        logits = self.layers(latent.flatten(0, -2))
        return logits.view(*latent.shape[:-1], -1)


def with_convolutions(arm: nn.Module, n_pixels: int, image_shape: tuple[int, int] | None, n_channels: int) -> None:
    """Put convolutions in the place of an arm's layers.

    Parameters
    ----------
    arm
        The :class:`~cplmixvi.module.Arm`.
    n_pixels, image_shape
        See :func:`~cplmixvi.pp.image_sides`.
    n_channels
        Of :class:`ImageEncoder`.

    Raises
    ------
    ValueError
        If ``n_channels`` is no number of channels, or the pixels are not those of an image.
    """
    if not pp.is_whole(n_channels) or n_channels < 1:
        raise ValueError(f"n_channels={n_channels!r} must be a whole number of at least 1.")
    rows, columns = pp.image_sides(n_pixels, image_shape)
    n_hidden = arm.category_head.in_features
    arm.encoder = ImageEncoder(rows, columns, n_channels, n_hidden)
    n_latent = arm.n_categories + arm.state_mean.out_features
    arm.decoder = ImageDecoder(n_latent, rows, columns, n_channels, n_hidden)
    # The decoder ends in the pixels' logits.
    arm.likelihood.output = nn.Identity()


def _margin(rows: int, columns: int) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """What reaches the next multiples of 8 (left, right, top, bottom), and rows and columns after three halvings."""
    down, across = -rows % 8, -columns % 8
    margin = (across // 2, across - across // 2, down // 2, down - down // 2)
    return margin, ((rows + down) // 8, (columns + across) // 8)
