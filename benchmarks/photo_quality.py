"""How well blurred photos and near duplicates are told from others, on photos of real people.

    python -m benchmarks.photo_quality PEOPLE      PEOPLE has a folder of photos a person, five or more each

First what is said of the photos as they are, which are taken to be sharp and different: a warning counts as false.
Then one photo at a time is blurred among the person's others, or taken again: framed, turned and lit otherwise.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.alternating import table
from training.photo_quality import (
    BLURRED,
    NEAR_DUPLICATE,
    blurred,
    layout_distance,
    layout_of,
    near_duplicates,
    sharpness,
)
from training.pictures import find_photos, read_picture

SIGMAS = (0.0025, 0.005, 0.01, 0.02, 0.05)
"""Of a Gaussian blur, as parts of the shorter side."""
FRAMINGS = (0.01, 0.02, 0.05, 0.1)
"""By how much of its width a photo is framed otherwise."""
HEADER = ("photos", "number", "measure: least, 5 %, median, 95 %, most", "warned of")


def soft(sigma: float) -> Callable[[Image.Image], Image.Image]:
    """Out of focus."""
    return lambda image: image.filter(ImageFilter.GaussianBlur(sigma * min(image.size)))


def shaken(image: Image.Image) -> Image.Image:
    """Moved along its width by 3 % while it was taken."""
    pixels = np.asarray(image, dtype=np.float64)
    length = max(2, round(0.03 * min(image.size)))
    moved = np.mean([np.roll(pixels, step, axis=1) for step in range(length)], axis=0)
    return Image.fromarray(moved.round().astype(np.uint8))


def taken_again(image: Image.Image, part: float, rng: random.Random) -> Image.Image:
    """Framed, turned by up to a degree and 5 % darker."""
    width, height = image.size
    x, y = width * part / 2, height * part / 2
    left, top = x * (1 + rng.uniform(-1, 1)), y * (1 + rng.uniform(-1, 1))
    framed = image.resize(
        image.size, Image.Resampling.BICUBIC, box=(left, top, left + width - 2 * x, top + height - 2 * y)
    )
    return framed.rotate(rng.uniform(-1, 1), Image.Resampling.BICUBIC).point(lambda level: level * 0.95)


def parts_when(people: list[list[Image.Image]], change: Callable[[Image.Image], Image.Image]) -> list[float]:
    """Of each photo, changed among the person's others as they are: its sharpness by the others' median."""
    found = []
    for photos in people:
        usual = [sharpness(photo) for photo in photos]
        for place, photo in enumerate(photos):
            others = [*usual[:place], *usual[place + 1 :]]
            found.append(sharpness(change(photo)) / float(np.median(others)))
    return found


def line(name: str, found: list[float], limit: float) -> tuple[str, ...]:
    """One row of the table."""
    spread = ", ".join(f"{value:.2f}" for value in np.quantile(found, (0, 0.05, 0.5, 0.95, 1)))
    return name, str(len(found)), spread, f"{np.mean(np.array(found) < limit):.1%}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    asked = parser.parse_args()
    folders = sorted(folder for folder in asked.people.iterdir() if folder.is_dir())
    people = [[read_picture(path) for path in find_photos(folder)] for folder in folders]
    lines = [line("as they are", parts_when(people, lambda image: image), BLURRED)]
    lines += [
        line(f"blurred by {sigma:.2%} of the shorter side", parts_when(people, soft(sigma)), BLURRED)
        for sigma in SIGMAS
    ]
    print(table(HEADER, [*lines, line("moved by 3 % of it", parts_when(people, shaken), BLURRED)]))
    layouts = [[layout_of(photo) for photo in photos] for photos in people]
    between = [layout_distance(*pair) for each in layouts for pair in combinations(each, 2)]
    lines = [line("pairs as they are", between, NEAR_DUPLICATE)]
    rng = random.Random(0)
    for part in FRAMINGS:
        again = [layout_distance(layout_of(p), layout_of(taken_again(p, part, rng))) for each in people for p in each]
        lines.append(line(f"a photo and itself taken again, framed {part:.0%} otherwise", again, NEAR_DUPLICATE))
    print(table(HEADER, lines))
    warned = [
        (
            len(blurred({str(i): sharpness(photo) for i, photo in enumerate(photos)})),
            len(near_duplicates({str(i): layout for i, layout in enumerate(each)})),
        )
        for photos, each in zip(people, layouts, strict=True)
    ]
    print(
        f"of {len(people)} people as they are: {sum(soft > 0 for soft, _ in warned)} with a blurred photo, "
        f"{sum(pairs > 0 for _, pairs in warned)} with near duplicates"
    )


if __name__ == "__main__":
    main()
