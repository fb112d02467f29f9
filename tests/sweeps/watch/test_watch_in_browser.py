"""Laws of the live page as its reader has it: it follows a run that grows, in headless Chromium.

pytest tests/sweeps/watch/test_watch_in_browser.py     half a minute
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains

from sweeps.watch.server import PageServer, open_page
from tests.sweeps.browser import DESKTOP, PHONE, Browser
from tests.sweeps.fake_run import build_run, write_stats

NUM_PLOTS = 7
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>'\"&amp;"


@contextmanager
def served(path: Path, **options: Any) -> Iterator[PageServer]:
    """A page server on a free port."""
    server = open_page(path, **{"port": 0, **options})
    server.start()
    try:
        yield server
    finally:
        server.close()


class GrowingRun:
    """A run of which a part is on disk already."""

    def __init__(self, run_dir: Path, whole: Path) -> None:
        self.dir, self._whole = run_dir, whole
        shutil.copytree(whole, run_dir)
        self.trials = sorted(file.parent.name for file in run_dir.glob("trials/*/trial.json"))
        self.trials.remove("base")
        for trial in self.trials:
            self.grow(trial, 0)

    def grow(self, trial: str, num_points: int, **changes: Any) -> None:
        """The trial has been scored so often by now; the ledger is written as a worker writes it."""
        record = json.loads((self._whole / "trials" / trial / "trial.json").read_text())
        status = {"status": record["status"] if num_points == len(record["checkpoints"]) else "running"}
        record = {**record, **status, **changes, "checkpoints": record["checkpoints"][:num_points]}
        file = self.dir / "trials" / trial / "trial.json"
        file.with_suffix(".new").write_text(json.dumps(record))
        file.with_suffix(".new").replace(file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it will have been."""
    return build_run(tmp_path_factory.mktemp("whole") / "ada", num_trials=4, images_per_prompt=2)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> GrowingRun:
    """The same at its start: the base model's scores, and four trials that have none."""
    return GrowingRun(tmp_path / "runs" / "ada", whole)


def rows_of(browser: Browser) -> set[tuple[str, str]]:
    """Trial and step of every row of the leaderboard."""
    rows = "[...document.querySelectorAll('#leaderboard tr[data-trial]')]"
    return {
        (trial, step) for trial, step in browser.run(f"return {rows}.map((r) => [r.dataset.trial, r.dataset.step])")
    }


def test_it_follows_a_run_from_its_first_score_to_its_end(browser: Browser, run: GrowingRun) -> None:
    """Without a reload: scores, plots and pictures come as the ledger has them, then a failure with its reason."""
    first, second, *_ = run.trials
    with served(run.dir) as server:
        browser.open(server.page_address)
        browser.run("window.wasNeverReloaded = true")
        browser.until_plots(2)  # of the training, which has no score yet
        assert "No champion yet" in browser.one("h1").text
        run.grow(first, 1)
        browser.until(lambda: (first, "200") in rows_of(browser), "the first score")
        browser.until_plots(NUM_PLOTS)
        assert not browser.all(".steps")  # one step needs no slider
        run.grow(first, 3)
        run.grow(second, 2)
        browser.until(lambda: {(first, "800"), (second, "400")} <= rows_of(browser), "the scores after it")
        plot = "document.getElementById('plot-face-over-steps')"
        assert {first, second} <= set(browser.run(f"return {plot}.data.flatMap((t) => t.customdata ?? [])"))
        run.grow(second, 2, status="failed", reason="the loss is not finite at step 437")
        browser.until(lambda: "at step 437" in browser.one("main").text, "the failure")
        assert browser.run("return window.wasNeverReloaded")
        assert browser.complaints() == []


def test_what_the_reader_has_set_outlasts_new_results(browser: Browser, run: GrowingRun) -> None:
    """The order of a table, an opened table, the slider and a plot's zoom."""
    first, second, *_ = run.trials
    run.grow(first, 3)
    run.grow(second, 2)
    with served(run.dir) as server:
        browser.open(server.page_address)
        browser.until_plots(NUM_PLOTS)
        browser.one("#leaderboard > .scroll th:nth-child(8) button").click()
        browser.run("document.querySelector('#leaderboard details').open = true")
        browser.run(
            "const slider = document.querySelector('.steps input'); slider.value = 0;"
            "slider.dispatchEvent(new Event('input', {bubbles: true}));"
        )
        area = browser.one("#plot-trade-off .nsewdrag")
        browser.run("arguments[0].scrollIntoView({block: 'center'})", area)
        axis = "return document.getElementById('plot-trade-off').layout.xaxis.range"
        whole_axis = browser.run(axis)
        drag = ActionChains(browser.driver).move_to_element_with_offset(area, -100, -60).click_and_hold()
        drag.move_by_offset(200, 120).release().perform()
        browser.until(lambda: browser.run(axis) != whole_axis, "the zoom")
        zoomed = browser.run(axis)
        run.grow(second, 3)
        browser.until(lambda: (second, "800") in rows_of(browser), "the new score")
        column = "#leaderboard > .scroll tbody td:nth-child(8)"
        values = [float(cell.get_attribute("data-value") or "nan") for cell in browser.all(column)]
        assert values == sorted(values, reverse=True)
        assert browser.one("#leaderboard details").get_attribute("open")
        assert {said.text for said in browser.shown("#pictures > .scroll .shown-step")} == {"step 200"}
        assert browser.run(axis) == zoomed


def test_a_page_whose_server_has_ended_keeps_what_it_shows_and_says_so(browser: Browser, run: GrowingRun) -> None:
    """And goes on when there is a server again."""
    first, second, *_ = run.trials
    run.grow(first, 3)
    with served(run.dir) as server:
        port = server.port
        browser.open(server.page_address)
        browser.until_plots(NUM_PLOTS)
        assert "live" in browser.one("#topline").text
    browser.until(lambda: "no answer" in browser.one("#topline").text, "the warning")
    assert (first, "800") in rows_of(browser)
    run.grow(second, 3)
    with served(run.dir, port=port):
        browser.until(lambda: (second, "800") in rows_of(browser), "what was scored meanwhile")
        browser.until(lambda: "no answer" not in browser.one("#topline").text, "the end of the warning")


def test_a_picture_is_enlarged_at_its_full_size(browser: Browser, tmp_path: Path) -> None:
    """In its place it is reduced; looked at from near by it is as it was made."""
    run_dir = build_run(tmp_path / "ada", num_trials=1, images_per_prompt=2, prompts=("a prompt",), size=512)
    with served(run_dir) as server:
        browser.open(server.page_address)
        image = browser.shown("#verdict img")[0]
        browser.until(lambda: browser.run("return arguments[0].naturalWidth", image) == 256, "a reduced picture")
        image.click()
        large = browser.one("dialog[open] img")
        browser.until(lambda: browser.run("return arguments[0].naturalWidth", large) == 512, "the whole picture")


def test_runs_of_a_folder_stand_side_by_side(browser: Browser, run: GrowingRun, whole: Path) -> None:
    """Each with its progress; a new one appears; they lead to their pages, and from there one comes back."""
    with served(run.dir.parent) as server:
        browser.open(server.page_address)
        assert [card.text for card in browser.all("section.run h2")] == ["ada"]
        shutil.copytree(whole, run.dir.parent / "another")
        browser.until(lambda: len(browser.all("section.run")) == 2, "the second run")
        assert "4 of" in browser.one("[id='run/another/']").text
        assert "interrupted" in browser.one("[id='run/ada/']").text  # for nobody drives it
        browser.one("[id='run/another/'] h2 a").click()
        browser.until_plots(NUM_PLOTS)
        browser.one("nav a").click()
        browser.until(lambda: len(browser.all("section.run")) == 2, "the way back")
        assert browser.complaints() == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_nothing_hostile_runs(browser: Browser, tmp_path: Path, size: tuple[int, int]) -> None:
    """Names of runs, trials and pictures, prompts and reasons stay letters, and their pictures are found."""
    runs = tmp_path / "runs"
    name = "<img src=x onerror=alert(1)>'\" #?%2e"
    run_dir = build_run(runs / name, num_trials=2, num_failed=1, prompts=[HOSTILE], images_per_prompt=2)
    for file in sorted(run_dir.glob("trials/*/trial.json")):
        record = json.loads(file.read_text())
        if record["method"] == "base":
            continue
        trial = f"{record['trial'][:4]}<b id=evil>'\" #?%2e{record['status']}"
        for checkpoint in record["checkpoints"]:
            checkpoint["images"] = checkpoint["images"].replace(record["trial"], trial)
        record["reason"] = HOSTILE if record["status"] == "failed" else None
        file.write_text(json.dumps(record))
        file.parent.rename(file.parent.with_name(trial))
    with served(runs) as server:
        browser.open(server.page_address, size)
        assert browser.one("section.run h2").text == name
        browser.one("section.run h2 a").click()
        browser.until_plots(NUM_PLOTS)
        width = "return arguments[0].naturalWidth"
        for image in browser.shown("#verdict img"):
            browser.run("arguments[0].scrollIntoView()", image)
            browser.until(lambda image=image: browser.run(width, image), "the picture")  # type: ignore[misc]
        assert HOSTILE in browser.one("#failures").text
        assert not browser.all("#evil, img[src=x]")
        assert "hacked" not in browser.driver.title
        assert browser.complaints() == []
        assert browser.run("return document.documentElement.scrollWidth") == size[0]


def test_learning_curves_grow_while_a_trial_trains(browser: Browser, run: GrowingRun) -> None:
    """Between two scores, from `stats.jsonl` alone."""
    trial = run.trials[0]
    last_step = (
        "return Math.max(...document.getElementById('plot-loss').data.flatMap("
        "(trace) => trace.x.filter((x, i) => trace.customdata[i] === arguments[0])))"
    )
    write_stats(run.dir, trial, 1e-4, range(1, 11))
    with served(run.dir) as server:
        browser.open(server.page_address)
        browser.until_plots(2)
        assert browser.run(last_step, trial) == 10
        write_stats(run.dir, trial, 1e-4, range(1, 21))
        browser.until(lambda: browser.run(last_step, trial) == 20, "the steps after it")
