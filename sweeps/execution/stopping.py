"""Early stopping: Tune's schedulers, told of what earlier drivers' trials had reached; and trials taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from sweeps.config import SweepConfig
from sweeps.execution.trial import report_of
from sweeps.ledger.records import TrialRecord
from sweeps.results.rule import ChampionRule
from sweeps.space import largest


class _InOrder:
    """Leaves it to Tune which trial starts next: those that wait, in their order, but for those that are taken back.

    Tune's own schedulers look for one that waits among all trials there have been, in every round of its loop.
    """

    is_taken_back: Callable[[Any], bool] = staticmethod(lambda _trial: False)
    """Is a trial that waits to be served otherwise? Asked of each, time and again."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """No choice."""
        for trial in list(tune_controller.get_live_trials()):
            if trial.status == Trial.PENDING and self.is_taken_back(trial):
                tune_controller.stop_trial(trial)


class _NoStopping(_InOrder, FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Every trial runs to its end."""


class _Halving(_InOrder, ASHAScheduler):  # type: ignore[misc]
    """ASHA."""


def make_scheduler(
    config: SweepConfig,
    known_trials: Sequence[TrialRecord],
    rule: ChampionRule,
    is_taken_back: Callable[[Any], bool] = lambda _trial: False,
) -> TrialScheduler:
    """None of it, or asynchronous halving: at each rung the better half goes on, earlier drivers' trials counted.

    Args:
        config: the sweep.
        known_trials: of earlier drivers.
        rule: the champion's.
        is_taken_back: of Tune's trial that waits for its place; those for which it says yes are let go.
    """
    scheduler: TrialScheduler = _NoStopping() if config.search.early_stopping == "none" else _halving(config)
    scheduler.is_taken_back = is_taken_back
    if config.search.early_stopping != "none":
        _tell_of_earlier(scheduler, known_trials, rule)
    return scheduler


def _halving(config: SweepConfig) -> TrialScheduler:
    longest = max(largest(space, method, "max_train_steps") for method, space in config.methods.items())
    return _Halving(
        time_attr="step",
        metric="champion_score",
        mode="max",
        grace_period=min(config.evaluation.at_steps),
        max_t=longest,
        reduction_factor=2,
    )


def _tell_of_earlier(scheduler: TrialScheduler, known_trials: Sequence[TrialRecord], rule: ChampionRule) -> None:
    for record in known_trials:
        known = SimpleNamespace(trial_id=record.trial)
        scheduler.on_trial_add(None, known)
        for count in range(1, len(record.checkpoints) + 1):
            so_far = record.model_copy(update={"checkpoints": record.checkpoints[:count], "status": "running"})
            scheduler.on_trial_result(None, known, report_of(so_far, rule))
