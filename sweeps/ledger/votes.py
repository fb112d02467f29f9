"""What people said when they saw two checkpoints' pictures of one prompt and one starting noise side by side.

`votes.jsonl` in the run folder holds a vote a line and is only ever appended to, by as many processes as like to. A
line that its writer did not live to end is no vote: readers pass over it, and the next writer takes it away.
"""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from sweeps.ledger.folder import RunFolder
from training.errors import UserError

Choice = Literal["left", "right", "neither"]
BYTES_LOOKED_BACK = 65_536
"""At one time, for the end of the last whole line; a line is as long as its prompt and some 200 bytes."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Side(_Record):
    """Whose picture stood on one side."""

    trial: str
    step: int = Field(ge=0)

    @property
    def key(self) -> tuple[str, int]:
        """Trial and step, as a row of the leaderboard has them."""
        return (self.trial, self.step)


class Vote(_Record):
    """One answer to one question. Who gave it is not kept."""

    prompt: str
    picture: str
    """Name of both pictures' files, which says prompt and seed: `000-5.png`."""
    left: Side
    right: Side
    choice: Choice
    """The side that was preferred; `neither` where they were said to be as good."""
    when: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))


def append_vote(folder: RunFolder, vote: Vote) -> None:
    """Write one vote down; it is on the disk when this returns, whoever else writes at the same time.

    Raises:
        UserError: the run folder is gone.
        OSError: the file cannot be written.
    """
    folder.check_there()
    line = vote.model_dump_json().encode() + b"\n"
    descriptor = os.open(folder.votes_file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # let go with the file: what is cut below is no line in the making
        _drop_torn_line(descriptor)
        while line:  # a disk that fills up takes a part
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_votes(folder: RunFolder) -> list[Vote]:
    """All whole votes, the oldest first; none where nobody has voted.

    Raises:
        UserError: a line that its writer ended is no vote.
        OSError: the file cannot be read.
    """
    try:
        lines = folder.votes_file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [_parsed(folder, number, line) for number, line in enumerate(lines[:-1], 1)]


def _parsed(folder: RunFolder, number: int, line: bytes) -> Vote:
    try:
        return Vote.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = f"{place}: {first['msg']}" if place else first["msg"]
        raise UserError(
            f"{folder.votes_file}: line {number} must be a whole vote: {problem}; delete that line to go on without it"
        ) from None


def _drop_torn_line(descriptor: int) -> None:
    """Cut off what stands behind the last line end."""
    size = os.fstat(descriptor).st_size
    start = size
    while start > 0:
        start = max(0, start - BYTES_LOOKED_BACK)
        end = os.pread(descriptor, BYTES_LOOKED_BACK, start).rfind(b"\n")
        if end >= 0:
            start += end + 1
            break
    if start < size:
        os.ftruncate(descriptor, start)
