"""A driver to be killed: `python -m tests.sweeps.drive_sweep SWEEP.yaml OUT [ADDRESS]`."""

from __future__ import annotations

import sys

from rich.console import Console

import sweeps.execution.run
from sweeps.config import load_sweep
from sweeps.execution.session import SweepInterrupted
from tests.sweeps.logged_trial import LoggedTrial

if __name__ == "__main__":
    sweeps.execution.run.SweepTrial = LoggedTrial  # type: ignore[misc]
    sweep_file, out, address = (*sys.argv[1:], None)[:3]
    assert sweep_file is not None
    assert out is not None
    try:
        sweeps.execution.run.run_sweep(load_sweep(sweep_file), out, address, console=Console(width=200))
    except SweepInterrupted as interrupted:
        sys.exit(str(interrupted))
