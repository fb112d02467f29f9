"""What of a trial computes: train up to a scoring point, make its pictures, score them.

It needs no Ray. A trial has one such worker, in its own process, or several that share it, each in a process and on a
device of its own. The run folder is theirs to fill; the ledger in it is the trial's alone.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sweeps.config import ChampionConfig, SweepConfig
from sweeps.execution.cluster import TrialResources
from sweeps.execution.same_models import check_same_models
from sweeps.execution.scoring import Scoring, make_pictures, score_pictures, use_threads
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import open_run
from sweeps.ledger.records import ScoredCheckpoint
from sweeps.space import scoring_points
from sweeps.wording import bytes_text
from training.checkpoint import Checkpoint, checkpoint_dir, latest_checkpoint, open_checkpoint
from training.config import MethodConfig
from training.dataset import load_dataset
from training.errors import UserError
from training.share import Share
from training.train import TrainingStopped, train

SHARE_OF_OTHERS = 0.05
"""Of a GPU's memory that may be in other hands (the desktop, the driver itself) for a trial to count as alone on it."""


@dataclass(frozen=True)
class TrialTask:
    """What every trial of a sweep is given by the driver, besides its own hyperparameters."""

    run_dir: str
    storage: str | None
    resources: Mapping[str, TrialResources]
    """Of one trial of each method."""
    scoring: Scoring
    champion: ChampionConfig

    @classmethod
    def of(cls, config: SweepConfig, folder: RunFolder, resources: Mapping[str, TrialResources]) -> TrialTask:
        """As the sweep file says, on these resources."""
        return cls(str(folder.dir), config.storage, resources, Scoring.of(config), config.champion)


class Preempted(Exception):  # noqa: N818 -- it says what happened
    """The worker was told to end (SIGTERM): what it had trained since the last scoring point is in a checkpoint."""


class OutOfGpuMemory(RuntimeError):  # noqa: N818 -- it says what happened
    """A worker's GPU has no room left.

    Args:
        message: torch's.
        others: bytes of that GPU in the hands of other processes.
        total: bytes that it has.
    """

    def __init__(self, message: str, others: int, total: int) -> None:
        super().__init__(message, others, total)
        self.message, self.others, self.total = message, others, total

    def __str__(self) -> str:
        """The message alone."""
        return self.message

    @property
    def is_the_trials_own(self) -> bool:
        """Was it alone on the GPU, so that the same settings would meet it again on any like it?"""
        return self.others <= SHARE_OF_OTHERS * self.total

    @property
    def reason(self) -> str:
        """Who has the memory."""
        return f"out of GPU memory, of which others hold {bytes_text(self.others)} of {bytes_text(self.total)}"


class TrialWorker:
    """One of a trial's workers.

    Args:
        task: the sweep's.
        trial: its id.
        hyperparameters: of the trial.
        reached: the step of its newest scored checkpoint, 0 where there is none.
        share: this worker's, of each batch and of the pictures.
    """

    on_step: Callable[[int, float], None] | None = None
    """A method (step, loss) of a kind of worker that follows its training step by step."""

    def __init__(self, task: TrialTask, trial: str, hyperparameters: MethodConfig, reached: int, share: Share) -> None:
        self._task, self._trial, self._hyperparameters, self._reached = task, trial, hyperparameters, reached
        self._share = share
        self._resources = task.resources[hyperparameters.method].of_a_worker
        self._device = self._resources.device
        self._folder = open_run(task.run_dir, task.storage)
        self._points: Iterator[Checkpoint] | None = None
        self._checkpoint: Checkpoint | None = None
        self._is_training = self._must_stop = False

    def score_next(self) -> ScoredCheckpoint:
        """All of the next scoring point, by a worker that is alone.

        Raises:
            UserError: this machine lacks a model, or has another one than the run began with.
            DivergedError: training or a picture is not finite.
            Preempted: `stop` was called meanwhile.
            OutOfGpuMemory: its GPU has no room left.
        """
        self.reach_next()
        self.make_pictures()
        return self.score()

    def reach_next(self) -> None:
        """Have the checkpoint of the next scoring point: one that a dead worker left, or a new one."""
        with _telling_of_gpu_memory():
            if self._points is None:
                self._begin()
                self._points = self._unscored_checkpoints()
            self._is_training = True
            try:
                self._checkpoint = next(self._points)
            except TrainingStopped as stopped:
                raise Preempted(f"told to end, saved {stopped}") from stopped
            finally:
                self._is_training = False
            if self._must_stop:
                raise Preempted(f"told to end, saved at step {self._checkpoint.step}")
            self._folder.check_there()

    def make_pictures(self) -> None:
        """This worker's share of the pictures of the checkpoint that was reached."""
        with _telling_of_gpu_memory():
            make_pictures(self._task.scoring, self._folder, self._trial, self._checkpoint, self._device, self._share)

    def score(self) -> ScoredCheckpoint:
        """The scores of the pictures, once all workers have made theirs."""
        with _telling_of_gpu_memory():
            return score_pictures(self._task.scoring, self._folder, self._trial, self._checkpoint, self._device)

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
        self._points = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _begin(self) -> None:
        use_threads(self._resources.cpus)
        if self._share.is_first:  # all are on one machine
            check_same_models(self._folder, self._task.scoring.base_model, self._task.scoring.evaluation)

    def _unscored_checkpoints(self) -> Iterator[Checkpoint]:
        """The trial's checkpoints still to be scored: those that a dead worker left, then those still to be trained.

        Points before the newest scored one are passed over, asked for too late: a scored checkpoint is never written
        again, and the ledger stays in the order of steps.
        """
        trial_dir, base_model = self._folder.trial_dir(self._trial), self._task.scoring.base_model
        points = scoring_points(self._hyperparameters, self._task.scoring.evaluation.at_steps)
        due = [step for step in points if step > self._reached]
        left = list(whole_checkpoints(trial_dir, due, base_model))
        yield from left
        due = due[len(left) :]
        if due:
            latest = latest_checkpoint(trial_dir, base_model)
            # One that lies beyond what is due is no help: the first point is then reached from the start, equally.
            resume_from = latest if latest is not None and latest.step < due[0] else None
            self._folder.check_there()
            yield from train(
                self._hyperparameters,
                load_dataset(self._folder.dataset_dir, base_model),
                due,
                resume_from,
                out_dir=trial_dir,
                device=self._device,
                on_step=self.on_step,
                should_stop=lambda: self._must_stop,
                share=self._share,
            )


@contextmanager
def heeding_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    """While this lasts, SIGTERM calls `stop` in place of ending the process: machines that go send it beforehand."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _telling_of_gpu_memory() -> Iterator[None]:
    """Where memory runs out, say who has it: nobody can ask once the worker has gone."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        others = max(0, total - free - torch.cuda.memory_reserved())
        raise OutOfGpuMemory(str(error), others, total) from error


def whole_checkpoints(trial_dir: Path, steps: Sequence[int], base_model: str) -> Iterator[Checkpoint]:
    """The checkpoints of these steps, up to the first that is not there or not whole."""
    for step in steps:
        try:
            yield open_checkpoint(checkpoint_dir(trial_dir, step), base_model)
        except UserError:
            return
