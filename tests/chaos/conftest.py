"""One stage for all tests of faults, and how its sweep ends where there is none."""

from __future__ import annotations

import shutil

import pytest

from sweeps.execution.task import TrialTask
from sweeps.execution.trial import SweepTrial
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from tests.chaos.judge import Outcome
from tests.chaos.stage import Stage, outcome_in
from tests.sweeps.tiny_sweep import ONE_CPU


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Models, sweep file and prepared photos; never to be changed by a test."""
    return Stage(tmp_path_factory.mktemp("chaos") / "stage")


@pytest.fixture(scope="session")
def undisturbed(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Of the same trials one after another in this process, without Ray."""
    folder = RunFolder(shutil.copytree(stage.prepared, tmp_path_factory.mktemp("calm") / "run"))
    folder.write_sweep(stage.sweep_file.read_text())
    task = TrialTask.of(stage.config, folder, ONE_CPU)
    for trial in stage.trials:
        name, config = trial["name"], trial["config"]
        folder.write(TrialRecord(trial=name, method=config["method"], status="running", config=config))
        worker = SweepTrial({"trial": name, "task": task})
        while not worker.step()["done"]:
            pass
    return outcome_in(folder.dir)
