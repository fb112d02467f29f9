"""A trial server: one long-lived process a GPU or CPU slot, which computes for one trial or pack after another.

It also does what is done once a sweep, before and after its trials (`jobs.py`).

It keeps what is dear to have: the imports, the base model's frozen modules, the judges, prompts' embeddings. A trial is
a light process of its own, which has a name on the dashboard, writes the ledger and asks its server for scored
checkpoints (`Seat`). The server's methods run one at a time, on its main thread: a trial that cannot have its answer
yet is told so at once, and asks again (docs/design/016-packs.md).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from sweeps.execution.ends import Preempted
from sweeps.execution.machines import this_machine
from sweeps.execution.task import Job, WorkerRecipe
from sweeps.ledger.records import ScoredCheckpoint
from training.share import ALONE

POLL_SECONDS = 0.05
"""Between two questions of a trial that must ask again; while its server trains, the question waits there."""


@dataclass(frozen=True)
class ServerAddress:
    """A server that is up."""

    handle: Any
    """Ray's, of the actor."""
    pid: int
    machine: str
    """Address of its machine."""
    node_id: str


class TrialServer:
    """Computes for the trials of one unit of work at a time: a single trial, or a pack."""

    def __init__(self) -> None:
        self._unit: Any = None
        self._is_busy = self._does_a_job = self._must_stop = self._is_broken = False
        signal.signal(signal.SIGTERM, self._heed)

    def address(self) -> tuple[int, str, str]:
        """Process id, machine, and Ray's name of the machine.

        Raises:
            Preempted: the machine goes; nothing more is begun here.
            RuntimeError: an error of the GPU has spoilt this process.
        """
        self._refuse_if_going()
        if self._is_broken:
            raise RuntimeError("an error of the GPU has spoilt this process")
        here = this_machine()
        return os.getpid(), str(here["machine"]), str(here["node_id"])

    def seat(self, members: tuple[str, ...], recipe: WorkerRecipe) -> None:
        """Take a trial's place in a unit of work.

        Args:
            members: the trials of its pack in the order of their rows; none where it is alone.
            recipe: opens its worker.
        """
        self._refuse_if_going()
        from sweeps.execution.pack import LoneTrial, PackOfTrials  # heavy

        if self._unit is None or self._unit.is_empty:
            self._unit = PackOfTrials(members) if members else LoneTrial()
        self._unit.join(recipe.trial, recipe.open(ALONE))

    def next_of(self, trial: str) -> ScoredCheckpoint | None:
        """As of `PackOfTrials`."""
        self._refuse_if_going()
        self._is_busy = True
        try:
            with self._noticing_a_spoilt_process():
                answer: ScoredCheckpoint | None = self._unit.next_of(trial)
                return answer
        finally:
            self._is_busy = False

    def do(self, job: Job) -> Iterator[Any]:
        """Work that is no trial's.

        Raises:
            Preempted: the machine goes.
            Exception: whatever the job raises.
        """
        self._refuse_if_going()
        self._does_a_job = True
        try:
            with self._noticing_a_spoilt_process():
                yield from job.do()
        finally:
            self._does_a_job = False

    def part(self, trial: str) -> None:
        """As of `PackOfTrials`; a trial that has left may be late with it."""
        if self._unit is not None:
            self._unit.part(trial)

    def leave(self, trial: str) -> None:
        """As of `PackOfTrials`; a trial that never took its place may leave, too."""
        if self._unit is not None:
            self._unit.leave(trial)

    def _heed(self, *_: object) -> None:
        self._must_stop = True
        if self._does_a_job:
            self._refuse_if_going()
        if self._is_busy:
            self._unit.stop()

    @contextmanager
    def _noticing_a_spoilt_process(self) -> Iterator[None]:
        """After an error of CUDA its context is of no use: whoever looks for a free server finds none here."""
        try:
            yield
        except Exception as error:  # whatever it is: it is looked at and goes on its way
            self._is_broken |= type(error).__name__ == "AcceleratorError"
            raise

    def _refuse_if_going(self) -> None:
        if self._must_stop:
            raise Preempted("told to end between two checkpoints")

    def __repr__(self) -> str:
        """Ray shows it for the actor and its tasks; trials have names of their own."""
        return "trial server"


class Seat:
    """A trial's place on a server, with the methods of a worker of its own.

    Args:
        server: on this very machine.
        members: of the trial's pack, in the order of their rows; none where it is alone.
        recipe: how its worker is opened there.

    Raises:
        RayActorError: the server was lost.
        Preempted: its machine goes.
    """

    def __init__(self, server: ServerAddress, members: tuple[str, ...], recipe: WorkerRecipe) -> None:
        self._server, self._trial = server, recipe.trial
        _answer(server.handle.seat.remote(members, recipe))

    def score_next(self) -> ScoredCheckpoint:
        """All of the next scoring point.

        Raises:
            RayActorError: the server was lost.
            Exception: whatever `TrialWorker.score_next` raises.
        """
        while True:
            scored: ScoredCheckpoint | None = _answer(self._server.handle.next_of.remote(self._trial))
            if scored is not None:
                return scored
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Let the server hear of it: it saves, and all its trials are told."""
        os.kill(self._server.pid, signal.SIGTERM)

    def close(self) -> None:
        """Let go of what was trained; the server does so when it comes to it."""
        self._server.handle.part.remote(self._trial)


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
