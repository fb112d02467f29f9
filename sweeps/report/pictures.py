"""Pictures of a run folder on a page: inlined where the page is one file, by address where it is served.

What a page shows of a run lies in the folders of scored pictures and of renders; the photos of the person are in
neither. Only a page that is one file has them, and only where the sweep file says so (`report.show_photos`).
"""

from __future__ import annotations

import base64
import io
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from evaluation.scores import ImageScore
from sweeps.ledger.folder import RunFolder
from sweeps.results.leaderboard import Row
from training.errors import UserError
from training.pictures import find_photos, read_picture

THUMBNAIL_SIDE = 256
SHEET_SIDE = 2400
"""Longest sides in pixels to which pictures are reduced."""
PICTURE_BUDGET_BYTES = 7_000_000
"""Of inlined pictures: a page of 10 MB still opens at once and passes through a mail."""
LOSSLESS_SIDE = 128
"""Up to here a picture is stored as PNG and shown with its own pixels."""
PICTURE_PATH = re.compile(r"(?:trials|confirm)/[^/]+/images-\d+/[^/]+|renders/[^/]+")
"""What a page shows of a run folder."""


@dataclass(frozen=True)
class Picture:
    """Where a page finds a picture."""

    address: str
    """For `src`."""
    enlarged: str
    """The same for a look from near by."""


class Pictures(ABC):
    """How a page comes by its pictures.

    Args:
        run_dir: nothing outside it is shown, whatever a path in trial.json says.
    """

    max_grid_trials: int
    """Trials that stand side by side."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = RunFolder(run_dir)
        self.num_left_out = 0
        """Pictures that are there and found no room."""

    may_show_photos = False
    """Photos of the person are never served."""

    def of_row(self, row: Row, image: ImageScore) -> Picture | None:
        """One picture of a checkpoint; None where it is missing, broken or without room."""
        return self.of_checkpoint(row, image.key)

    def of_checkpoint(self, row: Row, file: str) -> Picture | None:
        """The same by its file's name."""
        return None if row.images is None else self._show(f"{row.images}/{file}", THUMBNAIL_SIDE)

    def photos(self, folder: Path, number: int) -> list[Picture]:
        """The first few of the person's photos; none where this kind of page may not show them."""
        try:
            files = find_photos(folder)[:number] if self.may_show_photos else []
        except UserError:  # moved since
            return []
        return [picture for file in files if (picture := self.photo(file))]

    def photo(self, file: Path) -> Picture | None:
        """A photo of the person, its pixels alone."""
        return self._picture(file, file.name, THUMBNAIL_SIDE) if self.may_show_photos else None

    def sheet(self, path: Path) -> Picture | None:
        """A sheet of renders."""
        return self._show(self._folder.relative(path), SHEET_SIDE)

    def _show(self, relative: str, side: int) -> Picture | None:
        path = picture_file(self._folder, relative)
        return None if path is None else self._picture(path, relative, side)

    @abstractmethod
    def _picture(self, path: Path, relative: str, side: int) -> Picture | None:
        """The file at a path of the run folder, its longer side at most `side` pixels."""


class InlinedPictures(Pictures):
    """Inside the page as data addresses, reduced, until the page's budget is spent."""

    max_grid_trials = 8
    may_show_photos = True
    """Where the sweep file says so."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self._num_bytes = 0
        self._known: dict[tuple[Path, int], Picture | None] = {}

    def _picture(self, path: Path, relative: str, side: int) -> Picture | None:  # noqa: ARG002 -- by its content
        if (path, side) not in self._known:
            self._known[path, side] = self._read(path, side)
        return self._known[path, side]

    def _read(self, path: Path, side: int) -> Picture | None:
        if self._num_bytes >= PICTURE_BUDGET_BYTES:
            self.num_left_out += 1
            return None
        uri = data_uri(path, side)
        self._num_bytes += len(uri or "")
        return Picture(uri, uri) if uri else None


class LinkedPictures(Pictures):
    """By their addresses on the server that sends the page: `picture/<path in the run folder>?side=<pixels>`."""

    max_grid_trials = 24

    def _picture(self, path: Path, relative: str, side: int) -> Picture | None:
        stat = path.stat()
        version = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"  # a picture made again has another address
        address = f"picture/{quote(relative, errors='surrogateescape')}?v={version}"
        return Picture(f"{address}&side={side}", address)


def picture_file(folder: RunFolder, relative: str) -> Path | None:
    """The file that a page may show under this path of the run folder.

    Args:
        folder: the run's.
        relative: as a ledger entry or an address has it.

    Returns:
        The file, links followed; None where there is none, where it is not named as a picture of a checkpoint or of
        the renders, or where it lies anywhere but below those folders (a run folder may come from somebody else).
    """
    if not PICTURE_PATH.fullmatch(relative):
        return None
    roots = [place.resolve() for place in (folder.trials_dir, folder.confirm.trials_dir, folder.renders_dir)]
    try:
        path = folder.inside(relative)
        return path if path.is_file() and any(path.is_relative_to(root) for root in roots) else None
    except (UserError, OSError):  # such as a folder on the way that may not be read
        return None


def reduced(path: Path, side: int | None) -> tuple[str, bytes] | None:
    """The picture's pixels alone, as `png` (small ones) or `jpeg`; None where it cannot be read.

    Args:
        path: of any picture; text chunks and EXIF stay behind.
        side: what its longer side has at most, in pixels; None leaves it as large as it is.
    """
    try:
        picture = read_picture(path)
    except UserError:
        return None
    if side is not None:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    lossless = max(picture.size) <= LOSSLESS_SIDE
    kind = "png" if lossless else "jpeg"
    picture.save(buffer, kind, optimize=True, **({} if lossless else {"quality": 85}))
    return kind, buffer.getvalue()


def data_uri(path: Path, side: int) -> str | None:
    """The picture with its longer side at most `side` pixels, as a data address; None where it cannot be read."""
    found = reduced(path, side)
    return found and f"data:image/{found[0]};base64,{base64.b64encode(found[1]).decode()}"
