"""The training loop of a pack: several LoRA trainings, each as `train` would do it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from training.checkpoint import Checkpoint, drop_older_states
from training.config import LoraConfig, scoring_steps
from training.dataset import Dataset
from training.journal import Journal, NonFiniteLoss
from training.pack import Member, Pack, PackRow, start_pack, take_pack_step
from training.stable_diffusion import choose_device
from training.step import TrainingRun
from training.train import TrainingStopped, check_run, free_memory


@dataclass
class _Training:
    """One of them."""

    config: LoraConfig
    points: list[int]
    """Steps at which a checkpoint is still wanted."""
    out_dir: Path
    start: Member | None
    """Where it goes on when it is next put into a pack; None while it is in one."""
    taken: Checkpoint | None = None
    """The checkpoint that the caller was last given."""


@dataclass(frozen=True)
class _Seat:
    """A training in the pack."""

    name: str
    training: _Training
    run: TrainingRun[PackRow]
    journal: Journal


class PackTraining:
    """LoRA trainings that take their steps together.

    They come and go between two calls of `advance`; those that stay notice nothing of it but rounding. Their order in
    the pack is the order in which they came.

    Args:
        dataset: from `load_dataset`; its `base_model` is fine-tuned.
        device: default: the GPU where there is one.
        on_step: called with (name, step, loss) for every optimizer step of every training.
        should_stop: asked after every step; at its first True a checkpoint of every training is written.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device | str | None = None,
        *,
        on_step: Callable[[str, int, float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._dataset = dataset
        self._device = choose_device(device)
        self._on_step = on_step or (lambda _name, _step, _loss: None)
        self._should_stop = should_stop or (lambda: False)
        self._trainings: dict[str, _Training] = {}
        self._pack: Pack | None = None
        self._seats: list[_Seat] = []

    @property
    def names(self) -> list[str]:
        """Of the trainings that are in it, in the order of their rows."""
        return list(self._trainings)

    def admit(
        self,
        name: str,
        config: LoraConfig,
        at_steps: Sequence[int],
        resume_from: Checkpoint | None = None,
        *,
        out_dir: str | Path,
    ) -> None:
        """Let a training in, with the arguments that `train` would have.

        Raises:
            UserError: as `train` does.
        """
        assert name not in self._trainings, "a name is one training's"
        check_run(config, self._dataset, self._device, resume_from)
        start = Member.of(config, self._dataset, resume_from)
        points = [step for step in scoring_steps(at_steps, config.max_train_steps) if step > start.step]
        self._part()
        self._trainings[name] = _Training(config, points, Path(out_dir), start)

    def drop(self, name: str) -> None:
        """Let a training go, wherever it is."""
        self._part()
        del self._trainings[name]

    def advance(self) -> dict[str, Checkpoint | NonFiniteLoss]:
        """Take steps until a training reaches a point: the checkpoints of all that have, by name.

        A training that runs away is told of then, too, and has been let go of; so has one that is at its end. As with
        `train`, a checkpoint has been taken when the caller asks for the next one.

        Raises:
            TrainingStopped: `should_stop` asked for it; every training that is whole has its checkpoint.
            OSError: a training's folder has gone or its disk is full.
        """
        for training in self._trainings.values():
            if training.taken is not None:
                drop_older_states(training.taken)
                training.taken = None
        if self._pack is None:
            self._join()
        outcomes: dict[str, Checkpoint | NonFiniteLoss] = {}
        stopped = self._take_steps(outcomes)
        for seat in self._seats:
            if seat.name not in outcomes and (stopped or seat.run.step == seat.training.points[0]):
                try:
                    outcomes[seat.name] = seat.training.taken = seat.journal.checkpoint()
                except NonFiniteLoss as error:
                    outcomes[seat.name] = error
        if stopped:
            raise TrainingStopped(f"at step {', '.join(str(seat.run.step) for seat in self._seats)}")
        for name, outcome in outcomes.items():
            del self._trainings[name].points[0]
            if isinstance(outcome, NonFiniteLoss) or not self._trainings[name].points:
                self.drop(name)
        return outcomes

    def close(self) -> None:
        """Let go of all trainings and of the memory that they had."""
        self._part()
        self._trainings.clear()
        free_memory(self._device)

    def _take_steps(self, lost: dict[str, Checkpoint | NonFiniteLoss]) -> bool:
        """Up to the nearest point; was it told to stop before? Whoever runs away is `lost`, its rows go on for nothing.

        A pack changes at points alone, so that what a run was computed with does not depend on when a loss is read.
        """
        assert self._pack is not None
        for _ in range(min(seat.training.points[0] - seat.run.step for seat in self._seats)):
            for seat in self._seats:
                seat.journal.begin()
            rates = [seat.run.learning_rate for seat in self._seats]
            with self._seats[0].run.matrix_precision():  # packs agree on it
                taken = take_pack_step(self._pack)
            for seat, rate, (loss, gradient_norm) in zip(self._seats, rates, taken, strict=True):
                if seat.name not in lost:
                    try:
                        seat.journal.took(rate, loss, gradient_norm)
                    except NonFiniteLoss as error:
                        lost[seat.name] = error
            if self._should_stop():
                return True
            if len(lost) == len(self._seats):
                return False
        return False

    def _join(self) -> None:
        """Make the pack of the trainings that are there now."""
        free_memory(self._device)  # of the one before
        starts = [training.start for training in self._trainings.values() if training.start is not None]
        assert len(starts) == len(self._trainings), "none of them is in a pack"
        self._pack = start_pack(starts, self._dataset, self._device)
        self._seats = [
            _Seat(name, training, run, self._journal(name, training, run))
            for (name, training), run in zip(self._trainings.items(), self._pack.runs, strict=True)
        ]
        for training in self._trainings.values():
            training.start = None  # it may be views of the pack before, whose memory would stay taken

    def _journal(self, name: str, training: _Training, run: TrainingRun[PackRow]) -> Journal:
        return Journal(run, training.out_dir, partial(self._on_step, name), len(self._trainings))

    def _part(self) -> None:
        """Take the pack apart; each training goes on from where it is."""
        for seat in self._seats:
            seat.training.start = Member.taken_from(seat.run)
            seat.journal.close()
        self._pack, self._seats = None, []
