"""Arms that start as good as their guide: linear paths fitted to its answers, and decoders at its categories' means."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from scvi import REGISTRY_KEYS

from cplmixvi._constants import COPIES_KEY
from cplmixvi.module import Arm, CategoryMoments, Covariates, CplMixVAE

from ._answers import GuideAnswers
from ._guide import known_categories, values_of
from ._labels import labelled
from ._views import CLIP

#: Cells that paths are fitted to, at most.
MAX_CELLS = 20_000
#: Penalty on squared weights per cell, on coordinates of unit variance: enough for a finite optimum.
_RIDGE = 1e-5
_N_ITERATIONS = 100
#: States, and cells whose covariates they have, that a decoder is started with: per category, and of all together.
_N_DRAWS, _MAX_DRAWS = 50, 50_000


@torch.no_grad()
def follow_guide(module: CplMixVAE, answers: GuideAnswers, batches: Iterable[dict[str, torch.Tensor]]) -> None:
    r"""Fit every arm's linear path to the guide, as a multinomial logistic regression, and start its decoder there.

    Arm ``a`` gets the coordinates of the guide's projection and the weights that maximise
    :math:`\sum_n\sum_k R_{nk}\log q(k\mid x_n^{(a)})` for one copy of each cell, so that probabilities have the
    certainty that copies allow. The rest of the arm's category head starts at zero. Its decoder starts with the mean
    values of the guide's categories, whatever the state, and with what these leave of the genes' variance: learnt step
    by step, means of rare categories stay between theirs and their neighbours', and dispersions far from the data's.

    Parameters
    ----------
    module
        The arms.
    answers
        The guide's.
    batches
        Minibatches of the training cells, in random order.
    """
    projection = answers.guide.answer.projection
    for arm in module.arms:
        arm.path.follow(projection.mean, projection.scale, projection.axes, CLIP)
    coordinates: list[list[torch.Tensor]] = [[] for _ in module.arms]
    said, covariates, n_cells = [], [], 0
    moments = CategoryMoments(module.n_categories, module.n_input, module.on_counts, module.device)
    for tensors in batches:
        if n_cells >= MAX_CELLS:
            break
        tensors = {key: value.to(module.device) for key, value in tensors.items()}
        batch = tensors[REGISTRY_KEYS.BATCH_KEY].view(-1).long()
        said.append(labelled(answers(tensors), known_categories(module, tensors)))
        for arm, copies, kept in zip(module.arms, module.with_copies(tensors)[COPIES_KEY], coordinates, strict=True):
            kept.append(arm.path.coordinates(module.encoder_input(copies), batch))
        moments.add(values_of(module, tensors), said[-1])
        covariates.append(Covariates.of(tensors))
        n_cells += len(batch)
    answer, covariates = torch.cat(said), Covariates.joined(covariates)
    for arm, kept in zip(module.arms, coordinates, strict=True):
        weight, bias = logistic(torch.cat(kept), answer)
        arm.path.weight.copy_(weight)
        arm.category_head.weight.zero_()
        arm.category_head.bias.copy_(bias)
        _start_decoder(arm, moments, covariates)


def _start_decoder(arm: Arm, moments: CategoryMoments, covariates: Covariates) -> None:
    """Set an arm's likelihood so that categories have these moments, for states and covariates as there are."""
    n_categories, device = arm.n_categories, covariates.categorical[0].device
    n_draws = max(1, min(_N_DRAWS, _MAX_DRAWS // n_categories))
    c = torch.eye(n_categories, device=device).repeat(n_draws, 1)
    s = torch.randn(len(c), arm.state_mean.out_features, device=device)
    some = covariates.of_cells(torch.randint(covariates.n_cells, (len(c),), device=device))
    arm.spread_categories()
    hidden = arm.decode_hidden(c, s, some)
    arm.likelihood.start_at(hidden.view(n_draws, n_categories, -1), moments)


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
