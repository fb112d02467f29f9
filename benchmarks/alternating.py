"""Comparing two ways of doing one thing on a machine that does other things beside it.

The two take turns in one process and each turn is timed by itself, so that what slows the machine down slows both. On
the CPU the clock is the process's own CPU time, which does not run while another process computes. A ratio is of two
turns next to each other; which of the two goes first changes from round to round.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

Work = Callable[[], int]
"""Does some work; returns how many trial-steps it was."""


@dataclass(frozen=True)
class Comparison:
    """Seconds a trial-step, round by round."""

    reference: list[float]
    other: list[float]

    @property
    def ratios(self) -> list[float]:
        """How many times less the other took, each round by itself."""
        return [reference / other for reference, other in zip(self.reference, self.other, strict=True)]


def alternate(reference: Work, other: Work, rounds: int, clock: Callable[[], float] = time.process_time) -> Comparison:
    """Time both by turns, after a turn of each that does not count."""

    def seconds_each(work: Work) -> float:
        start = clock()
        trial_steps = work()
        return (clock() - start) / trial_steps

    comparison = Comparison([], [])
    turns = [(reference, comparison.reference), (other, comparison.other)]
    for work, _ in turns:
        work()
    for _ in range(rounds):
        for work, seconds in turns:
            seconds.append(seconds_each(work))
        turns.reverse()
    return comparison


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and in brackets the least and the greatest."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def milliseconds(values: Sequence[float]) -> str:
    """The median of seconds."""
    return f"{1000 * median(values):.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown, under a line that says where and when it was measured."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join([machine(), "", *(f"| {' | '.join(line)} |" for line in lines)])


def machine() -> str:
    """What this was measured on, and when."""
    processor = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        names = [line for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores ({processor}){gpu}, torch {torch.__version__} with "
        f"{torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}"
    )
