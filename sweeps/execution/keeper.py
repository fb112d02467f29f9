"""The driver's hand in the ledger while trials run: what only it can know, and what is shown of all."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayActorError

from sweeps.execution.ends import Preempted
from sweeps.execution.failures import is_full_disk, keep_traceback
from sweeps.execution.gauges import RECENT_STEPS, Gauges
from sweeps.execution.live import Board, Display
from sweeps.execution.machines import TRIALS_TO_SET_ASIDE, MachineError, Machines, node_at
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from sweeps.search.searcher import LedgerSearcher
from sweeps.wording import failure_text
from training.errors import UserError
from training.stats import STATS_FILE, StepStats, read_newest

PACE_SECONDS = 10
"""Between two looks at the running trials' stats: as often as Ray hands its metrics on. One look takes milliseconds."""


def trial_name_of(trial: Any) -> str:
    """Our trial's id, as Tune's trial has it."""
    return str(trial.config["trial"])


class LedgerKeeper(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """The driver's hand in the ledger: trials that Ray stopped or lost; and what is shown of all.

    Args:
        folder: the run's.
        searcher: serves again what is worth another try.
        machines: told of every success and failure.
        display: shows all of it.
        board: what the display shows.
        gauges: scores, pace and counts, for Ray's metrics port.
    """

    def __init__(
        self,
        folder: RunFolder,
        searcher: LedgerSearcher,
        machines: Machines,
        display: Display,
        board: Board,
        gauges: Gauges,
    ) -> None:
        self._folder, self._searcher, self._machines = folder, searcher, machines
        self._display, self._board, self._gauges = display, board, gauges
        self._looked = 0.0
        self._taken_back: set[str] = set()
        """Tune's ids of trials."""

    def on_trial_start(self, trial: Any, **_: Any) -> None:
        """A worker has it."""
        self._board.running.add(trial_name_of(trial))
        self._show(self._read(trial))

    def on_trial_result(self, trial: Any, **_: Any) -> None:
        """A scoring point."""
        record = self._read(trial)
        self._machines.succeeded(record.trial, record.node_id)
        self._folder.pull(self._stats_file(record.trial))
        self._gauges.set_scores(record)
        self._gauges.set_pace(record.trial, self._newest_steps(record.trial))
        if not record.is_over:
            self._show(record)

    def is_taken_back(self, trial: Any) -> bool:
        """Is a trial that waits to be served anew, because the last machine that it may run on has gone?

        Which machines it avoids, or beside which server it is, was said when it was served, and Ray would look for
        another one for ever.
        """
        server = trial.config.get("server")
        is_gone = server is not None and server.node_id not in self._machines.alive()
        if not is_gone and not self._machines.has_no_place(trial.config["avoid"]):
            return False
        self._taken_back.add(trial.trial_id)
        self._searcher.take_back(trial.trial_id)
        return True

    def on_trial_complete(self, trial: Any, **_: Any) -> None:
        """It ended by itself, or early stopping ended it, which the worker cannot know; or it was taken back."""
        self._board.running.discard(trial_name_of(trial))
        record = self._read(trial)
        if not record.is_over and trial.trial_id not in self._taken_back:
            record = self._write(record, status="stopped", reason="early stopping: other trials were better by then")
            self._folder.drop_training_state(record.trial)
        self._show(record)

    def on_trial_error(self, trial: Any, **_: Any) -> None:
        """Something failed that is not the trial's own: it is tried again, or given up for this run.

        Raises:
            OSError: a disk is full, so that every further try would fail as well.
        """
        self._board.running.discard(trial_name_of(trial))
        error = _error_of(trial)
        cause: BaseException | None = getattr(error, "cause", None) or error
        if cause is not None and is_full_disk(cause):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder.trials_dir))
        record = self._read(trial)
        if isinstance(cause, Preempted):
            self._machines.leaves(record.trial, record.node_id)
            self._searcher.retry(record, at_once=True)
            self._show(record)
            return
        is_lost = isinstance(cause, RayActorError)  # with its worker or machine, which had no time to say why
        if isinstance(cause, MachineError):
            address, node_id, is_unfit = cause.machine, cause.node_id, cause.is_unfit
            reason = " ".join(str(cause).split())
        else:
            address, is_unfit = getattr(error, "ip", record.machine), False
            node_id = node_at(address, record)
            reason = "its worker was lost" if cause is None or is_lost else failure_text(cause)
        keep_traceback(self._folder, record.trial, address, reason if error is None else str(error))
        if self._machines.failed(record.trial, node_id, reason, pack=record.pack, is_unfit=is_unfit):
            why = "" if is_unfit else f"{TRIALS_TO_SET_ASIDE} trials in a row failed there, the last one with: "
            self._display.say(f"machine {address} is set aside: {why}{reason}")
        if self._machines.is_worth_another_try(record.trial):
            self._searcher.retry(record, at_once=is_lost)
        else:
            self._searcher.give_up(record.trial)
            record = self._write(record, status="failed", fault="machine", reason=reason)
        self._show(record)

    def on_step_end(self, **_: Any) -> None:
        """Tune's loop went round."""
        self._display.tick()
        if time.monotonic() - self._looked > PACE_SECONDS:
            self._looked = time.monotonic()
            for trial in self._board.running:  # with a storage, what lies here is of the newest scoring point
                self._gauges.set_pace(trial, self._newest_steps(trial))

    def _show(self, record: TrialRecord) -> None:
        self._display.changed(record)
        self._gauges.set_sweep(self._board)

    def _newest_steps(self, trial: str) -> list[StepStats]:
        return read_newest(self._stats_file(trial), RECENT_STEPS)

    def _stats_file(self, trial: str) -> Path:
        return self._folder.trial_dir(trial) / STATS_FILE

    def _read(self, trial: Any) -> TrialRecord:
        record = self._folder.read(trial_name_of(trial))
        if record is None:  # the searcher writes a trial before Ray starts it
            raise UserError(
                f"{self._folder.dir}: must stay where it is while the sweep runs, and {trial_name_of(trial)} is gone "
                "from it; bring it back and give the same command again"
            )
        return record

    def _write(self, record: TrialRecord, **changes: Any) -> TrialRecord:
        record = record.model_copy(update=changes)
        self._folder.write(record)
        return record


def _error_of(trial: Any) -> Exception | None:
    """The exception that Tune's trial ended with, as this very process wrote it down a moment ago.

    `get_pickled_error` looks where Tune copies such files later.
    """
    file = trial.pickled_error_file
    if file is None or not Path(file).is_file():
        return None
    error: Exception = cloudpickle.loads(Path(file).read_bytes())
    return error
