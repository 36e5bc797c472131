"""The learned augmenter: copies from a variational autoencoder trained against a discriminator."""

from __future__ import annotations

import torch

from cplmixvi import pp
from cplmixvi._constants import COUNT_LIKELIHOODS

from ._base import Augmenter
from ._generator import Copies, Generator


class LearnedAugmenter(Augmenter):
    """Copies that vary as cells of one type do, learned without labels.

    In the spirit of the paper's augmenter (VAE-GAN: Larsen et al. 2016, arXiv:1512.09300; DAGAN: Antoniou et al. 2017,
    arXiv:1711.04340), a cell is encoded, noise is added to its latent representation, and the copy is drawn from the
    decoded result. For counts, the copy is a draw of negative binomial counts at the cell's own depth. The augmenter is
    trained by :meth:`CplMixVI.train_augmenter` or, if that was not called, by :meth:`CplMixVI.train` before the arms;
    it is frozen while the arms train. It is saved with the model.

    Parameters
    ----------
    n_latent
        Number of latent dimensions.
    n_hidden
        Width of the hidden layers.

    Raises
    ------
    ValueError
        If ``n_latent`` or ``n_hidden`` is below 1.
    """

    def __init__(self, n_latent: int = 16, n_hidden: int = 128):
        super().__init__()
        for name, value in (("n_latent", n_latent), ("n_hidden", n_hidden)):
            if not pp.is_whole(value) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
        self.n_latent, self.n_hidden = n_latent, n_hidden
        self.generator: Generator | None = None
        self.on_counts = False
        self._built: tuple[int, str] | None = None
        #: Whether it has been trained; saved with the weights.
        self.fitted = False
        self.register_buffer("target_library", torch.tensor(1.0))

    def build(self, n_genes: int, likelihood: str, target_library: float) -> None:
        """Create the networks, untrained; see :meth:`Augmenter.build`.

        Networks that were trained on as many genes with the same likelihood are kept.
        """
        if self.fitted and self._built == (n_genes, likelihood):
            return
        self._built = n_genes, likelihood
        self.on_counts = likelihood in COUNT_LIKELIHOODS
        self.target_library.fill_(target_library)
        self.generator = Generator(n_genes, likelihood, self.n_latent, self.n_hidden)
        self.generator.requires_grad_(False)
        self.fitted = False

    def log_values(self, x: torch.Tensor) -> torch.Tensor:
        """What encoder and discriminator read: log values of counts scaled to a common depth, otherwise ``x``."""
        if not self.on_counts:
            return x
        return torch.log1p(x * (self.target_library / x.sum(-1, keepdim=True).clamp_min(1.0)))

    def copies(self, x: torch.Tensor) -> Copies:
        """Copies of cells ``(n_cells, n_genes)``, with the components of their losses."""
        return self.generator(x, self.log_values(x))

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Draw a copy of each cell, ``(n_cells, n_genes)``.

        Raises
        ------
        ValueError
            If the augmenter has not been trained.
        """
        if not self.fitted:
            raise ValueError("The learned augmenter has not been trained; call CplMixVI.train_augmenter() first.")
        with torch.no_grad():
            return self.copies(x).values

    def get_extra_state(self) -> torch.Tensor:
        """Whether the augmenter has been trained, to be saved with the weights."""
        return torch.tensor(self.fitted)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Restore whether the saved weights have been trained."""
        self.fitted = bool(state)


def learned_parts(augmenter: Augmenter) -> list[LearnedAugmenter]:
    """Find the learned augmenters within an augmenter.

    Parameters
    ----------
    augmenter
        Any augmenter, such as a :class:`Compose`.

    Returns
    -------
    list of LearnedAugmenter
        ``augmenter`` itself if it is learned, and those it is composed of; empty if there are none.

    Examples
    --------
    >>> len(learned_parts(LearnedAugmenter()))
    1
    """
    return [part for part in augmenter.modules() if isinstance(part, LearnedAugmenter)]
