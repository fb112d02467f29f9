"""The leaderboard: a row a scored checkpoint, in the rule's order, with intervals and the Pareto front; as CSV too."""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from evaluation.scores import ReferencePhotos
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import BASE_TRIAL, ScoredCheckpoint, Status, TrialRecord
from sweeps.results.intervals import Interval, Uncertainty, interval_over_pictures
from sweeps.results.rule import ChampionRule
from sweeps.space import MethodSpace, open_options, options_text
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
    "finalist",
    "standing",
    "confirmed_face_similarity",
    "confirmed_face_similarity_low",
    "confirmed_face_similarity_high",
    "confirmed_prompt_alignment",
    "num_trainings",
    "likeness",
    "confirmed_likeness",
    "failure_rate",
    "face_similarity_of_faces",
    "face_width",
    "num_several_faces",
    "diversity",
    "trained_similarity",
    "options",
)
"""Keys of a leaderboard row, the same in `show --json` and in results.csv."""


@dataclass(frozen=True)
class SeedNoise:
    """By how much another training seed moves a training's mean scores; None where no training was repeated."""

    face_similarity: Uncertainty | None = None
    prompt_alignment: Uncertainty | None = None


NO_SEED_NOISE = SeedNoise()


@dataclass(frozen=True)
class Calibration:
    """The scale of likeness: comparable across encoders and people, as raw cosines are not."""

    base: Mapping[str, float]
    """Face similarity of each of the base model's pictures: 0 on the scale, for the same pictures."""
    real: float
    """Face similarity of a real photo of the person to the mean of the others (leave-one-out): 1 on the scale."""
    confirmed_base: float | None = None
    """Of the base model on the second stage's pictures."""

    def likeness(self, similarities: Mapping[str, float]) -> float | None:
        """Of these pictures, from 0 (the base model's) to 1 (another real photo); below and above are possible."""
        common = [key for key in similarities if key in self.base]
        if not common:
            return None
        base = sum(self.base[key] for key in common) / len(common)
        return (sum(similarities[key] for key in common) / len(common) - base) / (self.real - base)

    def confirmed_likeness(self, similarity: float) -> float | None:
        """Of a mean over the second stage's pictures."""
        base = self.confirmed_base
        return None if base is None else (similarity - base) / (self.real - base)


MIN_REFERENCES = 4
"""Photos with a face; fewer say too little about how alike photos of the person are."""


def memorisation_gap(row: Row, base: Row) -> float | None:
    """How much more a checkpoint is like the photos that it was trained on than like others, beyond the base model.

    The base model's own difference, which depends on which photos are which, is taken off. None where likeness is to
    the trained photos alone.
    """
    gaps = [_gap(each) for each in (row, base)]
    return None if gaps[0] is None or gaps[1] is None else gaps[0] - gaps[1]


def _gap(row: Row) -> float | None:
    pairs = [
        (image.trained_similarity, image.face_similarity)
        for image in row.image_scores
        if image.trained_similarity is not None and image.face_similarity is not None
    ]
    return sum(trained - other for trained, other in pairs) / len(pairs) if pairs else None


def calibration_of(base: Row, photos: ReferencePhotos, confirmed_base: Row | None = None) -> Calibration | None:
    """The scale of a run, None where it has no length.

    That is where photos of the person differ among themselves by as much as the base model's pictures from them.

    Args:
        base: the base model's row.
        photos: what pictures are compared with.
        confirmed_base: the base model's row of the second stage.
    """
    similarities = photos.similarities
    if len(similarities) < MIN_REFERENCES:
        return None
    real, spread = statistics.mean(similarities), statistics.stdev(similarities)
    bases = [row.face_similarity for row in (base, confirmed_base) if row is not None]
    if any(real - each <= 2 * spread for each in bases):
        return None
    return Calibration(base.face_similarities, real, None if confirmed_base is None else confirmed_base.face_similarity)


Standing = Literal["follows", "borderline", "off prompt"]
"""How a checkpoint stands to the rule's lowest prompt alignment: surely above, not sure, surely below."""


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
    options: str = ""
    """What else tells its trial from others of the sweep: fields that the sweep file leaves open and no column has."""
    champion: bool = False
    pareto: bool = False
    earlier: bool = False
    """Its trial is of an earlier state of the sweep file, which does not ask for it any more."""
    finalist: bool = False
    """Its settings are trained again with other seeds."""
    standing: Standing | None = None
    """How sure it is that it follows its prompts; None of what was not trained again."""
    confirmed_face_similarity: float | None = None
    """Of its settings over trainings with other seeds, on other noise and held-back prompts."""
    confirmed_face_similarity_low: float | None = None
    confirmed_face_similarity_high: float | None = None
    """Over training seeds, prompts and noise."""
    confirmed_prompt_alignment: float | None = None
    num_trainings: int = 0
    """With other seeds, that have been scored."""
    calibration: Calibration | None = None
    """None where the scale has no length: too few reference photos, or a base model that is as like the person."""
    seed_noise: SeedNoise = NO_SEED_NOISE
    """Of a training's means over other training seeds, as far as this sweep has measured it."""

    @cached_property
    def face_similarity_interval(self) -> Interval | None:
        """None with fewer than two pictures; worked out when it is first asked for, as a table asks for few."""
        return _interval(self.face_similarities, self.seed_noise.face_similarity)

    @cached_property
    def prompt_alignment_interval(self) -> Interval | None:
        """The same."""
        return _interval(self.prompt_alignments, self.seed_noise.prompt_alignment)

    @cached_property
    def face_similarities(self) -> dict[str, float]:
        """Of each picture by its key, one without a face counting as it does in the mean."""
        return {image.key: image.counted(self.no_face_similarity) for image in self.image_scores}

    @cached_property
    def prompt_alignments(self) -> dict[str, float]:
        """Of each picture by its key."""
        return {i.key: i.prompt_alignment for i in self.image_scores if i.prompt_alignment is not None}

    @property
    def likeness(self) -> float | None:
        """The way from the base model's face similarity (0) to another real photo's (1)."""
        return None if self.calibration is None else self.calibration.likeness(self.face_similarities)

    @property
    def confirmed_likeness(self) -> float | None:
        """The same of its settings' trainings with other seeds."""
        if self.calibration is None or self.confirmed_face_similarity is None:
            return None
        return self.calibration.confirmed_likeness(self.confirmed_face_similarity)

    @property
    def failure_rate(self) -> float:
        """The part of its pictures in which no face was found, in [0, 1]."""
        return 1 - self.num_faces / self.num_images if self.num_images else 0.0

    @property
    def face_similarity_of_faces(self) -> float | None:
        """Mean over the pictures with a face alone."""
        found = [image.face_similarity for image in self.image_scores if image.face_similarity is not None]
        return sum(found) / len(found) if found else None

    @property
    def trained_similarity(self) -> float | None:
        """Mean similarity of its faces to the photos that it was trained on, where it is judged by others."""
        known = [image.trained_similarity for image in self.image_scores if image.trained_similarity is not None]
        return sum(known) / len(known) if known else None

    @property
    def face_width(self) -> float | None:
        """Median width of the largest faces in pixels: smaller ones score lower for reasons other than likeness."""
        widths = [image.face_width for image in self.image_scores if image.face_width is not None]
        return statistics.median(widths) if widths else None

    @property
    def num_several_faces(self) -> int:
        """Pictures with more than one face."""
        return sum(image.num_faces > 1 for image in self.image_scores)

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


def _interval(values: Mapping[str, float], seeds: Uncertainty | None) -> Interval | None:
    interval = interval_over_pictures(values, seeds)
    return None if interval is None else interval.within(-1.0, 1.0)


def rows_of(
    record: TrialRecord, *, earlier: bool = False, methods: Mapping[str, MethodSpace] | None = None
) -> list[Row]:
    """The trial's rows, one a scoring point; of a step scored twice, the later one.

    Args:
        record: the trial.
        earlier: the sweep file does not ask for it any more.
        methods: the sweep's space, whose open options the rows then say.

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
        "options": options_text(config, open_options((methods or {}).get(config.method, {}))) if config else "",
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
