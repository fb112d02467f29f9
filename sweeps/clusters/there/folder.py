"""The folder that a job was sent: it may hold photos, and Ray keeps it as long as the cluster; it is emptied here."""

from __future__ import annotations

import fcntl
import shutil
import time
from pathlib import Path
from typing import IO

from sweeps.clusters.there import JOB_FILE

SECONDS_TO_START = 600.0
"""After which a folder that nobody holds belongs to a job that was ended before it could empty it."""


def hold(folder: Path) -> IO[str]:
    """The file that says what to do; while it is open, the folder has its job. Nobody else may look into the folder."""
    folder.chmod(0o700)  # Ray leaves it open to all users of the machine
    file = (folder / JOB_FILE).open("r+", encoding="utf-8")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def empty(folder: Path) -> None:
    """Take away what was sent. The folder is one job's alone."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def empty_abandoned(folders: Path) -> None:
    """Take away what jobs were sent that Ray killed, or stopped before they began."""
    for file in folders.glob(f"*/{JOB_FILE}"):
        try:
            with file.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - file.stat().st_mtime > SECONDS_TO_START:
                    empty(file.parent)
        except OSError:  # held by its job, or gone by now
            continue
