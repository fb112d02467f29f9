"""What of a trial computes: train up to a scoring point, make its pictures, score them.

It needs no Ray. A trial has one such worker, in its own process, or several that share it, each in a process and on a
device of its own. The run folder is theirs to fill; the ledger in it is the trial's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from sweeps.execution.ends import Preempted
from sweeps.execution.same_models import check_same_models
from sweeps.execution.scoring import make_pictures, score_pictures, telling_of_gpu_memory, use_threads
from sweeps.execution.task import TrialTask
from sweeps.ledger.records import ScoredCheckpoint
from sweeps.space import scoring_points
from training.checkpoint import Checkpoint, checkpoint_dir, latest_checkpoint, open_checkpoint
from training.config import MethodConfig
from training.dataset import load_dataset
from training.errors import UserError
from training.share import Share
from training.train import TrainingStopped, train


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
        self.task, self.trial, self.hyperparameters, self._reached = task, trial, hyperparameters, reached
        self._share = share
        self._resources = task.resources[hyperparameters.method].of_a_worker
        self.device = self._resources.device
        self.folder = task.open_run()
        self.trial_dir = self.folder.trial_dir(trial)
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
        with telling_of_gpu_memory():
            if self._points is None:
                self.begin()
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
            self.folder.check_there()

    def make_pictures(self) -> None:
        """This worker's share of the pictures of the checkpoint that was reached."""
        with telling_of_gpu_memory():
            make_pictures(
                self.task.scoring.first_look, self.folder, self.trial, self._checkpoint, self.device, self._share
            )

    def score(self, checkpoint: Checkpoint | None = None) -> ScoredCheckpoint:
        """The scores of the pictures, once all have been made; of the checkpoint that was reached, or of this one."""
        with telling_of_gpu_memory():
            scored = score_pictures(
                self.task.scoring.first_look, self.folder, self.trial, checkpoint or self._checkpoint, self.device
            )
        return scored.model_copy(update={"screened": self.task.scoring.evaluation.screening is not None})

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

    def begin(self) -> None:
        """Take this process for the trial, once its models are those of the run."""
        use_threads(self._resources.cpus)
        if self._share.is_first:  # all are on one machine
            check_same_models(self.folder, self.task.scoring.base_model, self.task.scoring.evaluation)

    def took_step(self, step: int, loss: float) -> None:
        """A step was taken by somebody who trains for this worker."""
        if self.on_step is not None:
            self.on_step(step, loss)

    @property
    def next_point(self) -> int:
        """The step at which the trial is next to be scored."""
        return self._due()[0]

    def _due(self) -> list[int]:
        points = scoring_points(self.hyperparameters, self.task.scoring.evaluation.at_steps)
        return [step for step in points if step > self._reached]

    def newest_step(self) -> int:
        """Of the checkpoint that training could go on from; 0 where it begins."""
        latest = latest_checkpoint(self.trial_dir, self.task.scoring.base_model)
        return 0 if latest is None else latest.step

    def to_do(self, up_to: int | None = None) -> tuple[list[Checkpoint], list[int], Checkpoint | None]:
        """The trial's work from here on.

        Points before the newest scored one are passed over, asked for too late: a scored checkpoint is never written
        again, and the ledger stays in the order of steps.

        Args:
            up_to: pay no heed to checkpoints of later steps.

        Returns:
            Whole checkpoints that a dead worker left unscored; the points that are then still to be trained for; and
            the checkpoint from which training goes on.
        """
        base_model = self.task.scoring.base_model
        due = self._due()
        heeded = [step for step in due if up_to is None or step <= up_to]
        left = list(whole_checkpoints(self.trial_dir, heeded, base_model))
        due = due[len(left) :]
        latest = latest_checkpoint(self.trial_dir, base_model, up_to) if due else None
        # One that lies beyond what is due is no help: the first point is then reached from the start, equally.
        return left, due, latest if latest is not None and latest.step < due[0] else None

    def _unscored_checkpoints(self) -> Iterator[Checkpoint]:
        """The trial's checkpoints still to be scored: those that a dead worker left, then those still to be trained."""
        left, due, resume_from = self.to_do()
        yield from left
        if due:
            self.folder.check_there()
            yield from train(
                self.hyperparameters,
                load_dataset(self.folder.dataset_dir, self.task.scoring.base_model),
                due,
                resume_from,
                out_dir=self.trial_dir,
                device=self.device,
                on_step=self.on_step,
                should_stop=lambda: self._must_stop,
                share=self._share,
            )


def whole_checkpoints(trial_dir: Path, steps: Sequence[int], base_model: str) -> Iterator[Checkpoint]:
    """The checkpoints of these steps, up to the first that is not there or not whole."""
    for step in steps:
        try:
            yield open_checkpoint(checkpoint_dir(trial_dir, step), base_model)
        except UserError:
            return
