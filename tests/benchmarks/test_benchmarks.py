"""The benchmarks run, as small as they go; what they measure then means nothing. Fifteen seconds of CPU time."""

from __future__ import annotations

import sys
from io import StringIO
from pathlib import Path
from queue import SimpleQueue
from subprocess import PIPE, Popen
from threading import Barrier

import pytest
import torch

from benchmarks import gpu, loop, memory, options, packed
from benchmarks.alternating import Comparison, alternate
from benchmarks.trainings import demo_dataset


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
    packed.main(["--bases", "small", "--settings", "1x1", "2x2", "--rounds", "1", "--trial-steps", "1"])
    _, _, *rows = rows_of(capsys.readouterr().out)
    assert [(int(batch), int(trainings)) for _, batch, trainings, *_ in rows] == [(1, 1), (2, 2)]


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each option, method and batch."""
    loop.main(["--options", "fused_adam", "channels_last", "--rounds", "1", "--steps", "1"])
    _, _, *rows = rows_of(capsys.readouterr().out)
    assert [tuple(cell.strip() for cell in row[:3]) for row in rows] == [
        (option, method, str(batch_size))
        for option in ("fused_adam", "channels_last")
        for method, batch_size in loop.SETTINGS
    ]


@pytest.mark.slow
def test_what_options_do(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for the base model, which has not moved, and one for each training, which has."""
    options.main(["--arms", "plain", "--seeds", "1", "--steps", "2", "--pictures", "1"])
    _, _, base, plain = rows_of(capsys.readouterr().out)
    assert [cell.strip() for cell in base[:3]] == ["base model", "0", "1"]
    assert plain[0].strip() == "plain, seed 0"
    assert float(plain[1]) > 0


def test_what_a_process_of_the_memory_benchmark_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Private memory before the training, and the peak, which is no less."""
    demo_dataset(tmp_path)
    monkeypatch.setattr("sys.stdin", StringIO())
    memory.main(["--train", "1", "2", "--dataset", str(tmp_path), "--steps", "1"])
    before, peak = map(float, capsys.readouterr().out.split())
    assert 0 < before <= peak


def test_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are all there are added up; here they train nothing."""
    waits = f"print({2**22}, {2**23}, flush=True); input()"
    monkeypatch.setattr(memory, "demo_dataset", lambda _: None)
    monkeypatch.setattr(
        memory,
        "_start",
        lambda *_: Popen([sys.executable, "-c", waits], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True),
    )
    memory.main(["--trainings", "2"])
    _, _, alone, together, parts = rows_of(capsys.readouterr().out)
    assert [cells[2].strip() for cells in (alone, together, parts)] == ["16", "8", "0.50"]


def test_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Alone and packed, on the CPU."""
    gpu.main(["--smoke", "--packs", "3", "--processes"])
    _, _, *rows = rows_of(capsys.readouterr().out)
    assert [(row[0].strip(), int(row[1])) for row in rows] == [("alone", 1), ("packed", 3)]


def test_a_process_that_shares_the_card_tells_of_its_turns(tiny_base: str) -> None:
    """A time for each round."""
    setting = gpu.Setting(torch.device("cpu"), Path(tiny_base), side=8, rounds=2, steps=1, peak_tflops=1.0)
    answers: SimpleQueue = SimpleQueue()
    gpu.share_card(0, setting, Barrier(1), answers)
    turns, _ = answers.get()
    assert len(turns) == 2
