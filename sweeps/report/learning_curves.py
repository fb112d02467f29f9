"""How the training of a trial went, from its `stats.jsonl`, in as few points as a plot can show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean

from sweeps.ledger.folder import RunFolder
from training.stats import STATS_FILE, StepStats, read_stats

NUM_POINTS = 40
"""About so many a trial: the loss of one step says little, it hangs on the noise level that was drawn."""


@dataclass(frozen=True)
class CurvePoint:
    """Means over some steps in a row."""

    first_step: int
    last_step: int
    loss: float
    gradient_norm: float | None
    """Before clipping; None where no step of them had a finite one."""

    @property
    def steps_text(self) -> str:
        """Which steps."""
        one = self.first_step == self.last_step
        return f"step {self.last_step}" if one else f"mean of steps {self.first_step} to {self.last_step}"


def learning_curves(folder: RunFolder, trials: Iterable[str]) -> Mapping[str, Sequence[CurvePoint]]:
    """The curves of those of these trials that have taken a step."""
    curves = {}
    for trial in trials:
        path = folder.trial_dir(trial) / STATS_FILE
        try:
            stat = path.stat()
            curve = _curve(path, stat.st_mtime_ns, stat.st_size)
        except OSError:  # not begun, or its file lies in the sweep's storage
            continue
        if curve:
            curves[trial] = curve
    return curves


@lru_cache(maxsize=512)
def _curve(path: Path, mtime_ns: int, size: int) -> tuple[CurvePoint, ...]:  # noqa: ARG001 -- a grown file is another
    return condensed(read_stats(path))


def condensed(stats: Sequence[StepStats]) -> tuple[CurvePoint, ...]:
    """Means over equally many steps each, the last point over what is left."""
    width = -(-len(stats) // NUM_POINTS)
    return tuple(_mean(stats[i : i + width]) for i in range(0, len(stats), width)) if stats else ()


def _mean(stats: Sequence[StepStats]) -> CurvePoint:
    norms = [taken.gradient_norm for taken in stats if taken.gradient_norm is not None]
    return CurvePoint(
        first_step=stats[0].step,
        last_step=stats[-1].step,
        loss=fmean(taken.loss for taken in stats),
        gradient_norm=fmean(norms) if norms else None,
    )
