"""A trial that keeps a judge's log beside the run folder: append-only, and nothing of the system reads it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from sweeps.execution.trial import SweepTrial


class LoggedTrial(SweepTrial):
    """Says in `<run>.log` which process scored what; dies once where `<run>.kill` asks for it.

    On the machine that `<run>.bad` names it raises what a library would that does not fit there.
    """

    def step(self) -> dict[str, Any]:
        """The trial's own step, with its judge."""
        if self._could_not_begin is not None or self._record.is_over:
            return super().step()  # type: ignore[no-any-return]
        bad = Path(f"{self._folder.dir}.bad")
        if bad.exists() and bad.read_text() == self._record.node_id:
            raise ValueError("no such GPU kernel here")
        before = [checkpoint.step for checkpoint in self._record.checkpoints]
        kill = Path(f"{self._folder.dir}.kill")
        if before and kill.exists() and kill.read_text() == self._record.trial:
            kill.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        result: dict[str, Any] = super().step()
        after = [checkpoint.step for checkpoint in self._record.checkpoints]
        log(self._folder.dir, {"trial": self._record.trial, "scored": after[len(before) :], "done": result["done"]})
        return result


def log(run_dir: Path, entry: dict[str, Any]) -> None:
    """Append one line in one write."""
    descriptor = os.open(f"{run_dir}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (json.dumps(entry) + "\n").encode())
    os.close(descriptor)


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Every line so far."""
    path = Path(f"{run_dir}.log")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
