"""A sweep's work that is no trial's: what all trials share, and renders. Trial servers do it, before and after trials.

So it costs no process of its own, and what it had to load is there when trials begin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from sweeps.execution.cluster import TrialResources
from sweeps.execution.ends import Preempted
from sweeps.execution.servers import TrialServers
from sweeps.execution.task import Job
from training.errors import UserError

MAX_LOSSES = 3
"""Servers that a job may lose, each with its machine or told to end, before it is given up."""
SECONDS_TO_LOOK = 1.0
"""At the latest, the driver looks again for servers that are up."""


def do_jobs(jobs: Sequence[Job], servers: TrialServers, resources: TrialResources) -> Iterator[Any]:
    """Have jobs done, as many at one time as there is room for.

    Args:
        jobs: in the order in which they are begun.
        servers: the sweep's.
        resources: what each job needs.

    Yields:
        What they say.

    Raises:
        UserError: a job's own; the others are not waited for.
        RayTaskError: another failure of a job.
        RayActorError: a job has lost one server after another.
    """
    waiting = deque((f"job {number}", job, 0) for number, job in enumerate(jobs))
    running: dict[Any, tuple[str, Job, int]] = {}
    while waiting or running:
        while waiting and (handle := servers.lend(waiting[0][0], resources, len(waiting))) is not None:
            said = handle.do.remote(waiting[0][1])
            running[said] = waiting.popleft()
        answers = [*running, *(servers.coming() if waiting else [])]
        for said in ray.wait(answers, timeout=SECONDS_TO_LOOK)[0] if answers else []:
            if said not in running:  # a server that is up now
                continue
            name, job, losses = running[said]
            try:
                yield ray.get(next(said))
                continue
            except StopIteration:
                pass
            except (RayTaskError, RayActorError) as error:
                cause = error.cause if isinstance(error, RayTaskError) else error
                if isinstance(cause, UserError):
                    raise cause from None
                if not isinstance(cause, RayActorError | Preempted) or losses == MAX_LOSSES:
                    raise
                waiting.append((name, job, losses + 1))
            del running[said]
            servers.take_back(name)
