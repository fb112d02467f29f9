"""A prepared run folder, for trials in this process and without Ray."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.config import SweepConfig, load_sweep, resolved_yaml
from sweeps.execution.preparation import Preparation, prepare_subject
from sweeps.execution.stages import prepare_run
from sweeps.execution.task import TrialTask
from sweeps.ledger.folder import RunFolder
from tests.sweeps.tiny_sweep import ONE_CPU


def prepare(config: SweepConfig, folder: RunFolder) -> None:
    """The once-a-sweep stages, as the driver asks for them."""
    prepare_subject(config, folder)
    list(prepare_run(Preparation.of(config, folder, "cpu")))


def task_in(folder: RunFolder) -> TrialTask:
    """What the driver would give a trial of this folder's sweep."""
    return TrialTask.of(load_sweep(folder.sweep_file), folder, ONE_CPU)


@pytest.fixture(scope="session")
def prepared(tiny_sweep: Callable[..., SweepConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything that trials share; to be copied."""
    config = tiny_sweep()
    folder = RunFolder(tmp_path_factory.mktemp("prepared") / "run")
    folder.write_sweep(resolved_yaml(config))
    prepare(config, folder)
    return folder.dir


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(prepared, tmp_path / "run")
    return RunFolder(tmp_path / "run")
