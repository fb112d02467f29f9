"""The `dreamsweep` command with a judge's log: `python -m tests.chaos.dreamsweep_side run SWEEP.yaml --out DIR`."""

from __future__ import annotations

import time
from typing import Any

import ray

import sweeps.execution.run
from sweeps.cli import main
from sweeps.execution.trial import SweepTrial
from sweeps.execution.worker import TrialWorker
from tests.chaos.log import PACE_SECONDS, write_down


class JudgedWorker(TrialWorker):
    """The worker as it is; every step is written down for the judge."""

    def on_step(self, step: int, _loss: float) -> None:
        """Write it down."""
        node = ray.get_runtime_context().get_node_id()
        write_down(self.folder.dir, "step", trial=self.trial, step=step, node=node)
        time.sleep(PACE_SECONDS)


class JudgedTrial(SweepTrial):
    """The trial as it is; every step, scoring point and end is written down for the judge."""

    worker_class = "tests.chaos.dreamsweep_side:JudgedWorker"

    def step(self) -> dict[str, Any]:
        """The trial's own; what it has in the ledger afterwards has been scored."""
        if self._could_not_begin is not None:
            return super().step()  # type: ignore[no-any-return]
        was_over, num_scored = self._record.is_over, len(self._record.checkpoints)
        result: dict[str, Any] = super().step()
        for scored in self._record.checkpoints[num_scored:]:
            self._say("scored", scored.step, face=scored.face_similarity, prompt=scored.prompt_alignment)
        if self._record.is_over and not was_over:
            self._say("ended", result["step"])
        return result

    def _write(self, **changes: Any) -> None:
        if "checkpoints" in changes:
            self._say("saving", changes["checkpoints"][-1].step)
            time.sleep(PACE_SECONDS)
        super()._write(**changes)

    def _say(self, event: str, step: int, **facts: Any) -> None:
        write_down(self._folder.dir, event, trial=self._record.trial, step=step, **facts)


if __name__ == "__main__":
    from tests.chaos.dreamsweep_side import JudgedTrial as Importable  # by a name that workers can import

    sweeps.execution.run.SweepTrial = Importable  # type: ignore[misc]
    main()
