"""What a driver spends while trials end: CPU time, memory, files opened; and how long places stand empty."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HEADING = f"{'ended':>7} {'trials/s':>9} {'ms CPU':>7} {'share':>6} {'MB':>6}  files opened, a trial"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """A moment of the driver's life."""

    num_ended: int
    at: float
    cpu_seconds: float
    resident_bytes: int
    opened: Counter[str]


class Meter:
    """Counts what this process opens, from now on, and takes samples when asked.

    Args:
        run_dir: whose ledger is watched.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._opened = str(run_dir), Counter[str]()
        self.samples: list[Sample] = []
        self.is_on = True
        """Python takes no audit hook away: one that is off counts nothing."""
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not self.is_on or not isinstance(arguments[0], str | os.PathLike):
            return
        path, mode = os.fspath(arguments[0]), arguments[1]
        if not isinstance(path, str):
            return
        name = path.rpartition("/")[2]
        if path.endswith("_leaderboard.log"):
            self._opened["leaderboard writes"] += 1
        elif mode is not None and path.startswith(self._run_dir):
            if name in ("trial.json", "stats.jsonl"):
                self._opened[f"{name} reads"] += 1
            elif name.startswith(".trial.json.") and "w" in mode:
                self._opened["trial.json writes"] += 1

    def sample(self, num_ended: int) -> None:
        """Now."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.samples.append(
            Sample(num_ended, time.monotonic(), time.process_time(), pages * PAGE_BYTES, Counter(self._opened))
        )

    def line(self) -> str:
        """What stands under `HEADING`: means a trial, between the last two samples."""
        before, after = self.samples[-2:]
        num, seconds = after.num_ended - before.num_ended, after.at - before.at
        cpu = after.cpu_seconds - before.cpu_seconds
        opened = after.opened - before.opened
        files = ", ".join(f"{count / num:.1f} {name}" for name, count in sorted(opened.items()))
        return (
            f"{after.num_ended:7d} {num / seconds:9.2f} {1000 * cpu / num:7.0f} {cpu / seconds:6.0%} "
            f"{after.resident_bytes / 1e6:6.0f}  {files}"
        )


def seconds_between(entries: Sequence[dict[str, float]], at_once: int) -> list[float]:
    """From each trial's end to the start of the one that takes the place that it left, in the order of ends."""
    began = sorted(entry["began"] for entry in entries if "began" in entry)
    ended = sorted(entry["ended"] for entry in entries if "ended" in entry)
    return [start - end for start, end in zip(began[at_once:], ended, strict=False)]


def gap_lines(gaps: Sequence[float], num_lines: int) -> Iterator[str]:
    """Median and 95th percentile of each stretch."""
    size = max(1, len(gaps) // num_lines)
    for start in range(0, size * num_lines, size):
        part = sorted(gaps[start : start + size])
        if part:
            within = part[int(0.95 * len(part))]
            yield f"{start + len(part):7d}  median {median(part):.2f} s, 95 % within {within:.2f} s"
