"""What a running sweep says on Ray's metrics port, for Prometheus: `ray_<name>`, a series a trial or a sweep.

Ray's metrics port answers anybody who can reach it. So labels are trial ids, statuses and an id of the sweep that tells
nobody its name.

Ray has no way to take a series back: each goes on with its last value until the process that set it ends, and some 20 s
longer, which is two of Prometheus' looks. In a process that lives on (a notebook), and in Prometheus' history,
`sweep_running` 0 marks what no sweep stands behind any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import TracebackType

from ray.util.metrics import Gauge

from sweeps.execution.live import Board
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from training.stats import StepStats

RECENT_STEPS = 20
"""Steps whose mean is the pace: enough to be smooth, few enough to show that a neighbour has slowed it down."""


def sweep_id(folder: RunFolder) -> str:
    """Eight hex digits, the same for every driver of a run: of its name and of its photos' contents.

    A hash of the name alone could be guessed, and the name may be a person's.
    """
    return hashlib.sha256(f"{folder.dir.name} {folder.identity()['photos']}".encode()).hexdigest()[:8]


class Gauges:
    """The sweep's series; as a context manager it says that the sweep runs, and at its end that it does not.

    A trial has `face_similarity`, `prompt_alignment` (of its newest checkpoint), `step`, and from a worker's first
    steps on `seconds_per_step` and `peak_memory_bytes`. A sweep has `best_face_similarity` (the champion's, none before
    there is one), `trials` by `status`, `trials_planned` and `sweep_running`.

    Args:
        sweep: its id, from `sweep_id`; the finalists' trainings with other seeds are a sweep of their own.
    """

    def __init__(self, sweep: str) -> None:
        self._tags = {"sweep": sweep}

        def per_trial(name: str, description: str) -> Gauge:
            return Gauge(name, description, tag_keys=("trial", "sweep"))

        def per_sweep(name: str, description: str) -> Gauge:
            return Gauge(name, description, tag_keys=("sweep",))

        self._face_similarity = per_trial("face_similarity", "Mean cosine to the reference face, newest checkpoint")
        self._prompt_alignment = per_trial("prompt_alignment", "Mean CLIP cosine to the prompt, newest checkpoint")
        self._step = per_trial("step", "Optimizer steps taken")
        self._seconds_per_step = per_trial("seconds_per_step", f"Mean of the newest {RECENT_STEPS} optimizer steps")
        self._peak_memory = per_trial("peak_memory_bytes", "The most that the trial's process has held: GPU, or RAM")
        self._best = per_sweep("best_face_similarity", "The champion's mean cosine to the reference face")
        self._trials = Gauge("trials", "Trials in each status", tag_keys=("status", "sweep"))
        self._planned = per_sweep("trials_planned", "Trials in all")
        self._running = per_sweep("sweep_running", "1 while the sweep's driver works, 0 when it has ended")

    def __enter__(self) -> Gauges:
        """The sweep runs."""
        self._running.set(1, self._tags)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It does not run any more: no trial has a worker, or waits for one."""
        for status in ("running", "waiting"):
            self._trials.set(0, {**self._tags, "status": status})
        self._running.set(0, self._tags)

    def set_scores(self, record: TrialRecord) -> None:
        """Publish a trial's newest scores, if it has any."""
        if record.checkpoints:
            tags = {**self._tags, "trial": record.trial}
            newest = record.checkpoints[-1]
            self._face_similarity.set(newest.face_similarity, tags)
            self._prompt_alignment.set(newest.prompt_alignment, tags)
            self._step.set(newest.step, tags)

    def set_pace(self, trial: str, steps: Sequence[StepStats]) -> None:
        """Publish how a trial's training goes; nothing where no step is known here."""
        if steps:
            tags = {**self._tags, "trial": trial}
            recent = steps[-RECENT_STEPS:]
            self._step.set(steps[-1].step, tags)
            self._seconds_per_step.set(sum(taken.seconds for taken in recent) / len(recent), tags)
            self._peak_memory.set(steps[-1].peak_memory_bytes, tags)

    def set_sweep(self, board: Board) -> None:
        """Publish how many trials are where, and the best so far."""
        self._planned.set(board.num_planned, self._tags)
        for status, count in board.num_by_status().items():
            self._trials.set(count, {**self._tags, "status": status})
        if (best := board.best()) is not None:
            self._best.set(best.checkpoint.face_similarity, self._tags)
