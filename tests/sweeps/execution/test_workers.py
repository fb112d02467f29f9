"""Trials that several workers share, and trials that are told to end, through Ray with tiny models.

    pytest -m ray tests/sweeps/execution/test_workers.py     about two minutes on two idle cores

The judge is the log of steps that the workers append to (`struck_trial`).
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from ray.exceptions import RayActorError

from sweeps.asked import listed_trials
from sweeps.config import SweepConfig
from sweeps.execution.failures import TRACEBACK_FILE
from sweeps.execution.workers import TrialWorkers
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import TrialRecord
from tests.sweeps.logged_trial import read_log
from tests.sweeps.struck_trial import StruckTrial, strike
from tests.training.test_data_parallel import apart
from tests.training.test_train import weights
from training.checkpoint import open_checkpoint
from training.errors import DivergedError
from training.stats import STATS_FILE, read_stats

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LORA = {"rank": 2, "learning_rate": 1e-3, "lora_dropout": 0.2, "max_train_steps": 8, "train_batch_size": 2}
STRUCK = {1: {6: "preempted"}, 2: {6: "killed", 7: "preempted"}}
"""Workers of a trial -> step, between the scoring points 4 and 8 -> what happens after it."""
AGAIN = {1: [], 2: [5, 6]}
"""Workers of a trial -> the steps that are taken twice: what came after the last scoring point, where one is killed."""


@dataclass(frozen=True)
class Run:
    """A run of one trial that has ended."""

    dir: Path
    record: TrialRecord

    def steps(self, worker: int) -> list[int]:
        """The steps that this worker took, in the order in which it took them."""
        return [entry["step"] for entry in read_log(self.dir) if entry["rank"] == worker]

    @property
    def trial_dir(self) -> Path:
        """The trial's folder."""
        return RunFolder(self.dir).trial_dir(self.record.trial)


@pytest.fixture(scope="module")
def runs(
    ray_session: None, tiny_sweep: Callable[..., SweepConfig], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[int, Run]:
    """A trial with one worker, and the same with two; something happens to either."""
    from sweeps.execution.run import run_sweep

    ended = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sweeps.execution.run.SweepTrial", StruckTrial)
        for num_workers, strikes in STRUCK.items():
            out = tmp_path_factory.mktemp(f"workers-{num_workers}")
            config = tiny_sweep(
                methods={"lora": LORA},
                resources={"cpus_per_trial": 1, "gpus_per_trial": 0, "workers_per_trial": num_workers},
            )
            evaluation = config.evaluation.model_copy(update={"at_steps": [4, 8]})
            config = config.model_copy(update={"evaluation": evaluation})
            (trial,) = listed_trials(config)
            for step, how in strikes.items():
                strike(out / config.name, trial_id(trial), step, how=how, rank=num_workers - 1)
            run_dir = run_sweep(config, out)
            (record,) = RunFolder(run_dir).trials()
            ended[num_workers] = Run(run_dir, record)
    return ended


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_trial_ends_and_only_what_was_not_saved_is_trained_again(
    runs: Mapping[int, Run], num_workers: int
) -> None:
    """A worker's death costs what came after the last scoring point, an announced end no step."""
    run, strikes = runs[num_workers], STRUCK[num_workers]
    assert (run.record.status, run.record.num_restarts) == ("finished", len(strikes))
    assert [checkpoint.step for checkpoint in run.record.checkpoints] == [4, 8]
    assert sorted(run.steps(worker=0)) == sorted([*range(1, 9), *AGAIN[num_workers]])
    why = run.trial_dir / TRACEBACK_FILE
    failures = re.findall("^--- ", why.read_text(), re.MULTILINE) if why.exists() else []
    assert len(failures) == list(strikes.values()).count("killed"), "to be told to end is no failure"


def test_two_workers_give_what_one_gives(runs: Mapping[int, Run]) -> None:
    """Weights, losses and scores to rounding; the same files, the checkpoint on the way gone."""
    one, two = runs.values()
    assert one.record.trial == two.record.trial
    alone, shared = (weights(open_checkpoint(run.trial_dir / "checkpoint-8")) for run in (one, two))
    assert apart(shared, alone, {name: torch.zeros_like(tensor) for name, tensor in alone.items()}) < 1e-3
    losses = [read_stats(run.trial_dir / STATS_FILE) for run in (one, two)]
    for others, mine in zip(*losses, strict=True):
        assert mine.step == others.step
        assert mine.loss == pytest.approx(others.loss, rel=1e-3)
    for others, mine in zip(one.record.checkpoints, two.record.checkpoints, strict=True):
        assert mine.face_similarity == pytest.approx(others.face_similarity, abs=0.02)
        assert mine.prompt_alignment == pytest.approx(others.prompt_alignment, abs=0.02)
        assert [scored.file for scored in mine.image_scores] == [scored.file for scored in others.image_scores]
    names = [{path.relative_to(run.trial_dir) for path in run.trial_dir.rglob("*")} for run in (one, two)]
    assert names[1] - names[0] == {Path(TRACEBACK_FILE)}, "of the worker that was killed"
    assert names[0] <= names[1]


@ray.remote(num_cpus=0)
class Failing:
    """Ends in one way or another when it is asked to reach the next scoring point."""

    def reach_next(self, how: str) -> None:
        """Fail."""
        if how == "cut off":
            raise RuntimeError("connection closed by peer")
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "diverged":
            raise DivergedError("training ran away")
        threading.Event().wait()  # in a collective, for ever


@pytest.mark.parametrize(
    ("hows", "kind"),
    [
        (["cut off", "dies"], RayActorError),
        (["cut off", "diverged"], DivergedError),
        (["diverged", "waits"], DivergedError),
        (["dies", "waits"], RayActorError),
    ],
)
def test_a_trial_fails_with_the_failure_that_the_others_come_from(
    ray_session: None, hows: list[str], kind: type[Exception]
) -> None:
    """Not with the collective that it broke; and nobody waits for a worker that waits for a lost one."""
    actors = [Failing.remote() for _ in hows]
    workers = object.__new__(TrialWorkers)
    workers._group = SimpleNamespace(workers=[SimpleNamespace(actor=actor) for actor in actors])
    with pytest.raises(kind):
        workers._answers("reach_next", [(how,) for how in hows])
    for actor in actors:
        ray.kill(actor)
