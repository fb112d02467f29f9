"""Captions beside photos, looked at where the photos are here."""

from __future__ import annotations

from pathlib import Path

from sweeps.imports.run import Notes, beside
from training.captions import read_caption
from training.errors import UserError
from training.pictures import find_pictures


def captions_of(folder: str, suffix: str, notes: Notes) -> list[str | None] | None:
    """A caption, or None, for each photo; None where the folder is not here.

    A caption of another suffix than the trainer read is a problem, for here it would be read.
    """
    try:
        photos = find_pictures(Path(folder).expanduser())
        captions = [read_caption(photo) for photo in photos]
    except (UserError, OSError):
        return None
    for photo, caption in zip(photos, captions, strict=True):
        if caption and not beside(photo, suffix).is_file():
            notes.problem(f"{folder}: captions that are no {suffix} files, which were not read: take them away")
    return captions
