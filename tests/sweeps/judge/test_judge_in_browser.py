"""Laws of the judge's page as its reader has it: keys and buttons vote, and the result comes, in headless Chromium.

pytest tests/sweeps/judge/test_judge_in_browser.py     some twenty seconds
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from sweeps.judge.server import JudgeServer, open_judge
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.votes import Vote, read_votes
from sweeps.results.results import read_results
from tests.sweeps.browser import DESKTOP, PHONE, Browser
from tests.sweeps.fake_run import build_run

HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>'\"&amp;"
ARE_SEEN = "return [...document.querySelectorAll('.sides img')].every((i) => i.complete && i.naturalWidth)"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of two trials and twelve questions, one prompt of which is hostile."""
    return build_run(tmp_path / "ada", 2, (200,), prompts=("sks woman", HOSTILE), images_per_prompt=2, size=256)


@contextmanager
def served(run_dir: Path, port: int = 0) -> Iterator[JudgeServer]:
    """The page on a free port."""
    server = open_judge(read_results(run_dir), port, rng=random.Random(0))
    server.start()
    try:
        yield server
    finally:
        server.close()


def votes_of(run_dir: Path) -> list[Vote]:
    return read_votes(RunFolder(run_dir))


def question_in(browser: Browser) -> str | None:
    """Id of the question that is shown, empty at the end."""
    found = browser.run("return document.querySelector('[data-question]').dataset.question")
    return None if found is None else str(found)


def press(browser: Browser, key: str) -> None:
    """Press a key when both pictures are seen, and wait for what comes next."""
    browser.until(lambda: browser.run(ARE_SEEN), "both pictures")
    before = question_in(browser)
    browser.driver.switch_to.active_element.send_keys(key)
    browser.until(lambda: question_in(browser) != before, "the next question")


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_keys_vote_and_the_result_comes_at_the_end(browser: Browser, run_dir: Path, size: tuple[int, int]) -> None:
    """Every key as it is named, two pictures side by side within the window, and names only at the end."""
    keys = {
        Keys.ARROW_LEFT: "left",
        "a": "left",
        Keys.ARROW_RIGHT: "right",
        "b": "right",
        Keys.ARROW_DOWN: "neither",
        "0": "neither",
        " ": "neither",
        "A": "left",
    }
    trials = {row.trial for row in read_results(run_dir).best_of_each_trial()}
    with served(run_dir) as server:
        browser.open(server.page_address, size)
        browser.run("window.wasNeverReloaded = true")
        for number, (key, choice) in enumerate(keys.items(), 1):
            assert browser.one("#progress").text == f"{number} of 12"
            left, right = (image.rect for image in browser.shown(".sides img"))
            assert left["y"] == right["y"]
            assert left["width"] == right["width"] > size[0] / 2.6
            assert left["x"] + left["width"] < right["x"]
            assert [image.get_attribute("alt") for image in browser.all(".sides img")] == ["left", "right"]
            assert not any(trial in browser.driver.page_source for trial in trials)
            press(browser, key)
            assert [vote.choice for vote in votes_of(run_dir)][number - 1 :] == [choice]
        assert browser.run("return document.documentElement.scrollWidth") == size[0]
        for _ in range(4):
            press(browser, "b")
        assert browser.one("h1").text == "What was preferred"
        ranked = browser.run(
            "return [...document.querySelectorAll('#ranking tr[data-trial]')].map(r => r.dataset.trial)"
        )
        assert set(ranked) == {*trials, "base"}
        assert "12 votes, 3 of them for no difference" in browser.one(".topline").text
        assert "%" in browser.one("#agreement-face").text
        assert browser.run("return document.documentElement.scrollWidth") == size[0]
        assert browser.run("return window.wasNeverReloaded")
        assert "hacked" not in browser.driver.title
        assert browser.complaints() == []


def test_buttons_vote_skip_and_show_the_result(browser: Browser, run_dir: Path) -> None:
    """By a click and by the keyboard: the button that has the focus is pressed by space, and keeps it."""
    with served(run_dir) as server:
        browser.open(server.page_address)
        for button, number in (("left", 1), ("neither", 2), ("right", 3), ("skip", 3)):
            browser.until(lambda: browser.run(ARE_SEEN), "both pictures")
            before = question_in(browser)
            browser.one(f"#{button}").click()
            browser.until(lambda before=before: question_in(browser) != before, "the next")  # type: ignore[misc]
            assert len(votes_of(run_dir)) == number
        for _ in range(2):  # to the second of the buttons, from the page's start
            browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.driver.switch_to.active_element.get_attribute("id")
        assert focused in ("left", "neither", "right", "skip", "end")
        browser.run("document.getElementById('right').focus({focusVisible: true})")
        press(browser, " ")
        assert browser.driver.switch_to.active_element.get_attribute("id") == "right"
        assert [vote.choice for vote in votes_of(run_dir)] == ["left", "neither", "right", "right"]
        browser.one("#end").click()
        browser.one("#ranking")
        browser.one("#more").click()
        assert browser.one("#progress").text == "6 of 12"
        assert len(votes_of(run_dir)) == 4
        assert browser.complaints() == []


def test_a_vote_that_nobody_took_is_said_to_be_none(browser: Browser, run_dir: Path) -> None:
    """The command has ended, or was called anew: the question stays, with a line on what to do."""
    with served(run_dir) as server:
        port = server.port
        browser.open(server.page_address)
        browser.until(lambda: browser.run(ARE_SEEN), "both pictures")
    browser.driver.switch_to.active_element.send_keys("a")
    browser.until(lambda: "still running" in browser.one("#trouble").text, "the warning")
    with served(run_dir, port):
        browser.driver.switch_to.active_element.send_keys("a")
        browser.until(lambda: "earlier call" in browser.one("#trouble").text, "the other warning")
    assert votes_of(run_dir) == []


def test_a_key_held_down_and_a_picture_that_is_not_seen_give_no_vote(browser: Browser, run_dir: Path) -> None:
    """One press is one answer, with both pictures in sight; with a modifier a key is the browser's own."""
    with served(run_dir) as server:
        browser.open(server.page_address)
        browser.until(lambda: browser.run(ARE_SEEN), "both pictures")
        question = question_in(browser)
        for option in ("repeat", "ctrlKey", "altKey", "metaKey"):
            event = f"new KeyboardEvent('keydown', {{key: 'a', {option}: true, bubbles: true}})"
            browser.run(f"document.body.dispatchEvent({event})")
        browser.run("document.querySelector('.sides img').src = 'picture/none/left'")
        browser.until(lambda: not browser.run(ARE_SEEN), "the end of a picture")
        browser.driver.switch_to.active_element.send_keys("a")
        browser.one("#right").click()
        browser.one("#skip").click()  # which is how one goes on
        browser.until(lambda: question_in(browser) != question, "the next question")
    assert votes_of(run_dir) == []
