"""The ledger: whole or absent, whatever kills its writer.

pytest tests/sweeps/ledger/test_folder.py     a few seconds
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import LEDGER_VERSION
from sweeps.results.results import read_results
from tests.sweeps.ledger_entries import entry, record

WRITER = """
import sys
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
folder = RunFolder(sys.argv[1])
number = 0
while True:
    number += 1
    config = {"filler": "x" * 20_000}
    folder.write(TrialRecord(trial="t", method="lora", status="running", config=config, number=number))
    print(number, flush=True)
"""
"""Writes ever newer records and says each number only after the write has returned."""


def test_a_record_reads_back_equal(tmp_path: Path) -> None:
    """What was written is what is read, scores included."""
    folder = RunFolder(tmp_path)
    written = record("t", entry(200), entry(400), seconds=3.5, num_restarts=2)
    folder.write(written)
    assert folder.read(written.trial) == written
    assert folder.trials() == [written]
    assert folder.read("another") is None


def test_the_base_models_row_is_no_trial(tmp_path: Path) -> None:
    """The zero line stands beside the trials, not among them."""
    folder = RunFolder(tmp_path)
    base = record("base", entry(0))
    folder.write(base)
    assert folder.base() == base
    assert folder.trials() == []


def test_killing_the_writer_loses_nothing_that_it_called_written(tmp_path: Path) -> None:
    """After `kill -9` at any moment the ledger holds the last record that was said to be written, or a newer one."""
    folder = RunFolder(tmp_path)
    for writes_before_kill in (1, 3, 7, 20, 31):
        writer = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(writes_before_kill)]
        writer.send_signal(signal.SIGKILL)
        said += [int(line) for line in writer.stdout.read().split("\n") if line]
        writer.wait()
        left = folder.read("t")
        assert left is not None
        assert left.number >= said[-1]


def test_a_run_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """Moved away while the sweep runs: what would be written where it was is refused, and nothing is there."""
    folder = RunFolder(tmp_path / "run")
    with folder.lock():
        folder.write(record("t", entry(200)))
        folder.dir.rename(tmp_path / "away")
        with pytest.raises(ValueError, match="it is gone; bring it back"):
            folder.write(record("t", entry(200), entry(400)))
        assert not folder.dir.exists()
        (tmp_path / "away").rename(folder.dir)
    assert [checkpoint.step for trial in folder.trials() for checkpoint in trial.checkpoints] == [200]


@given(cut=st.floats(0, 1), flip=st.booleans())
def test_a_damaged_record_is_named_never_believed(
    tmp_path_factory: pytest.TempPathFactory, cut: float, flip: bool
) -> None:
    """A file that something else cut short or garbled is refused with its path and the way out."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.write(record())
    path = folder.trial_file(record().trial)
    whole = path.read_bytes()
    damaged = whole[: int(cut * (len(whole) - 1))] + (b"\x00" if flip else b"")
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="sets it aside") as refused:
        folder.read(record().trial)
    assert str(path) in str(refused.value)


def test_numbers_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    """NaN never enters the ledger: JSON has no such value, and no reader should meet it."""
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        folder.write(record(seconds=float("nan")))
    assert folder.trials() == []
    assert not list(folder.dir.rglob("*.json"))


@pytest.mark.parametrize("trial", ["..", ".", "../x", "a/b", "a\\b", "/etc", ""])
def test_a_trial_never_leaves_its_folder(tmp_path: Path, trial: str) -> None:
    """An id is one folder name."""
    with pytest.raises(ValueError, match="one folder name"):
        RunFolder(tmp_path).trial_dir(trial)


def test_a_run_has_one_driver_and_a_dead_one_does_not_count(tmp_path: Path) -> None:
    """A second driver is refused by name while the first lives; after `kill -9` the next may start at once."""
    program = (
        "import sys; from sweeps.ledger.folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).lock(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"being run already, by process {holder.pid}"), RunFolder(tmp_path).lock():
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with RunFolder(tmp_path).lock():
        pass


def test_what_scores_depend_on_is_claimed_once(tmp_path: Path) -> None:
    """A folder takes one set of photos, one evaluation, one base model, and says which differs."""
    folder = RunFolder(tmp_path)
    folder.claim("photos", "a")
    folder.claim("photos", "a")
    with pytest.raises(ValueError, match="other photos"):
        folder.claim("photos", "b")
    folder.claim("base_model", "c")
    assert json.loads(folder.identity_file.read_text()) == {"photos": "a", "base_model": "c"}


@pytest.mark.parametrize(
    ("status", "fault", "is_over"),
    [
        ("running", None, False),
        ("finished", None, True),
        ("stopped", None, True),
        ("failed", "trial", True),
        ("failed", "machine", False),
    ],
)
def test_only_a_machines_fault_is_tried_again(status: str, fault: str | None, is_over: bool) -> None:
    """What ended by its own doing is never run again."""
    assert record(status=status, fault=fault).is_over is is_over


def test_trials_may_lie_on_another_disk(tmp_path: Path) -> None:
    """`trials/` as a link to a larger disk: records are written and read there, and what they name is inside."""
    (tmp_path / "large disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trials").symlink_to(tmp_path / "large disk")
    folder = RunFolder(tmp_path / "run")
    folder.write(record("t", entry(200)))
    assert folder.read("t") == record("t", entry(200)).model_copy(update={"created": folder.trials()[0].created})
    assert (tmp_path / "large disk" / "t" / "trial.json").is_file()
    checkpoint = folder.checkpoint_dir("t", 200)
    checkpoint.mkdir()
    assert folder.relative(checkpoint) == "trials/t/checkpoint-200"
    assert folder.inside("trials/t/checkpoint-200") == checkpoint.resolve()
    with pytest.raises(ValueError, match="inside the run folder"):
        folder.inside("trials/../../outside")


def test_a_record_of_an_older_version_is_understood(tmp_path: Path) -> None:
    """What it has and we no longer do is passed over, what it lacks has its default; its version stays in it."""
    folder = RunFolder(tmp_path)
    folder.write(record("t", entry(200)))
    content = json.loads(folder.trial_file("t").read_text())
    del content["version"], content["num_restarts"]
    folder.trial_file("t").write_text(json.dumps({**content, "key": "0" * 64}))
    read = folder.read("t")
    assert read is not None
    assert (read.num_restarts, [checkpoint.step for checkpoint in read.checkpoints]) == (0, [200])


def test_a_record_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    """Neither believed nor called damaged: the way out is an upgrade, not deleting it."""
    folder = RunFolder(tmp_path)
    folder.write(record("t", entry(200)))
    content = json.loads(folder.trial_file("t").read_text())
    folder.trial_file("t").write_text(json.dumps({**content, "version": LEDGER_VERSION + 1, "checkpoints": {}}))
    for read in (lambda: folder.read("t"), lambda: read_results(tmp_path)):
        with pytest.raises(ValueError, match=rf"t.trial\.json: .*ledger version {LEDGER_VERSION + 1}.*upgrade") as told:
            read()
        assert "delete" not in str(told.value)
