"""What a photo is like to learn from: how large, how sharp beside the others, and whether another shows the same.

Measured once a file and process, for everybody who asks. The measures and their limits were chosen on real photos
(`python -m benchmarks.photo_quality PEOPLE`, docs/log.md). Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter

from training.pictures import read_picture

Layout = Float[np.ndarray, "s s 3"]
"""A coarse copy of a photo, the same under any light."""

SHARPNESS_SIDE = 256
"""Shorter side, in pixels, at which sharpness is measured: what is finer is lost at a training resolution of 512."""
TILES = 8
"""A photo is cut into so many rows and columns of tiles."""
TILES_LOOKED_AT = 16
"""Of 64, those with the most contrast: of a portrait the person, not the wall or the blurred garden behind."""
ROUNDING = 20 / 12
"""What rounding to whole levels adds to the Laplacian's energy: a variance of 1/12, times 1 + 1 + 1 + 1 + 16."""
BLURRED = 1 / 3
"""A photo is called blurred below this part of the other photos' sharpness. Of 400 photos of 40 people as they are none
lies below, blurred by 1 % of their shorter side all do."""
FEWEST_OTHERS = 4
"""Photos that a usual sharpness is taken from."""

LAYOUT_SIDE = 32
LAYOUT_BLUR = 1.0
"""Of a layout, in its own pixels, so that a step to the side does not count as another picture."""
MAX_SHIFT = 2
"""Pixels of a layout by which two photos are moved against each other: 6 % of their width."""
NEAR_DUPLICATE = 0.135
"""Distance of two layouts below which two photos show nearly the same. A photo and itself, framed 1 % otherwise and
turned by up to a degree, are 0.07 apart, 2 % otherwise 0.11; of two photos of one person 99 in 100 are further."""


@dataclass(frozen=True, eq=False)
class PhotoQuality:
    """What is measured of one photo."""

    size: tuple[int, int]
    """Width and height in pixels, upright."""
    thumbnail: Float[np.ndarray, "32 32 3"]
    """In levels of 255."""
    layout: Layout
    sharpness: float
    """See `sharpness`."""


def quality_of(photo: Path) -> PhotoQuality:
    """Measure a photo, or remember what was measured.

    Raises:
        UserError: it cannot be read; the message names it.
    """
    stat = photo.stat()
    return _measured(photo, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=128)
def _measured(photo: Path, _changed: int, _size: int) -> PhotoQuality:
    image = read_picture(photo)
    thumbnail = np.asarray(image.resize((32, 32), Image.Resampling.BOX), dtype=np.float32)
    return PhotoQuality(image.size, thumbnail, layout_of(image), sharpness(image))


# --- blur


def sharpness(image: Image.Image) -> float:
    """How fine the finest detail is: the energy of the Laplacian by that of the gradient, where there is most contrast.

    The variance of the Laplacian alone is as much a matter of what a photo shows and how it is lit; the gradient's
    energy takes that out. 0 is even grey; how much is sharp differs between
    cameras and sizes, so it is compared with a person's other photos.
    """
    grey = image.convert("L").convert("F")  # no level is rounded again
    shorter = min(grey.size)
    if shorter > SHARPNESS_SIDE:
        width, height = (round(side * SHARPNESS_SIDE / shorter) for side in grey.size)
        grey = grey.resize((width, height), Image.Resampling.LANCZOS)
    levels = np.asarray(grey, dtype=np.float64)
    middle = levels[1:-1, 1:-1]
    left, right, above, below = levels[1:-1, :-2], levels[1:-1, 2:], levels[:-2, 1:-1], levels[2:, 1:-1]
    laplacian = (left + right + above + below - 4 * middle) ** 2
    gradient = ((right - left) ** 2 + (below - above) ** 2) / 4
    tiles = sorted(zip(_tile_means(gradient), _tile_means(laplacian), strict=True), reverse=True)[:TILES_LOOKED_AT]
    fine = max(0.0, float(np.mean([fine for _, fine in tiles])) - ROUNDING)
    return fine / (float(np.mean([contrast for contrast, _ in tiles])) + 1)


def _tile_means(values: Float[np.ndarray, "h w"]) -> list[float]:
    rows = (row for row in np.array_split(values, TILES, axis=0) if row.size)
    return [float(tile.mean()) for row in rows for tile in np.array_split(row, TILES, axis=1) if tile.size]


def blurred(sharpnesses: Mapping[str, float]) -> dict[str, float]:
    """Name -> part of the other photos' median sharpness, of the photos that are far less sharp; the worst first."""
    parts = {}
    for name, value in sharpnesses.items():
        others = [each for other, each in sharpnesses.items() if other != name]
        if len(others) >= FEWEST_OTHERS and value < BLURRED * (usual := float(np.median(others))):
            parts[name] = value / usual
    return dict(sorted(parts.items(), key=lambda each: each[1]))


# --- duplicates


def layout_of(image: Image.Image) -> Layout:
    """Where things are and in what colours: each channel's mean taken off, the contrast made equal."""
    radius = LAYOUT_BLUR * min(image.size) / LAYOUT_SIDE
    if min(image.size) > 8 * LAYOUT_SIDE:  # as exact, and far faster: a blur's time grows with the picture
        image, radius = image.resize((8 * LAYOUT_SIDE, 8 * LAYOUT_SIDE), Image.Resampling.BOX), 8 * LAYOUT_BLUR
    coarse = image.filter(ImageFilter.GaussianBlur(radius)).resize((LAYOUT_SIDE, LAYOUT_SIDE), Image.Resampling.BOX)
    levels = np.asarray(coarse.convert("RGB"), dtype=np.float64)
    centred = levels - levels.mean(axis=(0, 1))
    return np.asarray(centred / max(float(centred.std()), 1.0))  # an even picture has no contrast


def layout_distance(one: Layout, other: Layout) -> float:
    """Root mean square of the difference, the least over small shifts: 0 for copies, about 1.4 for unrelated photos."""
    edge, side = MAX_SHIFT, LAYOUT_SIDE
    middle = other[edge : side - edge, edge : side - edge]
    shifts = range(-edge, edge + 1)
    return min(
        float(np.sqrt(((one[edge + y : side - edge + y, edge + x : side - edge + x] - middle) ** 2).mean()))
        for y in shifts
        for x in shifts
    )


def near_duplicates(layouts: Mapping[str, Layout]) -> list[tuple[str, str]]:
    """Pairs of photos that show nearly the same, as those of a burst do."""
    return [
        (one, other)
        for one, other in combinations(layouts, 2)
        if layout_distance(layouts[one], layouts[other]) < NEAR_DUPLICATE
    ]
