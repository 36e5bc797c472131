"""Arguments of a module that would train, and mean nothing."""

from __future__ import annotations

import math

import numpy as np

from cplmixvi import pp

_POSITIVE = ("temperature", "target_library", "size_factor_scale")
_NOT_NEGATIVE = ("beta", "dual_rate")
_WHOLE = ("n_hidden", "n_layers")


def check_ranges(options: dict) -> None:
    """Raise ValueError if one of the ``options`` of :class:`~cplmixvi.module.CplMixVAE` is out of range."""
    for name in _WHOLE:
        value = options[name]
        if not pp.is_whole(value) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
    for name in _POSITIVE:
        if not 0 < options[name] < math.inf:
            raise ValueError(f"{name}={options[name]!r} must be a positive number.")
    for name in _NOT_NEGATIVE:
        if not 0 <= options[name] < math.inf:
            raise ValueError(f"{name}={options[name]!r} must be a number of at least 0.")
    if not 0 < options["variance_momentum"] <= 1:
        raise ValueError(f"variance_momentum={options['variance_momentum']!r} must be above 0 and at most 1.")
    if not isinstance(options["hard"], bool | np.bool_):
        raise ValueError(f"hard={options['hard']!r} must be True or False.")
    if not 0 <= options["dropout_rate"] < 1:
        raise ValueError(f"dropout_rate={options['dropout_rate']!r} must be at least 0 and below 1.")
    epsilon = options["guide_epsilon"]
    if epsilon is not None and not 0 < epsilon < 1:
        raise ValueError(f"guide_epsilon={epsilon!r} must lie between 0 and 1, or be None for a constant weight.")
