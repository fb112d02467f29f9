"""Trials whose weights were damaged after they had ended: set back, so that the run trains that part again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from sweeps.results.leaderboard import Row
from sweeps.results.results import read_results
from sweeps.results.weights import is_damaged
from training.errors import UserError


def rewind_damaged(folder: RunFolder) -> Iterator[str]:
    """Set back each ended trial whose best checkpoint, the one people render and export, is damaged.

    So of the finalists' trainings with other seeds, which can be exported too.

    Sizes are compared, of the champion every byte. The scoring points from the damaged one on are forgotten, and made
    again by the trial's own seed: on a CPU the same weights, elsewhere the same up to rounding, with scores of their
    own. A checkpoint whose folder is gone was deleted on purpose and stays so.

    Yields:
        What was set back, for the user.
    """
    if not folder.trials_dir.is_dir():
        return  # a new run
    results = read_results(folder.dir)
    yield from _set_back(folder, results.trials, results.best_of_each_trial())
    trained_again = [row for finalist in results.confirmations.finalists for row in finalist.trainings]
    yield from _set_back(folder.confirm, results.again, trained_again)


def _set_back(ledger: RunFolder, trials: Iterable[TrialRecord], rows: Iterable[Row]) -> Iterator[str]:
    records = {record.trial: record for record in trials}
    for row in rows:
        record = records[row.trial]
        if record.status in ("finished", "stopped") and _is_damaged(ledger, row, digests=row.champion):
            ledger.write(_before(record, row.step))
            yield (
                f"{row.trial}: the weights of step {row.step} are damaged; training again from the scoring point before"
            )


def _is_damaged(folder: RunFolder, row: Row, *, digests: bool) -> bool:
    try:
        return is_damaged(folder, row, digests=digests)
    except UserError:  # the ledger names a place outside of the run folder: shown, never touched
        return False


def _before(record: TrialRecord, step: int) -> TrialRecord:
    kept = tuple(entry for entry in record.checkpoints if entry.step < step)
    return record.model_copy(update={"status": "running", "reason": None, "checkpoints": kept})
