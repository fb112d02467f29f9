"""Folders that a verb writes as a whole: only what it wrote before is ever replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.errors import UserError
from training.files import whole_folder
from training.names import name_text, shown


def check_output(dest: Path, index: str) -> Path:
    """`dest` made absolute, if it can be written.

    Args:
        dest: a folder that does not exist, is empty, or holds what its `index` lists and nothing else.
        index: name of the JSON file that lists the others.

    Raises:
        UserError: it is a file, or holds anything else.
    """
    dest = dest.expanduser().resolve()
    if dest.exists() and not dest.is_dir():
        raise UserError(f"--out: need a folder, got a file: {shown(dest)}")
    if dest.is_dir():
        foreign = sorted(_files(dest) - _listed(dest, index))
        if foreign:
            raise UserError(
                f"--out: need a folder that is empty or of an earlier call, found {shown(foreign[0])} in {shown(dest)}"
            )
    return dest


@contextmanager
def whole_output(dest: Path, index: str, content: dict[str, Any]) -> Iterator[Path]:
    """A folder to fill in the place of `dest`; `content`, which may grow meanwhile, becomes its index."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(dest) as part:
        yield part
        text = json.dumps({**content, "files": sorted(_files(part))}, indent=1, allow_nan=False, ensure_ascii=False)
        (part / index).write_text(text + "\n", encoding="utf-8")


def _files(folder: Path) -> set[str]:
    return {name_text(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if not path.is_dir()}


def _listed(dest: Path, index: str) -> set[str]:
    try:
        files = json.loads((dest / index).read_text(encoding="utf-8"))["files"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        return set()
    return {*map(str, files), index} if isinstance(files, list) else set()
