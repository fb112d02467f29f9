"""A run folder mirrored to a storage: machines that share nothing work on one sweep.

pytest tests/sweeps/ledger/test_mirror.py     about 50 seconds
"""

from __future__ import annotations

import itertools
import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import fsspec
import pytest

from sweeps.config import SweepConfig, resolved_yaml
from sweeps.execution.preparation import Preparation, prepare_subject
from sweeps.execution.stages import prepare_run
from sweeps.execution.task import TrialTask
from sweeps.execution.trial import SweepTrial
from sweeps.export.export import export_checkpoint
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import MirroredRunFolder, bring_here, open_run
from sweeps.ledger.records import TrialRecord
from sweeps.ledger.storage import Storage, is_hidden
from sweeps.report.page import write_report
from tests.sweeps.tiny_sweep import ONE_CPU
from training.checkpoint import STATE_FILE, open_checkpoint
from training.config import LoraConfig
from training.files import sha256_of, whole_folder
from training.layout import MANIFEST_FILE


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, or a bucket."""
    return f"file://{tmp_path / 'storage'}" if request.param == "file" else bucket_for(request)


def bucket_for(request: pytest.FixtureRequest) -> str:
    """Address of a place in a bucket of the test's own."""
    address: str = request.getfixturevalue("s3").new_storage()
    return address


@pytest.fixture
def machines(tmp_path: Path, storage: str) -> list[MirroredRunFolder]:
    """The same run as three machines see it, each with a disk of its own."""
    folders = [MirroredRunFolder(tmp_path / machine / "run", storage) for machine in ("head", "first", "second")]
    for folder in folders:
        folder.dir.mkdir(parents=True)
    return folders


def record(**changes: object) -> TrialRecord:
    config = LoraConfig(rank=2, learning_rate=1e-3, max_train_steps=4, train_batch_size=1)
    written = {"created": "2026-01-01T00:00:00+00:00", "config": config.model_dump(mode="json")}
    made = TrialRecord(trial="t", method="lora", status="running", **written)
    return made.model_copy(update=changes)


def save_weights(folder: RunFolder, content: str, step: int = 2) -> None:
    """A checkpoint whose weights and state are always of one size, as those of one trial are."""
    with whole_folder(folder.checkpoint_dir("t", step)) as part:
        contents = {"unet/weights.safetensors": content, "checkpoint.json": "{}", STATE_FILE: f"state {content}"}
        for name, text in contents.items():
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_text(text)
        manifest = {name: {"size": len(text), "sha256": sha256_of(part / name)} for name, text in contents.items()}
        (part / MANIFEST_FILE).write_text(json.dumps(manifest))


def weights_of(folder: RunFolder, step: int = 2) -> str | None:
    """The weights, held against their manifest; None where there is no manifest or they are not what it says."""
    checkpoint = folder.checkpoint_dir("t", step)
    if not (checkpoint / MANIFEST_FILE).is_file():
        return None
    manifest = json.loads((checkpoint / MANIFEST_FILE).read_text())
    weights = checkpoint / "unet" / "weights.safetensors"
    assert sha256_of(weights) == manifest["unet/weights.safetensors"]["sha256"]
    return weights.read_text()


def files_of(folder: Path) -> set[str]:
    """Everything that is not hidden."""
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return {name for name in names if not is_hidden(name)}


def files_there(storage: str, run: str) -> list[str]:
    """Everything in the storage, hidden or not, as fsspec itself finds it."""
    filesystem, root = fsspec.core.url_to_fs(storage, skip_instance_cache=True)
    return [PurePosixPath(path).relative_to(f"{root}/{run}").as_posix() for path in filesystem.find(root)]


class CrashError(Exception):
    """The machine is gone."""


class Crashing(Storage):
    """A storage that is written through `steps` more times; then the machine is gone."""

    def __init__(self, address: str, run: str, steps: int) -> None:
        super().__init__(address, run)
        self.left = steps

    def put(self, name: str, source: Path) -> None:  # noqa: D102
        self._step()
        super().put(name, source)

    def write(self, name: str, content: bytes) -> None:  # noqa: D102
        self._step()
        super().write(name, content)

    def remove(self, *names: str) -> None:  # noqa: D102
        for name in names:
            self._step()
            super().remove(name)

    def _step(self) -> None:
        if not self.left:
            raise CrashError
        self.left -= 1


@pytest.fixture(params=["file", "memory", "s3"])
def somewhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage of each kind: a folder, and two that know no files."""
    if request.param == "s3":
        return bucket_for(request)
    return f"file://{tmp_path / 'there'}" if request.param == "file" else f"memory://{tmp_path.name}-{uuid.uuid4().hex}"


@pytest.mark.parametrize("next_writer", ["the same machine", "another machine", "nobody"])
def test_a_push_cut_anywhere_never_leaves_old_weights_under_a_new_manifest(
    tmp_path: Path, somewhere: str, next_writer: str
) -> None:
    """Weights of equal size, another content: whoever pulls has a whole checkpoint of one push, or none."""
    for steps in itertools.count():
        run = f"run{steps}"
        first, second, reader = (MirroredRunFolder(tmp_path / who / run, somewhere) for who in "abc")
        save_weights(first, "old")
        first.push(first.trial_dir("t"))
        save_weights(first, "new")
        first.storage = Crashing(somewhere, run, steps)
        try:
            first.push(first.trial_dir("t"))
            was_cut = False
        except CrashError:
            was_cut = True
        first.storage = Storage(somewhere, run)

        reader.pull(reader.trial_dir("t"))
        assert weights_of(reader) in ({"old", "new", None} if was_cut else {"new"})
        if next_writer == "the same machine":
            first.push(first.trial_dir("t"))
        elif next_writer == "another machine":
            second.pull(second.trial_dir("t"))
            save_weights(second, "2nd")
            second.push(second.trial_dir("t"))
        reader.pull(reader.trial_dir("t"))
        expected = {"the same machine": {"new"}, "another machine": {"2nd"}, "nobody": {"old", "new", None}}
        assert weights_of(reader) in expected[next_writer]
        if not was_cut:
            break
    assert steps >= 6  # turn, index, three files, index, turn


def test_two_machines_that_push_one_checkpoint_at_a_time_leave_one_of_them(tmp_path: Path, somewhere: str) -> None:
    """A worker that was thought dead pushes between any two files of its successor: one push, whole, is what stays."""
    for steps in range(12):
        run = f"run{steps}"
        dead, alive, reader = (MirroredRunFolder(tmp_path / who / run, somewhere) for who in "abc")
        save_weights(dead, "old")
        save_weights(alive, "new")

        class Interrupted(Crashing):
            def _step(self) -> None:
                if not self.left:
                    dead.push(dead.trial_dir("t"))  # noqa: B023 -- called within the turn of the loop
                self.left -= 1

        alive.storage = Interrupted(somewhere, run, steps)
        alive.push(alive.trial_dir("t"))
        reader.pull(reader.trial_dir("t"))
        assert weights_of(reader) in {"old", "new"}


def test_the_state_to_go_on_from_is_there_until_a_newer_checkpoint_is(tmp_path: Path, somewhere: str) -> None:
    """Cut anywhere between two checkpoints, one that can be gone on from is whole in the storage."""
    for steps in itertools.count():
        run = f"run{steps}"
        worker, successor = (MirroredRunFolder(tmp_path / who / run, somewhere) for who in "ab")
        save_weights(worker, "old", 2)
        worker.push(worker.trial_dir("t"))
        save_weights(worker, "new", 4)
        (worker.checkpoint_dir("t", 2) / STATE_FILE).unlink()
        worker.storage = Crashing(somewhere, run, steps)
        try:
            worker.push(worker.trial_dir("t"))
            was_cut = False
        except CrashError:
            was_cut = True
        successor.pull(successor.trial_dir("t"))
        with_state = [
            step
            for step in (2, 4)
            if weights_of(successor, step) and (successor.checkpoint_dir("t", step) / STATE_FILE).is_file()
        ]
        assert with_state
        if not was_cut:
            assert with_state == [4]
            break


def test_a_dropped_state_goes_from_the_storage_too(machines: list[MirroredRunFolder]) -> None:
    """Also where the machine that drops it never had the checkpoint; the weights stay whole."""
    head, worker, reader = machines
    save_weights(worker, "a")
    worker.push(worker.trial_dir("t"))
    head.drop_training_state("t")
    reader.pull(reader.trial_dir("t"))
    assert weights_of(reader) == "a"
    assert not list(reader.dir.rglob(STATE_FILE))


def test_a_damaged_copy_is_healed_by_a_pull_and_not_spread_by_a_push(machines: list[MirroredRunFolder]) -> None:
    """Flipped bytes under a manifest that is as it was."""
    head, worker, reader = machines
    save_weights(worker, "good")
    (worker.checkpoint_dir("t", 2) / "unet" / "weights.safetensors").write_text("goof")
    worker.push(worker.trial_dir("t"))
    reader.pull(reader.trial_dir("t"))
    assert weights_of(reader) is None
    save_weights(head, "good")
    head.push(head.trial_dir("t"))
    worker.pull(worker.trial_dir("t"))
    assert weights_of(worker) == "good"


def test_an_edited_file_of_equal_length_reaches_the_others(machines: list[MirroredRunFolder]) -> None:
    """`at_steps: [200, 400]` and `[300, 400]` are of one size; so are two pictures, two tables, two latents."""
    head, worker, _ = machines
    names = ["sweep.yaml", "results.csv", "dataset/dataset.json", "dataset/latents.safetensors", "renders/sheet.png"]
    for content in ("[200, 400]", "[300, 400]"):
        for name in names:
            (head.dir / name).parent.mkdir(exist_ok=True)
            (head.dir / name).write_text(content)
        head.push(*(head.dir / name for name in names))
        worker.pull(*(worker.dir / name for name in names))
        assert [(worker.dir / name).read_text() for name in names] == [content] * len(names)


def test_an_older_entry_of_the_storage_is_not_put_over_a_newer_one_here(machines: list[MirroredRunFolder]) -> None:
    """Driver and worker share a machine and its folder, and the worker has written but not yet pushed."""
    head, worker, _ = machines
    same_machine = MirroredRunFolder(head.dir, head.storage.address)
    head.write(record())
    RunFolder.write(same_machine, record(seconds=9.0))  # and then it is killed
    assert head.read("t") == record(seconds=9.0)
    worker.read("t")
    worker.write(record(seconds=5.0))  # another machine has gone on: that is what all others know
    assert head.read("t") == record(seconds=5.0)


@pytest.mark.parametrize("damaged", ["here", "there"])
def test_a_damaged_entry_gives_way_to_a_whole_one(machines: list[MirroredRunFolder], damaged: str) -> None:
    """A trial.json that was cut short is no news, on whichever side it lies."""
    head, _, _ = machines
    head.write(record())
    if damaged == "here":
        head.trial_file("t").write_text('{"trial": "t", ')
    else:
        head.storage.write("trials/t/trial.json", b'{"trial": "t", ')
    assert head.read("t") == record()


def test_nothing_half_written_is_uploaded(machines: list[MirroredRunFolder], storage: str) -> None:
    """A hidden part anywhere in the path is the unfinished work of somebody who may be dead."""
    head, _, _ = machines
    for name in (".sweep.yaml.1.part", "dataset/.photos.1.part/a.png", "trials/.t.part/trial.json"):
        (head.dir / name).parent.mkdir(parents=True, exist_ok=True)
        (head.dir / name).write_text("half")
    save_weights(head, "a")
    shutil.copytree(head.checkpoint_dir("t", 2), head.trial_dir("t") / ".checkpoint-4.1.part")
    (head.trial_dir("t") / ".stats.jsonl.part").write_text("half")
    (head.dir / "dataset" / "dataset.json").write_text("{}")
    head.push(head.trials_dir, head.dataset_dir, head.dir)
    assert set(files_there(storage, "run")) == {
        "dataset/dataset.json",
        "dataset/.MANIFEST.json",
        *(
            f"trials/t/checkpoint-2/{name}"
            for name in (MANIFEST_FILE, "checkpoint.json", STATE_FILE, "unet/weights.safetensors")
        ),
    }


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
    """By the end of a name, or without some: weights and optimizer states stay where they are."""
    head, worker, _ = machines
    head.write(record())
    save_weights(head, "a")
    (head.images_dir("t", 2)).mkdir()
    (head.images_dir("t", 2) / "000-0.png").write_text("x")
    head.push(head.trial_dir("t"))
    worker.pull(worker.trials_dir, ending="trial.json")
    assert files_of(worker.trials_dir) == {"t/trial.json"}
    worker.pull(worker.trials_dir, without=("checkpoint-*",))
    assert files_of(worker.trials_dir) == {"t/trial.json", "t/images-2/000-0.png"}
    worker.pull(worker.trials_dir, without=(STATE_FILE, "images-*"))
    assert worker.checkpoint_dir("t", 2).is_dir()
    assert not list(worker.dir.rglob(STATE_FILE))


def test_reading_the_ledger_fetches_entries_alone(machines: list[MirroredRunFolder]) -> None:
    """Tune's event loop reads it at every result: no weights, no pictures, whatever the trial has by then."""
    head, worker, _ = machines
    worker.write(record())
    save_weights(worker, "a")
    worker.push(worker.trial_dir("t"))
    assert head.read("t") == record()
    assert head.trials() == [record()]
    assert files_of(head.dir) == {"trials/t/trial.json"}
    bring_here(head, head.storage.address, "trials/t/checkpoint-2")
    assert weights_of(head) == "a"


def test_bringing_here_stays_inside_the_run_folder(machines: list[MirroredRunFolder]) -> None:
    """A trial.json that comes from somebody else names nothing outside."""
    with pytest.raises(ValueError, match="inside the run folder"):
        bring_here(machines[0], machines[0].storage.address, "../another/checkpoint-2")


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
    machines: list[MirroredRunFolder], tiny_sweep: Callable[..., SweepConfig], storage: str, tmp_path: Path
) -> None:
    """The first machine is lost with its disk after a scoring point; the second ends the trial, the head has it all."""
    head, first, second = machines
    config = tiny_sweep(storage=storage)
    prepare_subject(config, head)
    head.push(head.identity_file, head.dataset_dir)
    list(prepare_run(Preparation.of(config, first, "cpu")))
    head.write(record())

    resources = ONE_CPU
    assert SweepTrial({"trial": "t", "task": TrialTask.of(config, first, resources)}).step()["done"] is False
    shutil.rmtree(first.dir)
    worker = SweepTrial({"trial": "t", "task": TrialTask.of(config, second, resources)})
    assert worker.step()["done"] is True

    done = head.read("t")
    assert done is not None
    assert head.base() is not None
    head.write_sweep(resolved_yaml(config))
    write_report(head.dir)
    assert list(head.images_dir("t", 2).glob("*.png")), "the report has brought the pictures"
    assert not head.checkpoint_dir("t", 2).exists(), "and nothing else"
    exported = export_checkpoint(head.dir, tmp_path / "exported", trial="t", format="lora")
    assert list(exported.glob("*.safetensors")), "the export has brought the weights"
    head.pull(head.trials_dir)
    assert (done.status, done.num_restarts, [c.step for c in done.checkpoints]) == ("finished", 1, [2, 4])
    for checkpoint in done.checkpoints:
        assert checkpoint.checkpoint is not None
        open_checkpoint(head.dir / checkpoint.checkpoint)
        assert len(list((head.dir / checkpoint.images).glob("*.png"))) == checkpoint.num_images
    assert not list(head.dir.rglob(STATE_FILE))


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
