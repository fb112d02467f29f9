"""The live page inside Ray's own dashboard, as a user has it before them. Ray promises nowhere that it works.

pytest tests/sweeps/execution/test_dashboard_in_browser.py     a minute; needs chromium
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.execution.session import ray_session
from tests.sweeps.browser import Browser, give_token
from tests.sweeps.fake_run import build_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]
METRICS_FRAME = "iframe[title='Core Dashboard']"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "ada", num_trials=4, num_running=1)


@pytest.fixture(scope="module")
def dashboard(run_dir: Path, browser: Browser) -> Iterator[str]:
    """Address of the dashboard of a Ray as `run` starts it, whose token the browser has given."""
    said = io.StringIO()
    with ray_session(None, Console(file=said, width=300), run_dir):
        address = re.findall(r"dashboard (http://[\d.:]+)", said.getvalue())[0]
        assert "in the dashboard's Metrics tab" in said.getvalue()
        browser.open(address)
        give_token(browser)
        yield address


def test_the_metrics_tab_is_the_runs_page(dashboard: str, browser: Browser, run_dir: Path) -> None:
    """With nothing set up: leaderboard, plots and pictures, and what is scored while one looks."""
    browser.open(f"{dashboard}/#/metrics")
    with browser.frame(METRICS_FRAME):
        browser.until_plots(7)
        assert browser.one("#topline b").text == "ada"
        image = browser.shown("#verdict img")[0]
        browser.until(lambda: browser.run("return arguments[0].naturalWidth", image), "a picture")
        assert browser.one("#underway")
        for file in run_dir.glob("trials/*/trial.json"):
            record = json.loads(file.read_text())
            file.write_text(json.dumps({**record, "status": "finished"}))
        browser.until(lambda: not browser.all("#underway"), "the end of the sweep")
    asked_by_ray = f"{dashboard}/api/v0/platform_events "  # how its page finds out that there is no Kubernetes
    assert [line for line in browser.complaints() if not line.startswith(asked_by_ray)] == []


def test_the_overview_has_the_run_in_brief(dashboard: str, browser: Browser) -> None:
    """Where Ray would show two plots of a Grafana: how far it is, and the best so far beside the base model."""
    browser.open(f"{dashboard}/#/overview")
    with browser.frame("iframe[title='Node Count']"):
        browser.until(lambda: "trials ended" in browser.one("body").text, "the progress")
    with browser.frame("iframe[title='Cluster Utilization']"):
        browser.until(lambda: "face similarity" in browser.one("body").text, "the best so far")
        assert len(browser.all("img")) == 2


def test_a_dark_dashboard_has_a_dark_page(dashboard: str, browser: Browser) -> None:
    """The theme that is chosen there is the page's."""
    browser.open(dashboard)
    browser.run("localStorage.setItem('themeMode', 'dark')")
    browser.open(f"{dashboard}/#/metrics")
    browser.driver.refresh()
    with browser.frame(METRICS_FRAME):
        browser.until_plots(7)
        assert browser.run("return document.documentElement.dataset.theme") == "dark"
