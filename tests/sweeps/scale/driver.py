"""The product's driver over fake trials, on the Ray that this process is connected to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from sweeps.config import SweepConfig
from sweeps.execution import run
from sweeps.execution.cluster import TrialResources
from sweeps.execution.gauges import Gauges, sweep_id
from sweeps.execution.keeper import LedgerKeeper
from sweeps.execution.machines import Machines, alive_machines, asked_once_a_second
from sweeps.ledger.folder import RunFolder
from tests.sweeps.scale.fake_trial import CPUS_PER_TRIAL, FakeTrial, take_seconds
from tests.sweeps.scale.packed_actors import packed_actors

NUM_HOSTS = 2


def drive(config: SweepConfig, run_dir: Path, at_once: int, seconds: float, ended: Callable[[int], None]) -> None:
    """Run the sweep's trials; what a job's log would say goes to `<run>.out`.

    Args:
        config: of a folder from `new_run`.
        run_dir: the folder.
        at_once: trials at one time.
        seconds: that a scoring point takes, about.
        ended: called with their number when a trial has ended.
    """
    take_seconds(run_dir, seconds)

    class CountingKeeper(LedgerKeeper):
        """Says how many trials have ended."""

        num_ended = 0

        def on_trial_complete(self, trial: Any, **named: Any) -> None:
            super().on_trial_complete(trial, **named)
            self.num_ended += 1
            ended(self.num_ended)

    folder = RunFolder(run_dir)
    resources = dict.fromkeys(config.methods, TrialResources(CPUS_PER_TRIAL, 0))
    machines = Machines(asked_once_a_second(alive_machines))
    servers = run._servers_for(config, resources, machines)
    with (
        patch.object(run, "SweepTrial", FakeTrial),
        patch.object(run, "LedgerKeeper", CountingKeeper),
        packed_actors(FakeTrial, NUM_HOSTS, at_once),
        Gauges(sweep_id(folder)) as gauges,
        closing(servers),
        Path(f"{run_dir}.out").open("w") as output,
    ):
        console = Console(file=output, width=200)
        run._run_trials(config, folder, resources, machines, servers, console, gauges)
