"""Pictures as people have them: found, and read as a viewer shows them. The one reader of the project.

Photos to train on, photos to compare with, control pictures and scored folders all come through here, so that no two of
them can see one file differently. A file is known by its content, whatever its name says. Ground: it knows nothing else
of the project.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError, features

from training.errors import UserError
from training.names import listed, name_text, shown
from training.pixels import Depth, srgb_pixels
from training.png_chunks import without_large_chunks

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of a picture."""

MAX_PIXELS = 50_000_000
"""A phone's 48 megapixels pass; checked before a pixel is decoded."""
MAX_BYTES = 64 * 2**20
_PIXEL_LAW = f"a picture may have {MAX_PIXELS / 1e6:.0f} megapixels"

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo"})
RAW_SUFFIXES = frozenset(
    {
        ".raw",
        ".dng",
        ".cr2",
        ".cr3",
        ".crw",
        ".nef",
        ".nrw",
        ".arw",
        ".sr2",
        ".srf",
        ".orf",
        ".rw2",
        ".raf",
        ".pef",
        ".srw",
    }
)
"""Negatives of cameras. Most look like a TIFF from outside, whose first picture is a thumbnail."""
PICTURE_SUFFIXES = (
    JPEG_SUFFIXES
    | RAW_SUFFIXES
    | {".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".avif", ".heic", ".heif", ".hif"}
    | {".jp2", ".j2k", ".jpx", ".jxl", ".psd", ".xcf", ".svg", ".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".exr", ".hdr"}
)
"""Files that their names call pictures: each is read, or refused by its name."""

READ = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "WebP": "WEBP",
    "TIFF": "TIFF",
    "BMP": "BMP",
    "GIF": "GIF",
    "AVIF": "AVIF",
    "HEIC": "HEIF",
}
"""Kinds that are read, by content, and their names in Pillow."""
_READ_LAW = f"{', '.join(list(READ)[:-1])} and HEIC are read"
Image.init()  # register the decoders: Image.open fails on a format named before its decoder is

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"gimp xcf", "GIMP"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"%PDF", "PDF"),
)
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEAD_BYTES = 4096
_DNG_VERSION = 50706
"""TIFF tag of a negative that calls itself a TIFF."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, RuntimeError)
"""Pillow's and its plug-ins' ways to say so."""

CAPTION_SUFFIXES = frozenset({".txt", ".caption"})
"""Of the text beside a picture; kohya's trainers write the second."""
METADATA_FILE = "metadata.jsonl"
"""Captions of a whole folder, as Hugging Face's image folders have them."""
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
KOHYA_FOLDER = re.compile(r"(?P<repeats>[1-9]\d*)_.+")


# --- folders


@dataclass(frozen=True)
class PictureFolder:
    """What a folder holds: every file of it is among the pictures or named as passed over.

    Hidden files, captions and the system's own files (`Thumbs.db`) are neither.
    """

    dir: Path
    pictures: tuple[Path, ...]
    """Sorted by name, so that every machine reads them in one order."""
    passed_over: tuple[str, ...] = ()
    """Files that are no pictures, and subfolders with pictures in them, as text."""
    animated: tuple[str, ...] = ()
    """Pictures of several frames or pages, as text: the first counts."""

    def remarks(self) -> list[str]:
        """What the user should know of it, in sentences."""
        remarks = []
        if self.passed_over:
            remarks.append(f"passed over in {shown(self.dir)}: {listed(self.passed_over)}")
        if self.animated:
            remarks.append(f"several frames or pages, of which the first counts: {listed(self.animated)}")
        return remarks


def look_into(folder: str | Path, *, kohya: bool = False) -> PictureFolder:
    """What a folder holds, with `kohya` in subfolders named as kohya's trainers do (`10_sks woman`) too.

    Only the beginnings of files are read: a picture that is broken further on is refused when it is read.

    Raises:
        UserError: no such folder, files that are pictures but cannot be read, or most of it would be passed over.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no such folder: {shown(folder)}")
    subfolders = [sub for sub in folder.iterdir() if sub.is_dir() and KOHYA_FOLDER.fullmatch(sub.name)] if kohya else []
    read = [folder, *subfolders]
    files = [file for sub in read for file in sub.iterdir() if file.is_file() and not _is_hidden(file)]
    files.sort(key=lambda file: _relative(file, folder))
    pictures = [file for file in files if _is_picture(file)]
    _refuse_unreadable(pictures)
    others = [file for file in files if file not in set(pictures) and not _is_caption(file)]
    beside = [sub for parent in read for sub in parent.iterdir() if sub.is_dir() and sub not in read]
    not_looked_into = {sub: count for sub in sorted(beside) if (count := _num_pictures_below(sub))}
    names = [name_text(_relative(file, folder)) for file in others]
    names += [f"{name_text(_relative(sub, folder))}/ ({_pictures(n)})" for sub, n in not_looked_into.items()]
    companions = {picture.with_suffix("") for picture in pictures}
    strangers = [file for file in others if file.with_suffix("") not in companions]
    num_passed_over = len(strangers) + sum(not_looked_into.values())
    if num_passed_over > len(pictures):
        only = "the folder and subfolders named like 10_sks woman" if kohya else "pictures directly in it"
        raise UserError(
            f"most of {shown(folder)} would be passed over: {_pictures(len(pictures))} to read, "
            f"{num_passed_over} other files ({listed(names)}); only {only} are read: take the others out, or name "
            "another folder"
        )
    animated = [name_text(_relative(file, folder)) for file in pictures if _num_frames(file) > 1]
    return PictureFolder(folder, tuple(pictures), tuple(names), tuple(animated))


def find_pictures(folder: str | Path) -> list[Path]:
    """The pictures directly in a folder, sorted by name.

    Raises:
        UserError: from `look_into`, or there is no picture.
    """
    found = look_into(folder).pictures
    if not found:
        raise UserError(f"need 1 or more pictures ({_READ_LAW}) in {shown(folder)}, got 0")
    return list(found)


def find_photos(folder: str | Path) -> list[Path]:
    """As `find_pictures`, with kohya's subfolders; there may be none.

    Raises:
        UserError: from `look_into`.
    """
    return list(look_into(folder, kohya=True).pictures)


def _is_hidden(file: Path) -> bool:
    return file.name.startswith(".") or file.name.lower() in _SYSTEM_FILES


def _is_caption(file: Path) -> bool:
    return file.suffix.lower() in CAPTION_SUFFIXES or file.name == METADATA_FILE


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _pictures(count: int) -> str:
    return f"{count} picture" if count == 1 else f"{count} pictures"


def _is_picture(file: Path) -> bool:
    """By its name, or, where that says nothing, by its content (`photo.jpg_large`, a download without a suffix)."""
    if file.suffix.lower() in PICTURE_SUFFIXES:
        return True
    if file.suffix.lower() in CAPTION_SUFFIXES:
        return False
    return _kind_of(_head(file)) in READ.keys() - {"BMP"}  # two letters are too few to tell a BMP by


def _refuse_unreadable(pictures: Sequence[Path]) -> None:
    problems = {file: problem for file in pictures if (problem := _why_not_read(file))}
    if problems:
        first, *more = problems
        others = f"; neither are {listed([name_text(file.name) for file in more])}" if more else ""
        raise UserError(problems[first] + others)


def _num_pictures_below(folder: Path) -> int:
    """Pictures in a subfolder by their names, however deep. Run folders don't count: they are what a sweep made."""
    count = 0
    for _, folders, files in os.walk(folder):
        if "sweep.yaml" in files and "trials" in folders:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += sum(Path(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith(".") for name in files)
    return count


# --- files


def read_picture(path: str | Path) -> Image.Image:
    """One picture as RGB pixels and nothing else: upright by its EXIF tag, in sRGB, rid of all metadata.

    Transparent parts become white; 16 bits a pixel become 8; of several frames or pages the first counts.

    Raises:
        UserError: the file is missing, too large, broken, or no picture; the message names it.
    """
    path = Path(path)
    if path.is_file() and (num_bytes := path.stat().st_size) > MAX_BYTES:
        raise UserError(f"a file may have {MAX_BYTES / 2**20:g} MiB, got {num_bytes / 2**20:.0f} in {shown(path)}")
    try:
        problem = _why_not_read(path)
        if problem:
            raise UserError(problem)
        with _opened(path) as image:
            width, height = image.size  # known from the header, before any pixel is decoded
            if width * height > MAX_PIXELS:
                raise UserError(f"{_PIXEL_LAW}, got {width}x{height} px in {shown(path)}")
            return _upright_pixels(image, path)
    except UserError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"no picture that can be opened: {shown(path)} ({error.strerror})") from error
    except UnidentifiedImageError as error:
        raise UserError(f"broken picture, or of a rare kind: {shown(path)}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{_PIXEL_LAW}, got more in {shown(path)}") from error
    except _BROKEN as error:
        raise UserError(f"broken picture: {shown(path)} ({shown(str(error))})") from error


def pixel_digest(image: Image.Image) -> str:
    """Hex sha256 of a picture's size and RGB pixels: equal for equal pictures, whatever file they came from."""
    pixels = image.convert("RGB")
    return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()


def _upright_pixels(image: Image.Image, path: Path) -> Image.Image:
    if _DNG_VERSION in getattr(image, "tag_v2", {}):
        raise UserError(_cannot_read(path, "camera raw"))
    try:
        depth = Depth.of(image)
    except UserError as error:
        raise UserError(f"cannot read {shown(path)}: {error}") from None
    with _silenced():
        profile = image.info.get("icc_profile")
        return srgb_pixels(ImageOps.exif_transpose(image), depth, profile)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture by its header, with the profile that Pillow would not have taken."""
    kind = _kind_of(_head(path))
    assert kind in READ, "the other kinds have been refused"
    with path.open("rb") as file:
        stream: IO[bytes] = file
        profile = None
        if kind == "PNG":
            content, profile = without_large_chunks(file.read())
            stream = BytesIO(content)
        with _silenced():
            image = Image.open(stream, formats=(READ[kind],))
        with image:
            if profile is not None:
                image.info["icc_profile"] = profile
            yield image


@contextmanager
def _silenced() -> Iterator[None]:
    """Without Pillow's remarks on odd EXIF data and on sizes that are checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _num_frames(path: Path) -> int:
    head = _head(path)
    kind = _kind_of(head)
    if kind == "PNG":
        return 2 if b"acTL" in head else 1
    if kind not in ("GIF", "WebP", "TIFF", "AVIF"):
        return 1  # a JPEG's or a HEIC's further pictures are previews and depth maps
    try:
        with _opened(path) as image:
            return int(getattr(image, "n_frames", 1))
    except _BROKEN:
        return 1  # reading it will say what is wrong


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _kind_of(head: bytes) -> str | None:
    """What a file is by its first bytes; None where they are none of a known picture."""
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _kind_of_brands(head)
    if b"<svg" in head[:1000]:
        return "SVG"
    return None


def _kind_of_brands(head: bytes) -> str | None:
    """HEIC, AVIF and films share one container; its first box lists what it may be read as."""
    size = int.from_bytes(head[:4], "big")
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(size, len(head)), 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    if brands & _HEIC_BRANDS:
        return "HEIC"
    return "camera raw" if b"crx " in brands else None


def _why_not_read(path: Path) -> str | None:
    """The reason why a file cannot be read, as far as its beginning says; None where nothing is known against it."""
    head = _head(path)
    kind = _kind_of(head)
    if path.suffix.lower() in RAW_SUFFIXES and kind in (None, "TIFF"):
        kind = "camera raw"
    if not head:
        return f"empty file, no picture: {shown(path)}"
    if kind is None:
        return f"no picture by its content: {shown(path)} ({_READ_LAW})"
    if kind == "HEIC" and not _register_heif():
        return f"{shown(path)} is a HEIC picture, which needs the extra `heif` (pip install 'dreamsweep[heif]')"
    if kind == "AVIF" and not features.check("avif"):
        return f"{shown(path)} is an AVIF picture, which Pillow reads from 11.3 on; this one does not"
    return None if kind in READ else _cannot_read(path, kind)


def _cannot_read(path: Path, kind: str) -> str:
    return f"{shown(path)} is a {kind} picture, which is not read ({_READ_LAW}); convert it or take it out"


def _register_heif() -> bool:
    """Teach Pillow to read HEIC, if the extra is there."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    return True
