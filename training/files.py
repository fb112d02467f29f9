"""Files and folders that are either whole or absent, whenever the process is killed or the power fails.

The one atomic writer and the one digest of the project. Ground: it knows nothing else of the project.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write; it takes the place of `path` only when the block ends without an error.

    A reader sees the old file or the whole new one, and so does whoever comes after a crash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        _set_mode(part, mode)
        _sync(part)
        part.replace(path)
        _sync(path.parent)  # the rename itself must survive a power cut
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, whole or not at all."""
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: object) -> None:
    """Write JSON (finite numbers only), whole or not at all."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it takes the place of `path` only when the block ends without an error."""
    part = _part_of(path)
    part.mkdir(parents=True)
    mode = part.stat().st_mode & 0o666
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _set_mode(file, mode)
            _sync(file)
        _sync(part)
        _replace_folder(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_parts(folder: Path) -> None:
    """Clear away what killed writers left behind in `folder`."""
    for part in folder.glob(".*.part"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink()


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _part_of(path: Path) -> Path:
    """A hidden name beside `path` that no other process chooses, on whichever machine of a shared folder it runs."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def _replace_folder(part: Path, path: Path) -> None:
    if path.exists():  # a folder that is not empty cannot be renamed over
        old = _part_of(path)
        path.rename(old)
        part.rename(path)
        shutil.rmtree(old)
    else:
        part.rename(path)
    _sync(path.parent)


def _set_mode(file: Path, mode: int) -> None:
    """Readable by whom the umask and the folder say: some libraries (safetensors) write files for their user alone."""
    if (file.stat().st_mode ^ mode) & 0o666:
        file.chmod(mode & 0o777)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
