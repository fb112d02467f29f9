"""Pictures as people have them: found, and read as a viewer shows them. The one reader of the project.

Photos to train on, photos to compare with, control pictures and scored folders all come through here, so that no two of
them can see one file differently. Ground: it knows nothing else of the project.
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from training.errors import UserError

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of a picture."""

MAX_PIXELS = 50_000_000
"""A phone's 48 megapixels pass; checked before a pixel is decoded."""
MAX_BYTES = 64 * 2**20
_PIXEL_LAW = f"a picture may have {MAX_PIXELS / 1e6:.0f} megapixels"

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")
"""Known by content, not by name."""
Image.init()  # register the decoders: Image.open fails on a format named before its decoder is
OTHER_PICTURE_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".jxl", ".dng", ".raw", ".cr2", ".nef", ".arw"}
)
CAPTION_SUFFIXES = frozenset({".txt", ".caption"})
"""Of the text beside a picture; kohya's trainers write the second."""
KOHYA_FOLDER = re.compile(r"(?P<repeats>[1-9]\d*)_.+")


def find_pictures(folder: str | Path) -> list[Path]:
    """The jpg, png and webp files directly in a folder, sorted by name so that every machine reads them in one order.

    Hidden files and captions (`.txt`, `.caption`) are passed over, files that are no pictures are named in a warning.

    Raises:
        UserError: no such folder, no picture in it, or a picture in a format that is not read (so that it isn't left
            out unnoticed).
    """
    folder = Path(folder)
    found = _pictures_of(folder, [_existing(folder)])
    if not found:
        raise UserError(f"need 1 or more of {', '.join(sorted(PICTURE_SUFFIXES))} in {folder}, got 0")
    return found


def find_photos(folder: str | Path) -> list[Path]:
    """As `find_pictures`, with subfolders named as kohya's trainers do (`10_sks woman`); there may be none.

    Raises:
        UserError: no such folder, or a picture in a format that is not read.
    """
    folder = _existing(Path(folder))
    subfolders = [sub for sub in folder.iterdir() if sub.is_dir() and KOHYA_FOLDER.fullmatch(sub.name)]
    return _pictures_of(folder, [folder, *subfolders])


def read_picture(path: str | Path) -> Image.Image:
    """One picture as RGB pixels and nothing else: turned upright by its EXIF tag, then rid of all metadata.

    Transparent parts become white; 16 bits a pixel become 8.

    Raises:
        UserError: the file is missing, too large, broken, or no picture; the message names it.
    """
    path = Path(path)
    if path.is_file() and (num_bytes := path.stat().st_size) > MAX_BYTES:
        raise UserError(f"a file may have {MAX_BYTES / 2**20:g} MiB, got {num_bytes / 2**20:.0f} in {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd EXIF data and on sizes that are checked here
            with Image.open(path, formats=PICTURE_FORMATS) as image:
                width, height = image.size  # known from the header, before any pixel is decoded
                if width * height <= MAX_PIXELS:
                    return _only_pixels(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise UserError(f"not a jpg, png or webp picture: {path}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{_PIXEL_LAW}, got more in {path}") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # Pillow's ways to say "broken"
        raise UserError(f"broken picture: {path} ({error})") from error
    raise UserError(f"{_PIXEL_LAW}, got {width}x{height} px in {path}")


def pixel_digest(image: Image.Image) -> str:
    """Hex sha256 of a picture's size and RGB pixels: equal for equal pictures, whatever file they came from."""
    pixels = image.convert("RGB")
    return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    return folder


def _pictures_of(root: Path, folders: list[Path]) -> list[Path]:
    files = [file for sub in folders for file in sub.iterdir() if file.is_file() and not file.name.startswith(".")]
    files.sort(key=lambda file: file.relative_to(root).as_posix())
    for file in files:
        suffix = file.suffix.lower()
        if suffix in OTHER_PICTURE_SUFFIXES:
            raise UserError(f"only jpg, png and webp are read, got {file} (convert it or take it out)")
        if suffix not in PICTURE_SUFFIXES | CAPTION_SUFFIXES:
            logger.warning("%s is no picture and is left out", file)
    return [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]


def _only_pixels(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: a plain conversion would clip at 255
        image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return Image.frombytes("RGB", image.size, image.tobytes())
