"""How training went, a line a step, for whoever draws or watches it; needs no torch.

`stats.jsonl` lies beside a trial's checkpoints and holds every step once, in order. What a checkpoint was trained with
is on the disk before the checkpoint has its name. Steps behind the newest checkpoint may be lost with the machine, and
the last line of a trial that runs may be half written: readers stop at the first line that is not whole.
"""

from __future__ import annotations

import io
import os
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.files import write_whole

STATS_FILE = "stats.jsonl"
MAX_LINE_BYTES = 512
"""More than the longest line has: five names, four floats of at most 25 characters, and two whole numbers."""


class StepStats(BaseModel):
    """One optimizer step; all numbers are finite."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    step: int = Field(ge=1)
    """Optimizer steps taken, this one included."""
    loss: float
    """Mean over the step's micro-steps."""
    learning_rate: float
    """At which the UNet took the step."""
    gradient_norm: float | None
    """Of all gradients together, before clipping; None where one was not finite, which makes fp16 skip the step."""
    seconds: float
    """Wall clock of this step."""
    peak_memory_bytes: int
    """The most that this process has held so far: allocated on the GPU it trains on, since a pack was last measured
    there, else resident."""


class StatsWriter:
    """Appends a run's steps to its stats.

    Args:
        path: of the stats. Lines of later steps, and what is not whole, go first.
        step: the run's, from which it goes on; 0 for a run that begins.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line, stats in _whole_lines(path) if stats.step <= step]
        write_whole(path, b"".join(kept))  # a file of its own: a writer given up for dead goes on into the old one
        self._stream = path.open("a", buffering=1, encoding="utf-8")

    def append(self, stats: StepStats) -> None:
        """Write one step down; whoever reads the file sees it at once."""
        self._stream.write(stats.model_dump_json() + "\n")

    def sync(self) -> None:
        """Return when all steps are on the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()


def read_stats(path: str | Path) -> list[StepStats]:
    """The steps of a trial so far, in order; none where there is no file yet.

    A trial that runs may be read, too: a line that is not whole yet is left out.
    """
    return [stats for _, stats in _whole_lines(Path(path))]


def read_newest(path: str | Path, count: int) -> list[StepStats]:
    """The last `count` of what `read_stats` gives, in the time that so many take, however long the training."""
    try:
        with Path(path).open("rb") as stream:
            start = max(0, stream.seek(0, os.SEEK_END) - (count + 1) * MAX_LINE_BYTES)
            stream.seek(start)
            lines = list(io.BytesIO(stream.read()))[1 if start else 0 :]  # the first is cut
    except FileNotFoundError:
        return []
    return [stats for _, stats in _whole(lines)][-count:]


def peak_resident_bytes() -> int:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


def _whole_lines(path: Path) -> Iterator[tuple[bytes, StepStats]]:
    """Lines and what they say, up to the first that a killed writer tore or a power cut left unwritten."""
    if path.is_file():
        with path.open("rb") as stream:
            yield from _whole(stream)


def _whole(lines: Iterable[bytes]) -> Iterator[tuple[bytes, StepStats]]:
    for line in lines:
        if not line.endswith(b"\n"):
            return
        try:
            yield line, StepStats.model_validate_json(line)
        except ValidationError:
            return
