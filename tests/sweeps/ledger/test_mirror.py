"""A run folder mirrored to a storage: machines that share nothing work on one sweep.

pytest tests/sweeps/ledger/test_mirror.py     about 15 seconds
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.config import SweepConfig
from sweeps.execution.cluster import TrialResources
from sweeps.execution.stages import Preparation, prepare_run, prepare_subject
from sweeps.execution.trial import SweepTrial, TrialTask
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import MirroredRunFolder, open_run
from sweeps.ledger.records import TrialRecord
from training.checkpoint import STATE_FILE, open_checkpoint
from training.config import LoraConfig


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'storage'}"


@pytest.fixture
def machines(tmp_path: Path, storage: str) -> list[MirroredRunFolder]:
    """The same run as three machines see it, each with a disk of its own."""
    folders = [MirroredRunFolder(tmp_path / machine / "run", storage) for machine in ("head", "first", "second")]
    for folder in folders:
        folder.dir.mkdir(parents=True)
    return folders


def record(**changes: object) -> TrialRecord:
    config = LoraConfig(rank=2, learning_rate=1e-3, max_train_steps=4, train_batch_size=1)
    made = TrialRecord(trial="t", method="lora", status="running", config=config.model_dump(mode="json"))
    return made.model_copy(update=changes)


def test_what_one_machine_writes_another_reads(machines: list[MirroredRunFolder]) -> None:
    """The ledger goes through the storage both ways, the newest state each time."""
    head, worker, _ = machines
    head.write(record())
    assert worker.read("t") == record()
    worker.write(record(seconds=3.0))
    assert head.read("t") == record(seconds=3.0)
    assert head.read("unknown") is None


def test_a_push_makes_the_copy_equal(machines: list[MirroredRunFolder]) -> None:
    """New files come, changed ones are replaced, removed ones go; hidden ones stay at home."""
    head, worker, _ = machines
    part = head.dir / "dataset"
    part.mkdir()
    (part / ".half.part").mkdir()
    for name in ("a.png", "b.png", "about.json", ".hidden", ".half.part/weights.safetensors"):
        (part / name).write_text("old")
    head.push(part)
    (part / "a.png").unlink()
    (part / "b.png").write_text("longer")
    (part / "about.json").write_text("new")  # as long as before
    head.push(part)
    worker.pull(worker.dir / "dataset")
    assert {path.name: path.read_text() for path in (worker.dir / "dataset").iterdir()} == {
        "b.png": "longer",
        "about.json": "new",
    }


def test_a_pull_takes_only_what_is_asked_for(machines: list[MirroredRunFolder]) -> None:
    """By the end of a name, or without one name: optimizer states stay where they are."""
    head, worker, _ = machines
    head.trial_dir("t").mkdir(parents=True)
    for name in ("trial.json", "weights.safetensors", STATE_FILE):
        (head.trial_dir("t") / name).write_text("x")
    head.push(head.trials_dir)
    worker.pull(worker.trials_dir, ending="trial.json")
    assert [path.name for path in worker.trial_dir("t").iterdir()] == ["trial.json"]
    worker.pull(worker.trials_dir, without=STATE_FILE)
    assert not (worker.trial_dir("t") / STATE_FILE).exists()


def test_a_file_that_grows_here_is_not_put_back(machines: list[MirroredRunFolder]) -> None:
    """A driver that reads on the trial's own machine leaves its stats alone; another machine gets the longer ones."""
    head, worker, _ = machines
    stats = worker.trial_dir("t") / "stats.jsonl"
    stats.parent.mkdir(parents=True)
    stats.write_text("1\n")
    worker.push(worker.trial_dir("t"))
    stats.write_text("1\n2\n")
    worker.pull(worker.trial_dir("t"))
    assert stats.read_text() == "1\n2\n"
    head.pull(head.trial_dir("t"))
    worker.push(worker.trial_dir("t"))
    head.pull(head.trial_dir("t"))
    assert (head.trial_dir("t") / "stats.jsonl").read_text() == "1\n2\n"


def test_a_trial_goes_on_on_another_machine(
    machines: list[MirroredRunFolder], tiny_sweep: Callable[..., SweepConfig], storage: str
) -> None:
    """The first machine is lost with its disk after a scoring point; the second ends the trial, the head has it all."""
    head, first, second = machines
    config = tiny_sweep(storage=storage)
    prepare_subject(config.subject, config.evaluation.face, head)
    head.push(head.identity_file, head.dataset_dir)
    list(prepare_run(Preparation.of(config, first, "cpu")))
    head.write(record())

    resources = TrialResources(cpus=1, gpus=0, at_once=1)
    assert SweepTrial({"trial": "t", "task": TrialTask.of(config, first, resources)}).step()["done"] is False
    shutil.rmtree(first.dir)
    worker = SweepTrial({"trial": "t", "task": TrialTask.of(config, second, resources)})
    assert worker.step()["done"] is True

    done = head.read("t")
    assert done is not None
    assert (done.status, done.num_restarts, [c.step for c in done.checkpoints]) == ("finished", 1, [2, 4])
    for checkpoint in done.checkpoints:
        assert checkpoint.checkpoint is not None
        open_checkpoint(head.dir / checkpoint.checkpoint)
        assert len(list((head.dir / checkpoint.images).glob("*.png"))) == checkpoint.num_images
    assert head.base() is not None


def test_an_address_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    """The storage is named in the message."""
    with pytest.raises(ValueError, match=r"storage: nonsense://bucket cannot be opened"):
        open_run(tmp_path, "nonsense://bucket")


def test_without_a_storage_the_folder_is_shared(tmp_path: Path) -> None:
    """Nothing is moved."""
    folder = open_run(tmp_path, None)
    assert type(folder) is RunFolder
    folder.push(tmp_path)
    folder.pull(tmp_path)
