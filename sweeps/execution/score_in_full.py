"""The second tier of scores, where trials run: what is left of the pictures, and scores of all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from sweeps.execution.ends import OutOfGpuMemory
from sweeps.execution.full_scores import FullScores, Wanted, record_of
from sweeps.execution.lines import scores_text
from sweeps.execution.machines import check_seen
from sweeps.execution.same_models import check_same_models
from sweeps.execution.scoring import Point, make_packed_pictures, make_pictures, score_pictures, use_threads
from sweeps.execution.task import Scoring
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import ScoredCheckpoint
from sweeps.wording import failure_text
from training.checkpoint import checkpoint_dir, open_checkpoint
from training.config import packed_layers
from training.errors import DivergedError
from training.layout import STATE_FILE


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
    folder = asked.open_run()
    folder.pull(folder.identity_file, folder.dataset_dir)
    for trial in {wanted.trial for wanted in batch}:
        folder.pull(folder.trial_dir(trial), without=(STATE_FILE,))
    check_seen(folder)
    use_threads(asked.resources.cpus)
    check_same_models(folder, scoring.base_model, scoring.evaluation)
    points: list[Point] = [
        (trial, open_checkpoint(checkpoint_dir(folder.trial_dir(trial), step), scoring.base_model))
        for trial, step in batch
        if _entry(folder, trial, step).num_images < scoring.evaluation.num_images  # or a lost process has done it
    ]
    if not points:
        return
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
        record = record_of(folder, trial)
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
        number = _entry(folder, trial, checkpoint.step).num_images // len(scoring.evaluation.prompts)
        by_number.setdefault(number, []).append((trial, checkpoint))
    failed: dict[Point, Exception] = {}
    for number, alike in by_number.items():
        failed |= _make_pictures(scoring.beyond(number), folder, alike, device)
    return failed


def _make_pictures(scoring: Scoring, folder: RunFolder, points: Sequence[Point], device: str) -> dict[Point, Exception]:
    if all(packed_layers(checkpoint.config) is not None for _, checkpoint in points):
        return make_packed_pictures(scoring, folder, points, device)
    failed: dict[Point, Exception] = {}
    for trial, checkpoint in points:
        try:
            make_pictures(scoring, folder, trial, checkpoint, device)
        except DivergedError as error:
            failed[trial, checkpoint] = error
    return failed


def _entry(folder: RunFolder, trial: str, step: int) -> ScoredCheckpoint:
    (entry,) = [each for each in record_of(folder, trial).checkpoints if each.step == step]
    return entry


def _in_full(entry: ScoredCheckpoint, scored: ScoredCheckpoint) -> ScoredCheckpoint:
    """What is known of a checkpoint by its first look, with the scores of all its pictures."""
    if entry.step != scored.step:
        return entry
    kept = {"seconds": entry.seconds, "loss": entry.loss, "pack": entry.pack}
    return scored.model_copy(update=kept)


def _write(folder: RunFolder, trial: str, **changes: object) -> None:
    folder.write(record_of(folder, trial).model_copy(update=changes))
