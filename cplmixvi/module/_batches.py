"""Batches that a trained module has not seen: weights of their own beside those that stay as they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scvi import REGISTRY_KEYS
from scvi.nn import FCLayers

from cplmixvi.augment._partners import PartnerAugmenter

from ._cplmixvae import CplMixVAE


def with_new_batches(state: dict[str, torch.Tensor], module: CplMixVAE, n_known: int) -> dict[str, torch.Tensor]:
    """State of a module that knows more batches, where everything that is said of those known before stays the same.

    A new batch begins as the mean of the others.

    Parameters
    ----------
    state
        Of a module with ``n_known`` batches and all else alike.
    module
        The larger one.
    n_known
        Number of batches that are known; they come first.

    Returns
    -------
    dict
        That ``module`` can load.
    """
    n_new = module.n_batch - n_known
    grown = dict(state)
    for name, layers in _injected(module):
        start, weight = _first_batch(layers), state[name]
        # A single batch needs no weights.
        known = weight[:, start : start + n_known] if n_known > 1 else weight.new_zeros(len(weight), 1)
        rest = weight[:, start + (n_known if n_known > 1 else 0) :]
        new = known.mean(1, keepdim=True).expand(-1, n_new)
        grown[name] = torch.cat([weight[:, :start], known, new, rest], dim=1)
    for index in range(len(module.arms)):
        name = f"arms.{index}.path.mean"
        *_, overall = mean = state[name]
        grown[name] = torch.cat([mean[:-1], overall.expand(n_new, -1), overall[None]])
    return grown


def train_new_batches_only(module: CplMixVAE, n_known: int) -> None:
    """From now on, let a module learn only the weights of batches after the first ``n_known``.

    Statistics of batch normalisation also stay as they are, and are used in training. No cell stands in for another.

    Parameters
    ----------
    module
        The arms; changed in place.
    n_known
        Number of batches whose weights are kept; they come first.
    """
    module.n_known_batches = n_known
    module.requires_grad_(False)
    for part in module.augmenter.modules():
        if isinstance(part, PartnerAugmenter):
            part.keeps_cells = True
    for _, layers in _injected(module):
        start = _first_batch(layers)
        weight = layers.fc_layers[0][0].weight
        is_new = torch.zeros_like(weight)
        is_new[:, start + n_known : start + module.n_batch] = 1
        weight.requires_grad_(True)
        weight.register_hook(lambda gradient, is_new=is_new: gradient * is_new.to(gradient.device))
    module.train(module.training)


@torch.inference_mode()
def find_shift(module: CplMixVAE, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    r"""Shift that a batch adds to encoder inputs beyond what the decoder expects, summed over cells.

    Each cell :math:`x_n` is compared with a draw :math:`\tilde x_n` from the decoder for its category, state and depth,
    so that batches may differ in their proportions of cell types:

    .. math:: \sum_n f(x_n) - f(\tilde x_n)

    with :math:`f` the encoder input (:meth:`CplMixVAE.encoder_input`), in its normal form if the arms use one.

    Parameters
    ----------
    module
        The arms, in evaluation mode.
    tensors
        A minibatch of cells of the batch.

    Returns
    -------
    torch.Tensor
        In units of the encoder inputs (natural logarithms for counts), ``(n_genes,)``, on the module's device.
    """
    normal_form = module.arms[0].path.normal_form or (lambda values: values)
    x, drawn = (part.to(module.device).float() for part in (tensors[REGISTRY_KEYS.X_KEY], module.sample(tensors)))
    return (normal_form(module.encoder_input(x)) - normal_form(module.encoder_input(drawn))).sum(0)


def _injected(module: CplMixVAE) -> Iterator[tuple[str, FCLayers]]:
    """Networks whose first layer reads the batch, and the names of its weights."""
    for index, arm in enumerate(module.arms):
        for part in ("encoder", "decoder"):
            yield f"arms.{index}.{part}.fc_layers.Layer 0.0.weight", getattr(arm, part)


def _first_batch(layers: FCLayers) -> int:
    """Column of the first batch: after values and continuous covariates, before other categorical ones."""
    return layers.fc_layers[0][0].in_features - sum(layers.n_cat_list)
