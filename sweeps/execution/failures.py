"""What is kept of a failure: one line in the ledger, the whole traceback beside it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from ray.tune import TuneError

from sweeps.ledger.folder import RunFolder

TRACEBACK_FILE = "traceback.txt"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Ray writes for a terminal."""
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
FULL_DISK_WORDS = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")
"""How libraries that are not written in Python say it."""


def keep_traceback(folder: RunFolder, trial: str, machine: str | None, text: str) -> None:
    """Add a failure to `trials/<trial>/traceback.txt`, with when and where it happened."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    path = folder.trial_dir(trial) / TRACEBACK_FILE
    folder.pull(path)  # driver and workers add to it in turn
    with path.open("a", encoding="utf-8") as file:
        file.write(f"--- {when} on {machine or 'an unknown machine'}\n{COLOURS.sub('', text).rstrip()}\n")
    folder.push(path)


@contextmanager
def out_of_tune() -> Iterator[None]:
    """What our callbacks raise inside of Tune comes out as it was.

    Tune makes its traceback the text of an error of its own, which is neither a `UserError` nor an `OSError` any more.
    """
    try:
        yield
    except TuneError as error:
        if error.__context__ is None:
            raise
        raise error.__context__ from None


def is_full_disk(error: BaseException) -> bool:
    """Did something fail because a disk has no room left?"""
    return any(
        (isinstance(one, OSError) and one.errno in FULL_DISK) or any(words in str(one) for words in FULL_DISK_WORDS)
        for one in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
