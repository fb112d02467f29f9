"""Laws of the session of a run: the live page beside a Ray of its own, and nothing left behind.

pytest tests/sweeps/execution/test_session.py                  some seconds
pytest -m ray tests/sweeps/execution/test_session.py           half a minute, with a Ray and its dashboard
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import pytest
from rich.console import Console

from sweeps.execution import session
from sweeps.execution.ray_token import ray_token
from sweeps.execution.session import ray_session
from tests.sweeps.fake_run import build_run

OURS = ("RAY_GRAFANA_HOST", "RAY_GRAFANA_IFRAME_HOST", "RAY_PROMETHEUS_HOST")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray would have been started with: options and environment; none is."""
    starts: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        starts.append({**options, **{name: os.environ.get(name) for name in OURS}})
        return SimpleNamespace(dashboard_url="127.0.0.1:8265")

    for name in (*OURS, "RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(session, "_init_ray", init)
    monkeypatch.setattr(session, "check_cluster_answers", lambda _: None)
    return starts


@pytest.fixture
def console() -> Console:
    """Where a driver says things, kept."""
    return Console(file=io.StringIO(), width=200)


def said_on(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_ray_of_its_own_has_the_page_in_its_dashboard(
    started: list[dict[str, Any]], console: Console, tmp_path: Path
) -> None:
    """While the session lasts the page answers; Ray is told, and the environment is as it was."""
    run_dir = build_run(tmp_path / "ada", num_trials=1, images_per_prompt=1)
    with ray_session(None, console, run_dir):
        (address,) = re.findall(
            r"live page (http://127\.0\.0\.1:\d+/t/[\w-]{32}/run/ada/) \(and in the dashboard's", said_on(console)
        )
        assert urllib.request.urlopen(address).status == 200  # noqa: S310 -- the one that it said
    (start,) = started
    with_token = address.removesuffix("/run/ada/")
    root = with_token.partition("/t/")[0]
    assert [start[name] for name in OURS] == [root, with_token, root]
    assert not set(OURS) & set(os.environ)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)  # noqa: S310


def test_a_grafana_of_the_users_own_stays_in_the_dashboard(
    started: list[dict[str, Any]], console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is there all the same, at its address."""
    monkeypatch.setenv("RAY_GRAFANA_HOST", "http://grafana")
    with ray_session(None, console, tmp_path / "ada"):
        assert re.search(r"live page http://127\.0\.0\.1:\d+/t/[\w-]{32}/run/ada/\n", said_on(console))
    assert [started[0][name] for name in OURS] == ["http://grafana", None, None]
    assert os.environ["RAY_GRAFANA_HOST"] == "http://grafana"


def test_a_page_that_cannot_be_had_is_a_remark(
    started: list[dict[str, Any]], console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep does not end for want of a port."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with ray_session(None, console, tmp_path / "ada"):
        assert re.search("no live page: --port 8266 .*Permission denied", said_on(console))
    assert [started[0][name] for name in OURS] == [None, None, None]


def test_a_driver_of_a_cluster_serves_nothing(
    started: list[dict[str, Any]], console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how to look; the head may serve the page of all runs."""
    monkeypatch.setattr(session, "open_page", None)
    with ray_session("auto", console, tmp_path / "ada"):
        assert f"watch it with: dreamsweep watch {tmp_path / 'ada'}" in said_on(console)
    assert started[0]["address"] == "auto"


@pytest.mark.ray
@pytest.mark.slow
def test_rays_own_dashboard_shows_the_page(console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dashboard finds the page's server healthy, and gives the browser its address for the Metrics tab."""
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    run_dir = build_run(tmp_path / "ada", num_trials=1, images_per_prompt=1)
    with ray_session(None, console, run_dir):
        page, dashboard = (
            re.findall(rf"{what} (http://\S+)", said_on(console))[0] for what in ("live page", "dashboard")
        )
        grafana = ask_dashboard(f"{dashboard}/api/grafana_health")
        assert grafana["result"], grafana
        assert grafana["data"]["grafanaHost"] == page.removesuffix("/run/ada/")
        assert ask_dashboard(f"{dashboard}/api/prometheus_health")["result"]
        uid = grafana["data"]["dashboardUids"]["default"]
        shown = urllib.request.urlopen(f"{grafana['data']['grafanaHost']}/d/{uid}/?theme=dark&kiosk=1")  # noqa: S310
        assert shown.url == f"{page}?theme=dark"
        assert shown.status == 200
        (job,) = ask_dashboard(f"{dashboard}/api/jobs/")
        assert job["metadata"]["run"] == "ada", "what its Jobs page says of the driver"


def ask_dashboard(address: str, deadline_seconds: float = 60) -> Any:
    """What it answers, as soon as the part of it that does has started up."""
    token = ray_token(os.environ)
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
    give_up = time.monotonic() + deadline_seconds
    while True:
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                return json.load(answer)
        except HTTPError as error:
            if time.monotonic() > give_up:
                raise AssertionError(error.read()) from error
            time.sleep(1)  # between questions: nothing announces it
