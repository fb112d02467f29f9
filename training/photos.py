"""Photos as people have them: found, read safely, checked before anything expensive starts, cut to squares."""

from __future__ import annotations

import hashlib
import logging
import re
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from training.config import SubjectConfig

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""

MIN_PHOTOS, MAX_PHOTOS = 5, 50
MAX_PIXELS = 50_000_000
"""A phone's 48 megapixels pass; checked before a pixel is decoded."""
MAX_BYTES = 64 * 2**20
MIN_SIDE = 32
"""Pixels; also never less than a quarter of the training resolution, for beyond that a photo is mostly invented."""
FACE_MARGIN = 2.5
"""Side of the square around a face, in face sides: head, hair and shoulders."""

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP")
"""Known by content, not by name."""
Image.init()  # register the decoders: Image.open fails on a format named before its decoder is
OTHER_PICTURE_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".jxl", ".dng", ".raw", ".cr2", ".nef", ".arw"}
)
KOHYA_FOLDER = re.compile(r"(?P<repeats>[1-9]\d*)_.+")

_NEAR_COPY = 1.0
"""Mean difference of two 32x32 thumbnails, in levels of 255, below which they show the same photo. Measured: saving
again as JPEG of quality 30 or at half size moves a thumbnail by 0.2 to 0.9, another shot of the same pose by over 4."""


def find_photos(folder: str | Path) -> list[Path]:
    """The jpg, png and webp files of a folder, sorted by name so that every machine reads them in the same order.

    Subfolders named as kohya's trainers do (`10_sks woman`) are read too. Hidden files and captions are passed over,
    files that are no pictures are named in a warning.

    Raises:
        ValueError: no such folder, or a picture in a format that is not read (so that it isn't left out unnoticed).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"photos: no such folder: {folder}")
    folders = [folder, *(sub for sub in folder.iterdir() if sub.is_dir() and KOHYA_FOLDER.fullmatch(sub.name))]
    files = [file for sub in folders for file in sub.iterdir() if file.is_file() and not file.name.startswith(".")]
    files.sort(key=lambda file: file.relative_to(folder).as_posix())
    for file in files:
        suffix = file.suffix.lower()
        if suffix in OTHER_PICTURE_SUFFIXES:
            raise ValueError(f"photos: only jpg, png and webp are read, got {file} (convert it or take it out)")
        if suffix not in PHOTO_SUFFIXES | {".txt"}:
            logger.warning("photos: %s is no picture and is left out", file)
    return [file for file in files if file.suffix.lower() in PHOTO_SUFFIXES]


def num_repeats(photo: Path) -> int:
    """How often an epoch shows a photo: the leading number of a kohya-style folder, else once."""
    match = KOHYA_FOLDER.fullmatch(photo.parent.name)
    return int(match["repeats"]) if match else 1


def read_caption(photo: Path) -> str | None:
    """The text of the `.txt` file of the same name, on one line; None without such a file or without words in it."""
    sidecar = photo.with_suffix(".txt")
    if not sidecar.is_file():
        return None
    try:
        return " ".join(sidecar.read_text(encoding="utf-8-sig").split()) or None
    except UnicodeDecodeError as error:
        raise ValueError(f"photos: a caption must be UTF-8 text: {sidecar}") from error


def load_photo(path: str | Path) -> Image.Image:
    """One photo as RGB pixels and nothing else: turned upright by its EXIF tag, then rid of all metadata.

    Transparent parts become white.

    Raises:
        ValueError: the file is too large, broken, or no picture; the message names it.
    """
    path = Path(path)
    num_bytes = path.stat().st_size
    if num_bytes > MAX_BYTES:
        raise ValueError(f"photos: a file may have {MAX_BYTES / 2**20:.0f} MiB, got {num_bytes / 2**20:.0f} in {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd EXIF data and on sizes that are checked here
            with Image.open(path, formats=PHOTO_FORMATS) as image:
                _check_size(path, *image.size)
                return _only_pixels(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ValueError(f"photos: not a jpg, png or webp picture: {path}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"photos: a picture may have {MAX_PIXELS / 1e6:.0f} megapixels, got more in {path}") from error
    except (OSError, SyntaxError, EOFError, struct.error) as error:
        raise ValueError(f"photos: broken picture: {path} ({error})") from error


def check_photos(subject: SubjectConfig) -> list[Path]:
    """The subject's photos, once every one of them is known to be usable; needs no model and no GPU.

    Raises:
        ValueError: too few or too many photos, one that is broken, tiny or enormous, or two copies of the same one.
    """
    photos = find_photos(subject.photos)
    if not MIN_PHOTOS <= len(photos) <= MAX_PHOTOS:
        raise ValueError(f"photos: need {MIN_PHOTOS} to {MAX_PHOTOS} pictures, got {len(photos)} in {subject.photos}")
    thumbnails: dict[Path, np.ndarray] = {}
    for path in photos:
        image = load_photo(path)
        _check_short_side(path, image, subject.resolution)
        thumbnail = np.asarray(image.resize((32, 32), Image.Resampling.BOX), dtype=np.float32)
        for other, other_thumbnail in thumbnails.items():
            if np.abs(thumbnail - other_thumbnail).mean() < _NEAR_COPY:
                raise ValueError(f"photos: {other} and {path} are two copies of the same photo; take one out")
        thumbnails[path] = thumbnail
        read_caption(path)
    return photos


def crop_square(image: Image.Image, face: Box | None, resolution: int) -> Image.Image:
    """The square of `resolution` pixels around the face box, or around the centre where there is none.

    The square is `FACE_MARGIN` times the face's longer side, at least `resolution` where the photo has that much, and
    stays inside the photo.
    """
    width, height = image.size
    side: float = min(width, height)
    center = (width / 2, height / 2)
    if face is not None:
        x0, y0, x1, y1 = face
        side = min(side, max(FACE_MARGIN * max(x1 - x0, y1 - y0), resolution))
        center = ((x0 + x1) / 2, (y0 + y1) / 2)
    side = round(side)
    left = round(min(max(center[0] - side / 2, 0), width - side))
    top = round(min(max(center[1] - side / 2, 0), height - side))
    square = image.crop((left, top, left + side, top + side))
    return square.resize((resolution, resolution), Image.Resampling.LANCZOS)


def pixel_digest(image: Image.Image) -> str:
    """Hex sha256 of a picture's size and RGB pixels, whatever file they came from."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _only_pixels(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: a plain conversion would clip at 255
        image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return Image.frombytes("RGB", image.size, image.tobytes())


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"photos: a picture may have {MAX_PIXELS / 1e6:.0f} megapixels, got {width}x{height} px in {path}"
        )


def _check_short_side(path: Path, image: Image.Image, resolution: int) -> None:
    smallest = max(MIN_SIDE, resolution // 4)
    if min(image.size) < smallest:
        raise ValueError(
            f"photos: the shorter side must have at least {smallest} px at resolution {resolution}, "
            f"got {image.width}x{image.height} px in {path}"
        )
