"""Ray's dashboard, asked over HTTP: its jobs, their logs, and files that lie in a machine's log folder.

It is the one address of a cluster that a laptop can reach, through a tunnel.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from sweeps.clusters.there import ENTRYPOINT, JOB_FILE
from sweeps.execution.ray_token import TOKEN_SOURCES, ray_token
from sweeps.execution.session import our_runtime_env
from sweeps.wording import failure_text
from training.errors import UserError

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Where `ray job submit` looks too, in its order."""
SECONDS_TO_ANSWER = 30.0
SECONDS_TO_START = 120.0
"""How long a head that has just started may lack the agent that takes jobs."""
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_TICKS = 2.0
SECONDS_TO_NOTICE = 3.0
"""Until Ray's own watch over a job that has ended ends too: deleted before, it would be listed again, as failed."""
TRIES = 30
"""How often a log that cannot be followed is asked for again, two seconds apart: a laptop changes its network."""
BYTES_AT_ONCE = 2**20
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_NO_AGENT = ("No available agent", "head node agent", "Agent info not found")
_Asked = asyncio.Future[str | None] | None


class _NoRedirects(HTTPRedirectHandler):
    """The token goes to the address that was given, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def dashboard_address(address: str | None, environment: Mapping[str, str]) -> str:
    """The dashboard's root without a slash at its end.

    Args:
        address: as it was given; None is what the environment says.
        environment: where `ray job submit` looks.

    Raises:
        UserError: there is none, or it is of another kind.
    """
    named = [address, *(environment.get(name) for name in ADDRESS_VARIABLES)]
    given = next((each for each in named if each), None)
    if given is None:
        raise UserError(
            "--address: must be given, or stand in RAY_API_SERVER_ADDRESS: the Ray dashboard's, such as "
            "http://127.0.0.1:8265 through a tunnel"
        )
    if given == "auto":
        return _address_of_this_machines_cluster()
    with_scheme = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(with_scheme)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or parts.username or parts.query:
        raise UserError(f"--address {given}: must be the Ray dashboard's, such as http://127.0.0.1:8265, or auto")
    return with_scheme.rstrip("/")


def _address_of_this_machines_cluster() -> str:
    from ray.dashboard.utils import ray_address_to_api_server_url

    try:
        return str(ray_address_to_api_server_url("auto"))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--address auto: a Ray cluster must run on this machine: {failure_text(error)}") from None


class Dashboard:
    """A dashboard that has answered.

    The token is sent only to one that asks for it.

    Args:
        address: from `dashboard_address`.

    Raises:
        UserError: nothing answers there, or it does not take our token.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._opener = build_opener(_NoRedirects)
        self._headers: dict[str, str] = {}
        version, self.asks_for_token = self._ask_version(), False
        if version is None:
            self.asks_for_token = True
            token = ray_token(os.environ)
            if token is None:
                raise UserError(
                    f"--address {address}: the cluster asks for a token, and this machine has none; its own must stand "
                    f"in {TOKEN_SOURCES}"
                )
            self._headers = {"Authorization": f"Bearer {token}"}
            version = self._ask_version()
            if version is None:
                raise UserError(
                    f"--address {address}: the cluster refuses this machine's token; its own must stand in "
                    f"{TOKEN_SOURCES}"
                )
        self.ray_version = version
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        with _environment_with(ADDRESS_VARIABLES[0], address), self._answering():  # Ray prefers it to what it is given
            # Ray adds a token of its own accord where RAY_AUTH_MODE says so, unless there is a header of that name.
            self._client = JobSubmissionClient(address, headers=self._headers or {"Authorization": ""})

    # --- jobs

    def submit(self, entrypoint: str, runtime_env: dict[str, Any], job: str, metadata: dict[str, str]) -> None:
        """Upload what the environment names, and start a job.

        Args:
            entrypoint: a shell command; everybody who may ask for the jobs sees it.
            runtime_env: Ray's; its folders are sent.
            job: its submission id.
            metadata: as visible as the entrypoint.

        Raises:
            UserError: the dashboard does not answer, or the head takes no jobs.
        """
        give_up = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                with self._answering():
                    self._client.submit_job(
                        entrypoint=entrypoint, runtime_env=runtime_env, submission_id=job, metadata=metadata
                    )
                    return
            except RuntimeError as error:
                if not any(sign in str(error) for sign in _NO_AGENT):
                    raise
                if time.monotonic() > give_up:
                    raise UserError(
                        f"--address {self.address}: the head's agent, which takes jobs, must run, and did not for "
                        f"{SECONDS_TO_START:g} s; its port 52365 may be taken: see dashboard_agent.log there"
                    ) from None
                time.sleep(1)

    def jobs(self) -> list[JobDetails]:
        """All that were submitted."""
        with self._answering():
            return [job for job in self._client.list_jobs() if job.submission_id]

    def job(self, job: str) -> JobDetails:
        """What is known of one."""
        with self._answering():
            return self._client.get_job_info(job)

    def wait(self, job: str, until: Callable[[JobDetails], bool] = lambda _: False) -> JobDetails:
        """Until it has ended, or something else is so."""
        while True:
            details = self.job(job)
            if details.status.is_terminal() or until(details):
                return details
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def log(self, job: str) -> str:
        """All that it has printed."""
        with self._answering():
            return str(self._client.get_job_logs(job))

    def stop_and_forget(self, job: str) -> None:
        """End it, and take it off the list."""
        with self._answering():
            if not self.job(job).status.is_terminal():
                self._client.stop_job(job)
                self.wait(job)
            time.sleep(SECONDS_TO_NOTICE)
            self._client.delete_job(job)

    def follow(self, job: str) -> Iterator[str]:
        """What it prints, as it comes, to its end; an empty text every other second when it is silent.

        A connection that breaks is made again.

        Raises:
            UserError: the dashboard does not answer any more.
        """
        num_shown, num_failed = 0, 0
        while True:
            num_seen = 0
            try:
                for text in self._tail(job):
                    new = text[max(0, num_shown - num_seen) :]
                    num_seen += len(text)
                    num_shown, num_failed = max(num_shown, num_seen), 0
                    yield new
                if self.job(job).status.is_terminal():
                    return
            except (OSError, RuntimeError, aiohttp.ClientError, UserError) as error:
                num_failed += 1
                if num_failed == TRIES:
                    raise UserError(
                        f"--address {self.address}: Ray's dashboard does not answer any more: {failure_text(error)}; "
                        f"the job goes on there, it is {job}"
                    ) from None
            time.sleep(SECONDS_BETWEEN_TICKS)

    def _tail(self, job: str) -> Iterator[str]:
        lines: AsyncIterator[str | None] = self._client.tail_job_logs(job)

        async def next_lines(asked: _Asked) -> tuple[str | None, _Asked]:
            asked = asked or asyncio.ensure_future(anext(lines, None))
            done, _ = await asyncio.wait({asked}, timeout=SECONDS_BETWEEN_TICKS)
            return ("", asked) if not done else (asked.result(), None)

        with asyncio.Runner() as runner:
            asked: _Asked = None
            try:
                while True:
                    text, asked = runner.run(next_lines(asked))
                    if text is None:
                        return
                    yield text
            finally:
                if asked is not None:
                    asked.cancel()

    # --- files

    def has_file(self, node_id: str, name: str) -> bool:
        """Is there such a file in the machine's log folder?"""
        with self._answering():
            answer = json.load(self._ask("/api/v0/logs", node_id=node_id, glob=name))
        return name in {each for names in answer["data"]["result"].values() for each in names}

    def read_file(self, node_id: str, name: str) -> bytes:
        """The whole of a small one."""
        with self._answering():
            return b"".join(self.stream_file(node_id, name))

    def stream_file(self, node_id: str, name: str) -> Iterator[bytes]:
        """A file of a machine's log folder, or that a link in it leads to, as its bytes are.

        Raises:
            OSError: it is not there, or the connection broke.
        """
        # `lines=-1` is all of it; Ray's own timeout is for the whole answer, and a large file takes long.
        with self._ask("/api/v0/logs/file", node_id=node_id, filename=name, lines=-1, timeout=86_400) as answer:
            try:
                while block := answer.read(BYTES_AT_ONCE):
                    yield block
            except HTTPException as error:  # which is no OSError
                raise OSError(f"the connection broke: {failure_text(error)}") from None

    # --- HTTP

    def answers_without_token(self) -> bool:
        """Does it tell its jobs to anybody?"""
        try:
            with self._opener.open(f"{self.address}/api/jobs/", timeout=SECONDS_TO_ANSWER):
                return True
        except HTTPError as error:
            return error.code not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)

    def _ask_version(self) -> str | None:
        """Ray's version there; None where it wants a token, or another one."""
        try:
            with self._ask("/api/version") as answer:
                return str(json.load(answer)["ray_version"])
        except HTTPError as error:
            if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                return None
            elsewhere = error.headers.get("Location")
            what = f"it sends on to {elsewhere}; name that" if elsewhere else f"got {error.code} {error.reason}"
            raise UserError(f"--address {self.address}: must be the Ray dashboard's: {what}") from None
        except (ValueError, KeyError, TypeError, HTTPException):
            raise UserError(
                f"--address {self.address}: must be the Ray dashboard's, and what answers there is not"
            ) from None
        except OSError as error:
            raise UserError(
                f"--address {self.address}: Ray's dashboard must answer there: {failure_text(error)}; a tunnel to the "
                "head is opened with: ray attach cluster.yaml -p 8265 -p 8266"
            ) from None

    def _ask(self, path: str, **query: object) -> HTTPResponse:
        asked = f"?{urlencode(query)}" if query else ""
        request = Request(f"{self.address}{path}{asked}", headers=self._headers)  # noqa: S310 -- http or https alone
        answer: HTTPResponse = self._opener.open(request, timeout=SECONDS_TO_ANSWER)
        return answer

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """While this lasts, a dashboard that does not answer any more is the user's to mend."""
        try:
            yield
        except AuthenticationError:
            raise UserError(f"--address {self.address}: the cluster refuses this machine's token") from None
        except OSError as error:
            raise UserError(f"--address {self.address}: Ray's dashboard must answer: {failure_text(error)}") from None


def start_there(
    dashboard: Dashboard, job: str, task: str, asked: Mapping[str, Any], folder: Path, metadata: Mapping[str, str]
) -> None:
    """Start one of `there`'s tasks as a job; what it is asked lies in its folder, so that no list of jobs shows it.

    Args:
        dashboard: the cluster's.
        job: its submission id, which must be new.
        task: `sweep`, `shelf` or `checks`.
        asked: its arguments, as JSON has them.
        folder: what is sent besides; it becomes the job's working directory.
        metadata: what everybody may see who may see jobs.

    Raises:
        UserError: the dashboard does not answer.
    """
    # The job's id makes every folder another one to Ray: each may be emptied when its job ends.
    content = json.dumps({"task": task, "job": job, **asked})
    (folder / JOB_FILE).write_text(content, encoding="utf-8")
    (folder / JOB_FILE).chmod(0o600)
    environment = {**our_runtime_env(), "working_dir": str(folder)}
    dashboard.submit(ENTRYPOINT, environment, job, {"dreamsweep": version("dreamsweep"), **metadata})


def exit_code(details: JobDetails) -> int:
    """The code that a job has ended with, as `dreamsweep` has them: 0 done, 2 the user can mend it, 1 anything else."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return 2 if details.driver_exit_code == 2 else 1


def token_remark(dashboard: Dashboard) -> str | None:
    """What to mind where a cluster takes anybody's jobs."""
    if dashboard.asks_for_token:
        return None
    return (
        f"{dashboard.address} asks for no token: whoever reaches it can run anything on the cluster and read its runs; "
        "start Ray with RAY_AUTH_MODE=token"
    )


@contextmanager
def _environment_with(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
