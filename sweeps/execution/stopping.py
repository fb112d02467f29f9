"""Early stopping: Tune's schedulers, told of what earlier drivers' trials had reached."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from sweeps.config import SweepConfig
from sweeps.execution.trial import report_of
from sweeps.ledger.records import TrialRecord
from sweeps.results.rule import ChampionRule
from sweeps.space import largest


class _InOrder:
    """Leaves it to Tune which trial starts next: those that wait, in their order.

    Tune's own schedulers look for one that waits among all trials there have been, in every round of its loop.
    """

    def choose_trial_to_run(self, tune_controller: object) -> None:
        """No choice."""


class _NoStopping(_InOrder, FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Every trial runs to its end."""


class _Halving(_InOrder, ASHAScheduler):  # type: ignore[misc]
    """ASHA."""


def make_scheduler(config: SweepConfig, known_trials: Sequence[TrialRecord], rule: ChampionRule) -> TrialScheduler:
    """None of it, or asynchronous halving: at each rung the better half goes on, earlier drivers' trials counted."""
    if config.search.early_stopping == "none":
        return _NoStopping()
    longest = max(largest(space, method, "max_train_steps") for method, space in config.methods.items())
    scheduler = _Halving(
        time_attr="step",
        metric="champion_score",
        mode="max",
        grace_period=min(config.evaluation.at_steps),
        max_t=longest,
        reduction_factor=2,
    )
    for record in known_trials:
        known = SimpleNamespace(trial_id=record.trial)
        scheduler.on_trial_add(None, known)
        for count in range(1, len(record.checkpoints) + 1):
            so_far = record.model_copy(update={"checkpoints": record.checkpoints[:count], "status": "running"})
            scheduler.on_trial_result(None, known, report_of(so_far, rule))
    return scheduler
