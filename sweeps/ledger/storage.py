"""A run's place in a storage: whole files by their names, at any address that fsspec knows.

One file comes whole or not at all. Nothing holds two files together here; `sweeps.ledger.mirror` does.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from training.errors import UserError
from training.files import whole_file, write_whole


class Storage:
    """Files below `<address>/<run>`, named with forward slashes from there.

    Args:
        address: fsspec address (`s3://bucket/prefix`, `gs://...`, a mounted folder).
        run: name of the run folder.

    Raises:
        UserError: the address is of no kind that can be opened here.
    """

    def __init__(self, address: str, run: str) -> None:
        try:
            self._filesystem, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise UserError(f"storage: {address} cannot be opened: {error}") from None
        self.address = address
        self._root = PurePosixPath(root) / run
        self._is_local = isinstance(self._filesystem, LocalFileSystem)

    def names(self, part: str) -> set[str]:
        """Files in the folder `part` (or the file itself), however deep, without hidden files and folders."""
        self._filesystem.invalidate_cache()
        found = (str(PurePosixPath(path).relative_to(self._root)) for path in self._filesystem.find(self._at(part)))
        return {name for name in found if not is_hidden(name)}

    def read(self, *names: str) -> dict[str, bytes]:
        """Contents of small files, asked for together; those that are not there are left out."""
        if not names:
            return {}
        self._filesystem.invalidate_cache()
        at = {self._at(name): name for name in names}
        found = self._filesystem.cat(list(at), on_error="return")
        contents = {}
        for path, content in found.items():
            if isinstance(content, FileNotFoundError | IsADirectoryError):
                continue
            if isinstance(content, Exception):
                raise content
            contents[at[path]] = content
        return contents

    def fetch(self, name: str, to: Path) -> None:
        """Copy one file here."""
        to.parent.mkdir(parents=True, exist_ok=True)
        self._filesystem.get_file(self._at(name), str(to))

    def put(self, name: str, source: Path) -> None:
        """Copy one file there, whole or not at all: a store of objects does so by itself, a folder does not."""
        if self._is_local:
            with whole_file(Path(self._at(name))) as part:
                shutil.copyfile(source, part)
            return
        self._make_parent(name)
        self._filesystem.put_file(str(source), self._at(name))

    def write(self, name: str, content: bytes) -> None:
        """Put a small file there, whole or not at all."""
        if self._is_local:
            write_whole(Path(self._at(name)), content)
            return
        self._make_parent(name)
        self._filesystem.pipe_file(self._at(name), content)

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
                self._filesystem.pipe_file(self._at(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def remove(self, *names: str) -> None:
        """Take files away; those that are not there are gone already."""
        for name in names:
            try:
                self._filesystem.rm_file(self._at(name))
            except FileNotFoundError:
                continue

    def _at(self, name: str) -> str:
        return str(self._root / name)

    def _make_parent(self, name: str) -> None:
        self._filesystem.makedirs(str((self._root / name).parent), exist_ok=True)


def is_hidden(name: str) -> bool:
    """Is it a file that is not finished yet, lies in a folder that is not, or is nobody else's business?"""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Has the path a part that one of the patterns (`checkpoint-*`) describes?"""
    return any(PurePosixPath(part).match(pattern) for part in PurePosixPath(name).parts for pattern in patterns)
