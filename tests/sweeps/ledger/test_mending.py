"""A damaged `trial.json`: set aside, and rebuilt from what the trial's checkpoints say of it.

pytest tests/sweeps/ledger/test_mending.py     a few seconds
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.mending import DAMAGED, mend_ledger
from sweeps.ledger.records import LEDGER_VERSION, NewerLedgerError, TrialRecord
from tests.sweeps.ledger_entries import entry
from training.config import LoraConfig

RANKS = (2, 4, 8)
CONFIGS = [LoraConfig(rank=rank, max_train_steps=400) for rank in RANKS]
TRIALS = [trial_id(config) for config in CONFIGS]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Three finished trials, each with a checkpoint that names its config."""
    folder = RunFolder(tmp_path)
    for number, (trial, config) in enumerate(zip(TRIALS, CONFIGS, strict=True)):
        dumped = config.model_dump(mode="json")
        folder.write(
            TrialRecord(
                trial=trial,
                method="lora",
                status="finished",
                config=dumped,
                checkpoints=(entry(200), entry(400)),
                number=number,
            )
        )
        folder.checkpoint_dir(trial, 200).mkdir()
        (folder.checkpoint_dir(trial, 200) / "checkpoint.json").write_text(json.dumps({"config": dumped}))
    return folder


def cut(folder: RunFolder, trial: str) -> bytes:
    """Half of the record, as a full disk or a torn copy leaves it."""
    file = folder.trial_file(trial)
    half = file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(half)
    return half


@pytest.mark.parametrize("number", range(len(RANKS)))
def test_a_damaged_record_is_rebuilt_from_a_checkpoint(folder: RunFolder, number: int) -> None:
    """Its config and its place in the search are there again, none of its scores, and what was damaged is kept."""
    trial = TRIALS[number]
    half = cut(folder, trial)
    (said,) = mend_ledger(folder)
    assert str(folder.trial_file(trial)) in said
    assert "scored again" in said
    rebuilt = folder.read(trial)
    assert rebuilt is not None
    assert (rebuilt.method_config, rebuilt.number) == (CONFIGS[number], number)
    assert (rebuilt.status, rebuilt.checkpoints, rebuilt.is_over) == ("running", (), False)
    assert (folder.trial_dir(trial) / DAMAGED).read_bytes() == half


def test_several_get_places_of_their_own(folder: RunFolder) -> None:
    """No two answers stand for one question of the search."""
    for trial in TRIALS[1:]:
        cut(folder, trial)
    assert len(mend_ledger(folder)) == 2
    assert sorted(record.number for record in folder.trials()) == [0, 1, 2]


def test_a_checkpoint_of_another_trial_tells_nothing(folder: RunFolder) -> None:
    """Copied there by somebody, it must not make two trials of one."""
    cut(folder, TRIALS[0])
    config = CONFIGS[1].model_dump(mode="json")
    (folder.checkpoint_dir(TRIALS[0], 200) / "checkpoint.json").write_text(json.dumps({"config": config}))
    (said,) = mend_ledger(folder)
    assert "begins anew" in said
    assert folder.read(TRIALS[0]) is None
    assert (folder.trial_dir(TRIALS[0]) / DAMAGED).is_file()


@pytest.mark.parametrize("content", ["", "{", '{"config": 3}', '{"config": {"method": "lora", "rank": -1}}'])
def test_a_checkpoint_that_is_damaged_too_tells_nothing(folder: RunFolder, content: str) -> None:
    """Then the trial begins anew, and no other is touched."""
    cut(folder, TRIALS[0])
    (folder.checkpoint_dir(TRIALS[0], 200) / "checkpoint.json").write_text(content)
    assert "begins anew" in mend_ledger(folder)[0]
    assert [record.trial for record in folder.trials()] == TRIALS[1:]


def test_a_whole_ledger_is_left_alone(folder: RunFolder) -> None:
    """Nothing is said and no file is written."""
    before = {file: file.stat().st_mtime_ns for file in folder.dir.rglob("*")}
    assert mend_ledger(folder) == []
    assert {file: file.stat().st_mtime_ns for file in folder.dir.rglob("*")} == before


def test_a_record_of_a_later_release_is_no_damage(folder: RunFolder) -> None:
    """It is whole for somebody, so it is refused and stays."""
    content = json.loads(folder.trial_file(TRIALS[0]).read_text())
    newer = json.dumps({**content, "version": LEDGER_VERSION + 1, "checkpoints": {}})
    folder.trial_file(TRIALS[0]).write_text(newer)
    with pytest.raises(NewerLedgerError, match="upgrade"):
        mend_ledger(folder)
    assert folder.trial_file(TRIALS[0]).read_text() == newer
