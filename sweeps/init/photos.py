"""What a folder of photos says about the sweep that suits it: sizes, captions, and what kohya's folders are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from training.captions import read_caption
from training.errors import UserError
from training.names import shown
from training.photo_quality import quality_of
from training.photos import MAX_PHOTOS, MIN_PHOTOS, num_repeats
from training.pictures import KOHYA_FOLDER, find_photos

SMALLEST_PART = 2
"""Half of the base model's own size is the least that is trained at: Stable Diffusion began at 256 px."""
PARTS = 8
"""Resolutions are eighths of the base model's own size: 64 px of Stable Diffusion 1.5's 512, one cell of its coarsest
layer."""


@dataclass(frozen=True)
class Photos:
    """What is seen of the photos without looking for faces."""

    folder: Path
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each in pixels, in order of name."""
    captions: tuple[str, ...]
    repeats: tuple[int, ...]
    """How often an epoch shows each: kohya's folder names, else 1."""
    named: str | None
    """What kohya's folder calls the person, `sks woman` of `10_sks woman`; None where there is none, or several."""

    @property
    def shorter_sides(self) -> list[int]:
        """Pixels, in order of name."""
        return [min(size) for size in self.sizes]

    def resolution(self, native_size: int) -> int:
        """At what size they are best trained: the base model's own, or what most of them carry where that is less.

        Never more than the base model's own: it has not learnt what larger pictures look like.

        Args:
            native_size: side of the base model's pictures in pixels.
        """
        step = max(8, native_size // PARTS)
        carried = int(median(self.shorter_sides)) // step * step
        return min(native_size, max(carried, native_size // SMALLEST_PART))

    def lines(self) -> list[str]:
        """For people."""
        sides = sorted(self.shorter_sides)
        span = f"sides {sides[0]} to {sides[-1]} px" if sides[0] < sides[-1] else f"side {sides[0]} px"
        texts = [f"{len(self.sizes)} photos, shorter {span}"]
        if self.captions:
            texts.append(f"{len(self.captions)} with a caption, which training uses in place of instance_prompt")
        if max(self.repeats) > 1:
            texts.append(f"repeats by folder names (kohya's): {sum(self.repeats)} examples an epoch")
        return texts


def look_at_photos(folder: Path) -> Photos:
    """Look.

    Raises:
        UserError: there is no such folder, too few or too many photos, or one cannot be read.
    """
    photos = find_photos(folder)
    if not MIN_PHOTOS <= len(photos) <= MAX_PHOTOS:
        raise UserError(f"photos: need {MIN_PHOTOS} to {MAX_PHOTOS} pictures, got {len(photos)} in {shown(folder)}")
    names = {
        photo.parent.name.split("_", 1)[1].strip() for photo in photos if KOHYA_FOLDER.fullmatch(photo.parent.name)
    }
    return Photos(
        folder=folder,
        sizes=tuple(quality_of(photo).size for photo in photos),
        captions=tuple(caption for photo in photos if (caption := read_caption(photo))),
        repeats=tuple(map(num_repeats, photos)),
        named=names.pop() if len(names) == 1 else None,
    )
