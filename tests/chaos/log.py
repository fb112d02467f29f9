"""The judge's log: append-only, one write a line, beside the run folder and never inside it.

Neither product reads it. `<run folder>.log` holds, in the order of what happened:

    {"event": "step", "trial": ..., "step": 5, "pid": ..., "node": ...}     an optimizer step was taken
    {"event": "saving", ...}       a checkpoint is scored and is about to be entered in the product's own books
    {"event": "scored", "face": ..., "prompt": ..., ...}                    the product has it in its books
    {"event": "ended", ...}                                                 the trial's last scoring point, likewise
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

PACE_SECONDS = 0.15
"""Added to every optimizer step, so that a fault that follows a line of the log lands in the middle of training."""

Entry = dict[str, Any]


def log_file(run_dir: Path | str) -> Path:
    """The log of a run folder."""
    return Path(f"{run_dir}.log")


def write_down(run_dir: Path | str, event: str, **facts: Any) -> None:
    """Append one line in one write, which no other process's line can tear."""
    line = json.dumps({"event": event, "pid": os.getpid(), "time": time.time(), **facts}) + "\n"
    descriptor = os.open(log_file(run_dir), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_log(run_dir: Path | str) -> list[Entry]:
    """Every line so far."""
    file = log_file(run_dir)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
