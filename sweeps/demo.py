"""Where the embedded demo lies: an ordinary sweep file with its photos and models beside it."""

from __future__ import annotations

from pathlib import Path

from training.errors import UserError

WHEEL_DATA = "demo_data"
"""Folder of this package that an installed wheel has the demo in."""


def demo_sweep_file() -> Path:
    """The demo's sweep file: in a clone under `examples/demo`, in an installed wheel inside this package.

    Raises:
        UserError: the installation has neither.
    """
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "examples" / "demo", here / WHEEL_DATA):
        if (folder / "sweep.yaml").is_file():
            return folder / "sweep.yaml"
    raise UserError(f"the demo's sweep.yaml is part of the installation, and it is not beside {here}")
