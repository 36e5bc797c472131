"""Training curves: one small panel per metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cplmixvi.pl._common import dress, read_result, style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

_PANELS = {
    "elbo": ("negative ELBO", "nats per cell"),
    "reconstruction_loss": ("reconstruction loss", "nats per cell"),
    "kl_local": ("state KL", "nats per cell"),
    "distance": ("coupling distance", "$d^2$ per pair of arms"),
    "entropy": ("type entropy $H(c\\,|\\,x)$", "nats"),
    "agreement": ("agreement of arms", "share of equal labels"),
    "lambda": ("coupling weight", "$\\lambda$"),
}
_SPLITS = (
    ("train", {"color": "#3b528b", "linestyle": "-"}),
    ("validation", {"color": "#d1693d", "linestyle": (0, (4, 2))}),
)
_MAX_COLUMNS = 4


def training(
    source: AnnData | Any,
    *,
    metrics: str | Sequence[str] | None = None,
    key: str = "cplmixvi",
    ax: Axes | Sequence[Axes] | None = None,
) -> Axes | np.ndarray:
    """Plot training metrics by epoch.

    Parameters
    ----------
    source
        A trained model (any object with a ``history`` of data frames), or an AnnData annotated by
        :func:`cplmixvi.tl.annotate`.
    metrics
        One or several names, without the suffix ``_train`` or ``_validation``: for example ``"elbo"`` (nats per cell),
        ``"distance"``, ``"entropy"`` (nats), ``"agreement"`` (fraction of equal labels). Both splits are drawn if both
        were recorded. By default all of the usual metrics that were recorded.
    key
        The ``key_added`` of the annotation, if ``source`` is an AnnData.
    ax
        Axes to draw on, one per metric; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes or numpy.ndarray
        The Axes for one metric, an array of shape ``(n_metrics,)`` for several.

    Raises
    ------
    ValueError
        If there is no history, a metric is not part of it, or the number of Axes is not the number of metrics.
    """
    curves = _curves(source, key)
    names = _chosen(metrics, curves)
    with style():
        axes = _axes(ax, len(names))
        for panel, name in zip(axes, names, strict=True):
            _draw(panel, name, curves)
        if any(f"{name}_validation" in curves for name in names):
            axes[0].legend(frameon=False)
    return axes[0] if len(names) == 1 else axes


def _curves(source: Any, key: str) -> Mapping[str, np.ndarray]:
    """Metric -> one value per epoch, shape ``(n_epochs,)``."""
    history = read_result(source, key)["history"] if hasattr(source, "uns") else getattr(source, "history", None)
    if not history:
        raise ValueError(
            f"{type(source).__name__} was given, which holds no training history; a trained model or an annotated "
            "AnnData is needed; call model.train() first."
        )
    return {str(name): np.asarray(values, dtype=float).reshape(-1) for name, values in history.items()}


def _chosen(metrics: str | Sequence[str] | None, curves: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the panels, checked against the history."""
    endings = tuple(f"_{split}" for split, _ in _SPLITS)
    recorded = {name.removesuffix(ending) for name in curves for ending in endings if name.endswith(ending)}
    if metrics is None:
        return [name for name in _PANELS if name in recorded] or sorted(recorded)[:1] or sorted(curves)[:1]
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [name for name in names if name not in recorded and name not in curves]
    if unknown or not names:
        raise ValueError(
            f"metrics={metrics!r} was given but {', '.join(map(repr, unknown)) or 'nothing'} cannot be drawn; "
            f"recorded are {', '.join(sorted(recorded or curves))}; pass some of these."
        )
    return names


def _axes(ax: Axes | Sequence[Axes] | None, n_panels: int) -> np.ndarray:
    """Array of ``n_panels`` Axes, new ones unless given."""
    if ax is not None:
        given = np.atleast_1d(np.asarray(ax, dtype=object)).reshape(-1)
        if len(given) != n_panels:
            raise ValueError(
                f"ax holds {len(given)} Axes for {n_panels} metrics; one Axes per metric is needed; "
                f"pass {n_panels} Axes, or choose as many with metrics=."
            )
        return given
    import matplotlib.pyplot as plt

    n_columns = min(n_panels, _MAX_COLUMNS) if n_panels != 5 else 3
    n_rows = -(-n_panels // n_columns)
    size = (2.1 * n_columns + 0.2, 1.7 * n_rows + 0.1) if n_panels > 1 else (3.2, 2.4)
    figure, grid = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)
    axes = grid.reshape(-1)
    for spare in axes[n_panels:]:
        figure.delaxes(spare)
    return axes[:n_panels]


def _draw(ax: Axes, name: str, curves: Mapping[str, np.ndarray]) -> None:
    """One metric: training as a solid line, validation dashed."""
    title, unit = _PANELS.get(name, (name.replace("_", " "), ""))
    lines = [(split, look, curves[f"{name}_{split}"]) for split, look in _SPLITS if f"{name}_{split}" in curves]
    for split, look, values in lines or [(name, dict(_SPLITS[0][1]), curves.get(name, np.empty(0)))]:
        seen = np.isfinite(values)
        epochs = np.arange(1, len(values) + 1)
        # A single epoch, or validation on some epochs only, leaves no line to see without a marker.
        marker = "o" if seen.sum() <= 3 else None
        ax.plot(epochs[seen], values[seen], label=split, linewidth=1.2, marker=marker, markersize=3, **look)
    ax.set_title(title, loc="left")
    ax.set(xlabel="epoch", ylabel=unit)
    dress(ax)
    ax.locator_params(axis="x", nbins=5, integer=True)
    if name == "agreement":
        ax.set_ylim(0.0, 1.02)
    else:
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.locator_params(axis="y", nbins=5)
