"""A pack of trials in this process, with real tiny models and no Ray: what each gets, and when."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import sweeps.execution.pack
import sweeps.execution.scoring
from sweeps.execution.ends import OutOfGpuMemory, Preempted
from sweeps.execution.pack import LoneTrial, PackOfTrials
from sweeps.execution.scoring import Point
from sweeps.execution.task import WorkerRecipe
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import ScoredCheckpoint
from tests.sweeps.execution.conftest import task_in
from tests.training.test_train import assert_same, weights
from training.checkpoint import Checkpoint, latest_checkpoint
from training.config import LoraConfig
from training.finite_pictures import NonFinitePictureError
from training.journal import NonFiniteLoss
from training.pack_training import PackTraining
from training.share import ALONE
from training.stats import read_stats

CONFIGS = [
    LoraConfig(rank=rank, learning_rate=rate, seed=seed, max_train_steps=4, train_batch_size=1)
    for rank, rate, seed in ((1, 1e-3, 0), (2, 1e-3, 1), (3, 3e-3, 2))
]
NAMES = [trial_id(config) for config in CONFIGS]

Answer = ScoredCheckpoint | Exception


class Table:
    """A pack and those who sit at it, as their own processes would: each asks until it has its answer."""

    def __init__(self, folder: RunFolder, scored: Mapping[str, list[ScoredCheckpoint]] | None = None) -> None:
        self.folder = folder
        self.scored: dict[str, list[ScoredCheckpoint]] = {name: [] for name in NAMES} | dict(scored or {})
        self.pack = PackOfTrials(NAMES)
        for config in CONFIGS:
            self.sit_down(config)

    def sit_down(self, config: LoraConfig) -> None:
        """A trial joins, from where it had been scored."""
        name = trial_id(config)
        reached = self.scored[name][-1].step if self.scored[name] else 0
        recipe = WorkerRecipe("sweeps.execution.worker:TrialWorker", task_in(self.folder), name, config, reached)
        self.pack.join(name, recipe.open(ALONE))

    def ask(self, name: str) -> Answer | None:
        """A trial asks once."""
        try:
            answer = self.pack.next_of(name)
        except Exception as error:  # what it is told instead of a score
            return error
        if answer is not None:
            self.scored[name].append(answer)
        return answer

    def play(self, leaves: Callable[[str, Answer], bool] = lambda *_: False) -> list[tuple[str, Answer]]:
        """All ask until they have left: at their end, at a failure, or when `leaves` says so; the answers in order."""
        answered: list[tuple[str, Answer]] = []
        for _ in range(100):
            for name in [name for name in NAMES if name in self.pack._members]:
                answer = self.ask(name)
                if answer is not None:
                    answered.append((name, answer))
                    if isinstance(answer, Exception) or answer.step == 4 or leaves(name, answer):
                        self.pack.leave(name)
            if self.pack.is_empty:
                return answered
        raise AssertionError(f"{self.pack._members} wait for ever")


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    """A pack that nothing happened to."""
    shutil.copytree(prepared, run := tmp_path_factory.mktemp("undisturbed") / "run")
    table = Table(RunFolder(run))
    table.play()
    return table


def learnt(table: Table) -> dict[str, dict[str, Tensor]]:
    """Weights of each trial's last checkpoint."""
    found = {}
    for name in NAMES:
        checkpoint = latest_checkpoint(table.folder.trial_dir(name))
        assert checkpoint is not None
        assert checkpoint.step == 4
        found[name] = weights(checkpoint)
    return found


def assert_learnt_the_same(first: Table, second: Table) -> None:
    for one, other in zip(learnt(first).values(), learnt(second).values(), strict=True):
        assert_same(one, other)


def test_a_trial_of_a_pack_gets_the_scores_that_it_has_alone(undisturbed: Table, folder: RunFolder) -> None:
    """At every point, with its pack in the record; its stats have every step once."""
    for config, name in zip(CONFIGS, NAMES, strict=True):
        worker = WorkerRecipe("sweeps.execution.worker:TrialWorker", task_in(folder), name, config, 0).open(ALONE)
        for ours in undisturbed.scored[name]:
            alone = worker.score_next()
            assert (ours.step, ours.images, ours.checkpoint) == (alone.step, alone.images, alone.checkpoint)
            assert ours.face_similarity == pytest.approx(alone.face_similarity, abs=0.01)
            assert ours.prompt_alignment == pytest.approx(alone.prompt_alignment, abs=0.01)
            assert (ours.pack, alone.pack) == (tuple(NAMES), ())
        steps = [stats.step for stats in read_stats(undisturbed.folder.trial_dir(name) / "stats.jsonl")]
        assert steps == [1, 2, 3, 4]


def test_answers_come_in_the_order_of_the_rows_and_one_at_a_time(folder: RunFolder) -> None:
    """Whoever asks first; the second has to wait until the first has come back or left."""
    table = Table(folder)
    first, second, third = NAMES
    assert table.ask(third) is None
    assert table.ask(second) is None, "nothing is trained before all have asked"
    assert not list(folder.trial_dir(first).glob("checkpoint-*"))
    assert isinstance(table.ask(first), ScoredCheckpoint)
    assert table.ask(third) is None
    assert table.ask(second) is None, "the first has its answer, and may leave yet"
    table.pack.leave(first)
    assert table.ask(third) is None
    assert isinstance(table.ask(second), ScoredCheckpoint)
    assert table.ask(second) is None, "it goes on"
    scored = table.ask(third)
    assert isinstance(scored, ScoredCheckpoint)
    assert scored.pack == tuple(NAMES)
    assert table.ask(third) is None
    scored = table.ask(second)
    assert isinstance(scored, ScoredCheckpoint)
    assert (scored.step, scored.pack) == (4, (second, third))


def test_whoever_leaves_leaves_the_others_as_they_would_be(undisturbed: Table, folder: RunFolder) -> None:
    """Early stopping takes the second away at its first point: the others' scores are theirs."""
    table = Table(folder)
    table.play(leaves=lambda name, _: name == NAMES[1])
    assert [len(table.scored[name]) for name in NAMES] == [2, 1, 2]
    for name in (NAMES[0], NAMES[2]):
        ours, theirs = table.scored[name][-1], undisturbed.scored[name][-1]
        assert ours.face_similarity == pytest.approx(theirs.face_similarity, abs=0.01)
        assert ours.prompt_alignment == pytest.approx(theirs.prompt_alignment, abs=0.01)


@pytest.mark.parametrize("num_answered", [0, 1])
@pytest.mark.parametrize("damaged", [None, 1])
def test_a_pack_that_was_lost_goes_on_to_the_same_bits(
    num_answered: int, damaged: int | None, undisturbed: Table, folder: RunFolder
) -> None:
    """With the process that had it: trained but not scored, scored for some, a checkpoint not whole."""
    lost = Table(folder)
    for name in reversed(NAMES):
        lost.ask(name)  # the first is answered, the others wait
    if not num_answered:
        lost.scored[NAMES[0]].clear()  # the process died before the answer had arrived
    if damaged is not None:
        shutil.rmtree(folder.trial_dir(NAMES[damaged]) / "checkpoint-2")
    again = Table(folder, lost.scored)
    again.play()
    assert_learnt_the_same(again, undisturbed)
    assert [[scored.step for scored in again.scored[name]] for name in NAMES] == [[2, 4]] * 3


def test_told_to_end_all_save_and_all_are_told(undisturbed: Table, folder: RunFolder) -> None:
    """In the middle of training, after the step that is being taken; what goes on ends in the same bits."""
    table = Table(folder)
    for worker in table.pack._workers.values():
        worker.on_step = lambda step, _loss: table.pack.stop() if step == 1 else None  # type: ignore[method-assign]
    answers = table.play()
    assert [name for name, _ in answers] == NAMES
    assert all(isinstance(answer, Preempted) for _, answer in answers)
    assert all((folder.trial_dir(name) / "checkpoint-1").is_dir() for name in NAMES)
    with pytest.raises(Preempted):
        table.pack.stop()
    again = Table(folder)
    again.play()
    assert_learnt_the_same(again, undisturbed)


def test_a_trial_that_runs_away_or_makes_no_picture_ends_alone(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is told what is wrong with it; the third has its scores."""
    advance = PackTraining.advance

    def run_away(training: PackTraining) -> dict[str, Any]:
        reached: dict[str, Any] = advance(training)
        if NAMES[0] in reached:
            reached[NAMES[0]] = NonFiniteLoss("training ran away")
        return reached

    def make_none(_scoring: Any, _folder: Any, points: Sequence[Point], _device: str) -> dict[Point, Exception]:
        failed = make(_scoring, _folder, points, _device)
        return failed | {point: NonFinitePictureError("not finite") for point in points if point[0] == NAMES[1]}

    make = sweeps.execution.pack.make_packed_pictures
    monkeypatch.setattr(PackTraining, "advance", run_away)
    monkeypatch.setattr(sweeps.execution.pack, "make_packed_pictures", make_none)
    table = Table(folder)
    answers = table.play()
    assert [name for name, _ in answers] == [*NAMES, NAMES[2]]
    assert [type(answer) for _, answer in answers[:3]] == [NonFiniteLoss, NonFinitePictureError, ScoredCheckpoint]
    assert [scored.step for scored in table.scored[NAMES[2]]] == [2, 4]


def test_what_is_nobodys_own_failure_is_everybodys(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, say; each trial can be tried again elsewhere."""

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(PackTraining, "advance", fail)
    answers = Table(folder).play()
    assert [str(answer) for _, answer in answers] == ["No space left on device"] * 3


@pytest.mark.parametrize("room", [2, 1, 0])
def test_where_memory_runs_out_fewer_train_in_a_pass(
    room: int, undisturbed: Table, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halved until it fits; where one alone does not fit, it is its own failure."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (10, 10))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 0)
    tried: list[int] = []
    advance = PackTraining.advance

    def in_small_memory(training: PackTraining) -> Any:
        tried.append(len(training.names))
        if len(training.names) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return advance(training)

    monkeypatch.setattr(PackTraining, "advance", in_small_memory)
    table = Table(folder)
    answers = table.play()
    if not room:
        assert all(isinstance(answer, OutOfGpuMemory) for _, answer in answers)
        assert tried == [3, 1, 2, 1, 1, 1]
        return
    assert tried == {2: [3, 1, 2, 1, 2], 1: [3, 1, 2, *[1] * 6]}[room]
    for name in NAMES:
        for ours, theirs in zip(table.scored[name], undisturbed.scored[name], strict=True):
            assert ours.face_similarity == pytest.approx(theirs.face_similarity, abs=0.01)


@pytest.fixture
def planned_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes the device one on which `room` trials are planned for a pass, where up to `fits` have room in truth."""

    def planned(room: int, fits: int = 3) -> Any:
        measuring = SimpleNamespace(packs=[], advances=[], parts=[])

        def trainings_of_a_pass(configs: Any, _dataset: object, _device: object, meter: object) -> int:
            assert meter is measuring
            measuring.packs.append([trial_id(config) for config in configs])
            return room

        def meter_of(_device: object, part: float) -> Any:
            measuring.parts.append(part)
            return measuring

        advance = PackTraining.advance

        def counted(training: PackTraining) -> Any:
            measuring.advances.append(len(training.names))
            if len(training.names) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return advance(training)

        monkeypatch.setattr(sweeps.execution.pack, "trainings_of_a_pass", trainings_of_a_pass)
        monkeypatch.setattr(sweeps.execution.pack, "meter_of", meter_of)
        monkeypatch.setattr(PackTraining, "advance", counted)
        return measuring

    return planned


@pytest.mark.parametrize("room", [3, 2, 1])
def test_passes_are_planned_from_measured_memory(
    room: int, undisturbed: Table, folder: RunFolder, planned_for: Callable[..., Any]
) -> None:
    """Once a pack, before its first pass; where all fit, not a bit is another than without measuring."""
    measuring = planned_for(room)
    table = Table(folder)
    table.play()
    assert measuring.packs == [NAMES]
    assert measuring.advances == {3: [3] * 2, 2: [1, 2] * 2, 1: [1] * 6}[room]
    if room == 3:
        assert_learnt_the_same(table, undisturbed)


def test_what_was_planned_too_large_is_halved(
    folder: RunFolder, planned_for: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From there; it is not measured again, with a trial's new process neither."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (10, 10))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 0)
    measuring = planned_for(2, fits=1)
    table = Table(folder)
    while table.ask(NAMES[0]) is None:
        for name in NAMES[1:]:
            table.ask(name)
    table.pack.part(NAMES[0])
    table.sit_down(CONFIGS[0])
    answers = table.play()
    assert all(isinstance(answer, ScoredCheckpoint) for _, answer in answers)
    assert measuring.packs == [NAMES]
    assert measuring.advances == [1, 2, *[1] * 6]


def test_nothing_is_measured_where_nobody_shares_or_nothing_is_left_to_train(
    folder: RunFolder, planned_for: Callable[..., Any]
) -> None:
    """A trial that is left alone in its pack; checkpoints that wait to be scored."""
    measuring = planned_for(3)
    table = Table(folder)
    table.play()
    assert len(measuring.packs) == 1
    unscored = Table(folder, {name: table.scored[name][:1] for name in NAMES})
    assert len(unscored.play()) == 3
    alone = Table(folder, {NAMES[0]: []})
    for name in NAMES[1:]:
        alone.pack.leave(name)
    shutil.rmtree(folder.trial_dir(NAMES[0]))
    folder.trial_dir(NAMES[0]).mkdir()
    assert isinstance(alone.ask(NAMES[0]), ScoredCheckpoint)
    assert len(measuring.packs) == 1


def test_judges_and_painter_are_there_before_anything_is_measured(
    folder: RunFolder, planned_for: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they take for good is no room for a pass; and the device is the part that the trials have."""
    measuring = planned_for(3)
    loaded: list[str] = []
    for loader in ("frozen_module", "load_face_encoder", "load_clip"):
        original = getattr(sweeps.execution.pack, loader)

        def load(*arguments: Any, original: Any = original, loader: str = loader) -> Any:
            assert not measuring.packs
            loaded.append(arguments[1] if loader == "frozen_module" else loader)
            return original(*arguments)

        monkeypatch.setattr(sweeps.execution.pack, loader, load)
    Table(folder).play()
    assert loaded == ["unet", "vae", "text_encoder", "load_face_encoder", "load_clip"]
    assert measuring.parts == [0]  # the test's trials have none


def test_where_memory_runs_out_fewer_are_pictured_in_a_pass(
    undisturbed: Table, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to one; whose pictures alone do not fit is told so, and the others have theirs."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (10, 10))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 0)
    tried: list[list[str]] = []
    load = sweeps.execution.scoring.packed_pipeline

    def in_small_memory(checkpoints: Sequence[Checkpoint], *args: Any, **options: Any) -> StableDiffusionPipeline:
        names = [checkpoint.dir.parent.name for checkpoint in checkpoints]
        tried.append(names)
        if len(names) > 1 or NAMES[2] in names:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(checkpoints, *args, **options)

    monkeypatch.setattr(sweeps.execution.scoring, "packed_pipeline", in_small_memory)
    table = Table(folder)
    answers = table.play()
    assert tried[:5] == [NAMES, NAMES[:1], NAMES[1:], [NAMES[1]], [NAMES[2]]]
    assert [type(answer) for _, answer in answers[:3]] == [ScoredCheckpoint, ScoredCheckpoint, OutOfGpuMemory]
    for name in NAMES[:2]:
        for ours, theirs in zip(table.scored[name], undisturbed.scored[name], strict=True):
            assert ours.face_similarity == pytest.approx(theirs.face_similarity, abs=0.01)


def test_one_that_has_fallen_behind_does_not_send_the_others_back(folder: RunFolder) -> None:
    """Its own process had died, and the pack had gone on: what the others have to go on from is newer."""
    table = Table(folder)
    answered = []
    while len(answered) < 2:
        answered += [name for name in NAMES[:2] if table.ask(name) is not None]
        table.ask(NAMES[2])
    table.pack.leave(NAMES[2])
    shutil.rmtree(folder.trial_dir(NAMES[2]))
    folder.trial_dir(NAMES[2]).mkdir()
    while not all((folder.trial_dir(name) / "checkpoint-4").is_dir() for name in NAMES[:2]):
        for name in NAMES[:2]:
            table.pack.next_of(name)
    again = Table(folder, {**table.scored, NAMES[2]: []})
    taken: list[tuple[str, int]] = []
    for name, worker in again.pack._workers.items():
        worker.on_step = lambda step, _loss, name=name: taken.append((name, step))  # type: ignore[method-assign]
    again.play()
    assert taken == [(NAMES[2], step) for step in (1, 2, 3, 4)]
    assert [[scored.step for scored in again.scored[name]] for name in NAMES] == [[2, 4]] * 3


def test_a_trial_that_is_late_takes_nothing_from_the_next_one() -> None:
    """Its process lets go when the server has another trial already."""
    closed: list[str] = []
    worker = SimpleNamespace(close=lambda: closed.append("worker"), score_next=lambda: "scored")
    lone = LoneTrial()
    lone.join("next", worker)  # type: ignore[arg-type]
    lone.part("late")
    lone.leave("late")
    assert (lone.next_of("next"), lone.is_empty, closed) == ("scored", False, [])
    lone.leave("next")
    assert (lone.is_empty, closed) == (True, ["worker"])
