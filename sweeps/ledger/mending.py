"""What of a ledger can be mended without asking anybody: a damaged `trial.json`.

Nothing of it is believed, half of a number is a number too. It is set aside beside itself; what the trial is says the
config in its checkpoints, and these, verified like all others, need only be scored again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import NewerLedgerError, TrialRecord
from training.config import MethodConfig
from training.errors import UserError

DAMAGED = "trial.json.damaged"


def mend_ledger(folder: RunFolder) -> list[str]:
    """Set every damaged `trial.json` aside and rebuild what its checkpoints tell, as a trial that has not ended.

    A trial without a checkpoint leaves nothing to rebuild: it counts as not asked for yet.

    Returns:
        A line for the user on each.

    Raises:
        NewerLedgerError: a later release wrote a record; it is whole.
    """
    damaged = [file.parent.name for file in sorted(folder.trials_dir.glob("*/trial.json")) if _is_damaged(folder, file)]
    for trial in damaged:
        file = folder.trial_file(trial)
        file.replace(file.with_name(DAMAGED))
        folder.push(file)  # which takes it away there too
    numbers = _free_numbers(folder)
    return [_rebuild(folder, trial, numbers) for trial in damaged]


def _is_damaged(folder: RunFolder, file: Path) -> bool:
    try:
        folder.read(file.parent.name)
    except NewerLedgerError:
        raise
    except UserError:
        return True
    return False


def _free_numbers(folder: RunFolder) -> Iterator[int]:
    """Places in the search that no record holds, first those that lie between others: one of them was the trial's."""
    taken = {record.number for record in folder.trials()}
    return (number for number in itertools.count() if number not in taken)


def _rebuild(folder: RunFolder, trial: str, numbers: Iterator[int]) -> str:
    said = f"{folder.trial_file(trial)}: was damaged and is kept as {DAMAGED}"
    config = _config_of(folder, trial)
    if config is None:
        return f"{said}; without a checkpoint there is nothing to go on from, so it begins anew"
    folder.write(
        TrialRecord(
            trial=trial,
            method=config.method,
            status="running",
            config=config.model_dump(mode="json"),
            number=next(numbers),
        )
    )
    return f"{said}; its checkpoints are verified and scored again"


def _config_of(folder: RunFolder, trial: str) -> MethodConfig | None:
    """The config that a checkpoint of the trial names, if it is this trial's."""
    folder.pull(folder.trial_dir(trial), ending="checkpoint.json")
    for file in sorted(folder.trial_dir(trial).glob("checkpoint-*/checkpoint.json")):
        try:
            config = TypeAdapter(MethodConfig).validate_python(json.loads(file.read_bytes())["config"])
        except (ValidationError, ValueError, KeyError, TypeError):
            continue
        for own in (config, config.model_copy(update={"gradient_checkpointing": False})):  # it may have spared memory
            if trial_id(own) == trial:
                return own
    return None
