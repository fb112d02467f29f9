"""A trial that something happens to in the middle of its training, and a log of every step that any worker takes.

`<run>.strikes` is a folder with a file for each strike, `<trial>-<step>.json`: which worker (`rank`) after which step,
and `how`. A strike happens once.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from sweeps.execution.trial import SweepTrial
from sweeps.execution.worker import TrialWorker
from tests.sweeps.logged_trial import log


class StruckWorker(TrialWorker):
    """The worker as it is, but for what strikes it."""

    def on_step(self, step: int, _loss: float) -> None:
        """Write it down."""
        log(self.folder.dir, {"trial": self.trial, "rank": self._share.rank, "step": step, "pid": os.getpid()})
        file = strike_file(self.folder.dir, self.trial, step)
        strike = json.loads(file.read_text()) if file.exists() else None
        if strike is None or strike["rank"] != self._share.rank:
            return
        file.unlink()
        if strike["how"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if strike["how"] == "preempted":
            trial = int(pid_file(self.folder.dir, self.trial).read_text())
            if not self._share.is_whole:
                os.kill(trial, signal.SIGTERM)
                return
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            os.kill(trial, signal.SIGTERM)
            signal.sigwait(
                {signal.SIGTERM}
            )  # the trial's process has passed it on; a trial waiting for Ray takes a second
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            signal.raise_signal(signal.SIGTERM)


class StruckTrial(SweepTrial):
    """Says which process it is."""

    worker_class = "tests.sweeps.struck_trial:StruckWorker"

    def setup(self, config: dict[str, Any]) -> None:
        """The trial's own."""
        super().setup(config)
        file = pid_file(self._folder.dir, self._record.trial)
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(os.getpid()))


def strike(run_dir: Path, trial: str, step: int, *, rank: int, how: str) -> None:
    """Have it struck: `killed` or `preempted`."""
    file = strike_file(run_dir, trial, step)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"rank": rank, "how": how}))


def strike_file(run_dir: Path, trial: str, step: int) -> Path:
    """Where it is written."""
    return Path(f"{run_dir}.strikes") / f"{trial}-{step}.json"


def pid_file(run_dir: Path, trial: str) -> Path:
    """Names the trial's newest process."""
    return Path(f"{run_dir}.strikes") / f"{trial}.pid"
