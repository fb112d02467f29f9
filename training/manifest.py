"""What a checkpoint folder says of its own files, and whether it is true. Ground: needs no torch.

`MANIFEST.json` is written last and lists every other file with its size and sha256.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.files import sha256_of, write_json
from training.layout import MANIFEST_FILE, STATE_FILE


class DamagedError(OSError):
    """A file of a checkpoint is missing, cut short or changed; the message names it."""


def write_manifest(folder: Path) -> None:
    """List all files that are in `folder` now."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    write_json(
        folder / MANIFEST_FILE,
        {
            file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256_of(file)}
            for file in files
        },
    )


def verify_weights(folder: Path, *, digests: bool = True) -> None:
    """Compare everything but the training state, which may have been dropped, with the manifest.

    Args:
        folder: of the checkpoint.
        digests: read every byte, or look at the sizes alone.

    Raises:
        DamagedError: it is not as it was written.
    """
    manifest = _read_manifest(folder)
    _verify(folder, {name: entry for name, entry in manifest.items() if name != STATE_FILE}, digests)


def verify_training_state(folder: Path) -> None:
    """Compare the training state with the manifest.

    Raises:
        DamagedError: it is not there or not as it was written.
    """
    manifest = _read_manifest(folder)
    if STATE_FILE not in manifest:
        raise DamagedError(f"{MANIFEST_FILE} does not list {STATE_FILE}")
    _verify(folder, {STATE_FILE: manifest[STATE_FILE]}, digests=True)


def _read_manifest(folder: Path) -> dict[str, Mapping[str, Any]]:
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedError(f"{MANIFEST_FILE} is missing") from None
    except ValueError:  # neither text nor JSON
        manifest = None
    if not isinstance(manifest, dict) or not all(_is_entry(entry) for entry in manifest.values()):
        raise DamagedError(f"{MANIFEST_FILE} is not as it was written")
    return manifest


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and entry.keys() >= {"size", "sha256"}


def _verify(folder: Path, manifest: Mapping[str, Mapping[str, Any]], digests: bool) -> None:
    for name, entry in manifest.items():
        file = folder / name
        if not file.is_file():
            raise DamagedError(f"{name} is missing")
        if file.stat().st_size != entry["size"] or (digests and sha256_of(file) != entry["sha256"]):
            raise DamagedError(f"{name} is not as it was written")
