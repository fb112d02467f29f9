"""Files of a run folder, as tests compare them."""

from __future__ import annotations

from pathlib import Path


def times(folder: Path) -> dict[str, int]:
    """When each file was last written, in ns."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
