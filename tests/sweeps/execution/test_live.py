"""What a running sweep shows.

pytest tests/sweeps/test_live.py     a second
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.config import ChampionConfig
from sweeps.execution.live import Board, Display
from tests.sweeps.ledger_entries import entry, record


@pytest.fixture
def board() -> Board:
    board = Board("ada", ChampionConfig(), num_planned=4)
    board.put(record("base", entry(0, 0.1)))
    board.put(record("a", entry(200, 0.3)))
    board.put(record("b", entry(200, 0.4), entry(400, 0.5), status="finished"))
    board.put(record("c", entry(200, 0.9, prompt_alignment=0.1), status="stopped"))
    board.put(record("d"))
    board.running = {"a"}
    return board


def test_the_best_by_the_champions_rule_is_first(board: Board) -> None:
    """Likeness at the price of the prompt does not lead; what has no score yet is last."""
    assert [trial.trial for trial in board.best_first()] == ["b", "a", "c", "d"]


def test_a_trial_without_a_worker_waits(board: Board) -> None:
    """The ledger's `running` is shown as what it is."""
    assert [board.status(trial) for trial in board.best_first()] == ["finished", "running", "stopped", "waiting"]


def test_the_time_left_is_steps_left_at_the_pace_so_far(board: Board) -> None:
    """800 steps took 40 s, 600 are left, one trial runs at a time."""
    assert board.seconds_left() == pytest.approx(600 * 40 / 800)
    board.running = {"a", "d"}
    assert board.seconds_left() == pytest.approx(600 * 40 / 800 / 2)
    assert Board("new", ChampionConfig(), 3).seconds_left() is None


def test_the_leaderboard_file_has_every_trial(board: Board, tmp_path: Path) -> None:
    """Every change rewrites it: base model, trials, both scores, statuses."""
    file = tmp_path / "sweep_ada_leaderboard.log"
    Display(board, None, file).changed(record("d", entry(200, 0.2)))
    text = file.read_text()
    assert text.startswith("ada: 2 of 4 trials ended, 1 running")
    assert [line.split()[0] for line in text.splitlines()[3:]] == ["base", "b", "a", "d", "c"]
    assert "0.500" in text


def test_a_leaderboard_that_cannot_be_written_ends_nothing(board: Board, tmp_path: Path) -> None:
    """Ray's session folder may vanish; the sweep goes on."""
    Display(board, None, tmp_path / "gone" / "file.log").changed(record("d"))


def test_a_pipe_gets_a_line_a_change(board: Board) -> None:
    """Without a terminal there are plain lines, one a change, markup in a reason left alone."""
    output = io.StringIO()
    display = Display(board, Console(file=output, width=300), None)
    with display.shown():
        display.changed(record("a", entry(200, 0.3), entry(400, 0.6)))
        display.changed(record("d", status="failed", reason="ValueError: [bold]x"))
    lines = output.getvalue().splitlines()
    assert lines == [
        "[2/4] a  running  step 400/400  face 0.600  prompt 0.250",
        "[3/4] d  failed  ValueError: [bold]x",
    ]


def test_a_terminal_gets_a_table(board: Board) -> None:
    """Both scores, steps and status stand in it, and the headline below."""
    output = io.StringIO()
    display = Display(board, Console(file=output, width=160, force_terminal=True), None)
    with display.shown():
        display.tick()
    for part in ("face similarity", "prompt alignment", "400/400", "0.500", "stopped", "2 of 4 trials ended"):
        assert part in output.getvalue()
