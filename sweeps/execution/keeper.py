"""The driver's hand in the ledger while trials run: what only it can know, and what is shown of all."""

from __future__ import annotations

from typing import Any

from ray import tune

from sweeps.execution.live import Board, Display, Gauges
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from sweeps.wording import failure_text


def trial_name_of(trial: Any) -> str:
    """Our trial's id, as Tune's trial has it."""
    return str(trial.config["trial"])


class LedgerKeeper(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """The driver's hand in the ledger: trials that Ray stopped or gave up; and what is shown of all."""

    def __init__(self, folder: RunFolder, display: Display, board: Board, gauges: Gauges) -> None:
        self._folder, self._display, self._board, self._gauges = folder, display, board, gauges

    def on_trial_start(self, trial: Any, **_: Any) -> None:
        """A worker has it."""
        self._board.running.add(trial_name_of(trial))
        self._display.changed(self._read(trial))

    def on_trial_result(self, trial: Any, **_: Any) -> None:
        """A scoring point."""
        record = self._read(trial)
        self._gauges.set(record)
        if not record.is_over:
            self._display.changed(record)

    def on_trial_complete(self, trial: Any, **_: Any) -> None:
        """It ended by itself, or early stopping ended it, which the worker cannot know."""
        self._board.running.discard(trial_name_of(trial))
        record = self._read(trial)
        if not record.is_over:
            record = self._write(record, status="stopped", reason="early stopping: other trials were better by then")
            self._folder.drop_training_state(record.trial)
            self._folder.push(self._folder.trial_dir(record.trial))
        self._display.changed(record)

    def on_trial_recover(self, trial: Any, **_: Any) -> None:
        """Its worker was lost; it waits for another."""
        self._board.running.discard(trial_name_of(trial))
        self._display.changed(self._read(trial))

    def on_trial_error(self, trial: Any, **_: Any) -> None:
        """Ray has given it up."""
        self._board.running.discard(trial_name_of(trial))
        error = trial.get_pickled_error() or trial.get_error()
        cause = getattr(error, "cause", None) or error
        reason = "its worker was lost" if cause is None else failure_text(cause)
        self._display.changed(self._write(self._read(trial), status="failed", fault="machine", reason=reason))

    def on_step_end(self, **_: Any) -> None:
        """Tune's loop went round."""
        self._display.tick()

    def _read(self, trial: Any) -> TrialRecord:
        record = self._folder.read(trial_name_of(trial))
        assert record is not None, "the searcher writes a trial before Ray starts it"
        return record

    def _write(self, record: TrialRecord, **changes: Any) -> TrialRecord:
        record = record.model_copy(update=changes)
        self._folder.write(record)
        return record
