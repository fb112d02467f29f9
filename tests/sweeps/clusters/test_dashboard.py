"""A dashboard is told the token only if it asks for it; what is not one is named. A small HTTP server stands in for it.

pytest tests/sweeps/clusters/test_dashboard.py     a few seconds
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from sweeps.clusters.dashboard import Dashboard, dashboard_address, exit_code, token_remark
from sweeps.clusters.submit import RUNNING_LINE, _Lines, check_out
from sweeps.execution.session import our_runtime_env
from training.errors import UserError

TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105 -- of a server that lives as long as a test


class Head(ThreadingHTTPServer):
    """Answers as Ray's dashboard does, with or without a token; or sends on, or is something else."""

    def __init__(self, *, wants_token: bool = False, sends_on_to: str | None = None, says: Any = None) -> None:
        self.wants_token, self.sends_on_to = wants_token, sends_on_to
        self.says = {"ray_version": "2.60.0", "version": "4"} if says is None else says
        self.told: list[str | None] = []
        """The Authorization of each request."""
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Head

    def do_GET(self) -> None:
        """Answer."""
        said = self.headers.get("Authorization")
        self.server.told.append(said)
        if self.server.sends_on_to:
            self.send_response(302)
            self.send_header("Location", self.server.sends_on_to)
        elif self.server.wants_token and said != f"Bearer {TOKEN}":
            self.send_response(403 if said else 401)
        else:
            self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.says).encode())

    def log_message(self, *_: Any) -> None:
        """Nowhere."""


@pytest.fixture
def heads() -> Iterator[list[Head]]:
    """Servers that end with the test."""
    started: list[Head] = []
    yield started
    for head in started:
        head.shutdown()
        head.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def serve(heads: list[Head], head: Head) -> Head:
    """Let it answer."""
    heads.append(head)
    threading.Thread(target=head.serve_forever, daemon=True).start()
    return head


def test_a_cluster_that_asks_is_told_the_token(heads: list[Head], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not RAY_AUTH_MODE is set here."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    head = serve(heads, Head(wants_token=True))
    dashboard = Dashboard(head.address)
    assert (dashboard.asks_for_token, dashboard.ray_version) == (True, "2.60.0")
    assert head.told[-1] == f"Bearer {TOKEN}"
    assert not dashboard.answers_without_token()
    assert token_remark(dashboard) is None


def test_a_cluster_that_does_not_ask_never_hears_it(heads: list[Head], monkeypatch: pytest.MonkeyPatch) -> None:
    """And that it asks for none is said."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    head = serve(heads, Head())
    dashboard = Dashboard(head.address)
    assert dashboard.answers_without_token()
    assert not any(head.told)
    assert "asks for no token" in str(token_remark(dashboard))


def test_ray_does_not_tell_it_by_itself(heads: list[Head]) -> None:
    """Which it would where RAY_AUTH_MODE is `token`; Ray reads that once, when its process starts."""
    head = serve(heads, Head())
    ask = "import sys; from sweeps.clusters.dashboard import Dashboard; Dashboard(sys.argv[1])"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    subprocess.run([sys.executable, "-c", ask, head.address], env=environment, check=True)  # noqa: S603 -- our own
    assert head.told
    assert not any(head.told)


@pytest.mark.parametrize(("token", "law"), [(None, "this machine has none"), ("wrong", "refuses this machine's token")])
def test_a_missing_or_wrong_token_is_named(
    heads: list[Head], monkeypatch: pytest.MonkeyPatch, token: str | None, law: str
) -> None:
    """With where it is looked for, and without what it is."""
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    head = serve(heads, Head(wants_token=True))
    with pytest.raises(UserError, match=law) as refused:
        Dashboard(head.address)
    assert "~/.ray/auth_token" in str(refused.value)
    assert "wrong" not in str(refused.value)


def test_the_token_goes_to_no_other_address(heads: list[Head], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends us on is named, and the other is not asked."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    other = serve(heads, Head())
    head = serve(heads, Head(sends_on_to=f"{other.address}/api/version"))
    with pytest.raises(UserError, match=f"sends on to {other.address}"):
        Dashboard(head.address)
    assert not other.told


@pytest.mark.parametrize("says", [[], {"hello": 1}, "text"])
def test_another_server_is_none(heads: list[Head], says: Any) -> None:
    """Whatever it answers."""
    with pytest.raises(UserError, match="must be the Ray dashboard's"):
        Dashboard(serve(heads, Head(says=says)).address)


def test_nobody_there_is_one_line() -> None:
    """With how a tunnel is opened."""
    with pytest.raises(UserError, match=r"must answer there: .* ray attach") as refused:
        Dashboard("http://127.0.0.1:1")
    assert "\n" not in str(refused.value)


def test_the_address_given_comes_before_the_environments() -> None:
    """And that of the dashboard before that of the cluster, as `ray job submit` has it."""
    environment = {"RAY_API_SERVER_ADDRESS": "http://b:8265/", "RAY_ADDRESS": "http://c:8265"}
    assert dashboard_address("http://a:8265", environment) == "http://a:8265"
    assert dashboard_address(None, environment) == "http://b:8265"
    assert dashboard_address(None, {"RAY_ADDRESS": "http://c:8265"}) == "http://c:8265"
    assert dashboard_address("head:8265", {}) == "http://head:8265"
    with pytest.raises(UserError, match="must be given"):
        dashboard_address(None, {})


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://head", "http://", "http://user:pw@head", "http://h:x"])
def test_another_kind_of_address_is_refused(address: str) -> None:
    """By its law."""
    with pytest.raises(UserError, match="must be the Ray dashboard's"):
        dashboard_address(address, {})


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, None, 1),
        (JobStatus.FAILED, 137, 1),
        (JobStatus.STOPPED, None, 1),
    ],
)
def test_a_jobs_end_is_a_code_of_ours(status: JobStatus, code: int | None, ours: int) -> None:
    """0 done, 2 the user can mend it, 1 anything else."""
    assert exit_code(SimpleNamespace(status=status, driver_exit_code=code)) == ours  # type: ignore[arg-type]


def test_a_log_is_told_in_whole_lines_from_where_the_job_begins() -> None:
    """However it is cut, without Ray's own words before it, and without the insides of a machine that was lost."""
    said: list[str] = []
    lines = _Lines(said.append)
    for text in (
        "Runtime env is set",
        f"ting up.\n{RUNNING_LINE} x: y\nfir",
        "st\n",
        "",
        "second\n   [state-dump] 0\nthi",
        "rd",
    ):
        lines.add(text)
    lines.end()
    assert said == ["first", "second", "third"]


@pytest.mark.parametrize("out", ["runs", "~/runs", "/mnt/../etc", "/mnt/ru\nns"])
def test_the_folder_of_runs_is_the_clusters(out: str) -> None:
    """A path that means something there."""
    with pytest.raises(UserError, match="--out"):
        check_out(out)


def test_what_is_sent_with_a_job_has_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows a job's variables to whoever may list jobs: none are sent, whatever stands here."""
    monkeypatch.setenv("HF_TOKEN", "canary")
    assert "env_vars" not in our_runtime_env()
    assert "canary" not in json.dumps(our_runtime_env())
