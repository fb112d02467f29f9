"""What a run folder says: the leaderboard, the Pareto front and the champion, from the files alone.

One rule names the champion, everywhere: `qualifies` and `_order` below. It is stated in the sweep file (`champion:`)
and printed wherever a champion is named. Nothing here needs Ray or torch, and a run may be read while it runs.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from sweeps.config import ChampionConfig, SweepConfig, load_sweep
from sweeps.intervals import MIN_PICTURES_FOR_VERDICT, Difference, Interval, bootstrap_interval, paired_difference
from sweeps.store import BASE_TRIAL, RunFolder, ScoredCheckpoint, TrialRecord
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
)
"""Keys of a leaderboard row, the same in `show --json` and in results.csv."""


class ImageRecord(BaseModel):
    """One picture's scores in trial.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file: str
    prompt: str | None = None
    seed: int | None = None
    face_similarity: FiniteFloat | None = None
    """Cosine in [-1, 1]; None where no face was found, which counts as 0.0."""
    prompt_alignment: FiniteFloat | None = None
    num_faces: int = Field(default=0, ge=0)

    @property
    def key(self) -> str:
        """What makes it the same picture in two trials: its file's name, which says prompt and seed."""
        return Path(self.file).name


class _Scores(BaseModel):
    """The numbers of a scoring point, every one finite."""

    face_similarity: FiniteFloat
    prompt_alignment: FiniteFloat
    image_scores: tuple[ImageRecord, ...]


class TrialSettings(BaseModel):
    """The hyperparameters that the leaderboard shows."""

    rank: int | None = None
    learning_rate: FiniteFloat | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Row:
    """One scored checkpoint; `method` is `base` for the untouched base model (step 0, no checkpoint)."""

    trial: str
    method: str
    rank: int | None
    learning_rate: float | None
    step: int
    seed: int | None
    status: str
    face_similarity: float
    prompt_alignment: float
    num_images: int
    num_faces: int
    checkpoint: str | None
    images: str | None = None
    face_encoder: str | None = None
    clip: str | None = None
    loss: float | None = None
    seconds: float | None = None
    image_scores: tuple[ImageRecord, ...] = field(default=(), repr=False)
    face_similarity_interval: Interval | None = None
    prompt_alignment_interval: Interval | None = None
    champion: bool = False
    pareto: bool = False

    @property
    def is_base(self) -> bool:
        """Whether this is the zero line rather than something trained."""
        return self.method == BASE_TRIAL

    @property
    def face_similarity_low(self) -> float | None:
        """Lower bound of the bootstrap interval; None with fewer than two pictures."""
        return self.face_similarity_interval.low if self.face_similarity_interval else None

    @property
    def face_similarity_high(self) -> float | None:
        """Upper bound of the bootstrap interval; None with fewer than two pictures."""
        return self.face_similarity_interval.high if self.face_similarity_interval else None

    @property
    def prompt_alignment_low(self) -> float | None:
        """Lower bound of the bootstrap interval; None with fewer than two pictures."""
        return self.prompt_alignment_interval.low if self.prompt_alignment_interval else None

    @property
    def prompt_alignment_high(self) -> float | None:
        """Upper bound of the bootstrap interval; None with fewer than two pictures."""
        return self.prompt_alignment_interval.high if self.prompt_alignment_interval else None

    def as_dict(self) -> dict[str, Any]:
        """The row under the names in `COLUMNS`: JSON-ready, every number finite or None."""
        values = {name: getattr(self, name) for name in COLUMNS}
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


# --- the champion rule --------------------------------------------------------------------------------------------


def rule_text(rule: ChampionConfig) -> str:
    """The rule in words, to be printed beside every champion."""
    return (
        "the highest face similarity among checkpoints whose prompt alignment is at least "
        f"the base model's minus {rule.prompt_alignment_margin:g}"
    )


def qualifies(prompt_alignment: float, base_prompt_alignment: float | None, rule: ChampionConfig) -> bool:
    """Whether a checkpoint still follows its prompts; without a base score nothing is known to disqualify it."""
    if base_prompt_alignment is None:
        return True
    # The tolerance keeps "minus 0.02" inclusive: 0.30 - 0.02 is 0.27999... in binary.
    return prompt_alignment >= base_prompt_alignment - rule.prompt_alignment_margin - 1e-12


def _order(row: Row, base_prompt_alignment: float | None, rule: ChampionConfig) -> tuple[Any, ...]:
    """Sort key, best first: those that qualify, then face similarity; ties to fewer steps, lower rank, name."""
    return (
        not qualifies(row.prompt_alignment, base_prompt_alignment, rule),
        -row.face_similarity,
        row.step,
        math.inf if row.rank is None else row.rank,
        row.trial,
    )


def best_first(rows: Iterable[Row], rule: ChampionConfig) -> list[Row]:
    """The leaderboard's order; the base model stands where its own scores put it."""
    rows = list(rows)
    base = base_row(rows)
    alignment = base.prompt_alignment if base else None
    return sorted(rows, key=lambda row: _order(row, alignment, rule))


class Scored(Protocol):
    """A scored checkpoint: the ledger's `ScoredCheckpoint`, or a `Row`."""

    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def face_similarity(self) -> float: ...  # noqa: D102
    @property
    def prompt_alignment(self) -> float: ...  # noqa: D102


ScoredT = TypeVar("ScoredT", bound=Scored)


def best_checkpoint_entry(
    checkpoints: Sequence[ScoredT], rule: ChampionConfig, base_prompt_alignment: float | None
) -> ScoredT:
    """The champion rule on one trial's own series.

    Where no checkpoint qualifies, the one with the highest prompt alignment: the nearest to qualifying.

    Raises:
        ValueError: the trial has no scored checkpoint.
    """
    if not checkpoints:
        raise ValueError("a trial needs at least one scored checkpoint to have a best one, got none")
    able = [c for c in checkpoints if qualifies(c.prompt_alignment, base_prompt_alignment, rule)]
    if able:
        return min(able, key=lambda c: (-c.face_similarity, c.step))
    return min(checkpoints, key=lambda c: (-c.prompt_alignment, c.step))


@dataclass(frozen=True)
class Champion:
    """The rule's answer: the winning row, or None and the reason.

    Differences are paired over pictures; their intervals hold for all checkpoints together, since the champion was
    chosen among them.
    """

    row: Row | None
    rule: str
    reason: str
    """One sentence: why this row, or why none."""
    runner_up: Row | None = None
    """The best qualifying checkpoint of another trial."""
    versus_base: Difference | None = None
    """Face similarity of the champion minus the base model's."""
    versus_runner_up: Difference | None = None
    """Face similarity of the champion minus the runner-up's."""
    caveats: tuple[str, ...] = ()
    """What a reader must know before believing it, most damaging first."""
    is_finding: bool = False
    """Whether the champion is measurably more like the person than the untouched base model."""


def champion(rows: Iterable[Row], rule: ChampionConfig) -> Champion:
    """Name the champion among `rows` by the one rule; the base model never is one."""
    ordered = best_first(rows, rule)
    base = base_row(ordered)
    trained = [row for row in ordered if not row.is_base]
    caveats = _caveats_of_all(trained, base)
    if not trained:
        return _nobody("no trained checkpoint has been scored yet", rule, caveats)
    if base is None:
        return _nobody("the base model has not been scored, so the rule cannot be applied", rule, caveats)
    needed = base.prompt_alignment - rule.prompt_alignment_margin
    able = [row for row in trained if qualifies(row.prompt_alignment, base.prompt_alignment, rule)]
    if not able:
        highest = max(row.prompt_alignment for row in trained)
        return _nobody(
            f"the rule needs a prompt alignment of at least {needed:.3f} and the highest is {highest:.3f}",
            rule,
            caveats,
        )
    winner = able[0]
    runner_up = next((row for row in able if row.trial != winner.trial), None)
    versus_base = compare_face_similarity(winner, base, len(trained))
    if any(row.num_faces for row in trained):
        caveats += _caveats_against_base(winner, base, versus_base)
    return Champion(
        row=winner,
        rule=rule_text(rule),
        reason=(
            f"its face similarity of {winner.face_similarity:.3f} is the highest of the {len(able)} checkpoints (of "
            f"{len(trained)}) whose prompt alignment is at least {needed:.3f}, the base model's "
            f"{base.prompt_alignment:.3f} minus {rule.prompt_alignment_margin:g}"
        ),
        runner_up=runner_up,
        versus_base=versus_base,
        versus_runner_up=compare_face_similarity(winner, runner_up, len(trained)) if runner_up else None,
        caveats=tuple(caveats),
        is_finding=not caveats and versus_base.verdict == "higher",
    )


def _nobody(reason: str, rule: ChampionConfig, caveats: Sequence[str]) -> Champion:
    return Champion(row=None, rule=rule_text(rule), reason=f"no champion: {reason}", caveats=tuple(caveats))


def _caveats_of_all(trained: Sequence[Row], base: Row | None) -> list[str]:
    """Reasons why no checkpoint's likeness means anything, whichever the rule picks."""
    if trained and not any(row.num_faces for row in trained):
        return [
            "no checkpoint has a face in any picture: face similarity is 0 by the rule, "
            "so an order by face similarity is not a finding"
        ]
    if not trained or base is None:
        return []
    verdicts = {compare_face_similarity(row, base, len(trained)).verdict for row in trained}
    if verdicts == {"unknown"}:
        return [
            f"too few pictures (a verdict needs {MIN_PICTURES_FOR_VERDICT} a checkpoint): whether any checkpoint "
            "differs from the base model is not known"
        ]
    if "higher" not in verdicts:
        return [
            "no checkpoint is measurably more like the person than the base model (the interval of every difference "
            "covers 0 or lies below it): these scores do not rank the settings"
        ]
    return []


def _caveats_against_base(winner: Row, base: Row, versus_base: Difference) -> list[str]:
    """Reasons why this champion is no better than what one had before training."""
    if base.face_similarity >= winner.face_similarity:
        return [
            f"the base model's face similarity ({base.face_similarity:.3f}) is at least the champion's "
            f"({winner.face_similarity:.3f}): training has not made the pictures more like the person"
        ]
    if versus_base.verdict == "tie":
        return ["champion and base model are a tie in face similarity: the interval of their difference covers 0"]
    return []


def base_row(rows: Iterable[Row]) -> Row | None:
    """The zero line: the untouched base model's row."""
    return next((row for row in rows if row.is_base), None)


def compare_face_similarity(a: Row, b: Row, num_comparisons: int = 1) -> Difference:
    """Face similarity of a minus b, paired over the pictures that both made; a picture without a face counts 0.0."""
    return paired_difference(_face_similarities(a), _face_similarities(b), num_comparisons)


def compare_prompt_alignment(a: Row, b: Row) -> Difference:
    """Prompt alignment of a minus b, paired over the pictures that both made."""
    return paired_difference(_prompt_alignments(a), _prompt_alignments(b))


def _face_similarities(row: Row) -> dict[str, float]:
    return {image.key: image.face_similarity or 0.0 for image in row.image_scores}


def _prompt_alignments(row: Row) -> dict[str, float]:
    return {image.key: image.prompt_alignment for image in row.image_scores if image.prompt_alignment is not None}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other point beats in one coordinate without losing in the other (higher is better in both).

    Equal points stand or fall together.
    """
    on_front = [False] * len(points)
    best_second = -math.inf
    for first in sorted({point[0] for point in points}, reverse=True):
        group = [i for i, point in enumerate(points) if point[0] == first]
        highest = max(points[i][1] for i in group)
        if highest > best_second:
            for i in group:
                on_front[i] = points[i][1] == highest
            best_second = highest
    return on_front


# --- reading the run folder ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """A run folder, read."""

    run_dir: Path
    name: str
    config: SweepConfig | None
    """The sweep's settings; None where sweep.yaml cannot be read."""
    rule: ChampionConfig
    trials: tuple[TrialRecord, ...]
    """Every readable trial by name, the base model's among them, scored or not."""
    rows: tuple[Row, ...]
    """Every scored checkpoint, best first."""
    champion: Champion
    warnings: tuple[str, ...]
    """What could not be read, with its place; the rest stands."""

    @property
    def base(self) -> Row | None:
        """The base model's row."""
        return base_row(self.rows)

    @property
    def num_by_status(self) -> dict[str, int]:
        """How many trials (the base model not counted) are in each status."""
        counts: dict[str, int] = {}
        for trial in self.trials:
            if trial.method != BASE_TRIAL:
                counts[trial.status] = counts.get(trial.status, 0) + 1
        return counts

    def best_of_each_trial(self) -> list[Row]:
        """One row a trial, by the champion rule on its own series, best first; the base model is not among them."""
        return [row for row in self.rows if not row.is_base and row == self.best_of_trial(row.trial)]

    def best_of_trial(self, trial: str) -> Row:
        """The best checkpoint of one trial.

        Raises:
            ValueError: there is no such trial, or none of its checkpoints has been scored.
        """
        series = [row for row in self.rows if row.trial == trial]
        if not series:
            known = any(record.trial == trial for record in self.trials)
            what = "has no scored checkpoint" if known else "is not in this run"
            raise ValueError(f"trial {trial!r} {what}: {self.run_dir / 'trials'}")
        return best_checkpoint_entry(series, self.rule, self.base.prompt_alignment if self.base else None)


def read_results(run_dir: Path | str) -> Results:
    """Read a run folder, finished or not.

    Raises:
        ValueError: `run_dir` is not a run folder.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "trials").is_dir() and not (run_dir / "sweep.yaml").is_file():
        raise ValueError(f"a run folder holds sweep.yaml and trials/, found neither: {run_dir}")
    warnings: list[str] = []
    config = _read_config(run_dir, warnings)
    rule = config.champion if config else ChampionConfig()
    trials, rows = _read_trials(run_dir, warnings)
    rows = mark_pareto(best_first(rows, rule))
    warnings += _different_judges(rows)
    verdict = champion(rows, rule)
    if verdict.row is not None:
        winner = replace(verdict.row, champion=True)
        rows = [winner if row == verdict.row else row for row in rows]
        verdict = replace(verdict, row=winner)
    return Results(
        run_dir=run_dir,
        name=config.name if config else run_dir.resolve().name,
        config=config,
        rule=rule,
        trials=tuple(trials),
        rows=tuple(rows),
        champion=verdict,
        warnings=tuple(warnings),
    )


def _read_config(run_dir: Path, warnings: list[str]) -> SweepConfig | None:
    try:
        return load_sweep(RunFolder(run_dir).sweep_file)
    except ValueError as error:
        warnings.append(f"{error}; shown without its settings, with the default champion rule")
        return None


def _read_trials(run_dir: Path, warnings: list[str]) -> tuple[list[TrialRecord], list[Row]]:
    trials, rows = [], []
    for path in sorted(run_dir.glob("trials/*/trial.json")):
        place = path.relative_to(run_dir).as_posix()
        try:
            trial = TrialRecord.model_validate_json(path.read_bytes())
            trial_rows = _rows(trial.model_copy(update={"trial": path.parent.name}))
        except OSError as error:
            warnings.append(f"{place} cannot be read and is left out: {error.strerror}")
        except ValidationError as error:
            warnings.append(f"{place} is not a whole trial and is left out: {_first_error(error)}")
        else:
            if trial.trial != path.parent.name:
                warnings.append(f"{place} calls itself {trial.trial!r}; its folder's name is used")
            trials.append(trial.model_copy(update={"trial": path.parent.name}))
            rows += trial_rows
    return trials, rows


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def _different_judges(rows: Sequence[Row]) -> list[str]:
    """Scores of different encoders have different scales: an order among them means nothing."""
    warnings = []
    for kind, names in (
        ("face encoders", {row.face_encoder for row in rows}),
        ("CLIP models", {row.clip for row in rows}),
    ):
        if len(names) > 1:
            listed = "; ".join(sorted(name or "not recorded" for name in names))
            warnings.append(f"scores of different {kind} cannot be compared, found {listed}")
    return warnings


def _rows(trial: TrialRecord) -> list[Row]:
    """The trial's leaderboard rows; ValidationError where a value that they show is not of its kind."""
    settings = TrialSettings.model_validate(trial.config)
    by_step = {entry.step: entry for entry in trial.checkpoints}  # of a step scored twice, the later one
    return [_row(trial, settings, entry) for entry in by_step.values()]


def _row(trial: TrialRecord, settings: TrialSettings, entry: ScoredCheckpoint) -> Row:
    scores = _Scores.model_validate(entry.model_dump())
    is_base = trial.method == BASE_TRIAL
    return Row(
        trial=trial.trial,
        method=trial.method,
        rank=settings.rank if trial.method == "lora" else None,
        learning_rate=None if is_base else settings.learning_rate,
        step=entry.step,
        seed=None if is_base else settings.seed,
        status=trial.status,
        face_similarity=scores.face_similarity,
        prompt_alignment=scores.prompt_alignment,
        num_images=entry.num_images,
        num_faces=entry.num_faces,
        checkpoint=None if is_base else entry.checkpoint,
        images=entry.images,
        face_encoder=entry.face_encoder,
        clip=entry.clip,
        loss=entry.loss,
        seconds=entry.seconds,
        image_scores=scores.image_scores,
        face_similarity_interval=bootstrap_interval([i.face_similarity or 0.0 for i in scores.image_scores]),
        prompt_alignment_interval=bootstrap_interval(
            [i.prompt_alignment for i in scores.image_scores if i.prompt_alignment is not None]
        ),
    )


def mark_pareto(rows: Sequence[Row]) -> list[Row]:
    """Set `pareto`, over all rows: a checkpoint that the base model beats in both scores is on no front."""
    flags = pareto_front([(row.face_similarity, row.prompt_alignment) for row in rows])
    return [replace(row, pareto=flag) for row, flag in zip(rows, flags, strict=True)]


def public_name(model: str) -> str:
    """How a model is named to others: a hub id or name as it is, of a path on this machine only the last part."""
    name = model.removeprefix("local-dir:")
    return Path(name).name if Path(name).is_absolute() else name


def path_in_run(run_dir: Path, relative: str) -> Path:
    """The file or folder that a path in trial.json names.

    Raises:
        ValueError: it lies outside the run folder (a run folder may come from somebody else).
    """
    path = (run_dir / relative).resolve()
    if not path.is_relative_to(run_dir.resolve()):
        raise ValueError(f"a path in trial.json must stay inside the run folder, got {relative!r}: {run_dir}")
    return path


# --- results.csv --------------------------------------------------------------------------------------------------


def results_csv(rows: Iterable[Row]) -> str:
    """The leaderboard as CSV, best first, under the names in `COLUMNS`; what is unknown is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.as_dict() for row in rows)
    return buffer.getvalue()


def write_results_csv(results: Results) -> Path:
    """Write RUN/results.csv. It is derived: nothing reads it back."""
    path = RunFolder(results.run_dir).results_csv
    write_whole(path, results_csv(results.rows))
    return path
