"""What a run leaves in its folder, whoever takes its steps: a line of stats a step, and checkpoints.

Losses stay where they were computed until somebody must see them. On a GPU the host then runs ahead of it, as far as a
second; on a CPU there is nothing to wait for, and every step is written at once.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import Checkpoint, checkpoint_dir, save_checkpoint
from training.data_parallel import mean_over_processes
from training.errors import DivergedError
from training.files import remove_parts
from training.stats import STATS_FILE, StatsWriter, StepStats, peak_resident_bytes
from training.step import TrainingRun

SECONDS_UNREAD = 1.0
"""How long a GPU's losses may wait to be read."""


class NonFiniteLoss(DivergedError):  # noqa: N818 - it names what happened
    """Training ran away: the loss or a weight is infinite or not a number."""


@dataclass(frozen=True)
class _Taken:
    """A step that was taken, its numbers still on the device."""

    step: int
    learning_rate: float
    loss: Tensor
    gradient_norm: Tensor


class Journal:
    """Writes one run down.

    Of processes that share a run the first one writes; the others read the losses with it.

    Args:
        run: whose steps are taken by somebody else.
        out_dir: the run's folder, made if it is not there.
        on_step: called with (step, loss) for every step that is written.
        num_together: runs whose steps are taken in one: of their time each counts its part.
    """

    def __init__(
        self, run: TrainingRun[Any], out_dir: Path, on_step: Callable[[int, float], None], num_together: int = 1
    ) -> None:
        self._run = run
        self._out_dir = out_dir
        self._on_step = on_step
        self._num_together = num_together
        self._unread: list[_Taken] = []
        self._since = time.perf_counter()
        self._stats: StatsWriter | None = None
        if run.share.is_first:
            out_dir.mkdir(parents=True, exist_ok=True)
            remove_parts(out_dir)
            self._stats = StatsWriter(out_dir / STATS_FILE, run.step)

    def begin(self) -> None:
        """The run's next step begins: time since the last one was not its."""
        if not self._unread:
            self._since = time.perf_counter()

    def took(self, learning_rate: float, loss: Tensor, gradient_norm: Tensor) -> None:
        """A step was taken.

        Args:
            learning_rate: at which the UNet took it.
            loss: [] mean over the step's micro-steps, this process's.
            gradient_norm: [] of all gradients together, before clipping.

        Raises:
            NonFiniteLoss: of this step or one before that was not read yet.
        """
        self._unread.append(_Taken(self._run.step, learning_rate, loss, gradient_norm))
        may_wait = self._run.device.type == "cuda" and self._run.share.is_whole
        if not may_wait or time.perf_counter() - self._since > SECONDS_UNREAD:
            self.read()

    def read(self) -> None:
        """Wait for the device, and write down all steps that it has taken.

        Raises:
            NonFiniteLoss: of one of them; those before it are written.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        run = self._run
        numbers = torch.stack([torch.stack([taken.loss.double(), taken.gradient_norm.double()]) for taken in unread])
        rows = numbers.tolist()
        seconds = (time.perf_counter() - self._since) / len(unread) / self._num_together
        on_gpu = run.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(run.device) if on_gpu else peak_resident_bytes()
        for taken, (own_loss, gradient_norm) in zip(unread, rows, strict=True):
            loss = mean_over_processes(run.share, own_loss, run.device)
            if not math.isfinite(loss):
                raise NonFiniteLoss(f"training ran away: loss {loss} at step {taken.step}; lower learning_rate")
            if self._stats is not None:
                self._stats.append(
                    StepStats(
                        step=taken.step,
                        loss=loss,
                        learning_rate=taken.learning_rate,
                        gradient_norm=gradient_norm if math.isfinite(gradient_norm) else None,
                        seconds=seconds,
                        peak_memory_bytes=peak,
                    )
                )
            self._on_step(taken.step, loss)
        self._since = time.perf_counter()

    def checkpoint(self) -> Checkpoint:
        """What the run has come to: written by the process that writes, and the same in all.

        Raises:
            NonFiniteLoss: it has come to nothing.
            OSError: the run's folder has gone or its disk is full.
        """
        self.read()
        run = self._run
        weights = [parameter for group in run.weights.groups() for parameter in group]
        if not torch.stack([weight.isfinite().all() for weight in weights]).all():
            raise NonFiniteLoss(
                f"training ran away: weights that are no numbers at step {run.step}; lower learning_rate"
            )
        base_model = run.dataset.base_model
        if self._stats is None:
            folder = checkpoint_dir(self._out_dir, run.step)
            return Checkpoint(folder, run.config.method, run.step, base_model, run.config)
        self._stats.sync()  # first, so that no checkpoint is there without its steps
        if not self._out_dir.is_dir():  # a folder that was taken away is not made anew: nobody would look there
            raise FileNotFoundError(errno.ENOENT, "the folder of the checkpoints is gone", str(self._out_dir))
        return save_checkpoint(
            self._out_dir, run.config, run.weights.saved(), run.step, base_model, run.training_state()
        )

    def close(self) -> None:
        """Let go of the stats' file."""
        if self._stats is not None:
            self._stats.close()
