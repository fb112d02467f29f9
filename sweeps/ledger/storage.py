"""A run's place in a storage: whole files by their names, at any address that fsspec knows.

One file comes whole or not at all. Nothing holds two files together here; `sweeps.ledger.mirror` does.

Each kind of storage has a library of its own, with errors of its own and retries of its own. Here all of them become
`StorageError`, and what outlasts the library's retries is waited for: an object store that is away for a minute shall
not cost a GPU the steps since its last scoring point.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from training.errors import UserError
from training.files import whole_file, write_whole

LOG = logging.getLogger(__name__)
PATIENCE_SECONDS = 300.0
"""How long a storage that has answered before is asked again, beyond what its library tries by itself."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 15.0
OF_DISKS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
Answer = TypeVar("Answer")


class StorageError(OSError, UserError):
    """The storage does not answer, or not as it should. The text names it and has its library's words."""


class StorageRefusedError(StorageError):
    """It does not let this machine in, or is not there: asking again is of no use."""


class Storage:
    """Files below `<address>/<run>`, named with forward slashes from there.

    Args:
        address: fsspec address (`s3://bucket/prefix`, `gs://...`, a mounted folder). What it asks for besides, such as
            credentials, its library finds where it always does: in the environment, in its own files.
        run: name of the run folder.
        patience: how long it is waited for, in seconds, once it has answered.

    Raises:
        UserError: the address is of no kind that can be opened here.

    Every method raises `StorageError` where the storage is away or refuses; a folder's own `OSError`s stay as they are.
    """

    def __init__(self, address: str, run: str, patience: float | None = None) -> None:
        try:
            # A listing that was kept would hide what another machine has written since.
            self._filesystem, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(f"storage: {address} cannot be opened: {error}") from None
        self.address = address
        self._root = PurePosixPath(root) / run
        self._is_local = isinstance(self._filesystem, LocalFileSystem)
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self._has_answered = False

    def names(self, part: str) -> set[str]:
        """Files in the folder `part` (or the file itself), however deep, without hidden files and folders."""
        paths = self._asking(lambda: self._filesystem.find(self._at(part)))
        found = (str(PurePosixPath(path).relative_to(self._root)) for path in paths)
        return {name for name in found if not is_hidden(name)}

    def read(self, *names: str) -> dict[str, bytes]:
        """Contents of small files, asked for together; those that are not there are left out."""
        if not names:
            return {}
        at = {self._at(name): name for name in names}
        return {at[path]: content for path, content in self._asking(lambda: self._read(list(at))).items()}

    def _read(self, paths: Sequence[str]) -> dict[str, bytes]:
        # Not `cat`, for which a name with brackets or a star is a pattern.
        answers = self._filesystem.cat_ranges(paths, None, None, on_error="return")
        contents = {}
        for path, answer in zip(paths, answers, strict=True):
            if isinstance(answer, FileNotFoundError | IsADirectoryError):
                continue
            if isinstance(answer, Exception):
                raise answer
            contents[path] = answer
        return contents

    def fetch(self, name: str, to: Path) -> None:
        """Copy one file here.

        Raises:
            FileNotFoundError: it is not there.
        """
        to.parent.mkdir(parents=True, exist_ok=True)
        self._asking(lambda: self._filesystem.get_file(self._at(name), str(to)), may_be_missing=True)

    def put(self, name: str, source: Path) -> None:
        """Copy one file there, whole or not at all: a store of objects does so by itself, a folder does not."""
        if self._is_local:
            with whole_file(Path(self._at(name))) as part:
                shutil.copyfile(source, part)
            return
        self._make_parent(name)
        self._asking(lambda: self._filesystem.put_file(str(source), self._at(name)))

    def write(self, name: str, content: bytes) -> None:
        """Put a small file there, whole or not at all."""
        if self._is_local:
            write_whole(Path(self._at(name)), content)
            return
        self._make_parent(name)
        self._asking(lambda: self._filesystem.pipe_file(self._at(name), content))

    def create(self, name: str, content: bytes) -> bool:
        """Put a small file there unless there is one; False where there is. Not every store can tell for certain."""
        try:
            if self._is_local:
                path = Path(self._at(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    file.write(content)
            else:
                self._make_parent(name)
                self._asking(lambda: self._filesystem.pipe_file(self._at(name), content, mode="create"))
        except FileExistsError:
            return False
        return True

    def remove(self, *names: str) -> None:
        """Take files away; those that are not there are gone already."""
        for name in names:
            try:
                self._asking(partial(self._filesystem.rm_file, self._at(name)), may_be_missing=True)
            except FileNotFoundError:
                continue

    def _at(self, name: str) -> str:
        return str(self._root / name)

    def _make_parent(self, name: str) -> None:
        """Make the folder of a file, where there are folders. A bucket is not made: a misspelt one is to be noticed."""
        if self._root.is_absolute():
            folder = str((self._root / name).parent)
            self._asking(lambda: self._filesystem.makedirs(folder, exist_ok=True))

    def _asking(self, ask: Callable[[], Answer], *, may_be_missing: bool = False) -> Answer:
        """The storage's answer, waited for; its library's errors as ours.

        Args:
            ask: does no harm when it is done twice.
            may_be_missing: whether a file that is not there is an answer, too.
        """
        if self._is_local:
            return ask()
        since, pause = time.monotonic(), FIRST_PAUSE_SECONDS
        while True:
            try:
                answer = ask()
            except Exception as error:  # each library has errors of its own; whatever is not theirs goes on its way
                if not _is_of_library(error) or (may_be_missing and isinstance(error, FileNotFoundError)):
                    raise
                words = " ".join(str(error).split()) or type(error).__name__
                if _is_refusal(error):
                    raise StorageRefusedError(
                        f"storage: must be one that this machine may read and write, {self.address} is not: {words}"
                    ) from error
                if not self._has_answered or time.monotonic() - since > self._patience:
                    raise StorageError(
                        f"storage: {self.address} does not answer as it should: {words}; nothing that was scored is "
                        "lost, give the same command again when it does"
                    ) from error
                LOG.warning("the storage does not answer as it should (%s); asking again", type(error).__name__)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                self._has_answered = True
                return answer


def _is_of_library(error: Exception) -> bool:
    """Does it come from the storage's library, whichever that is: neither a mistake of ours nor this machine's disk?"""
    if isinstance(error, FileExistsError):
        return False
    if isinstance(error, OSError):
        is_of_disk = error.errno in OF_DISKS or (isinstance(error.filename, str) and Path(error.filename).is_absolute())
        return not is_of_disk
    return type(error).__module__.partition(".")[0] not in ("builtins", "sweeps")  # a signal's handler raises here, too


def _is_refusal(error: Exception) -> bool:
    """Is it about who asks, or for what? The libraries of AWS and Google say so of credentials in the error's name."""
    return isinstance(error, PermissionError | FileNotFoundError) or "Credentials" in type(error).__name__


def is_hidden(name: str) -> bool:
    """Is it a file that is not finished yet, lies in a folder that is not, or is nobody else's business?"""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Has the path a part that one of the patterns (`checkpoint-*`) describes?"""
    return any(PurePosixPath(part).match(pattern) for part in PurePosixPath(name).parts for pattern in patterns)
