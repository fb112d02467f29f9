"""Trials that train and score nothing, and leave what real ones leave; and the run folder that they are of."""

from __future__ import annotations

import hashlib
import io
import os
import random
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.config import SweepConfig, load_sweep, resolved_yaml
from sweeps.execution.task import TrialTask
from sweeps.execution.trial import SweepTrial
from sweeps.execution.worker import TrialWorker
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import BASE_TRIAL, ScoredCheckpoint, TrialRecord
from sweeps.space import scoring_points
from tests.sweeps import fake_run
from tests.sweeps.logged_trial import log
from training.config import MethodConfig
from training.files import write_json
from training.stats import STATS_FILE

PROMPTS = fake_run.PROMPTS[:2]
IMAGES_PER_PROMPT = 4
MAX_TRAIN_STEPS = 800


def new_run(run_dir: Path, sampler: str, num_trials: int, at_once: int, num_points: int) -> SweepConfig:
    """A run folder as it is before its first trial."""
    at_steps = [MAX_TRAIN_STEPS * (i + 1) // num_points for i in range(num_points)]
    fake_run.write_sweep(run_dir, run_dir.name, PROMPTS, IMAGES_PER_PROMPT, at_steps)
    folder = RunFolder(run_dir)
    settings = {
        "search.sampler": sampler,
        "search.num_trials": num_trials,
        "search.early_stopping": "none",
        "search.max_concurrent_trials": at_once,
        "resources.cpus_per_trial": CPUS_PER_TRIAL,
        "resources.gpus_per_trial": 0,
        "resources.pack_size": 1,  # a pack trains for real
    }
    config = load_sweep(folder.sweep_file, [f"{key}={value}" for key, value in settings.items()])
    folder.write_sweep(resolved_yaml(config))
    write_json(folder.identity_file, {"photos": "0" * 64})
    entry = score(folder, BASE_TRIAL, None, 0)
    folder.write(TrialRecord(trial=BASE_TRIAL, method="base", status="finished", config={}, checkpoints=(entry,)))
    return config


CPUS_PER_TRIAL = 0.01
"""A placement group holds it; what runs costs next to nothing."""


def write_trial(folder: RunFolder, number: int, config: MethodConfig, at_steps: Sequence[int]) -> None:
    """A whole trial, without Ray."""
    trial = trial_id(config)
    points = scoring_points(config, at_steps)
    for before, step in zip([0, *points], points, strict=False):
        write_steps(folder, trial, before, step)
    folder.write(
        TrialRecord(
            trial=trial,
            method=config.method,
            status="finished",
            config=config.model_dump(mode="json"),
            checkpoints=tuple(score(folder, trial, config, step) for step in points),
            seconds=400.0,
            number=number,
            started="2026-01-01T00:00:00+00:00",
        )
    )


def write_steps(folder: RunFolder, trial: str, before: int, step: int) -> None:
    """The lines of stats.jsonl between two scoring points."""
    folder.trial_dir(trial).mkdir(parents=True, exist_ok=True)
    with (folder.trial_dir(trial) / STATS_FILE).open("a", encoding="utf-8") as file:
        file.write(_lines(before, step))


@cache
def _lines(before: int, step: int) -> str:
    return fake_run.stats_lines(1e-4, range(before + 1, step + 1))


def score(folder: RunFolder, trial: str, config: MethodConfig | None, step: int) -> ScoredCheckpoint:
    """A scoring point with its pictures: all are one picture, under as many names as a trial has."""
    settings = config.model_dump() if config else {}
    gains = fake_run.progress(settings, step, 0.6) if config else (0.0, 0.0)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{trial}/{step}".encode()).digest()[:4], "big"))
    entry = fake_run.scored_entry(trial, step, *gains, PROMPTS, IMAGES_PER_PROMPT, True, rng)
    images = folder.images_dir(trial, step)
    images.mkdir(parents=True, exist_ok=True)
    picture = folder.trial_dir(trial) / ".picture.png"
    if not picture.exists():
        picture.write_bytes(_picture())
    for image in entry["image_scores"]:
        os.link(picture, images / image["file"])
    return ScoredCheckpoint.model_validate(entry)


@cache
def _picture() -> bytes:
    buffer = io.BytesIO()
    fake_run.draw_face(16, 0, 0, 0.3).save(buffer, "png")
    return buffer.getvalue()


def take_seconds(run_dir: Path, seconds: float) -> None:
    """Say how long a scoring point takes, about."""
    Path(f"{run_dir}.seconds").write_text(str(seconds))


class FakeWorker(TrialWorker):
    """Waits for as long as a scoring point takes, then leaves what one leaves."""

    def __init__(self, task: TrialTask, *arguments: Any) -> None:
        super().__init__(task, *arguments)
        self._seconds = float(Path(f"{task.run_dir}.seconds").read_text())

    def score_next(self) -> ScoredCheckpoint:
        """The next scoring point."""
        points = scoring_points(self.hyperparameters, self.task.scoring.evaluation.at_steps)
        step = next(point for point in points if point > self._reached)
        time.sleep(self._seconds * (0.5 + random.random()))
        write_steps(self.folder, self.trial, self._reached, step)
        self._reached = step
        return score(self.folder, self.trial, self.hyperparameters, step)


class FakeTrial(SweepTrial):
    """`SweepTrial` with such a worker; says in `<run>.log` when it began and when it ended."""

    worker_class = "tests.sweeps.scale.fake_trial:FakeWorker"

    def setup(self, config: dict[str, Any]) -> None:
        """The trial's own."""
        log(Path(config["task"].run_dir), {"began": time.time()})
        super().setup(config)

    def step(self) -> dict[str, Any]:
        """The trial's own."""
        result: dict[str, Any] = super().step()
        if result["done"]:
            log(self._folder.dir, {"ended": time.time()})
        return result
