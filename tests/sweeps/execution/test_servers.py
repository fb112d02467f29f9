"""Trial servers under Ray: a pack that is struck ends as it would have, and a process serves many trials.

pytest tests/sweeps/execution/test_servers.py     two sweeps of four trials on Ray, two minutes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweeps.asked import listed_trials
from sweeps.config import SweepConfig
from sweeps.execution.failures import TRACEBACK_FILE
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import TrialRecord
from tests.sweeps.logged_trial import read_log
from tests.sweeps.struck_trial import StruckTrial, strike
from tests.training.test_train import assert_same, weights
from training.checkpoint import open_checkpoint
from training.stats import STATS_FILE, read_stats

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STRIKES = {"lora_r2": {6: "killed"}, "lora_r3": {7: "preempted"}}
"""Trial -> step, between the scoring points 4 and 8 -> what happens after it."""


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    dir: Path

    @property
    def records(self) -> dict[str, TrialRecord]:
        """By the names that tests call them."""
        return {record.trial.partition("_lr")[0]: record for record in RunFolder(self.dir).trials()}

    def entries(self, trial: str) -> list[dict[str, int]]:
        """A line a step of a trial, in the order in which they were taken."""
        return [entry for entry in read_log(self.dir) if entry["trial"] == self.records[trial].trial]

    def trial_dir(self, trial: str) -> Path:
        """A trial's folder."""
        return RunFolder(self.dir).trial_dir(self.records[trial].trial)


@pytest.fixture(scope="module")
def runs(
    ray_session: None, tiny_sweep: Callable[..., SweepConfig], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Run]:
    """Three LoRAs and a DreamBooth; to one run something happens."""
    from sweeps.execution.run import run_sweep

    common = {"max_train_steps": 8, "train_batch_size": 1}
    config = tiny_sweep(
        methods={
            "lora": {"rank": {"choices": [1, 2, 3]}, "learning_rate": 1e-3, "lora_dropout": 0.2, **common},
            "dreambooth": {"learning_rate": 1e-5, **common},
        },
    )
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"at_steps": [4, 8]})})
    ended = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sweeps.execution.run.SweepTrial", StruckTrial)
        for name in ("undisturbed", "struck"):
            out = tmp_path_factory.mktemp(name)
            for trial in listed_trials(config):
                for step, how in STRIKES.get(trial_id(trial).partition("_lr")[0], {}).items():
                    if name == "struck":
                        strike(out / config.name, trial_id(trial), step, how=how, rank=0)
            ended[name] = Run(run_sweep(config, out))
    return ended


def test_a_pack_whose_server_is_killed_or_told_to_end_ends_in_the_same_bits(runs: Mapping[str, Run]) -> None:
    """Every trial of it, scores too: what was lost is trained again with the same others."""
    struck, undisturbed = runs["struck"].records, runs["undisturbed"].records
    for trial in ("lora_r1", "lora_r2", "lora_r3"):
        assert struck[trial].status == undisturbed[trial].status == "finished"
        assert struck[trial].num_restarts == sum(len(strikes) for strikes in STRIKES.values())
        mine, theirs = (weights(open_checkpoint(run.trial_dir(trial) / "checkpoint-8")) for run in runs.values())
        assert_same(mine, theirs)
        losses = [[stats.loss for stats in read_stats(run.trial_dir(trial) / STATS_FILE)] for run in runs.values()]
        assert losses[0] == losses[1]
        assert len(losses[0]) == 8
        scores = [
            [(point.step, point.face_similarity, point.prompt_alignment, point.pack) for point in record.checkpoints]
            for record in (struck[trial], undisturbed[trial])
        ]
        assert scores[0] == scores[1]


def test_what_was_saved_is_not_trained_again(runs: Mapping[str, Run]) -> None:
    """The killed server loses what came after the last scoring point, of the whole pack; the other loses nothing."""
    for trial in ("lora_r1", "lora_r2", "lora_r3"):
        taken = [entry["step"] for entry in runs["struck"].entries(trial)]
        again = [5, 6] if trial != "lora_r3" else [5]  # it was killed before the last row had written its step down
        assert sorted(taken) == sorted([*range(1, 9), *again])
    why = (runs["struck"].trial_dir("lora_r2") / TRACEBACK_FILE).read_text()
    assert why.count("--- ") == 1, "to be told to end is no failure"


def test_one_process_serves_trial_after_trial(runs: Mapping[str, Run]) -> None:
    """All LoRAs at once, in one; no more processes than slots; every trial was an actor with its own name."""
    of_trials = {
        trial: {entry["pid"] for entry in runs["undisturbed"].entries(trial)} for trial in runs["undisturbed"].records
    }
    assert of_trials["lora_r1"] == of_trials["lora_r2"] == of_trials["lora_r3"]
    assert len(of_trials["lora_r1"]) == len(of_trials["dreambooth"]) == 1
    packs = {trial: record.pack for trial, record in runs["undisturbed"].records.items()}
    names = [runs["undisturbed"].records[trial].trial for trial in ("lora_r1", "lora_r2", "lora_r3")]
    assert packs["lora_r1"] == packs["lora_r2"] == packs["lora_r3"] == tuple(names)
    assert packs["dreambooth"] == ()
