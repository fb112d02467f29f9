"""The Grafana dashboard against a real Prometheus that reads a real Ray session, with the files that Ray writes for it.

Grafana itself is not needed: every panel is a question to Prometheus, and each must have an answer.

    pytest -m ray tests/sweeps/execution/test_grafana.py     about a minute, most of it Ray's and Prometheus' intervals
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml

from sweeps.execution.gauges import Gauges
from sweeps.execution.live import Board, fill_board
from sweeps.ledger.folder import RunFolder
from sweeps.results.results import read_results
from tests.sweeps import fake_run
from training.stats import StepStats

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[3] / "examples" / "grafana"
DASHBOARD = json.loads((EXAMPLES / "dreamsweep.json").read_text(encoding="utf-8"))
SWEEP = "0123abcd"
NAME = "ada_lovelace"
SECONDS = 120
"""For an answer: Ray hands metrics on every 10 s and Prometheus asks every 10 s, on a machine that may be loaded."""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """A driver's board in the middle of a sweep."""
    run_dir = fake_run.build_run(
        tmp_path_factory.mktemp("runs") / NAME, num_failed=1, num_running=2, name=NAME, with_renders=False
    )
    config, folder = read_results(run_dir).config, RunFolder(run_dir)
    assert config is not None
    board = Board(config.name, config.champion, num_planned=9)
    fill_board(board, folder.base(), folder.trials())
    board.running = {trial for trial, record in board.records.items() if record.status == "running"}
    return board


@pytest.fixture(scope="module")
def published(board: Board) -> Iterator[None]:
    """The board on the metrics port of a Ray session of its own, whose folder has a short name for Ray's sockets."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs the program prometheus: apt-get install prometheus")
    import ray
    from ray.util.metrics import Gauge

    import sweeps.execution  # noqa: F401 -- it sets what Ray reads from the environment

    temp_dir = Path(tempfile.mkdtemp(prefix="ray-"))
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=True,
        object_store_memory=100_000_000,
        logging_level=logging.CRITICAL,
        log_to_driver=False,
        _temp_dir=str(temp_dir),
    )
    try:
        with Gauges(SWEEP) as gauges:
            for record in board.records.values():
                gauges.set_scores(record)
            for trial in board.running:
                gauges.set_pace(trial, [steps_of(trial)])
            gauges.set_sweep(board)
            Gauge("without_tags", "What Ray says of any gauge").set(1)
            yield
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


def steps_of(trial: str) -> StepStats:
    """A trial's newest optimizer step."""
    return StepStats(
        step=210, loss=0.1, learning_rate=1e-4, gradient_norm=1.0, seconds=0.5 + len(trial), peak_memory_bytes=7_000_000
    )


Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(published: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Prometheus, with the config that Ray's dashboard has written: `ask("query", query=...)`."""
    config = ray_session_dir() / "metrics" / "prometheus" / "prometheus.yml"
    poll(config.is_file, f"{config} to be written")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("prometheus")
    opener = build_opener(ProxyHandler({}))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(  # noqa: S603
            [
                str(shutil.which("prometheus")),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def call(what: str, **parameters: str) -> Any:
        assert server.poll() is None, (folder / "log").read_text()
        try:
            with opener.open(f"http://127.0.0.1:{port}/api/v1/{what}?{urlencode(parameters)}", timeout=30) as answer:
                return json.load(answer)["data"]
        except URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):  # it has only begun
                return []
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    try:
        yield call
    finally:
        server.terminate()
        server.wait(timeout=60)


def ray_session_dir() -> Path:
    """Folder of this process's Ray session."""
    from ray._private.worker import _global_node

    return Path(_global_node.get_session_dir_path())


def poll(answer: Callable[[], Any], what: str) -> Any:
    """The first answer that is one."""
    deadline = time.monotonic() + SECONDS
    while not (said := answer()):
        assert time.monotonic() < deadline, f"waited {SECONDS} s for {what}"
        time.sleep(0.2)
    return said


def value(ask: Ask, query: str) -> list[float]:
    """What Prometheus has to say now."""
    answer = ask("query", query=query)
    return sorted(float(series["value"][1]) for series in answer["result"]) if answer else []


def questions() -> Iterator[Any]:
    """Every panel's every query, with the variables that Grafana would fill in."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$sweep", SWEEP)
            assert "$" not in query
            yield pytest.param(query, id=f"{panel['title']} {target['refId']}")


@pytest.mark.parametrize("query", list(questions()))
def test_every_panel_has_data(ask: Ask, query: str) -> None:
    """From the gauges, over Ray's metrics port and the service discovery file that Ray writes, in Prometheus' words."""
    assert poll(lambda: value(ask, query), f"an answer to {query}")


def test_the_panels_say_what_the_board_says(ask: Ask, board: Board) -> None:
    """Numbers of a few of them."""
    first = {panel["title"]: panel["targets"][0]["expr"].replace("$sweep", SWEEP) for panel in DASHBOARD["panels"]}
    best = board.best()
    assert best is not None
    expected = {
        "Best so far": [best.checkpoint.face_similarity],
        "Trials by state": sorted(map(float, board.num_by_status().values())),
        "Steps per second by trial": sorted(1 / steps_of(trial).seconds for trial in board.running),
    }
    for title, numbers in expected.items():
        answer = poll(lambda query=first[title]: value(ask, query), title)  # type: ignore[misc]
        assert answer == pytest.approx(numbers), title


def test_the_sweep_is_found_by_its_variable(ask: Ask) -> None:
    """`label_values(metric, label)` is Grafana's; the metric and the label are ours."""
    (variable,) = [one for one in DASHBOARD["templating"]["list"] if one["name"] == "sweep"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
    found = poll(lambda: ask("series", **{"match[]": metric}), metric)
    assert {series[label] for series in found} == {SWEEP}


def test_labels_are_trial_ids_statuses_and_the_sweeps_id(ask: Ask, board: Board) -> None:
    """And what Ray says of the machine: anybody who reaches the metrics port reads them. No name, prompt or path."""
    for query in questions():
        poll(lambda query=query.values[0]: value(ask, query), "all series to be there")  # type: ignore[misc]
    (of_ray,) = poll(lambda: ask("series", **{"match[]": "ray_without_tags"}), "a gauge without labels of its own")
    found = ask("series", **{"match[]": '{sweep!=""}'})
    assert len({series["__name__"] for series in found}) == 9
    allowed = {"sweep": {SWEEP}, "trial": set(board.records), "status": set(board.num_by_status())}
    for series in found:
        for label, text in series.items():
            assert label in of_ray or text in allowed[label], (label, text)
            assert not re.search(rf"{NAME}|sks|woman|photos|ada\b", text)


def test_what_is_left_behind_is_marked(ask: Ask) -> None:
    """Ray goes on with every series while this process lives; that the sweep has ended stands beside them."""
    query = f'max(ray_sweep_running{{sweep="{SWEEP}"}})'
    with Gauges(SWEEP):
        poll(lambda: value(ask, query) == [1], "the sweep to run")
    poll(lambda: value(ask, query) == [0], "the sweep to have ended")


def test_the_dashboard_is_one_that_grafana_can_be_given() -> None:
    """Ids once, panels side by side, every query to the chosen data source; the provisioning file names a folder."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert {x for x, _ in cells} == set(range(24))
    sources = [panel["datasource"] for panel in panels] + [
        target["datasource"] for panel in panels for target in panel["targets"]
    ]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    (provider,) = yaml.safe_load((EXAMPLES / "dashboards.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"]
