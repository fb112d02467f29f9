"""What an imported sweep file asks for, read as `dreamsweep run` would read it."""

from __future__ import annotations

from pathlib import Path

from sweeps.config import SweepConfig, load_sweep
from sweeps.space import grid
from training.config import DreamBoothConfig, LoraConfig


def sweep_of(text: str, folder: Path) -> SweepConfig:
    """The sweep, its paths relative to `folder`."""
    path = folder / "imported.yaml"
    path.write_text(text, encoding="utf-8")
    return load_sweep(path)


def trial_of(text: str, folder: Path) -> LoraConfig | DreamBoothConfig:
    """Its one trial."""
    sweep = sweep_of(text, folder)
    trials = list(grid(sweep.methods, sweep.evaluation.at_steps))
    assert len(trials) == 1, trials
    return trials[0]
