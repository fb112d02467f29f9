"""The leaderboard: a row a scored checkpoint, in the rule's order, with intervals and the Pareto front; as CSV too."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import BASE_TRIAL, ScoredCheckpoint, Status, TrialRecord
from sweeps.results.intervals import Interval, bootstrap_interval
from sweeps.results.rule import ChampionRule
from training.files import write_whole

COLUMNS = (
    "trial",
    "method",
    "rank",
    "learning_rate",
    "step",
    "seed",
    "status",
    "face_similarity",
    "prompt_alignment",
    "num_images",
    "num_faces",
    "checkpoint",
    "champion",
    "pareto",
    "face_similarity_low",
    "face_similarity_high",
    "prompt_alignment_low",
    "prompt_alignment_high",
    "loss",
    "seconds",
    "earlier",
)
"""Keys of a leaderboard row, the same in `show --json` and in results.csv."""


class Row(ScoredCheckpoint):
    """A scored checkpoint with what the leaderboard says of it and of its trial.

    `method` is `base` for the untouched base model (step 0, no checkpoint).
    """

    trial: str
    method: str
    rank: int | None
    """None but for a LoRA."""
    learning_rate: float | None
    """None for the base model, as is the seed."""
    seed: int | None
    status: Status
    champion: bool = False
    pareto: bool = False
    earlier: bool = False
    """Its trial is of an earlier state of the sweep file, which does not ask for it any more."""

    @cached_property
    def face_similarity_interval(self) -> Interval | None:
        """None with fewer than two pictures; worked out when it is first asked for, as a table asks for few."""
        return bootstrap_interval([image.counted for image in self.image_scores])

    @cached_property
    def prompt_alignment_interval(self) -> Interval | None:
        """The same."""
        return bootstrap_interval([i.prompt_alignment for i in self.image_scores if i.prompt_alignment is not None])

    @property
    def is_base(self) -> bool:
        """Whether this is the zero line rather than something trained."""
        return self.method == BASE_TRIAL

    @property
    def key(self) -> tuple[str, int]:
        """Trial and step: what no other row of the run has."""
        return (self.trial, self.step)

    def as_dict(self) -> dict[str, Any]:
        """The row under the names in `COLUMNS`: JSON-ready, every number finite or None."""
        bounds: dict[str, float | None] = {}
        for score in ("face_similarity", "prompt_alignment"):
            interval: Interval | None = getattr(self, f"{score}_interval")
            bounds[f"{score}_low"] = interval.low if interval else None
            bounds[f"{score}_high"] = interval.high if interval else None
        values = {name: bounds[name] if name in bounds else getattr(self, name) for name in COLUMNS}
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


def rows_of(record: TrialRecord, *, earlier: bool = False) -> list[Row]:
    """The trial's rows, one a scoring point; of a step scored twice, the later one.

    Raises:
        UserError: the trial's config is not of its kind.
    """
    config = None if record.is_base else record.method_config
    settings: dict[str, Any] = {
        "trial": record.trial,
        "method": record.method,
        "rank": getattr(config, "rank", None),
        "learning_rate": config and config.learning_rate,
        "seed": config and config.seed,
        "status": record.status,
        "earlier": earlier,
    }
    by_step = {entry.step: entry for entry in record.checkpoints}
    # both parts have been validated
    return [Row.model_construct(**dict(entry), **settings) for entry in by_step.values()]


def base_row(rows: Iterable[Row]) -> Row | None:
    """The zero line: the untouched base model's row."""
    return next((row for row in rows if row.is_base), None)


def best_first(rows: Iterable[Row], rule: ChampionRule) -> list[Row]:
    """The rule's order, the base model where its own scores put it; ties to lower rank, then by name.

    Trials of an earlier state of the sweep file stand behind all that it asks for. Where some were scored by a first
    look alone, the base model stands among these: before them it would look better than what it is worse than.
    """
    rows = list(rows)
    is_mixed = any(row.screened for row in rows)

    def key(row: Row) -> tuple[Any, ...]:
        placed = row.model_copy(update={"screened": True}) if row.is_base and is_mixed else row
        return (row.earlier, *rule.order(placed), math.inf if row.rank is None else row.rank, row.trial)

    return sorted(rows, key=key)


def mark_pareto(rows: Sequence[Row]) -> list[Row]:
    """Set `pareto` among the rows of this sweep: a checkpoint that the base model beats in both is on no front."""
    present = [row for row in rows if not row.earlier]
    flags = pareto_front([(row.face_similarity, row.prompt_alignment) for row in present])
    on_front = {row.key for row, flag in zip(present, flags, strict=True) if flag}
    return [row.model_copy(update={"pareto": True}) if row.key in on_front else row for row in rows]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other point beats in one coordinate without losing in the other (higher is better in both).

    Equal points stand or fall together.
    """
    on_front = [False] * len(points)
    highest = -math.inf  # second coordinate of any point with a larger first one
    best_first = sorted(range(len(points)), key=lambda i: points[i], reverse=True)
    for _, group in itertools.groupby(best_first, key=lambda i: points[i][0]):
        equals = list(group)
        top = points[equals[0]][1]
        if top > highest:
            highest = top
            for i in equals:
                on_front[i] = points[i][1] == top
    return on_front


def results_csv(rows: Iterable[Row]) -> str:
    """The leaderboard as CSV, best first, under the names in `COLUMNS`; what is unknown is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.as_dict() for row in rows)
    return buffer.getvalue()


def write_results_csv(run_dir: Path | str, rows: Iterable[Row]) -> Path:
    """Write RUN/results.csv. It is derived: nothing reads it back."""
    path = RunFolder(run_dir).results_csv
    write_whole(path, results_csv(rows))
    return path
