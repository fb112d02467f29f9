"""A run folder, read: one row a scored checkpoint, best first, the champion marked. A run may be read while it runs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from evaluation.references import References
from evaluation.scores import ReferencePhotos
from sweeps.asked import asked_for, num_planned
from sweeps.config import ChampionConfig, SweepConfig, load_sweep
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import NewerLedgerError, TrialRecord, parse_record
from sweeps.ledger.votes import read_votes
from sweeps.results.champion import Champion, champion
from sweeps.results.confirmed import NOT_CONFIRMED, Confirmations, Confirmed, confirmations_of
from sweeps.results.finalists import Finalist, finalists_of, read_asked
from sweeps.results.leaderboard import (
    Calibration,
    Row,
    base_row,
    best_first,
    calibration_of,
    mark_pareto,
    rows_of,
)
from sweeps.results.rule import ChampionRule
from sweeps.results.weights import weights_problem
from sweeps.space import scoring_points
from training.config import MethodConfig
from training.errors import UserError


@dataclass(frozen=True)
class Results:
    """A run folder, read."""

    run_dir: Path
    name: str
    config: SweepConfig | None
    """The sweep's settings; None where sweep.yaml cannot be read."""
    rule: ChampionRule
    trials: tuple[TrialRecord, ...]
    """Every readable trial by name, the base model's among them, scored or not."""
    rows: tuple[Row, ...]
    """Every scored checkpoint, best first."""
    search_rows: tuple[Row, ...]
    """The same in the search's order, which no second stage changes."""
    champion: Champion
    warnings: tuple[str, ...]
    """What could not be read, with its place; the rest stands."""
    weights: str | None = None
    """What became of the champion's weights, where they are not as they were written."""
    asked_again: tuple[Finalist, ...] = ()
    """Whom `dreamsweep confirm` was asked for."""
    again: tuple[TrialRecord, ...] = ()
    """The finalists' trainings with fresh seeds, and the base model beside them."""
    confirmations: Confirmations = NOT_CONFIRMED
    """What the finalists' trainings with fresh seeds came to."""
    earlier: tuple[str, ...] = ()
    """Trials that the sweep file does not ask for any more: shown, but in no verdict and no count."""

    @property
    def folder(self) -> RunFolder:
        """Where it was read."""
        return RunFolder(self.run_dir)

    @cached_property
    def present_rows(self) -> tuple[Row, ...]:
        """The rows of what the sweep file asks for as it is now, the base model's among them."""
        return tuple(row for row in self.rows if not row.earlier)

    @cached_property
    def base(self) -> Row | None:
        """The base model's row."""
        return base_row(self.rows)

    @cached_property
    def finalists(self) -> tuple[Finalist, ...]:
        """Who is trained again, or would be were the search over now; none without the sweep's settings."""
        if self.config is None:
            return ()
        return tuple(finalists_in(self.config, self.search_rows, self.rule, self.trials, self.asked_again))

    @cached_property
    def num_by_status(self) -> dict[str, int]:
        """How many trials of the sweep (the base model not counted) are in each status."""
        counts: dict[str, int] = {}
        for trial in self.present_trials:
            counts[trial.status] = counts.get(trial.status, 0) + 1
        return counts

    @cached_property
    def present_trials(self) -> tuple[TrialRecord, ...]:
        """What the sweep file asks for as it is now, without the base model."""
        earlier = set(self.earlier)
        return tuple(trial for trial in self.trials if not trial.is_base and trial.trial not in earlier)

    @property
    def num_ended(self) -> int:
        """Trials of the sweep that need no more work."""
        return sum(number for status, number in self.num_by_status.items() if status != "running")

    @cached_property
    def num_planned(self) -> int:
        """Trials that the sweep file asks for; at least those that have begun."""
        asked = num_planned(self.config) if self.config else 0
        return max(asked, sum(self.num_by_status.values()))

    @property
    def is_interrupted(self) -> bool:
        """Whether trials are half done and nobody goes on with them now; with a storage it is not seen from here."""
        has_storage = self.config is not None and self.config.storage is not None
        return bool(self.num_by_status.get("running")) and not has_storage and not self.folder.has_driver()

    @cached_property
    def _best(self) -> dict[str, Row]:
        """Trial -> its best row, best trial first: rows stand in the rule's order, so a trial's first is its best."""
        best: dict[str, Row] = {}
        for row in self.rows:
            best.setdefault(row.trial, row)
        return best

    def best_of_each_trial(self) -> list[Row]:
        """One row a trial of the sweep, by the champion rule on its own series, best first, without the base model."""
        return [row for row in self._best.values() if not row.is_base and not row.earlier]

    def best_of_trial(self, trial: str) -> Row:
        """The best checkpoint of one trial.

        Raises:
            UserError: there is no such trial, or none of its checkpoints has been scored.
        """
        if trial not in self._best:
            known = any(record.trial == trial for record in self.trials)
            what = "has no scored checkpoint" if known else "is not in this run"
            raise UserError(f"trial {trial!r} {what}: {self.folder.trials_dir}")
        return self._best[trial]

    def finalist_of_training(self, trial: str) -> Confirmed | None:
        """Whose settings a training of the second stage has; None of a trial of the search."""
        return next(
            (each for each in self.confirmations.finalists if trial in {row.trial for row in each.trainings}), None
        )

    def checkpoint_of(self, trial: str) -> Row:
        """The best checkpoint of one trial; of one of the second stage's trainings the checkpoint that it is for.

        Raises:
            UserError: see `best_of_trial`.
        """
        finalist = self.finalist_of_training(trial)
        if finalist is None:
            return self.best_of_trial(trial)
        return next(row for row in finalist.trainings if row.trial == trial)

    def record_of(self, row: Row) -> TrialRecord:
        """The trial of a row, of the search or of the second stage."""
        return next(record for record in (*self.trials, *self.again) if record.trial == row.trial)


class TrialReader:
    """Reads trials, each file again only when it has changed: for whoever reads a run that grows again and again."""

    def __init__(self) -> None:
        self._config: SweepConfig | None = None
        self._is_asked_for: Callable[[MethodConfig], bool] = lambda _: True
        self._known: dict[Path, tuple[object, _Read]] = {}

    def settle(self, config: SweepConfig | None) -> None:
        """Say what sweep the trials are of, before any is read: by another one, they are read anew."""
        if config != self._config:
            self._config, self._known = config, {}
            self._is_asked_for = asked_for(config) if config else lambda _: True

    def read(self, path: Path) -> _Read:
        """What a trial.json gives.

        Raises:
            NewerLedgerError: a later release wrote it.
        """
        try:
            stat = path.stat()
        except OSError as error:
            return _unreadable(path, error)
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if path not in self._known or self._known[path][0] != stamp:
            self._known[path] = (stamp, _read_trial(path, self._config, self._is_asked_for))
        return self._known[path][1]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """While records are made that all stay: looking through them for garbage takes a third as long again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_no_garbage_collection()
def read_results(run_dir: Path | str, reader: TrialReader | None = None) -> Results:
    """Read a run folder, finished or not.

    Args:
        run_dir: the folder.
        reader: has read it before and spares what has not changed since.

    Raises:
        UserError: `run_dir` is not a run folder, or a later release wrote a trial into it.
    """
    folder = RunFolder(run_dir)
    if not folder.trials_dir.is_dir() and not folder.sweep_file.is_file():
        raise UserError(f"a run folder holds sweep.yaml and trials/, found neither: {run_dir}")
    warnings: list[str] = []
    config = _read_config(folder, warnings)
    reader = reader or TrialReader()
    trials, rows, earlier = _read_trials(folder, config, warnings, reader)
    rule = ChampionRule.of(config.champion if config else ChampionConfig(), base_row(rows))
    rows = search_rows = mark_pareto(best_first(rows, rule))
    warnings += _different_judges(rows)
    if config is not None:
        is_earlier = set(earlier)
        warnings += _points_passed_over(config, [trial for trial in trials if trial.trial not in is_earlier])
    asked, again = _read_asked(folder, warnings), _read_again(folder, warnings, reader)
    _look_at_votes(folder, warnings)
    confirmations = NOT_CONFIRMED
    if config is not None and again:
        confirmations = confirmations_of(
            finalists_in(config, rows, rule, trials, asked),
            {row.key: row for row in rows},
            {trial.trial: trial for trial in trials},
            again,
            rule.margin,
        )
    calibration = _read_calibration(folder, base_row(rows), confirmations)
    if confirmations.finalists or calibration is not None:
        rows = [_completed(row, confirmations, calibration) for row in rows]
        by_key = {row.key: row for row in rows}
        finalists = tuple(replace(each, row=by_key[each.row.key]) for each in confirmations.finalists)
        confirmations = replace(confirmations, finalists=finalists)
    verdict = champion(rows, rule, confirmations)
    if verdict.row is not None:
        rows = [verdict.row if row.key == verdict.row.key else row for row in rows]
        if verdict.confirmed is not None:
            rows = _confirmed_first(rows, confirmations)
    return Results(
        run_dir=Path(run_dir),
        name=config.name if config else folder.dir.name,
        config=config,
        rule=rule,
        trials=tuple(trials),
        rows=tuple(rows),
        search_rows=tuple(search_rows),
        champion=verdict,
        warnings=tuple(warnings),
        weights=_champions_weights(folder, config, verdict.row),
        asked_again=tuple(asked),
        again=tuple(again),
        confirmations=confirmations,
        earlier=tuple(earlier),
    )


def _completed(row: Row, confirmations: Confirmations, calibration: Calibration | None) -> Row:
    """A row with what the run tells of it: the scale of likeness, how much a training seed moves, its own trainings."""
    if row.is_base or row.earlier:
        return row.model_copy(update={"calibration": calibration})
    confirmed = confirmations.of(row)
    more = {} if confirmed is None else confirmed.on_leaderboard()
    return row.model_copy(update={"calibration": calibration, "seed_noise": confirmations.seed_noise, **more})


def _read_calibration(folder: RunFolder, base: Row | None, confirmations: Confirmations) -> Calibration | None:
    """None where there is no scale, or the file of reference faces cannot be read: the report says so."""
    try:
        photos = reference_photos(folder)
    except UserError:
        return None
    return None if base is None or photos is None else calibration_of(base, photos, confirmations.base)


def reference_photos(folder: RunFolder) -> ReferencePhotos | None:
    """What was found in a run's reference photos; None before it has looked.

    Raises:
        UserError: the file is damaged.
    """
    return References.load(folder.reference_file).summary if folder.reference_file.is_file() else None


def _confirmed_first(rows: Sequence[Row], confirmations: Confirmations) -> list[Row]:
    """The champion, the other finalists by what their trainings came to, then the rest as the search has it."""
    places = {
        each.row.key: (each.standing == "off prompt", -each.face_similarity.mean) for each in confirmations.finalists
    }
    finalists = sorted((row for row in rows if row.key in places), key=lambda row: (not row.champion, places[row.key]))
    return [*finalists, *(row for row in rows if row.key not in places)]


def _read_asked(folder: RunFolder, warnings: list[str]) -> list[Finalist]:
    try:
        return read_asked(folder)
    except UserError as error:  # what is there stands; nobody is trained again before it is mended
        warnings.append(str(error))
        return []


def _look_at_votes(folder: RunFolder, warnings: list[str]) -> None:
    """The report leaves out votes that cannot be read; that they are is said here."""
    try:
        read_votes(folder)
    except UserError as error:
        warnings.append(str(error))


def _read_again(folder: RunFolder, warnings: list[str], reader: TrialReader) -> list[TrialRecord]:
    """The second stage's ledger."""
    records = []
    for path in sorted(folder.confirm.trials_dir.glob("*/trial.json")):
        found = reader.read(path)
        warnings += found.warnings
        records += [found.record] if found.record is not None else []
    return records


def finalists_in(
    config: SweepConfig,
    rows: Iterable[Row],
    rule: ChampionRule,
    trials: Iterable[TrialRecord],
    asked: Iterable[Finalist],
) -> list[Finalist]:
    """Who is trained again. Nobody by the search's order while it runs, since another may yet be better.

    Args:
        config: the sweep.
        rows: of the search, in its order.
        rule: the sweep's.
        trials: of the run, the base model's among them.
        asked: whom `dreamsweep confirm` was asked for; of checkpoints that are gone nobody is trained again.
    """
    by_name = {trial.trial: trial for trial in trials}
    best: dict[str, Row] = {}
    known = set()
    for row in rows:
        known.add(row.key)
        if not row.is_base and not row.earlier:
            best.setdefault(row.trial, row)
    is_over = all(by_name[trial].is_over for trial in best)
    able = [row for row in best.values() if rule.qualifies(row)] if is_over else []
    return finalists_of(config, able, by_name, [each for each in asked if (each.trial, each.step) in known])


def _champions_weights(folder: RunFolder, config: SweepConfig | None, row: Row | None) -> str | None:
    if row is None or (config and config.storage):  # with a storage, weights need not lie here
        return None
    return weights_problem(folder, row)


def _read_config(folder: RunFolder, warnings: list[str]) -> SweepConfig | None:
    try:
        return load_sweep(folder.sweep_file, source=str(folder.sweep_file))
    except ValueError as error:
        warnings.append(
            f"{error}; shown without its settings, with the default champion rule; the run command writes it anew"
        )
        return None


def _read_trials(
    folder: RunFolder, config: SweepConfig | None, warnings: list[str], reader: TrialReader
) -> tuple[list[TrialRecord], list[Row], list[str]]:
    """Records, rows, and the names of trials that the sweep file does not ask for any more."""
    reader.settle(config)
    trials: list[TrialRecord] = []
    rows: list[Row] = []
    earlier: list[str] = []
    for path in sorted(folder.trials_dir.glob("*/trial.json")):
        found = reader.read(path)
        warnings += found.warnings
        rows += found.rows
        if found.record is not None:
            trials.append(found.record)
            earlier += [found.record.trial] if found.is_earlier else []
    return trials, rows, earlier


class _Read(NamedTuple):
    """What a trial.json gives."""

    record: TrialRecord | None = None
    rows: Sequence[Row] = ()
    is_earlier: bool = False
    warnings: Sequence[str] = ()


def _read_trial(path: Path, config: SweepConfig | None, is_asked_for: Callable[[MethodConfig], bool]) -> _Read:
    place, warnings = _place(path), []
    try:
        record = parse_record(path.read_bytes())
        if record.trial != path.parent.name:
            warnings.append(f"{place} calls itself {record.trial!r}; its folder's name is used")
            record = record.model_copy(update={"trial": path.parent.name})
        is_earlier = not record.is_base and not is_asked_for(record.method_config)
        return _Read(
            record,
            rows_of(record, earlier=is_earlier, methods=None if config is None else config.methods),
            is_earlier,
            warnings,
        )
    except OSError as error:
        return _unreadable(path, error)
    except NewerLedgerError as error:
        raise NewerLedgerError(f"{path}: {error}") from None  # without it, the champion might be another
    except ValueError as error:
        problem = _first_error(error) if isinstance(error, ValidationError) else str(error)
        warnings.append(f"{place} is not a whole trial and is left out: {problem}; delete its folder to run it again")
        return _Read(warnings=warnings)


def _unreadable(path: Path, error: OSError) -> _Read:
    return _Read(warnings=[f"{_place(path)} cannot be read and is left out: {error.strerror}"])


def _place(path: Path) -> str:
    return "/".join(path.parts[-3:])


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def _points_passed_over(config: SweepConfig, trials: Sequence[TrialRecord]) -> list[str]:
    """Scoring points that the sweep file asked for when trials were past them, so that they have no score there."""
    without: dict[int, list[str]] = {}
    for trial in trials:
        scored = {checkpoint.step for checkpoint in trial.checkpoints}
        points = [] if trial.is_base else scoring_points(trial.method_config, config.evaluation.at_steps)
        for step in points:
            if step not in scored and step < max(scored, default=0):
                without.setdefault(step, []).append(trial.trial)
    return [
        f"evaluation.at_steps: {step} was asked for when {len(names)} trials were past it ({', '.join(names[:3])}"
        f"{', ...' if len(names) > 3 else ''}): they have no score there"
        for step, names in sorted(without.items())
    ]


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
