"""Scores of a fit. Labels are read here only, after all fitting."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from _cases import CASES
from _clusters import Clusters
from anndata import AnnData
from scipy.special import logsumexp

import cplmixvi as cpl
from cplmixvi.module import Covariates
from cplmixvi.module._simplex import category_variance, perturbation_bounds

SCORES = ("accuracy", "balanced_accuracy", "nmi")
FACTORS = ("shape", "scale", "orientation", "x", "y")
#: Images whose copies the propositions are checked on, and those that a traversal takes its range from.
N_CHECKED, N_WALKED = 2_000, 3_000


def score(model: cpl.CplMixVI | Clusters, name: str, train: AnnData, held_out: AnnData | None) -> dict:
    """Accuracy on what was trained on and on what was not, and what else the paper reports of such data."""
    case, found = CASES[name], {}
    for part, adata in (("", train if held_out is None else held_out), ("_train", train)):
        truth, labels = adata.obs[case.label].astype(str), model.predict(adata.copy())
        for each in SCORES:
            found[each + part] = getattr(cpl.metrics, each)(truth, labels, ignore=case.ignore)
    if not isinstance(model, cpl.CplMixVI):
        # Clusters have neither states nor probabilities.
        return {key: round(float(value), 5) for key, value in found.items()}
    if name == "dsprites":
        found |= disentanglement(model, held_out)
    if name == "mnist":
        found |= flips(model, held_out)
    found = {key: round(float(value), 5) for key, value in found.items()}
    if held_out is not None:
        found |= propositions(model, held_out[:N_CHECKED].copy(), held_out.obs[case.label].astype(str)[:N_CHECKED])
    return found


def disentanglement(model: cpl.CplMixVI, sprites: AnnData) -> dict[str, float]:
    """Majority votes and mutual information gap over all factors."""
    posterior = model.get_posterior(sprites.copy())
    activity = model.get_state_activity(sprites.copy())
    kl = activity.groupby("dimension")[["kl", "n_cells"]].apply(lambda t: np.average(t["kl"], weights=t["n_cells"]))
    labels = posterior.proba.argmax(1)
    factors = sprites.obs[list(FACTORS)]
    return {
        "disentanglement": cpl.metrics.disentanglement_score(factors, posterior.combined, labels, kl=kl.to_numpy()),
        "mig": cpl.metrics.mutual_information_gap(factors, posterior.combined, labels).mean(),
    }


def flips(model: cpl.CplMixVI, images: AnnData) -> dict[str, float]:
    """Share of images drawn along a walk through the state that are of another type when they are read again.

    The main path of every type, and all paths; the same for the images that are expected there (not drawn). Beside it,
    how much of the slant of upright strokes the states tell within types, to see that they do control style.
    """
    some = images[:N_WALKED].copy()
    cpl.tl.annotate(some, model)
    drawn = cpl.tl.traverse(some, model, n_draws=20).leakage
    main = drawn["path"] == "main" if (drawn["path"] == "main").any() else drawn["path"] == "1"
    x = dense(some).reshape(-1, *some.uns["image_shape"])
    state, labels = some.obsm["X_cplmixvi"], some.obs["cplmixvi"].astype(str).to_numpy()
    told = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) >= 50:
            inside = slant(x[rows])
            z = np.column_stack([np.ones(len(rows)), state[rows]])
            left = inside - z @ np.linalg.lstsq(z, inside, rcond=None)[0]
            told.append(1 - left.var() / inside.var())
    return {
        "flips_main": drawn.loc[main, "flip_rate"].mean(),
        "flips": drawn["flip_rate"].mean(),
        "slant_r2": float(np.mean(told)),
    }


def dense(adata: AnnData) -> np.ndarray:
    """Values as an array ``(n_obs, n_vars)``."""
    return adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)


def slant(images: np.ndarray) -> np.ndarray:
    """Pixels to the right per pixel down, by the second moments of each image ``(n, rows, columns)``."""
    down, across = np.mgrid[: images.shape[1], : images.shape[2]]
    total = images.sum((1, 2))
    dy, dx = (grid - ((grid * images).sum((1, 2)) / total)[:, None, None] for grid in (down[None], across[None]))
    return (images * dy * dx).sum((1, 2)) / (images * dy * dy).sum((1, 2))


@torch.inference_mode()
def propositions(model: cpl.CplMixVI, images: AnnData, truth) -> dict:
    """Definition 1 by number of arms that decide, and how often the bounds of Proposition 3 hold.

    Every arm reads its own copy of each image, as in training. ``confidence_mean`` is that of the average of ``n`` arms
    and ``confidence_product`` that of their unanimous decision, in proportion to the product of their probabilities;
    both are lists over ``n = 1 ... A``, means over all choices of ``n`` arms and over types, nats.
    """
    module = model.module.eval()
    x = torch.from_numpy(dense(images)).float()
    covariates = Covariates((torch.zeros(len(x), 1, dtype=torch.long),))
    torch.manual_seed(0)
    log_q = torch.stack([arm.encode(module.augmenter(x, {}), covariates)[1] for arm in module.arms])
    values = log_q.double().numpy()
    matched = cpl.metrics.match_categories(truth, np.exp(values).mean(0).argmax(1))
    by_number = {"mean": [], "product": []}
    for n in range(1, len(values) + 1):
        of = {"mean": [], "product": []}
        for chosen in combinations(values, n):
            chosen = np.stack(chosen)
            log_product = chosen.sum(0)
            proba = {
                "mean": np.exp(chosen).mean(0),
                "product": np.exp(log_product - logsumexp(log_product, axis=1, keepdims=True)),
            }
            for kind, p in proba.items():
                table = cpl.metrics.confidence(p, truth)
                of[kind].append([table.loc[type_, category] for category, type_ in matched.items()])
        for kind, rows in of.items():
            by_number[kind].append(np.mean(rows, axis=0))
    result = {}
    for kind, rows in by_number.items():
        rows = np.array(rows)
        result[f"confidence_{kind}"] = [round(float(v), 4) for v in rows.mean(1)]
        result[f"types_more_confident_{kind}"] = [round(float(v), 3) for v in (np.diff(rows, axis=0) > 0).mean(1)]
    if len(log_q) > 1:
        result |= bounds(log_q.double())
    return result


def bounds(log_q: torch.Tensor) -> dict[str, float]:
    """Share of images and pairs of arms inside the bounds of Proposition 3, as corrected and as printed."""
    sigma = (category_variance(log_q.exp()) + 1e-8).sqrt()
    corrected, lower, upper = [], [], []
    for a, b in combinations(range(len(log_q)), 2):
        pair = (log_q[a], log_q[b], sigma[a], sigma[b])
        found = perturbation_bounds(*pair)
        slack = 1e-9 * found.perturbed2.abs()
        moved = found.perturbed2 - found.aitchison2
        corrected.append((moved <= found.rho_upper + slack) & (moved >= -found.rho_lower - slack))
        rho_lower, rho_upper = printed_bounds(*pair)
        lower.append(moved >= -rho_lower - slack)
        upper.append(moved <= rho_upper + slack)
    names = ("bounds_hold", "printed_lower_holds", "printed_upper_holds")
    parts = (corrected, lower, upper)
    return {name: round(float(torch.stack(part).double().mean()), 4) for name, part in zip(names, parts, strict=True)}


def printed_bounds(log_p, log_q, sigma_p, sigma_q) -> tuple[torch.Tensor, torch.Tensor]:
    """Proposition 3 to the letter: lower and upper, ``(n_cells,)``."""
    n_parts = log_p.shape[-1]
    g = (1 / sigma_p - 1) * log_p - (1 / sigma_q - 1) * log_q
    tau_c, total = (log_p - log_q).amax(-1), g.sum(-1)
    upper = n_parts * (g.amax(-1).square() + tau_c.square()) + 2 * total * tau_c
    return total.square() / n_parts - n_parts * (-g).amax(-1).square(), upper
