"""Laws of report.html as its reader has it: in headless Chromium, from the file, on a desktop and on a phone.

pytest tests/sweeps/report/test_report_in_browser.py     half a minute
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from sweeps.report.page import write_report
from sweeps.results.results import read_results
from tests.sweeps.browser import DESKTOP, PHONE, Browser
from tests.sweeps.fake_run import build_run

HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>'\"&amp;"
NUM_PLOTS = 7


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = build_run(tmp_path_factory.mktemp("runs") / "ada", num_trials=6, num_failed=1)
    write_report(run_dir)
    return run_dir


@pytest.fixture
def page(browser: Browser, run_dir: Path) -> Browser:
    """The report, its plots drawn."""
    browser.asked_for()
    browser.open((run_dir / "report.html").as_uri())
    browser.until_plots(NUM_PLOTS)
    return browser


def test_it_draws_its_plots_and_asks_the_network_for_nothing(page: Browser, run_dir: Path) -> None:
    """The policy lets both scripts run and nothing else; no plot offers to send its data away."""
    assert page.complaints() == []
    assert page.asked_for() == [(run_dir / "report.html").as_uri()]
    buttons = page.run("return [...document.querySelectorAll('.modebar-btn')].map((b) => b.dataset.title)")
    assert set(buttons) == {"Download plot", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}


def test_every_point_lies_within_its_plots_axes(page: Browser) -> None:
    """With limits of its own, an axis can lose what it should show."""
    outside = page.run(
        """
        const plots = [...document.querySelectorAll('.js-plotly-plot')];
        const isOutside = (plot, axis, value) => {
          const { type, range } = plot.layout[axis];
          const place = type === 'log' ? Math.log10(value) : value;
          return place < range[0] || place > range[1];
        };
        return plots.flatMap((plot) => plot.data.flatMap((trace) => trace.x
          .map((x, i) => [plot.id, x, trace.y[i]])
          .filter(([_, x, y]) => y !== null && (isOutside(plot, 'xaxis', x) || isOutside(plot, 'yaxis', y)))));
        """
    )
    assert outside == []


def test_a_point_says_what_it_is_and_leads_to_its_trial(page: Browser, run_dir: Path) -> None:
    """Hovering shows both scores; a click brings the trial's row into sight."""
    champion = read_results(run_dir).champion.row
    assert champion is not None
    page.run(
        "const plot = document.getElementById('plot-trade-off'); plot.scrollIntoView({block: 'center'});"
        "const curve = plot.data.findIndex((t) => t.customdata?.includes(arguments[0]) && t.hoverinfo !== 'skip');"
        "const point = plot.data[curve].x.indexOf(arguments[1]);"
        "Plotly.Fx.hover(plot, [{curveNumber: curve, pointNumber: point}]);",
        champion.trial,
        champion.prompt_alignment,
    )
    said = page.one("#plot-trade-off .hoverlayer .hovertext").text
    for part in (champion.trial, f"{champion.face_similarity:.3f}", f"{champion.prompt_alignment:.3f}"):
        assert part in said
    click(page, "plot-trade-off", champion.trial)
    row = page.one("#leaderboard > .scroll tr.is-target")
    assert row.get_attribute("data-trial") == champion.trial
    in_sight = "const r = arguments[0].getBoundingClientRect(); return r.top > 0 && r.bottom < innerHeight"
    page.until(lambda: page.run(in_sight, row), "the row")


def test_a_trial_without_a_score_is_found_as_well(page: Browser, run_dir: Path) -> None:
    """From its learning curve to why it failed."""
    (failed,) = [trial.trial for trial in read_results(run_dir).trials if trial.status == "failed"]
    assert failed in page.run("return document.getElementById('plot-loss').data.flatMap((t) => t.customdata)")
    click(page, "plot-loss", failed)
    assert page.one("#failures tr.is-target").get_attribute("data-trial") == failed


def click(page: Browser, plot: str, trial: str) -> None:
    """As plotly says it of a point of this trial."""
    script = "document.getElementById(arguments[0]).emit('plotly_click', {points: [{customdata: arguments[1]}]})"
    page.run(script, plot, trial)


def test_the_slider_shows_every_trial_at_its_step(page: Browser) -> None:
    """First each at its best; then all at one step, where the base model stays at its own; and back."""
    places = page.all("#pictures > .scroll tbody tr:first-child td.cell")

    def steps() -> list[int]:
        return [
            int(shot.get_attribute("data-step") or -1)
            for shot in page.shown("#pictures > .scroll tbody tr:first-child .shot")
        ]

    best = [int(place.get_attribute("data-best") or -1) for place in places]
    assert steps() == best
    for index, step in enumerate((200, 400, 800)):
        page.run(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
            page.one(".steps input"),
            index,
        )
        assert steps() == [0, *([step] * (len(places) - 1))]
        assert {said.text for said in page.shown(".shown-step")} == {f"step {step}"}
    page.one(".steps button").click()
    assert steps() == best


def test_a_click_enlarges_a_picture_and_arrows_go_on(page: Browser) -> None:
    """With whose it is, its scores and its prompt; the keyboard alone will do."""
    first, second = page.shown("#verdict img")[:2]
    first.click()
    text = page.one("dialog[open] p")
    assert "base model" in text.text
    assert "face similarity" in text.text
    assert (first.get_attribute("alt") or "?") in text.text
    page.one("body").send_keys(Keys.ARROW_RIGHT)
    assert page.one("dialog[open] img").get_attribute("src") == second.get_attribute("src")
    page.one("body").send_keys(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog[open]"), "the end of the dialog")
    page.shown("#verdict th.is-champion ~ td img")[0].click()
    assert "champion" in text.text
    page.one("body").send_keys(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog[open]"), "the end of the dialog")
    # Those of other seeds lie folded up behind it. So far down it is loaded only when it is looked for.
    last = page.run("return [...document.querySelectorAll('#pictures img')].filter(i => i.checkVisibility()).at(-1)")
    page.run("arguments[0].scrollIntoView()", last)
    page.until(last.is_displayed, "the last picture")
    last.click()
    page.one("body").send_keys(Keys.ARROW_RIGHT)
    assert "ControlNet renders" in text.text
    page.one("body").send_keys(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog[open]"), "the end of the dialog")
    second.send_keys(Keys.ENTER)
    page.one("dialog[open]").click()
    page.until(lambda: not page.all("dialog[open]"), "the end of the dialog")


def test_a_column_sorts_both_ways(page: Browser) -> None:
    """By number where it is one."""
    column = "#leaderboard > .scroll tbody td:nth-child(6)"
    button = page.one("#leaderboard > .scroll th:nth-child(6) button")
    for descending in (True, False):
        button.click()
        values = [float(cell.get_attribute("data-value") or "nan") for cell in page.all(column)]
        assert values == sorted(values, reverse=descending)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_plots_colours_follow_the_readers_theme(browser: Browser, run_dir: Path, theme: str) -> None:
    """Its text has the page's own colour, and the page's differs between the themes."""
    browser.open((run_dir / "report.html").as_uri(), theme=theme)
    browser.until_plots(NUM_PLOTS)
    ink, drawn = browser.run(
        "return [getComputedStyle(document.body).color,"
        " getComputedStyle(document.querySelector('#plot-trade-off .xtitle')).fill]"
    )
    assert drawn == ink
    assert (int(ink.removeprefix("rgb(").split(",")[0]) > 128) == (theme == "dark")


def test_a_phone_sees_all_of_it_without_scrolling_sideways(browser: Browser, run_dir: Path) -> None:
    """The page is as wide as the phone, both scores of the leaderboard are in sight, a finger scrolls over plots."""
    browser.open((run_dir / "report.html").as_uri(), PHONE)
    browser.until_plots(NUM_PLOTS)
    assert browser.run("return document.documentElement.scrollWidth") == PHONE[0]
    for column in (6, 8):
        box = browser.shown(f"#leaderboard > .scroll td:nth-child({column})")[0].rect
        assert box["x"] + box["width"] <= PHONE[0]
    for plot in browser.all(".js-plotly-plot"):
        assert plot.rect["width"] <= PHONE[0]
        assert browser.run("return arguments[0].layout.dragmode", plot) is False
    assert not browser.all(".modebar-btn")


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_nothing_hostile_runs(browser: Browser, tmp_path: Path, size: tuple[int, int]) -> None:
    """Prompts, reasons, names of trials and of pictures stay letters, enlarged and in hover texts too."""
    run_dir = build_run(tmp_path / "ada", num_trials=4, num_failed=1, prompts=[HOSTILE, "a prompt"])
    for file in sorted(run_dir.glob("trials/*/trial.json")):
        content = json.loads(file.read_text())
        content["reason"] = HOSTILE if content["status"] == "failed" else None
        if content["method"] != "base":
            hostile_name = f"{content['trial'][-3:]}<img src=x onerror=alert(1)>'\""
            for checkpoint in content["checkpoints"]:
                checkpoint["images"] = checkpoint["images"].replace(content["trial"], hostile_name)
        file.write_text(json.dumps(content))
        if content["method"] != "base":
            file.parent.rename(file.parent.with_name(hostile_name))
    browser.open(write_report(run_dir).as_uri(), size)
    browser.until_plots(NUM_PLOTS)
    for image in browser.shown("#verdict td:nth-child(2) img")[:2]:  # base model and champion on the first prompt
        image.click()
        assert HOSTILE in browser.one("dialog[open] p").text
        browser.one("dialog[open]").click()
    browser.run(
        "for (const plot of document.querySelectorAll('.js-plotly-plot'))"
        " Plotly.Fx.hover(plot, [{curveNumber: plot.data.length - 1, pointNumber: 0}])"
    )
    assert "hacked" not in browser.driver.title
    assert browser.complaints() == []
    assert not browser.all("img[src=x]")
