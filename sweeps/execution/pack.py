"""Trials that train together: a pack, as a trial server has it. It needs no Ray.

Its trials do not know of each other. Each asks for its next scored checkpoint, and is told to ask again until there is
one; when all have asked, all train. Answers are given one at a time, in the order of the rows: the next trial gets its
own when the one before it has come back or has left. So early stopping and a search that learns hear of the trials of
a pack in one order whatever the machine does meanwhile, and the same sweep has the same packs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from evaluation.face_encoders import load_face_encoder
from evaluation.generate import generation_dtype
from evaluation.prompt import load_clip
from sweeps.execution.ends import OutOfGpuMemory, Preempted
from sweeps.execution.scoring import make_packed_pictures, telling_of_gpu_memory
from sweeps.execution.worker import TrialWorker
from sweeps.ledger.records import ScoredCheckpoint
from training.checkpoint import Checkpoint
from training.config import LoraConfig
from training.dataset import Dataset, load_dataset
from training.pack_memory import meter_of, trainings_of_a_pass
from training.pack_training import PackTraining
from training.packing import passes_of, training_cost
from training.stable_diffusion import Part, choose_device, frozen_module
from training.train import TrainingStopped

Reached = Checkpoint | Exception
"""What a trial has come to: its next checkpoint, or why there is none."""


class PackOfTrials:
    """The trials of a pack and the answers that they wait for.

    Args:
        members: their ids, in the order of the rows. It begins when all have joined or left.
    """

    def __init__(self, members: Sequence[str]) -> None:
        self._members = list(members)
        self._workers: dict[str, TrialWorker] = {}
        self._asking: set[str] = set()
        self._answers: dict[str, ScoredCheckpoint | Exception] = {}
        """In the order in which they are given."""
        self._undecided: str | None = None
        """The trial that has its answer and may yet leave."""
        self._training: _Training | None = None
        self._largest: int | None = None
        """Trials of one pass, where memory has set a limit; None until it has been looked at."""
        self._is_training = self._must_stop = False

    def join(self, trial: str, worker: TrialWorker) -> None:
        """A trial is there, or there again."""
        self._workers[trial] = worker

    def part(self, trial: str) -> None:
        """A trial lets go of its worker; it may join again with another, from where all then go on."""
        if self._workers.pop(trial, None) is not None:
            self.close()
        self._asking.discard(trial)

    def leave(self, trial: str) -> None:
        """A trial has ended and will not ask again."""
        if trial not in self._members:
            return
        if self._training is not None:
            self._training.drop(trial)
        self._members.remove(trial)
        self._workers.pop(trial, None)
        self._answers.pop(trial, None)
        self._asking.discard(trial)
        if self._undecided == trial:
            self._undecided = None
        if not self._members:
            self.close()

    @property
    def is_empty(self) -> bool:
        """Have all left?"""
        return not self._members

    def next_of(self, trial: str) -> ScoredCheckpoint | None:
        """The trial's next scored checkpoint; None when it must ask again.

        Raises:
            Exception: as of `TrialWorker.score_next`.
        """
        if self._undecided == trial:
            self._undecided = None
        self._asking.add(trial)
        if not self._answers and self._undecided is None and self._asking.issuperset(self._members):
            self._answers = self._advance()
        if self._undecided is not None or next(iter(self._answers), None) != trial:
            return None
        answer = self._answers.pop(trial)
        self._asking.discard(trial)
        self._undecided = trial
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        """End soon, as a signal's handler: training after the step that is being taken, anything else at once.

        Raises:
            Preempted: nothing is being trained.
        """
        self._must_stop = True
        if not self._is_training:
            raise Preempted("told to end between two checkpoints")

    def close(self) -> None:
        """Let go of what was trained."""
        if self._training is not None:
            self._training.close()
            self._training = None

    def _advance(self) -> dict[str, ScoredCheckpoint | Exception]:
        """Train up to the next scoring point and score it; a failure that is nobody's own is everybody's."""
        try:
            return self._scored(self._reach_next())
        except Exception as error:  # whatever it is: each trial raises it in its own process, where it is noted
            self.close()
            return dict.fromkeys(self._members, error)

    def _reach_next(self) -> dict[str, Reached]:
        """The trials that have reached their next point, in the order of the rows."""
        workers = [self._workers[trial] for trial in self._members]
        while True:
            if self._training is None:
                self._training = _Training(workers, self._largest, lambda: self._must_stop)
                self._largest = self._training.largest
            self._is_training = True
            try:
                reached = self._training.next()
            except TrainingStopped as stopped:
                raise Preempted(f"told to end, saved {stopped}") from stopped
            except OutOfGpuMemory:
                self._largest = -(-self._training.largest // 2)
                self.close()
                continue
            finally:
                self._is_training = False
            if self._must_stop:
                raise Preempted("told to end, saved at a scoring point")
            workers[0].folder.check_there()
            return {trial: reached[trial] for trial in self._members if trial in reached}

    def _scored(self, reached: Mapping[str, Reached]) -> dict[str, ScoredCheckpoint | Exception]:
        first = self._workers[self._members[0]]
        points = [(trial, outcome) for trial, outcome in reached.items() if isinstance(outcome, Checkpoint)]
        failed = make_packed_pictures(first.task.scoring.first_look, first.folder, points, first.device)
        outcomes: dict[str, ScoredCheckpoint | Exception] = {}
        for trial, outcome in reached.items():
            if not isinstance(outcome, Checkpoint):
                outcomes[trial] = outcome
            elif (trial, outcome) in failed:
                outcomes[trial] = failed[trial, outcome]
            else:
                outcomes[trial] = self._workers[trial].score(outcome).model_copy(update={"pack": self._together(trial)})
        return outcomes

    def _together(self, trial: str) -> tuple[str, ...]:
        assert self._training is not None, "it has reached a checkpoint"
        return self._training.together.get(trial, tuple(self._members))


class LoneTrial:
    """A unit of work that is one trial, with the methods of a pack; a trial before it may be late with its own."""

    def __init__(self) -> None:
        self._trial: str | None = None
        self._worker: TrialWorker | None = None
        self.is_empty = False

    def join(self, trial: str, worker: TrialWorker) -> None:
        """It is there, or there again."""
        self._trial, self._worker = trial, worker

    def part(self, trial: str) -> None:
        """It lets go of its worker."""
        if trial == self._trial and self._worker is not None:
            self._worker.close()
            self._worker = None

    def leave(self, trial: str) -> None:
        """It has ended."""
        if trial == self._trial:
            self.part(trial)
            self.is_empty = True

    def next_of(self, _trial: str) -> ScoredCheckpoint:
        """Its next scored checkpoint.

        Raises:
            Exception: as of `TrialWorker.score_next`.
        """
        assert self._worker is not None, "it has joined"
        return self._worker.score_next()

    def stop(self) -> None:
        """As of the worker."""
        assert self._worker is not None, "it is asked for its next checkpoint"
        self._worker.stop()


class _Training:
    """The training of a pack from where its trials are, in as many passes as memory asks for.

    They have been together from their start, so they go on together, from the newest checkpoint that all of them have;
    where one was left behind, each from its own.

    Args:
        workers: the trials', in the order of the rows.
        largest: trials of one pass; None: as many as there is memory for.
        should_stop: asked after every step.
    """

    def __init__(self, workers: Sequence[TrialWorker], largest: int | None, should_stop: Callable[[], bool]) -> None:
        for worker in workers:
            worker.begin()
        self.together: dict[str, tuple[str, ...]] = {}
        """Trial -> those of the passes that led to its newest checkpoint, in the order of their rows."""
        self._left: dict[str, list[Checkpoint]] = {}
        self._passes: list[PackTraining] = []
        newest = [worker.newest_step() for worker in workers]
        # Nobody is trained past a point before all have been scored there: who is that far behind was not with them.
        is_one_behind = any(worker.next_point < max(newest) for worker in workers)
        together = None if is_one_behind else min(newest)
        by_trial = {worker.trial: worker for worker in workers}
        dataset = load_dataset(workers[0].folder.dataset_dir, workers[0].task.scoring.base_model)
        to_do = {worker.trial: worker.to_do(up_to=together) for worker in workers}
        if largest is None and any(due for _, due, _ in to_do.values()):
            largest = _with_room(workers, dataset)
        self.largest = largest or len(workers)
        for group in _passes(workers, dataset, self.largest):
            training = PackTraining(
                dataset,
                group[0].device,
                on_step=lambda trial, step, loss: by_trial[trial].took_step(step, loss),
                should_stop=should_stop,
            )
            for worker in group:
                left, due, resume_from = to_do[worker.trial]
                self._left[worker.trial] = left
                if due:
                    training.admit(worker.trial, _lora(worker), due, resume_from, out_dir=worker.trial_dir)
            self._passes.append(training)

    def next(self) -> dict[str, Reached]:
        """The next checkpoints: what was left by workers before, then what is trained.

        Raises:
            OutOfGpuMemory: too many trials in a pass; what one alone has no room for is its own answer.
            TrainingStopped: it was told to.
        """
        reached: dict[str, Reached] = {
            trial: checkpoints.pop(0) for trial, checkpoints in self._left.items() if checkpoints
        }
        if reached:
            return reached
        for training in self._passes:
            names = training.names
            if not names:
                continue
            self.together.update(dict.fromkeys(names, tuple(names)))
            try:
                with telling_of_gpu_memory():
                    reached.update(training.advance())
            except OutOfGpuMemory as error:
                if len(names) > 1:
                    raise
                reached[names[0]] = error
        return reached

    def drop(self, trial: str) -> None:
        """A trial has ended."""
        self._left.pop(trial, None)
        for training in self._passes:
            if trial in training.names:
                training.drop(trial)

    def close(self) -> None:
        """Let go of all."""
        for training in self._passes:
            training.close()


def _with_room(workers: Sequence[TrialWorker], dataset: Dataset) -> int:
    """Trials of one pass: on a GPU as many as its memory holds, else all."""
    first = workers[0]
    device = choose_device(first.device)
    meter = meter_of(device, first.task.resources[first.hyperparameters.method].of_a_worker.gpus)
    if meter is None or len(workers) == 1:
        return len(workers)
    with telling_of_gpu_memory():
        _load_for_scoring(first, device)  # it stays from the first scoring point on, so it is no room for a pass
        return trainings_of_a_pass([_lora(worker) for worker in workers], dataset, device, meter)


def _load_for_scoring(worker: TrialWorker, device: torch.device) -> None:
    """Put everything there that this process keeps for pictures and scores."""
    scoring = worker.task.scoring
    parts: tuple[Part, ...] = ("unet", "vae", "text_encoder")
    for part in parts:
        frozen_module(scoring.base_model, part, device, generation_dtype(device))
    load_face_encoder(scoring.evaluation.face.encoder, worker.device)
    load_clip(scoring.evaluation.clip, worker.device)


def _passes(workers: Sequence[TrialWorker], dataset: Dataset, largest: int) -> list[list[TrialWorker]]:
    """The trials of each pass, in the order of their rows."""
    ranks = [_lora(worker).rank for worker in workers]
    cost = training_cost(_lora(workers[0]), dataset) if len(set(ranks)) > 1 else lambda _rank: 1.0
    return [[workers[place] for place in places] for places in passes_of(ranks, cost, largest)]


def _lora(worker: TrialWorker) -> LoraConfig:
    assert isinstance(worker.hyperparameters, LoraConfig), "only LoRAs are packed"
    return worker.hyperparameters
