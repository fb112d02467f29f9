"""Who may look into a run folder: it holds pictures of a person and the numbers of their face."""

from __future__ import annotations

import stat
from pathlib import Path


def make_run_dir(path: Path) -> None:
    """Make the folder, for its user alone; below a folder that is shared by a group (set-group-ID), for the group too.

    One that exists keeps its mode. Files in it are as open as the umask says, so that the folder's own mode decides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = path.parent.stat().st_mode & stat.S_ISGID
    path.mkdir(mode=0o770 if shared else 0o700, exist_ok=True)


def open_to_all(path: Path) -> str | None:
    """A sentence about a folder that every user of the machine can look into, else None."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & 0o007:
        return None
    return (
        f"{path}: every user of this machine may look at the photos and pictures in it (mode {mode:04o}); "
        f"chmod o-rwx {path}"
    )
