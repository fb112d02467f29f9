"""Photos to train on: checked before anything expensive starts, cut to squares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.captions import read_caption
from training.config import SubjectConfig
from training.errors import UserError
from training.names import listed, shown
from training.pictures import KOHYA_FOLDER, Box, find_photos, read_picture

MIN_PHOTOS, MAX_PHOTOS = 5, 50
MIN_SIDE = 32
"""Pixels; also never less than a quarter of the training resolution, for beyond that a photo is mostly invented."""
FACE_MARGIN = 2.5
"""Side of the square around a face, in face sides: head, hair and shoulders."""

_NEAR_COPY = 1.0
"""Mean difference of two 32x32 thumbnails, in levels of 255, below which they show the same photo. Measured: saving
again as JPEG of quality 30 or at half size moves a thumbnail by 0.2 to 0.9, another shot of the same pose by over 4."""


def num_repeats(photo: Path) -> int:
    """How often an epoch shows a photo: the leading number of a kohya-style folder, else once."""
    match = KOHYA_FOLDER.fullmatch(photo.parent.name)
    return int(match["repeats"]) if match else 1


def check_photos(subject: SubjectConfig) -> list[Path]:
    """The subject's photos, once every one of them is known to be usable; needs no model and no GPU.

    Raises:
        UserError: too few or too many photos, one that is broken, tiny or enormous, or two copies of the same one.
    """
    try:
        return _usable_photos(subject)
    except UserError as error:
        raise UserError(f"photos: {error}") from error


def _usable_photos(subject: SubjectConfig) -> list[Path]:
    photos = find_photos(subject.photos)
    if not MIN_PHOTOS <= len(photos) <= MAX_PHOTOS:
        raise UserError(f"need {MIN_PHOTOS} to {MAX_PHOTOS} pictures, got {len(photos)} in {shown(subject.photos)}")
    thumbnails: dict[Path, np.ndarray] = {}
    for path in photos:
        image = read_picture(path)
        _check_short_side(path, image, subject.resolution)
        thumbnail = np.asarray(image.resize((32, 32), Image.Resampling.BOX), dtype=np.float32)
        for other, other_thumbnail in thumbnails.items():
            if np.abs(thumbnail - other_thumbnail).mean() < _NEAR_COPY:
                raise UserError(f"{shown(other)} and {shown(path)} are two copies of the same photo; take one out")
        thumbnails[path] = thumbnail
        read_caption(path)
    return photos


def prepared_record(dataset_dir: Path) -> dict[str, Any]:
    """What `dataset.prepare_photos` wrote down; empty where there is none or not a whole one, which is made again."""
    try:
        record = json.loads((dataset_dir / "dataset.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # ValueError: neither text nor JSON
        return {}
    required = {"key", "subject", "photos"}
    if not isinstance(record, dict) or not required <= record.keys() <= {*required, "class_photos", "digest"}:
        return {}
    digest = record.pop("digest", None)  # 0.1.0 wrote none
    return record if digest in (None, record_digest(record)) else {}


def record_digest(record: Mapping[str, Any]) -> str:
    """Hex sha256 by which a changed record is known."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def crop_remarks(dataset_dir: Path) -> list[str]:
    """Of which prepared photos the square was not cut around the only face; nothing where none was looked for.

    Args:
        dataset_dir: a folder that `dataset.prepare_photos` filled, today's or an earlier release's; or none yet.
    """
    record = prepared_record(dataset_dir)
    if not record or record["subject"]["crop"] != "face":
        return []
    earlier = {photo["source"]: 0 if photo["face"] is None else 1 for photo in record["photos"]}  # 0.1.0 didn't count
    num_faces = {photo["source"]: photo.get("num_faces", earlier[photo["source"]]) for photo in record["photos"]}
    return remarks_on_crops({name: number for name, number in num_faces.items() if number is not None})


def remarks_on_crops(num_faces: Mapping[str, int]) -> list[str]:
    """By the photos' names and how many faces each has."""
    without = [name for name, number in num_faces.items() if number == 0]
    several = [name for name, number in num_faces.items() if number > 1]
    remarks = []
    if without:
        remarks.append(f"photos without a face, cut around their middle instead: {listed(without)}")
    if several:
        remarks.append(f"photos with several faces, cut around the largest: {listed(several)}")
    return remarks


def crop_square(image: Image.Image, face: Box | None, resolution: int) -> Image.Image:
    """The square of `resolution` pixels that `square_around` chooses."""
    left, top, side = square_around(image.size, face, resolution)
    square = image.crop((left, top, left + side, top + side))
    return square.resize((resolution, resolution), Image.Resampling.LANCZOS)


def square_around(size: tuple[int, int], face: Box | None, resolution: int) -> tuple[int, int, int]:
    """The square of a photo around the face box, or around the centre where there is none.

    The square is `FACE_MARGIN` times the face's longer side, at least `resolution` where the photo has that much, and
    stays inside the photo.

    Returns:
        Left and upper edge and side, in pixels.
    """
    width, height = size
    side: float = min(width, height)
    center = (width / 2, height / 2)
    if face is not None:
        x0, y0, x1, y1 = face
        side = min(side, max(FACE_MARGIN * max(x1 - x0, y1 - y0), resolution))
        center = ((x0 + x1) / 2, (y0 + y1) / 2)
    side = round(side)
    left = round(min(max(center[0] - side / 2, 0), width - side))
    top = round(min(max(center[1] - side / 2, 0), height - side))
    return left, top, side


def face_in_square(size: tuple[int, int], face: Box, resolution: int) -> Box:
    """The face's box within the square that `crop_square` cuts around it, in parts of its side: 0 to 1."""
    left, top, side = square_around(size, face, resolution)
    x0, x1 = ((min(max(x - left, 0), side)) / side for x in face[::2])
    y0, y1 = ((min(max(y - top, 0), side)) / side for y in face[1::2])
    return x0, y0, x1, y1


def _check_short_side(path: Path, image: Image.Image, resolution: int) -> None:
    smallest = max(MIN_SIDE, resolution // 4)
    if min(image.size) < smallest:
        raise UserError(
            f"the shorter side must have at least {smallest} px at resolution {resolution}, "
            f"got {image.width}x{image.height} px in {shown(path)}"
        )
