"""Whether a fit is sound, in numbers and in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ._consensus import Consensus
from ._labels import category_names

#: Limits beyond which a fit is called unsound. They separate collapse from success, not good from better.
MIN_USED = 0.5
MAX_ENTROPY = 0.5
MIN_AGREEMENT = 0.6
MIN_FOUND_AGAIN = 0.4
#: Consensus, and share found again, below which a single category is not to be relied on, though the fit is sound.
MIN_OF_CATEGORY = 0.6
#: Categories that are named in one sentence.
_MOST_NAMES = 8


@dataclass(frozen=True)
class Report:
    r"""Signs of a sound or a collapsed fit.

    Attributes
    ----------
    n_categories
        Number of categories requested.
    n_used
        Number of categories that contain at least one cell.
    entropy
        Mean entropy of the averaged posterior as a fraction of :math:`\log K`: 0 means certain, 1 means no information.
    agreement
        Fraction of equal labels over all cells and pairs of arms; ``nan`` with one arm.
    weakest
        Name and consensus of the used category on which the arms agree least; `None` with one arm.
    problems
        One sentence for each sign of an unsound fit.
    condition
        Fraction of the cells on the upper level of a condition found during training; `None` if there is none.
    found_again
        Fraction of the cells that fits to half of the data put into the same category; ``nan`` without such fits.
    least_found
        Name and fraction of the used category that these fits recover least; `None` without such fits.
    doubtful
        Names of used categories with a consensus, or a fraction found again, below 0.6.
    doubtful_cells
        Fraction of the cells that are in these.
    """

    n_categories: int
    n_used: int
    entropy: float
    agreement: float
    weakest: tuple[str, float] | None
    problems: tuple[str, ...]
    condition: float | None = None
    found_again: float = math.nan
    least_found: tuple[str, float] | None = None
    doubtful: tuple[str, ...] = ()
    doubtful_cells: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __str__(self) -> str:
        lines = [
            f"{self.n_used} of {self.n_categories} categories are used.",
            f"The arms are {1 - self.entropy:.0%} certain (mean entropy is {self.entropy:.0%} of its largest value).",
        ]
        if self.weakest is None:
            line = "One arm: there is no agreement between arms"
            # Fits to halves of the data say it as well, below.
            line += ", and whether the types would be found again is unknown" if self.least_found is None else ""
            lines.append(f"{line}; use n_arms=2 or more.")
        else:
            name, consensus = self.weakest
            lines.append(
                f"The arms agree on {self.agreement:.0%} of cells, least on category {name} "
                f"(consensus {consensus:.2f})."
            )
        if self.least_found is not None:
            name, share = self.least_found
            lines.append(
                f"Fits to half of the data put {self.found_again:.0%} of cells into the same category, fewest of "
                f"category {name} ({share:.0%}); confidence says no more than that."
            )
        if self.doubtful:
            names = ", ".join(self.doubtful[:_MOST_NAMES]) + (", ..." if len(self.doubtful) > _MOST_NAMES else "")
            lines.append(
                f"Not to be relied on: {len(self.doubtful)} of the categories ({names}) with "
                f"{self.doubtful_cells:.1%} of cells, of which arms or halves of the data agree on fewer than "
                f"{MIN_OF_CATEGORY:.0%}."
            )
        if self.condition is not None:
            lines.append(
                f"Cells of most types have two levels of one shift ({self.condition:.0%} the upper one), as of a "
                "treatment or a technology; types do not follow it. See condition_."
            )
        lines += self.problems or ("No sign of collapse.",)
        return "\n".join(lines)

    @classmethod
    def from_posterior(
        cls,
        proba: np.ndarray,
        labels: np.ndarray,
        names: np.ndarray | None = None,
        found_again: np.ndarray | None = None,
    ) -> Report:
        """Assess a posterior.

        Parameters
        ----------
        proba
            Averaged posterior, shape ``(n_cells, K)``.
        labels
            Labels from the arms, shape ``(n_cells, n_arms)``.
        names
            Names of the categories, shape ``(K,)``; their indices if `None`.
        found_again
            Fraction of each category's cells that fits to half of the data put into the same category, shape ``(K,)``.

        Returns
        -------
        Report
        """
        n_categories = proba.shape[1]
        names = category_names(n_categories) if names is None else names
        final = proba.argmax(1)
        used, sizes = np.unique(final, return_counts=True)
        entropy = float(-(proba * np.log(proba + 1e-12)).sum(1).mean()) / max(math.log(n_categories), 1e-12)
        weakest, agreement = None, math.nan
        doubtful = np.zeros(len(used), dtype=bool)
        if labels.shape[1] > 1:
            consensus = Consensus.from_labels(labels, final, n_categories, names)
            agreement = consensus.mean
            of_used = np.nan_to_num(consensus.by_category[used])
            worst = int(of_used.argmin())
            weakest = (str(names[used[worst]]), float(of_used[worst]))
            doubtful |= of_used < MIN_OF_CATEGORY
        share, least_found = math.nan, None
        if found_again is not None:
            share = float(found_again[final].mean())
            worst = used[found_again[used].argmin()]
            least_found = (str(names[worst]), float(found_again[worst]))
            doubtful |= found_again[used] < MIN_OF_CATEGORY
        return cls(
            n_categories=n_categories,
            n_used=len(used),
            entropy=min(max(entropy, 0.0), 1.0),
            agreement=agreement,
            weakest=weakest,
            problems=_problems(n_categories, sizes, entropy, agreement, share),
            found_again=share,
            least_found=least_found,
            doubtful=tuple(names[used[doubtful]].astype(str).tolist()),
            doubtful_cells=float(sizes[doubtful].sum() / max(len(final), 1)),
        )


def _problems(
    n_categories: int, sizes: np.ndarray, entropy: float, agreement: float, found_again: float
) -> tuple[str, ...]:
    problems, n_used = [], len(sizes)
    if n_categories > 1 and n_used == 1:
        problems.append("All cells are in one category: the model has collapsed and its types mean nothing.")
    elif n_used < MIN_USED * n_categories:
        problems.append(
            f"Only {n_used} of {n_categories} categories are used: types may have been merged, or there are fewer."
        )
    if n_categories > 1 and entropy > MAX_ENTROPY:
        problems.append(
            "Probabilities are almost flat: labels are close to arbitrary; train longer or with a warm start."
        )
    if agreement < MIN_AGREEMENT:
        problems.append(
            f"The arms agree on {agreement:.0%} of cells only: most types would not be found again by another fit."
        )
    if _beyond_chance(found_again, sizes) < MIN_FOUND_AGAIN:
        problems.append(
            f"Fits to half of the data put {found_again:.0%} of cells only into the same category, little more than "
            "chance would: most types are not to be relied on; there may be fewer, or none."
        )
    return tuple(problems)


def _beyond_chance(found_again: float, sizes: np.ndarray) -> float:
    """Share of cells found again, 0 where labels of the same sizes would be drawn by chance; 1 for one category."""
    by_chance = float(np.square(sizes / sizes.sum()).sum())
    return (found_again - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0
