"""Four faults in one sweep through Ray: a worker dies, then the driver; a checkpoint and a record are damaged.

    pytest -m ray tests/chaos/test_faults.py     about two minutes on two idle cores

The whole table is made by `python -m tests.chaos`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from sweeps.execution.trial import SweepTrial
from sweeps.execution.worker import TrialTask
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from tests.chaos.faults import cut_record, flip_newest_weights, kill_midway, newest_running
from tests.chaos.judge import Outcome, judge, steps_repeated
from tests.chaos.stage import AT_STEPS, Stage, entries, outcome_in
from tests.sweeps.tiny_sweep import ONE_CPU

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_sweep_that_four_faults_strike_ends_as_if_none_had(tmp_path: Path) -> None:
    """Nothing that ended is lost, only a damaged checkpoint costs more than its interval, the champion is the same."""
    stage = Stage(tmp_path / "stage")
    case = stage.case("four", "dreamsweep")
    rng = random.Random(0)
    try:
        driver = case.start()
        case.wait_for(lambda log: bool(entries(log, "scored")), driver)
        os.kill(newest_running(case)["pid"], signal.SIGKILL)
        case.wait_for(lambda log: len({e["pid"] for e in entries(log, "step")}) > 2, driver)
        kill_midway(case, rng, driver)
        cut_record(case, rng)
        damaged, _ = flip_newest_weights(case, rng)
        second = case.start()
        assert second.end() == 0, second.last_words
        log, outcome = case.log(), case.outcome()
    finally:
        case.clear_away()

    verdict = judge(log, outcome, undisturbed(stage, tmp_path / "calm"))
    assert (verdict.lost, verdict.unfinished, verdict.champion_changed) == (0, 0, False)
    beyond = {entry["trial"] for entry, last_scored in steps_repeated(log) if entry["step"] <= last_scored}
    assert beyond <= {damaged}
    assert verdict.repeated_beyond <= AT_STEPS[-2]


def undisturbed(stage: Stage, run_dir: Path) -> Outcome:
    """The same trials one after another in this process, without Ray."""
    shutil.copytree(stage.prepared, run_dir)
    folder = RunFolder(run_dir)
    folder.write_sweep(stage.sweep_file.read_text())
    task = TrialTask.of(stage.config, folder, ONE_CPU)
    for trial in stage.trials:
        name, config = trial["name"], trial["config"]
        folder.write(TrialRecord(trial=name, method=config["method"], status="running", config=config))
        worker = SweepTrial({"trial": name, "task": task})
        while not worker.step()["done"]:
            pass
    return outcome_in(run_dir)
