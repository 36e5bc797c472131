"""A training that fails leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

from scvi.model.base import BaseModelClass


@contextmanager
def as_it_was_on_failure(model: BaseModelClass) -> Iterator[None]:
    """Put a model back as it was before something that fails or is interrupted: a half-trained one passes for trained.

    Its weights, mode, device and all attributes are put back. What was a module or an AnnData is one and the same
    afterwards.
    """
    module = model.module
    weights, is_training, device = deepcopy(module.state_dict()), module.training, module.device
    # scvi-tools adds to the history in place.
    attributes = {name: dict(value) if type(value) is dict else value for name, value in vars(model).items()}
    try:
        yield
    except BaseException:
        vars(model).clear()
        vars(model).update(attributes)
        module.load_state_dict(weights)
        module.to(device).train(is_training)
        raise
