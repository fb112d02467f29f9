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
from training.names import listed, name_text, shown
from training.photo_quality import PhotoQuality, blurred, near_duplicates, quality_of
from training.pictures import KOHYA_FOLDER, Box, find_photos

MIN_PHOTOS, MAX_PHOTOS = 5, 50
MIN_SIDE = 32
"""Pixels; also never less than a quarter of the training resolution, for beyond that a photo is mostly invented."""
FACE_MARGIN = 2.5
"""Side of the square around a face, in face sides: head, hair and shoulders."""

ENLARGED = 1.25
"""Times by which a photo may be enlarged to the training resolution before it is said."""
SMALL_FACE = 1 / 8
"""Of the training square's side. At 512 px a face has 64 px then, and the latents 8 cells for it."""

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
        quality = quality_of(path)
        _check_short_side(path, quality.size, subject.resolution)
        for other, thumbnail in thumbnails.items():
            if np.abs(quality.thumbnail - thumbnail).mean() < _NEAR_COPY:
                raise UserError(f"{shown(other)} and {shown(path)} are two copies of the same photo; take one out")
        thumbnails[path] = quality.thumbnail
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


def photo_remarks(subject: SubjectConfig) -> list[str]:
    """Which photos teach little, by their names: nearly the same twice, blurred beside the others, enlarged.

    Nothing is refused for it: somebody may have no others.

    Raises:
        UserError: a photo cannot be read.
    """
    photos = find_photos(subject.photos)
    return remarks_on_quality(
        {name_text(photo.relative_to(subject.photos).as_posix()): quality_of(photo) for photo in photos},
        subject.resolution,
    )


def remarks_on_quality(qualities: Mapping[str, PhotoQuality], resolution: int) -> list[str]:
    """By the photos' names and what was measured of each."""
    remarks = []
    pairs = near_duplicates({name: quality.layout for name, quality in qualities.items()})
    if pairs:
        named = listed([f"{one} and {other}" for one, other in pairs])
        remarks.append(f"photos that show nearly the same, which count twice in training: {named}")
    soft = blurred({name: quality.sharpness for name, quality in qualities.items()})
    if soft:
        named = listed([f"{name} ({part:.0%})" for name, part in soft.items()])
        remarks.append(f"photos that are blurred beside the others (part of their usual sharpness): {named}")
    factors = {name: resolution / min(quality.size) for name, quality in qualities.items()}
    small = sorted((name for name, factor in factors.items() if factor >= ENLARGED), key=lambda name: -factors[name])
    if small:
        named = listed([f"{name} ({factors[name]:.1f} times)" for name in small])
        remarks.append(f"photos that are enlarged to resolution {resolution}, which makes nothing sharper: {named}")
    return remarks


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
    sides = {
        photo["source"]: max(box[2] - box[0], box[3] - box[1])
        for photo in record["photos"]
        if (box := photo.get("face_in_square"))
    }
    return remarks_on_crops({name: number for name, number in num_faces.items() if number is not None}, sides)


def remarks_on_crops(num_faces: Mapping[str, int], sides: Mapping[str, float]) -> list[str]:
    """By the photos' names, how many faces each has, and the largest one's longer side as a part of the square's."""
    without = [name for name, number in num_faces.items() if number == 0]
    several = [name for name, number in num_faces.items() if number > 1]
    remarks = []
    if without:
        remarks.append(f"photos without a face, cut around their middle instead: {listed(without)}")
    if several:
        remarks.append(f"photos with several faces, cut around the largest: {listed(several)}")
    if small := sorted((name for name, side in sides.items() if side < SMALL_FACE), key=lambda name: sides[name]):
        named = listed([f"{name} ({sides[name]:.0%})" for name in small])
        remarks.append(f"photos with a small face (its side as a part of the training picture's): {named}")
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


def _check_short_side(path: Path, size: tuple[int, int], resolution: int) -> None:
    smallest = max(MIN_SIDE, resolution // 4)
    if min(size) < smallest:
        raise UserError(
            f"the shorter side must have at least {smallest} px at resolution {resolution}, "
            f"got {size[0]}x{size[1]} px in {shown(path)}"
        )
