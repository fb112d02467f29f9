"""The second tier of scores, as the driver asks for it: which checkpoints, and what of them goes to one process.

It needs no torch; `score_in_full.py` does the work where trials run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from sweeps.execution.cluster import TrialResources
from sweeps.execution.task import Scoring
from sweeps.ledger.folder import LedgerName, RunFolder
from sweeps.ledger.mirror import open_run
from sweeps.ledger.records import TrialRecord
from sweeps.results.leaderboard import Row
from training.config import TargetBlocks, packed_layers


class Wanted(NamedTuple):
    """A checkpoint to be scored in full."""

    trial: str
    step: int


@dataclass(frozen=True)
class FullScores:
    """What every process that scores in full is given."""

    run_dir: str
    storage: str | None
    scoring: Scoring
    resources: TrialResources
    ledger: LedgerName = "trials"

    def open_run(self) -> RunFolder:
        """The run folder as this machine has it."""
        return open_run(self.run_dir, self.storage, self.ledger)


def batches_of(rows: Iterable[Row], folder: RunFolder, num_processes: int, pack_size: int) -> list[list[Wanted]]:
    """The checkpoints of each process: a trial's in one, since it writes the trial's record.

    LoRAs with adapters in the same layers have their pictures made together, however they were trained.

    Args:
        rows: to be scored in full.
        folder: of the run.
        num_processes: that there is room for; more come after them.
        pack_size: the most LoRA checkpoints of a batch, but for one trial's own.
    """
    of_trials: dict[str, list[Wanted]] = {}
    for row in rows:
        of_trials.setdefault(row.trial, []).append(Wanted(row.trial, row.step))
    num_rows = sum(map(len, of_trials.values()))
    size = min(pack_size, max(1, -(-num_rows // num_processes)))
    batches: list[list[Wanted]] = []
    open_batches: dict[tuple[bool, TargetBlocks], list[Wanted]] = {}
    for trial, wanted in of_trials.items():
        layers = packed_layers(record_of(folder, trial).method_config)
        batch = None if layers is None else open_batches.get(layers)
        if batch is not None and len(batch) + len(wanted) <= size:
            batch.extend(wanted)
            continue
        batches.append(wanted)
        if layers is not None:
            open_batches[layers] = wanted
    return batches


def record_of(folder: RunFolder, trial: str) -> TrialRecord:
    """Of a trial that has a row."""
    record = folder.read(trial)
    assert record is not None, "it has a row"
    return record
