"""What the parts of the model take for granted, said to type checkers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi.model.base import BaseModelClass

    class Mixin(BaseModelClass):
        """A part of :class:`cplmixvi.CplMixVI`: a model of scvi-tools that has what other parts say and do."""

        n_categories: int
        n_state: int
        n_arms: int
        likelihood: str
        module: Any
        _adata: Any
        _adata_manager: Any
        _digest: str | None
        _values_digest: Any

else:
    Mixin = object
