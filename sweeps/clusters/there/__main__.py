"""Read what is to be done, do it, and leave nothing. Exit codes are those of the command line."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from sweeps.clusters.there.folder import empty, empty_abandoned, hold
from training.errors import UserError
from training.names import shown


def main() -> int:
    """Do what is asked; a mistake of the user's is one line and 2."""
    folder = Path.cwd()

    def end(_number: int, _frame: FrameType | None) -> None:
        empty(folder)
        sys.exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    empty_abandoned(folder.parent)
    try:
        with hold(folder) as file:
            return _do(json.load(file), folder)
    finally:
        empty(folder)


def _do(asked: Mapping[str, Any], folder: Path) -> int:
    try:
        match asked["task"]:
            case "sweep":
                from sweeps.clusters.there.sweep import run_sweep_there

                return run_sweep_there(asked, folder)
            case "shelf":
                from sweeps.clusters.there.shelf import lay_out_run

                return lay_out_run(asked, folder)
            case task:
                assert task == "checks", task
                from sweeps.clusters.there.checks import check_from_head

                return check_from_head(asked, folder)
    except UserError as error:
        say(f"dreamsweep: {shown(str(error))}")
    except OSError as error:
        say(f"dreamsweep: {error.strerror or error}: {shown(str(error.filename or os.getcwd()))}")  # noqa: PTH109
    except ModuleNotFoundError as error:
        say(
            f"dreamsweep: {sys.executable} on the cluster lacks the package {error.name}; dreamsweep's code was sent, "
            "what it needs must be installed there"
        )
    return 2


def say(line: str) -> None:
    """Into the job's log."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
