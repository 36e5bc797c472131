"""Arms that start as good as their guide: linear paths fitted to its answers for the arms' own copies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from scvi import REGISTRY_KEYS

from cplmixvi.module import CplMixVAE

from ._answers import GuideAnswers
from ._guide import known_categories
from ._labels import labelled
from ._views import CLIP

#: Cells that paths are fitted to, at most.
MAX_CELLS = 20_000
#: Penalty on squared weights per cell, on coordinates of unit variance: enough for a finite optimum.
_RIDGE = 1e-5
_N_ITERATIONS = 100


@torch.no_grad()
def follow_guide(
    module: CplMixVAE, answers: GuideAnswers, batches: Iterable[dict[str, torch.Tensor]], max_cells: int = MAX_CELLS
) -> None:
    r"""Fit every arm's linear path to the guide, as a multinomial logistic regression.

    Arm ``a`` gets the coordinates of the guide's projection and the weights that maximise
    :math:`\sum_n\sum_k R_{nk}\log q(k\mid x_n^{(a)})` for one copy of each cell, so that probabilities have the
    certainty that copies allow. The rest of the arm's category head starts at zero.

    Parameters
    ----------
    module
        The arms.
    answers
        The guide's.
    batches
        Minibatches of the training cells, in random order.
    max_cells
        Stop reading here.
    """
    projection = answers.guide.answer.projection
    for arm in module.arms:
        arm.path.follow(projection.mean, projection.scale, projection.axes, CLIP)
    coordinates: list[list[torch.Tensor]] = [[] for _ in module.arms]
    said, n_cells = [], 0
    for tensors in batches:
        if n_cells >= max_cells:
            break
        tensors = {key: value.to(module.device) for key, value in tensors.items()}
        batch = tensors[REGISTRY_KEYS.BATCH_KEY].view(-1).long()
        said.append(labelled(answers(tensors), known_categories(module, tensors)))
        for arm, copies, kept in zip(module.arms, module.draw_copies(tensors), coordinates, strict=True):
            kept.append(arm.path.coordinates(module.encoder_input(copies), batch))
        n_cells += len(batch)
    answer = torch.cat(said)
    for arm, kept in zip(module.arms, coordinates, strict=True):
        weight, bias = logistic(torch.cat(kept), answer)
        arm.path.weight.copy_(weight)
        arm.category_head.weight.zero_()
        arm.category_head.bias.copy_(bias)


def logistic(z: torch.Tensor, answer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights ``(d, K)`` and intercepts ``(K,)`` of a multinomial logistic regression with uncertain labels.

    Parameters
    ----------
    z
        ``(n, d)``.
    answer
        Probabilities of the labels, ``(n, K)``.
    """
    scale = z.std(0, unbiased=False)
    # Coordinates that are not used do not vary.
    scale = torch.where(scale > 1e-6 * scale.max().clamp_min(1e-12), scale, torch.inf)
    centre = z.mean(0)
    standardised = (z - centre) / scale
    weight = torch.zeros(z.shape[1], answer.shape[1], device=z.device)
    # Where weights say nothing, probabilities are the categories' frequencies.
    bias = answer.mean(0).clamp_min(1e-8).log()
    with torch.enable_grad():
        weight.requires_grad_()
        bias.requires_grad_()
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=_N_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
        )

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            log_p = torch.log_softmax(standardised @ weight + bias, dim=1)
            value = -(answer * log_p).sum(1).mean() + _RIDGE * weight.square().sum()
            value.backward()
            return value

        optimiser.step(loss)
    weight = weight.detach() / scale[:, None]
    return weight, bias.detach() - centre @ weight
