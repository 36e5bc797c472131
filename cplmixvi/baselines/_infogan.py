"""InfoGAN: a generator whose codes can be read back from what it draws."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput
from torch import nn
from torch.nn.functional import cross_entropy, one_hot, softplus

from cplmixvi import pp
from cplmixvi.augment import Augment
from cplmixvi.module import Arm, Covariates

from ._images import refuse_what_images_lack
from ._model import SingleArmModel, doc_of
from ._module import SingleArmModule
from ._plan import AdversarialPlan

#: States are uniform between minus and plus this number, so that their variance is that of other models' states.
STATE_BOUND = math.sqrt(3.0)
#: Width of the published layers between images and codes, per channel of the layer next to the image.
_WIDTH_PER_CHANNEL = 16


class Codes(NamedTuple):
    """What images are drawn from.

    Attributes
    ----------
    category
        Integer, ``(n_images,)``.
    c
        The same, one-hot, ``(n_images, K)``.
    s
        States, uniform with mean 0 and variance 1, ``(n_images, n_state)``.
    noise
        Standard normal, ``(n_images, n_noise)``.
    """

    category: torch.Tensor
    c: torch.Tensor
    s: torch.Tensor
    noise: torch.Tensor


class ImageArm(Arm):
    """An arm whose decoder is a generator and whose encoder shares its convolutions with a discriminator.

    The networks are those of the authors for digits, with fewer channels by default; made by :meth:`build`.
    """

    def build(self, n_pixels: int, image_shape: tuple[int, int] | None, n_channels: int, n_noise: int) -> None:
        """Make the networks.

        Parameters
        ----------
        n_pixels, image_shape
            Number of pixels, and rows and columns; a square if `None`.
        n_channels
            Of the layers next to the image; there are twice as many in the next.
        n_noise
            Inputs of the generator beside the codes.
        """
        rows, columns = pp.image_sides(n_pixels, image_shape, multiple=4)
        n_hidden = self.category_head.in_features
        few, many, width = n_channels, 2 * n_channels, _WIDTH_PER_CHANNEL * n_channels
        small = (many, rows // 4, columns // 4)
        self.n_noise = n_noise
        self.encoder = nn.Sequential(
            nn.Unflatten(1, (1, rows, columns)),
            nn.Conv2d(1, few, 4, 2, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(few, many, 4, 2, 1),
            nn.BatchNorm2d(many),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            nn.Linear(math.prod(small), width),
            nn.BatchNorm1d(width),
            nn.LeakyReLU(0.1),
        )
        self.critic = nn.Linear(width, 1)
        self.head = nn.Sequential(nn.Linear(width, n_hidden), nn.BatchNorm1d(n_hidden), nn.LeakyReLU(0.1))
        self.decoder = nn.Sequential(
            nn.Linear(self.n_categories + self.state_mean.out_features + n_noise, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, math.prod(small)),
            nn.BatchNorm1d(math.prod(small)),
            nn.ReLU(),
            nn.Unflatten(1, small),
            nn.ConvTranspose2d(many, few, 4, 2, 1),
            nn.BatchNorm2d(few),
            nn.ReLU(),
            nn.ConvTranspose2d(few, 1, 4, 2, 1),
            nn.Flatten(),
        )
        # The generator ends in the pixels' logits.
        self.likelihood.output = nn.Identity()

    def encode(self, x: torch.Tensor, covariates: Covariates) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Arm.encode`."""
        return self.read(self.encoder(x))

    def read(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden layer ``(n_images, n_hidden)`` and log q(c|x) ``(n_images, K)`` of the discriminator's features."""
        hidden = self.head(features)
        return hidden, torch.log_softmax(self.category_head(hidden), dim=-1)

    def logits(self, c: torch.Tensor, s: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Logits of the pixels that the generator draws, ``(n_images, n_pixels)``."""
        return self.decoder(torch.cat([c, s, noise], dim=-1))

    def decode_hidden(self, c: torch.Tensor, s: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """Logits of the pixels, without noise (at its mean); see :meth:`Arm.decode_hidden`."""
        codes = c.flatten(0, -2), s.flatten(0, -2)
        found = self.logits(*codes, s.new_zeros(len(codes[1]), self.n_noise))
        return found.view(*s.shape[:-1], -1)


class InfoGANModule(SingleArmModule):
    r"""InfoGAN (Chen et al. 2016, arXiv:1606.03657): a generator, a discriminator, and a network that infers the codes.

    The generator :math:`G` draws images from a category, states and noise; the discriminator :math:`D` distinguishes
    them from real ones; :math:`Q`, which uses the discriminator's convolutions, infers what they were drawn from. With
    :math:`\zeta` the softplus, the generator minimises

    .. math::
        \zeta\big(-D(G(c, s, \epsilon))\big) - w_c\log Q(c\mid G(c, s, \epsilon)) - w_s\log Q(s\mid G(c, s, \epsilon))

    and the discriminator, together with :math:`Q`, minimises :math:`\zeta(-D(x)) + \zeta(D(G)) - w_c\log Q(c\mid G) -
    w_s\log Q(s\mid G)`. The last two terms bound the information that images contain about their codes. The categories
    of data are those that :math:`Q` infers from them: the objective contains no likelihood of the data. Batches and
    covariates are not modelled.

    Parameters
    ----------
    n_input
        Number of pixels.
    n_noise
        Number of noise dimensions.
    n_channels
        Channels of the convolutions next to the image; the next ones have twice as many, and the layer between
        convolutions and codes has sixteen times as many units. The authors use 64, which takes about ten times as long.
    category_weight, state_weight
        :math:`w_c` and :math:`w_s`.
    image_shape
        Rows and columns of the images, multiples of 4; a square if `None`.
    n_hidden
        Width of the layer between the discriminator's features and the output of :math:`Q`.
    likelihood
        ``"bernoulli"``: pixels are values in ``[0, 1]``.
    **options
        Of :class:`~cplmixvi.module.CplMixVAE`: ``n_categories``, ``n_state``, ``augmenter`` (draws the copies that
        replace real images in training).

    Raises
    ------
    ValueError
        If a number or weight is out of range, values are not pixels of an image, there are batches or covariates, or
        layers or options are requested that these networks and this objective do not have.
    """

    _arm_cls = ImageArm
    _method = "InfoGAN"
    #: Categories are drawn before the images are.
    _unused = (*SingleArmModule._unused, "temperature", "hard")

    def __init__(
        self,
        n_input: int,
        *,
        n_noise: int = 62,
        n_channels: int = 16,
        category_weight: float = 1.0,
        state_weight: float = 0.1,
        image_shape: tuple[int, int] | None = None,
        n_hidden: int = 128,
        likelihood: str = "bernoulli",
        **options,
    ):
        for name, value, least in (("n_noise", n_noise, 0), ("n_channels", n_channels, 1)):
            if not pp.is_whole(value) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
        for name, value in {"category_weight": category_weight, "state_weight": state_weight}.items():
            if not value >= 0:
                raise ValueError(f"{name}={value!r} must be at least 0.")
        if likelihood != "bernoulli":
            raise ValueError(
                f"likelihood={likelihood!r} is not one of images: InfoGAN draws pixels, values in [0, 1]; use "
                "likelihood='bernoulli' on images, or JointVAE or CascadeVAE."
            )
        refuse_what_images_lack("InfoGAN", options)
        super().__init__(n_input, n_hidden=n_hidden, likelihood=likelihood, **options)
        self.category_weight, self.state_weight, self.n_noise = category_weight, state_weight, n_noise
        (arm,) = self.arms
        arm.build(n_input, image_shape, n_channels, n_noise)

    @property
    def generator(self) -> list[nn.Parameter]:
        """Weights of the generator."""
        return list(self.arms[0].decoder.parameters())

    @property
    def discriminator(self) -> list[nn.Parameter]:
        """Weights of the discriminator and of the network that infers the codes."""
        arm = self.arms[0]
        parts = (arm.encoder, arm.critic, arm.head, arm.category_head, arm.state_mean, arm.state_log_variance)
        return [weight for part in parts for weight in part.parameters()]

    def draw(self, n_images: int) -> Codes:
        """Draw codes: categories and states from uniform distributions, noise from a normal one."""
        category = torch.randint(self.n_categories, (n_images,), device=self.device)
        c = one_hot(category, self.n_categories).float()
        s = STATE_BOUND * (2 * torch.rand(n_images, self.n_state, device=self.device) - 1)
        return Codes(category, c, s, torch.randn(n_images, self.n_noise, device=self.device))

    def generate(self, codes: Codes) -> torch.Tensor:
        """Generate images, ``(n_images, n_pixels)``, with values in ``[0, 1]``."""
        return self.arms[0].logits(codes.c, codes.s, codes.noise).sigmoid()

    def _not_said(self, features: torch.Tensor, codes: Codes) -> dict[str, torch.Tensor]:
        """Cross-entropies of the codes, nats, each a mean over images: entropy minus these bounds the information."""
        arm = self.arms[0]
        hidden, log_qc = arm.read(features)
        mean, variance = arm.state(hidden, codes.c)
        log_qs = -0.5 * ((codes.s - mean).square() / variance + variance.log() + math.log(2 * math.pi)).sum(-1)
        return {"category": cross_entropy(log_qc, codes.category), "state": -log_qs.mean()}

    def _informed(self, adversarial: torch.Tensor, not_said: dict[str, torch.Tensor]) -> torch.Tensor:
        return adversarial + self.category_weight * not_said["category"] + self.state_weight * not_said["state"]

    def discriminator_loss(
        self, x: torch.Tensor, images: torch.Tensor, codes: Codes
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the discriminator and of the network that infers the codes.

        Parameters
        ----------
        x
            Real images, ``(n_images, n_pixels)``.
        images, codes
            Generated images, which get no gradient, and the codes from which they were drawn.

        Returns
        -------
        torch.Tensor
            The loss.
        dict
            Its adversarial term, and the cross-entropies of ``category`` and ``state``, nats.
        """
        arm = self.arms[0]
        features = arm.encoder(images.detach())
        adversarial = softplus(-arm.critic(arm.encoder(x))).mean() + softplus(arm.critic(features)).mean()
        not_said = self._not_said(features, codes)
        return self._informed(adversarial, not_said), {"discriminator": adversarial, **not_said}

    def generator_loss(self, images: torch.Tensor, codes: Codes) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the generator for ``images`` that it drew from ``codes``; see :meth:`discriminator_loss`."""
        arm = self.arms[0]
        features = arm.encoder(images)
        adversarial, not_said = softplus(-arm.critic(features)).mean(), self._not_said(features, codes)
        return self._informed(adversarial, not_said), {"generator": adversarial, **not_said}

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        kl_weight: torch.Tensor | float = 1.0,
    ) -> LossOutput:
        """How much real images differ from those generated from the inferred codes; reported, not trained on."""
        _, reconstruction = self.reconstructed(tensors, inference_outputs, generative_outputs)
        return LossOutput(
            loss=reconstruction.mean(),
            reconstruction_loss=reconstruction,
            n_obs_minibatch=len(tensors[REGISTRY_KEYS.X_KEY]),
        )


class InfoGAN(SingleArmModel):
    __doc__ = doc_of(
        "InfoGAN",
        "Chen et al. 2016, arXiv:1606.03657",
        "InfoGANModule",
        cells="images",
        before=("images = AnnData(np.random.default_rng(0).integers(0, 2, (64, 8 * 8)).astype(np.float32))",),
    )

    _module_cls = InfoGANModule
    _training_plan_cls = AdversarialPlan

    def __init__(
        self,
        adata: AnnData | None = None,
        n_categories: int | None = None,
        n_state: int = 2,
        likelihood: str = "bernoulli",
        augment: Augment = "none",
        *,
        allow_empty_cells: bool | None = None,
        registry: dict | None = None,
        **module_kwargs,
    ):
        super().__init__(
            adata,
            n_categories,
            n_state,
            likelihood,
            augment,
            allow_empty_cells=allow_empty_cells,
            registry=registry,
            **module_kwargs,
        )
        self.init_params_ = self._get_init_params(locals())
