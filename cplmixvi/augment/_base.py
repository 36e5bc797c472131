"""The one interface of all augmenters, and their composition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from anndata import AnnData

    from ._cells import Cells


class Augmenter(nn.Module):
    """A random map from cells to copies of the same cell type.

    Subclasses implement :meth:`forward`. One call draws one copy of each cell; the module calls it once per arm and
    step, so that the arms' copies are independent given the cell (paper, section 3, "Arms observe non-identical copies
    of samples"). Augmenters are instances of :class:`~torch.nn.Module`, so that their buffers move to the device with
    the model and are saved with it. A subclass stores each argument of its constructor in an attribute of the same
    name: a saved model contains the name of the class and these arguments, but no code.

    The other methods are for augmenters that need more than a minibatch; by default they do nothing. A model calls
    :meth:`build` when it is created, :meth:`check` and :meth:`prepare` before it is trained, and :meth:`release`
    afterwards.
    """

    #: Whether the augmenter is only meaningful on counts.
    needs_counts: bool = False
    #: Whether :meth:`prepare` needs the training cells.
    needs_cells: bool = False
    #: Whether a copy has nothing of the values it is given, so that no augmenter before it would have an effect.
    replaces: bool = False
    #: Whether cells are images, whose values are pixels.
    on_images: bool = False
    #: Whether copies differ by more than an encoder learns to see through in a usual training, so that arms need
    #: :meth:`normal_form`. Where they do not, arms learn more without it.
    moves_far: bool = False
    #: Whether copies lack or blur what was measured in a cell, so that arms reconstruct the cell and not its copy: the
    #: mean of such copies is not that of the cells.
    corrupts: bool = False
    #: Columns of ``obs`` that copies change and types must not follow.
    nuisance_keys: tuple[str, ...] = ()

    def check(self, adata: AnnData) -> None:
        """Reject data that lack what the augmenter needs.

        Raises
        ------
        ValueError
            With a message that says what is missing.
        """

    def build(self, n_genes: int, likelihood: str, target_library: float) -> None:
        """Create what depends on the model's number of genes, likelihood and depth (molecules)."""

    def prepare(self, cells: Cells, device: torch.device | str) -> None:
        """Inspect the training cells; what :meth:`forward` needs of them is kept on ``device``."""

    def release(self) -> None:
        """Release the training cells."""

    def normal_form(self, x: torch.Tensor) -> torch.Tensor:
        """Values without the variation that copies introduce, if that can be told from the values alone.

        Otherwise the values themselves.

        Parameters
        ----------
        x
            What encoders read, ``(n_cells, n_genes)``.

        Returns
        -------
        torch.Tensor
            Same shape.
        """
        return x

    def neutral(self, x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Values whose mean carries no information about what copies change and types must not follow.

        Parameters
        ----------
        x, tensors
            See :meth:`forward`.

        Returns
        -------
        torch.Tensor
            ``(n_values, n_cells, n_genes)``; the cells themselves, ``x[None]``, if there is nothing of the kind.
        """
        return x[None]

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Draw a copy of each cell.

        Parameters
        ----------
        x
            Values as registered (counts or log values), ``(n_cells, n_genes)``. Never modified.
        tensors
            The whole minibatch, for augmenters that need more than the values (a cell's index or batch).

        Returns
        -------
        torch.Tensor
            Copies, with the shape and scale of ``x``.
        """
        raise NotImplementedError

    def draw(
        self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a copy of each cell, together with what an arm has to reconstruct from it.

        Parameters
        ----------
        x, tensors
            See :meth:`forward`.

        Returns
        -------
        tuple of torch.Tensor
            The copies, and the targets of reconstruction: the same copies, or the cells themselves if copies are
            corrupted. Both have the shape of ``x``.
        """
        copy = self(x, tensors)
        return copy, x if self.corrupts else copy


class Identity(Augmenter):
    """Every arm sees the cell itself (``augment="none"``)."""

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return ``x``."""
        return x


class Compose(Augmenter):
    """Apply several augmenters one after the other.

    Parameters
    ----------
    augmenters
        Applied from first to last.

    Raises
    ------
    ValueError
        If an augmenter that replaces cells comes after another one, whose effect would be lost.
    """

    def __init__(self, augmenters: Sequence[Augmenter]):
        super().__init__()
        for augmenter in augmenters[1:]:
            if augmenter.replaces:
                raise ValueError(
                    f"{type(augmenter).__name__} replaces cells by others, so that what comes before it is lost: put "
                    "it first, and use one of its kind only."
                )
        self.augmenters = nn.ModuleList(augmenters)
        self.needs_counts = any(augmenter.needs_counts for augmenter in augmenters)
        self.needs_cells = any(augmenter.needs_cells for augmenter in augmenters)
        self.replaces = any(augmenter.replaces for augmenter in augmenters)
        self.on_images = any(augmenter.on_images for augmenter in augmenters)
        self.moves_far = any(augmenter.moves_far for augmenter in augmenters)
        self.nuisance_keys = tuple(key for augmenter in augmenters for key in augmenter.nuisance_keys)

    def check(self, adata: AnnData) -> None:
        """Call :meth:`Augmenter.check` of each augmenter."""
        for augmenter in self.augmenters:
            augmenter.check(adata)

    def build(self, n_genes: int, likelihood: str, target_library: float) -> None:
        """Call :meth:`Augmenter.build` of each augmenter."""
        for augmenter in self.augmenters:
            augmenter.build(n_genes, likelihood, target_library)

    def prepare(self, cells: Cells, device: torch.device | str) -> None:
        """Call :meth:`Augmenter.prepare` of each augmenter."""
        for augmenter in self.augmenters:
            augmenter.prepare(cells, device)

    def release(self) -> None:
        """Call :meth:`Augmenter.release` of each augmenter."""
        for augmenter in self.augmenters:
            augmenter.release()

    def normal_form(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the normal form of each augmenter in turn."""
        for augmenter in self.augmenters:
            x = augmenter.normal_form(x)
        return x

    def neutral(self, x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Neutral values of the first augmenter, in their normal form if they are images."""
        first, *others = self.augmenters
        values = first.neutral(x, tensors)
        for augmenter in others:
            values = torch.stack([augmenter.normal_form(value) for value in values])
        return values

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Draw from each augmenter in turn."""
        return self.draw(x, tensors)[0]

    def draw(
        self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw from each augmenter in turn; what arms reconstruct are the copies before the first that corrupts."""
        copy = target = x
        for augmenter in self.augmenters:
            if copy is target:
                copy, target = augmenter.draw(copy, tensors)
            else:
                copy = augmenter(copy, tensors)
        return copy, target
