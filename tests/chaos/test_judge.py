"""The judge itself: what it counts as lost, as repeated and as another champion. And the table's place in the docs.

pytest tests/chaos/test_judge.py     less than a second
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import _a_day_later, midway
from tests.chaos.judge import SAME_SCORE, Champion, Outcome, judge
from tests.chaos.log import Entry, read_log, write_down
from tests.chaos.stage import AT_ONCE
from tests.chaos.table import BEGIN, END, put_into, table

BEST = Champion("a", 4, 0.8, 0.3)
CALM = Outcome(("a", "b"), BEST)


def story(text: str) -> list[Entry]:
    """`a1 a2 a2! b1 a.`: trial and step taken; `!` scored, `.` ended."""
    events = {"!": "scored", ".": "ended"}
    return [
        {"trial": word[0], "step": int(word.strip("abc!.") or 0), "event": events.get(word[-1], "step")}
        for word in text.split()
    ]


@pytest.mark.parametrize(
    ("text", "repeated", "beyond"),
    [
        ("a1 a2 a2! a3 a4 a4! a.", 0, 0),
        ("a1 a2 a2! a3 a3 a4 a4! a.", 1, 0),
        ("a1 a2 a2! a3 a1 a2 a3 a4", 3, 2),
        ("a1 a2 a1 a2 a2!", 2, 0),
        ("a1 a2 a2! b1 b2 b2! b1 b2", 2, 2),
        ("a1 a2 a2! a2!", 0, 0),
    ],
)
def test_steps_are_repeated_beyond_a_point_only_once_it_was_scored(text: str, repeated: int, beyond: int) -> None:
    """What lies behind the last scored point must be trained again; what lies before it must not."""
    verdict = judge(story(text), CALM, CALM)
    assert (verdict.repeated, verdict.repeated_beyond) == (repeated, beyond)


@pytest.mark.parametrize(
    ("text", "finished", "lost"),
    [
        ("a1 a1! a. b1 b1! b.", ("a", "b"), 0),
        ("a1 a1! a. b1", ("a",), 0),
        ("a1 a1! a. b1 b1! b.", ("b",), 1),
        ("a1 a1! a. a1 a1! a.", ("a", "b"), 1),
        ("a1 a1! a. a1! a.", ("a", "b"), 0),
    ],
)
def test_a_finished_trial_is_lost_when_it_is_missing_or_trained_again(
    text: str, finished: tuple[str, ...], lost: int
) -> None:
    """One that never ended is unfinished, not lost; one that is only scored again is neither."""
    verdict = judge(story(text), Outcome(finished, BEST), CALM)
    assert (verdict.lost, verdict.unfinished) == (lost, 2 - len(finished))


@pytest.mark.parametrize(
    ("champion", "changed"),
    [
        (BEST, False),
        (Champion("a", 4, 0.8 + SAME_SCORE / 2, 0.3), False),
        (Champion("a", 4, 0.8 + 2 * SAME_SCORE, 0.3), True),
        (Champion("a", 4, 0.8, 0.31), True),
        (Champion("a", 2, 0.8, 0.3), True),
        (Champion("b", 4, 0.8, 0.3), True),
        (None, True),
    ],
)
def test_a_champion_is_another_by_trial_step_or_score(champion: Champion | None, changed: bool) -> None:
    """The same checkpoint with other scores is another answer."""
    assert judge([], Outcome(("a", "b"), champion), CALM).champion_changed is changed


@pytest.mark.parametrize("seed", range(5))
def test_a_fault_strikes_where_some_have_ended_and_another_goes_on(seed: int) -> None:
    """Which step it is comes from the seed, and there is always something to lose: ends, and a scored point."""
    ended = "".join(f"{t}12 {t}12! {t}. " for t in "ab"[:AT_ONCE])
    story_so_far = f"{ended}c1 c4 c4! c5 c6 c7 c8"
    reached = [midway(random.Random(seed))(story(story_so_far[:end])) for end in range(len(story_so_far) + 1)]
    first = story_so_far[: reached.index(True)].split()[-1]
    assert first in ("c5", "c6", "c7")
    assert not midway(random.Random(seed))(story("a1 a4 a4! a5 a6 a7 b1"))


def test_what_is_written_down_is_read_in_its_order(tmp_path: Path) -> None:
    """A line an event, beside the run folder."""
    for step in (1, 2):
        write_down(tmp_path / "run", "step", trial="a", step=step)
    assert [(entry["event"], entry["step"]) for entry in read_log(tmp_path / "run")] == [("step", 1), ("step", 2)]
    assert [file.name for file in tmp_path.iterdir()] == ["run.log"]


@pytest.mark.parametrize(
    ("text", "later"),
    [
        ('"created": "2026-02-28T23:59:01+00:00"', '"created": "2026-03-01T23:59:01+00:00"'),
        ("experiment_state-2026-11-25_17-29-00.json", "experiment_state-2026-11-26_17-29-00.json"),
        ("loss 0.2026-11", "loss 0.2026-11"),
    ],
)
def test_times_in_files_are_moved_by_a_day(text: str, later: str) -> None:
    """Only what is a date with a time."""
    assert _a_day_later(text) == later


def test_the_table_replaces_the_one_before_it(tmp_path: Path) -> None:
    """The words around it stay, and a second time changes nothing."""
    verdict = {"lost": 0, "repeated": 3, "repeated_beyond": 0, "champion_changed": False, "unfinished": 0}
    row: dict[str, Any] = {"verdict": verdict, "seconds": 61.4, "exit_codes": [-9, 0], "said": "a | b", "notes": []}
    text = table({"rows": {"driver-killed/dreamsweep": row, "driver-killed/ray": {"cannot_be_made": "no leave"}}})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        put_into(page, text)
        assert page.read_text() == f"before\n{BEGIN}\n\n{text}\n\n{END}\nafter\n"
    assert "| driver SIGKILL | dreamsweep | 0 | 3 | 0 | no | 0 | 61 | -9 then 0 | `a / b` |" in text
    assert "no leave" in text
