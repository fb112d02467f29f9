"""The benchmarks run, as small as they go; what they measure then means nothing. Fifteen seconds of CPU time."""

from __future__ import annotations

import pytest

from benchmarks import gpu, memory, packed
from benchmarks.alternating import Comparison, alternate


def rows_of(printed: str) -> list[list[str]]:
    """A printed table's cells, header first."""
    return [line.strip("|").split("|") for line in printed.splitlines() if line.startswith("|")]


def test_turns_alternate_and_a_ratio_is_of_two_adjacent_ones() -> None:
    """Each works once uncounted, then once a round, the other one first in every second round."""
    now = 0.0
    turns = ""

    def work(name: str, seconds: float, trial_steps: int) -> int:
        nonlocal now, turns
        now, turns = now + seconds, turns + name
        return trial_steps

    comparison = alternate(lambda: work("a", 6.0, 2), lambda: work("b", 4.0, 4), rounds=3, clock=lambda: now)
    assert turns == "ab" + "ab" + "ba" + "ab"
    assert comparison == Comparison([3.0] * 3, [1.0] * 3)
    assert comparison.ratios == [3.0] * 3


def test_packed(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each size of pack and batch."""
    packed.main(["--bases", "small", "--rounds", "1", "--trial-steps", "1"])
    _, _, *rows = rows_of(capsys.readouterr().out)
    assert len(rows) == len(packed.SETTINGS)


def test_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Trainings alone, trainings packed, and the one as a part of the other."""
    memory.main(["--trainings", "1", "--steps", "1"])
    _, _, *rows = rows_of(capsys.readouterr().out)
    assert len(rows) == 3


def test_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Alone, two packs and one process beside it, on the CPU."""
    gpu.main(["--smoke", "--packs", "1", "3", "--processes", "1"])
    _, _, *rows = rows_of(capsys.readouterr().out)
    assert [(row[0].strip(), int(row[1])) for row in rows] == [("alone", 1), ("packed", 1), ("packed", 3), ("processes", 1)]
