"""Training of the learned augmenter."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from scvi.train import Trainer

from cplmixvi.augment import learned_parts
from cplmixvi.train import AugmenterPlan, CplMixSplitter, default_batch_size, default_max_epochs

from ._checkpoints import interruptible
from ._inputs import checked_rows
from ._mixin import Mixin
from ._settings import check_positive
from ._talk import without_talk

logger = logging.getLogger(__name__)


class AugmenterMixin(Mixin):
    """Trains the augmenter that copies are learned by."""

    #: Means of the terms of the augmenter's losses, one entry per epoch; kept with the model when it is saved.
    augmenter_history_: dict[str, list[float]] | None = None

    def train_augmenter(
        self,
        max_epochs: int | None = None,
        *,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        plan_kwargs: dict | None = None,
        **trainer_kwargs,
    ) -> None:
        """Train the learned augmenter of a model created with ``augment="learned"``, alone or combined with others.

        :meth:`train` does this before it trains the arms, unless it has been done already. A further call continues
        with the current generator and a new discriminator.

        Parameters
        ----------
        max_epochs
            Number of epochs; by default enough for about 2,500 steps.
        indices
            Rows of the cells to learn from, or a mask; all if `None`.
        batch_size
            Minibatch size; by default from :func:`cplmixvi.train.default_batch_size`.
        accelerator
            Passed to Lightning; ``"auto"`` uses a GPU if available.
        devices
            Passed to Lightning.
        plan_kwargs
            Keyword arguments of :class:`cplmixvi.train.AugmenterPlan`: learning rate and weights of the losses.
        **trainer_kwargs
            Keyword arguments of :class:`scvi.train.Trainer`: ``enable_progress_bar``, ``logger``, ...

        Raises
        ------
        ValueError
            If the model has no learned augmenter, or no AnnData, or a cell to learn from is not there.
        KeyboardInterrupt
            On Ctrl-C.
        """
        parts = learned_parts(self.module.augmenter)
        if not parts:
            raise ValueError(
                "The model has no learned augmenter to train; make it with augment='learned', or 'learned+thin'."
            )
        if self.adata is None:
            raise ValueError("The learned augmenter is trained on an AnnData, and the model has none.")
        given = {"max_epochs": max_epochs, "batch_size": batch_size}
        check_positive(**{name: value for name, value in given.items() if value is not None})
        device = self.module.device
        everyone = np.arange(self.adata.n_obs)
        indices = everyone if indices is None else np.unique(checked_rows(indices, self.adata.n_obs))
        batch_size = int(batch_size or default_batch_size(len(indices)))
        max_epochs = int(max_epochs or default_max_epochs(len(indices), batch_size, warm_start=False))
        split = [indices, np.zeros(0, dtype=int), np.setdiff1d(everyone, indices)]
        splitter = CplMixSplitter(self.adata_manager, batch_size=batch_size, external_indexing=split)
        splitter.setup()
        try:
            for part in parts:
                logger.info("Training the augmenter on %d cells.", len(indices))
                plan = AugmenterPlan(part, self.summary_stats.n_vars, **(plan_kwargs or {}))
                with without_talk(), interruptible(None):
                    trainer = Trainer(max_epochs=max_epochs, accelerator=accelerator, devices=devices, **trainer_kwargs)
                    trainer.fit(plan, splitter.train_dataloader())
                self.augmenter_history_ = plan.history
        finally:
            # Lightning leaves the augmenter on the device that it was trained on, away from the arms.
            self.module.to(device)
