"""Work that is no trial's, on trial servers under Ray.

pytest tests/sweeps/execution/test_jobs.py
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from ray.exceptions import RayActorError, RayTaskError

from sweeps.execution.cluster import TrialResources
from sweeps.execution.jobs import MAX_LOSSES, do_jobs
from sweeps.execution.servers import TrialServers
from sweeps.execution.task import Job
from training.errors import UserError

pytestmark = pytest.mark.ray

ONE_CPU = TrialResources(1, 0)


def job(function: Callable[..., Iterator[str]], *arguments: object) -> Job:
    return Job(f"{__name__}:{function.__name__}", arguments)


@pytest.fixture
def servers(ray_session: None) -> Iterator[TrialServers]:
    """At most two."""
    with closing(TrialServers({"lora": ONE_CPU}, lambda: 2, lambda _: (), pack_size=8)) as servers:
        yield servers


def say_where(name: str) -> Iterator[str]:
    yield f"{name} begins"
    yield f"{os.getpid()}"


def be_struck_once(marks: Path, number: int) -> Iterator[str]:
    """The first time by a signal."""
    yield "begun"
    mark = marks / str(number)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), number)
    yield "ended"


def be_lost(marks: Path) -> Iterator[str]:
    yield "begun"
    (marks / f"{os.getpid()}").touch()
    os._exit(1)


def fail(error: Exception) -> Iterator[str]:
    yield "begun"
    raise error


def test_a_process_does_job_after_job_and_says_what_it_does(servers: TrialServers) -> None:
    """In order; what comes after the jobs finds the process, and what it has loaded, free."""
    said = [list(do_jobs([job(say_where, name)], servers, ONE_CPU)) for name in ("first", "second")]
    assert [lines[0] for lines in said] == ["first begins", "second begins"]
    assert said[0][1] == said[1][1]


def test_more_jobs_than_there_is_room_for_are_all_done(servers: TrialServers) -> None:
    said = list(do_jobs([job(say_where, str(number)) for number in range(5)], servers, ONE_CPU))
    assert sorted(line for line in said if line.endswith("begins")) == [f"{number} begins" for number in range(5)]
    processes = {line for line in said if not line.endswith("begins")}
    assert 1 <= len(processes) <= 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to end"])
def test_a_job_that_loses_its_server_is_done_again(servers: TrialServers, tmp_path: Path, number: int) -> None:
    *_, again, last = do_jobs([job(be_struck_once, tmp_path, number)], servers, ONE_CPU)
    assert (again, last) == ("begun", "ended")
    assert (tmp_path / str(number)).exists()


def test_a_job_that_takes_every_server_down_is_given_up(servers: TrialServers, tmp_path: Path) -> None:
    with pytest.raises(RayActorError):
        list(do_jobs([job(be_lost, tmp_path)], servers, ONE_CPU))
    assert len(list(tmp_path.iterdir())) == MAX_LOSSES + 1
    first, _ = do_jobs([job(say_where, "next")], servers, ONE_CPU)
    assert first == "next begins"


def test_a_users_mistake_is_told_as_it_is(servers: TrialServers) -> None:
    with pytest.raises(UserError, match=r"^no such face$"):
        list(do_jobs([job(fail, UserError("no such face"))], servers, ONE_CPU))
    with pytest.raises(RayTaskError, match="broken"):
        list(do_jobs([job(fail, ValueError("broken"))], servers, ONE_CPU))
