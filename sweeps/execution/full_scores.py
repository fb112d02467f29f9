"""The second tier of scores: what is left of the pictures of the checkpoints that could still win."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sweeps.execution.cluster import TrialResources
from sweeps.execution.ends import OutOfGpuMemory
from sweeps.execution.lines import scores_text
from sweeps.execution.machines import check_seen
from sweeps.execution.same_models import check_same_models
from sweeps.execution.scoring import Point, make_packed_pictures, make_pictures, score_pictures, use_threads
from sweeps.execution.task import Scoring
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import open_run
from sweeps.ledger.records import ScoredCheckpoint, TrialRecord
from sweeps.results.leaderboard import Row
from sweeps.wording import failure_text
from training.checkpoint import checkpoint_dir, open_checkpoint
from training.config import is_packable
from training.errors import DivergedError
from training.layout import STATE_FILE


class Wanted(NamedTuple):
    """A checkpoint to be scored in full."""

    trial: str
    step: int


@dataclass(frozen=True)
class FullScores:
    """What every process that scores in full is given."""

    run_dir: str
    storage: str | None
    scoring: Scoring
    resources: TrialResources


def batches_of(rows: Iterable[Row], folder: RunFolder, num_processes: int, pack_size: int) -> list[list[Wanted]]:
    """The checkpoints of each process: a trial's in one, since it writes the trial's record.

    LoRAs that train the same modules have their pictures made together.

    Args:
        rows: to be scored in full.
        folder: of the run.
        num_processes: that there is room for; more come after them.
        pack_size: the most LoRA checkpoints of a batch, but for one trial's own.
    """
    of_trials: dict[str, list[Wanted]] = {}
    for row in rows:
        of_trials.setdefault(row.trial, []).append(Wanted(row.trial, row.step))
    num_rows = sum(map(len, of_trials.values()))
    size = min(pack_size, max(1, -(-num_rows // num_processes)))
    batches: list[list[Wanted]] = []
    open_batches: dict[bool, list[Wanted]] = {}
    for trial, wanted in of_trials.items():
        config = _record(folder, trial).method_config
        batch = open_batches.get(config.train_text_encoder) if is_packable(config) else None
        if batch is not None and len(batch) + len(wanted) <= size:
            batch.extend(wanted)
            continue
        batches.append(wanted)
        if is_packable(config):
            open_batches[config.train_text_encoder] = wanted
    return batches


def score_in_full(asked: FullScores, batch: Sequence[Wanted]) -> Iterator[str]:
    """Draw the pictures that checkpoints lack, score all that they have, and write it into the ledger.

    One whose pictures overflow now ends its trial as it would have at its scoring point.

    Yields:
        The scores of each, for the user.

    Raises:
        UserError: a checkpoint is damaged, or this machine lacks a model.
        OutOfGpuMemory: one alone does not fit.
    """
    scoring, device = asked.scoring, asked.resources.device
    folder = open_run(asked.run_dir, asked.storage)
    folder.pull(folder.identity_file, folder.dataset_dir)
    for trial in {wanted.trial for wanted in batch}:
        folder.pull(folder.trial_dir(trial), without=(STATE_FILE,))
    check_seen(folder)
    use_threads(asked.resources.cpus)
    check_same_models(folder, scoring.base_model, scoring.evaluation)
    points: list[Point] = [
        (trial, open_checkpoint(checkpoint_dir(folder.trial_dir(trial), step), scoring.base_model))
        for trial, step in batch
    ]
    since = time.monotonic()
    failed = _make_missing_pictures(scoring, folder, points, device)
    seconds_each = (time.monotonic() - since) / len(points)
    for point in points:
        trial, checkpoint = point
        if isinstance(failure := failed.get(point), OutOfGpuMemory):
            raise failure
        if failure is not None:
            _write(folder, trial, status="failed", fault="trial", reason=failure_text(failure))
            yield f"{trial}  failed: {failure_text(failure)}"
            continue
        scored = score_pictures(scoring, folder, trial, checkpoint, device)
        folder.push(folder.images_dir(trial, checkpoint.step))  # before the ledger speaks of it
        record = _record(folder, trial)
        _write(
            folder,
            trial,
            checkpoints=tuple(_in_full(entry, scored) for entry in record.checkpoints),
            seconds=record.seconds + seconds_each,
        )
        yield f"{trial}  step {checkpoint.step} in full  {scores_text(scored)}"


def _make_missing_pictures(
    scoring: Scoring, folder: RunFolder, points: Sequence[Point], device: str
) -> dict[Point, Exception]:
    """The rest of each one's pictures; why one has none."""
    by_number: dict[int, list[Point]] = {}
    for trial, checkpoint in points:
        (entry,) = [each for each in _record(folder, trial).checkpoints if each.step == checkpoint.step]
        number = entry.num_images // len(scoring.evaluation.prompts)
        by_number.setdefault(number, []).append((trial, checkpoint))
    failed: dict[Point, Exception] = {}
    for number, alike in by_number.items():
        failed |= _make_pictures(scoring.beyond(number), folder, alike, device)
    return failed


def _make_pictures(scoring: Scoring, folder: RunFolder, points: Sequence[Point], device: str) -> dict[Point, Exception]:
    if all(is_packable(checkpoint.config) for _, checkpoint in points):
        return make_packed_pictures(scoring, folder, points, device)
    failed: dict[Point, Exception] = {}
    for trial, checkpoint in points:
        try:
            make_pictures(scoring, folder, trial, checkpoint, device)
        except DivergedError as error:
            failed[trial, checkpoint] = error
    return failed


def _in_full(entry: ScoredCheckpoint, scored: ScoredCheckpoint) -> ScoredCheckpoint:
    """What is known of a checkpoint by its first look, with the scores of all its pictures."""
    if entry.step != scored.step:
        return entry
    kept = {"seconds": entry.seconds, "loss": entry.loss, "pack": entry.pack}
    return scored.model_copy(update=kept)


def _record(folder: RunFolder, trial: str) -> TrialRecord:
    record = folder.read(trial)
    assert record is not None, "it has a row"
    return record


def _write(folder: RunFolder, trial: str, **changes: object) -> None:
    folder.write(_record(folder, trial).model_copy(update=changes))
