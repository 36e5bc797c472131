"""Training of baselines whose objective changes with the number of steps done."""

from __future__ import annotations

from cplmixvi.train import CplMixPlan


class ScheduledPlan(CplMixPlan):
    """Tells the module before training how many steps there will be, so that schedules can be shares of them."""

    def on_fit_start(self) -> None:
        """See :meth:`CplMixPlan.on_fit_start`."""
        super().on_fit_start()
        self.module.plan_steps(int(self.trainer.estimated_stepping_batches))
