"""A trial's workers as one, where several share it: one failure ends all of them, and nothing waits in a collective.

They are Ray Train's worker group and Ray Train's set-up of torch's process group, inside the placement group that Tune
made for the trial. `TorchTrainer` itself would reserve a placement group of its own beside Tune's, and report, save and
restart by itself: the trial would be known to Ray twice, and the ledger would have two writers
(docs/design/014-several-workers.md).

The trial calls its workers for one piece of work after the other and waits for all answers; so they meet in
collectives while they train, and never between.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.train._internal.worker_group import WorkerGroup  # what it is given, `TorchConfig` takes; there is no other
from ray.train.torch import TorchConfig

from sweeps.execution.cluster import TrialResources
from sweeps.execution.ends import heeding_sigterm
from sweeps.execution.worker import TrialWorker
from sweeps.ledger.records import ScoredCheckpoint
from training.share import Share

SECONDS_TO_FAIL = 10.0
"""From the first worker's failure: those that it cut off say so at once, and that one was lost is known by then."""


class WorkerActor:
    """One of a trial's workers in a process of its own, on the device that Ray gave it."""

    def open(self, open_worker: Callable[[Share], TrialWorker], share: Share, name: str) -> None:
        """Be this worker; it begins with its first piece of work."""
        self._name = f"{name} {share.rank + 1}/{share.world_size}"
        self._worker = open_worker(share)
        self._stop = self._worker.stop
        if not share.is_first:  # which saves what all have: until it has, none may leave
            self._stop = lambda: None
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def pid(self) -> int:
        """Of this process, on the trial's own machine."""
        return os.getpid()

    def reach_next(self) -> None:
        """As the worker's."""
        with heeding_sigterm(self._stop):
            self._worker.reach_next()

    def make_pictures(self) -> None:
        """As the worker's."""
        with heeding_sigterm(self._stop):
            self._worker.make_pictures()

    def score(self) -> ScoredCheckpoint:
        """As the worker's."""
        with heeding_sigterm(self._stop):
            return self._worker.score()

    def __repr__(self) -> str:
        """`lora_r16_lr1e-4 2/4`: Ray shows it for the actor, its tasks and its log lines."""
        return getattr(self, "_name", "worker")


class TrialWorkers:
    """All workers of a trial, with the methods of one.

    Args:
        open_worker: makes each of them, given its share.
        resources: of the trial.
        name: of the trial, on the dashboard.

    Raises:
        RayActorError: a worker's process could not be started, or has died.
    """

    def __init__(self, open_worker: Callable[[Share], TrialWorker], resources: TrialResources, name: str) -> None:
        each = resources.of_a_worker
        # Tune lets what a trial starts inherit its placement group.
        self._group = WorkerGroup(resources.workers, {"CPU": each.cpus, "GPU": each.gpus}, actor_cls=WorkerActor)
        torch_config = TorchConfig(init_method="tcp")  # no variables in the workers' environment for libraries to find
        torch_config.backend_cls().on_start(self._group, torch_config)
        shares = [Share(rank, resources.workers) for rank in range(resources.workers)]
        self._answers("open", [(open_worker, share, name) for share in shares])
        (self._first_pid,) = self._answers("pid", [()])

    def score_next(self) -> ScoredCheckpoint:
        """All of the next scoring point. The first worker scores, and has written the checkpoint.

        Raises:
            RayActorError: a worker or its machine was lost.
            Exception: whatever `TrialWorker.score_next` raises, of the worker that raised it first.
        """
        self._answers("reach_next")
        self._answers("make_pictures")
        scored: ScoredCheckpoint = self._answers("score", [()])[0]
        return scored

    def stop(self) -> None:
        """Let the first worker hear of it: it saves, its failure ends the others."""
        os.kill(self._first_pid, signal.SIGTERM)

    def close(self) -> None:
        """End the workers' processes, whatever they wait for."""
        self._group.shutdown(patience_s=0)

    def _answers(self, method: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """What each worker answers, or the first ones where there are arguments for no more."""
        arguments = arguments if arguments is not None else [()] * len(self._group)
        actors = [worker.actor for worker in self._group.workers[: len(arguments)]]
        answers = [getattr(actor, method).remote(*given) for actor, given in zip(actors, arguments, strict=True)]
        waiting = answers
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            try:
                ray.get(done)
            except (RayTaskError, RayActorError) as first:
                raise _root_of(first, waiting) from first
        return ray.get(answers)  # type: ignore[no-any-return]


def _root_of(first: RayTaskError | RayActorError, waiting: Sequence[Any]) -> Exception:
    """The failure that the first one comes from.

    A worker whose collective was cut off by another one's end raises a plain RuntimeError; what that other one has to
    say may come after it.
    """
    causes = [_cause_of(first)]
    if type(causes[0]) is RuntimeError and waiting:
        others, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=SECONDS_TO_FAIL)
        for answer in others:
            try:
                ray.get(answer)
            except (RayTaskError, RayActorError) as error:
                causes.append(_cause_of(error))
    lost = [cause for cause in causes if isinstance(cause, RayActorError)]
    told = [cause for cause in causes if type(cause) is not RuntimeError]
    return (lost or told or causes)[0]


def _cause_of(error: RayTaskError | RayActorError) -> Exception:
    cause: Exception = error.cause if isinstance(error, RayTaskError) else error
    return cause
