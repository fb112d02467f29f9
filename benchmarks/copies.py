"""How a copied photo is told from a new picture of the person, on photos of real people.

    python -m benchmarks.copies PEOPLE [--number 40]      PEOPLE has a folder of photos a person, eight or more each

Of each person six photos are trained on, two are unseen and the rest stand for what an honest model draws: new pictures
of the same person. A copy is a trained photo that was changed as a model or a file might change it.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.alternating import table
from evaluation.copies import COPY, check_copies
from training.pictures import find_photos, read_picture

NUM_TRAINED, NUM_UNSEEN = 6, 2
HEADER = ("pictures", "number", "ratio: least, 5 %, median, 95 %, most", f"below {COPY}")


def saved_again(image: Image.Image) -> Image.Image:
    """As JPEG of quality 30."""
    stream = io.BytesIO()
    image.save(stream, format="jpeg", quality=30)
    return Image.open(stream).convert("RGB")


def zoomed(image: Image.Image, factor: float) -> Image.Image:
    """The middle, enlarged to the picture's size."""
    width, height = image.size
    x, y = width * (1 - 1 / factor) / 2, height * (1 - 1 / factor) / 2
    return image.resize(image.size, Image.Resampling.BICUBIC, box=(x, y, width - x, height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is, JPEG of quality 30": saved_again,
    "blurred, by 2 % of its width": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 50)),
    "darker, by 10 %": lambda image: image.point(lambda level: level * 0.9),
    "darker, by 25 %": lambda image: image.point(lambda level: level * 0.75),
    "turned by 2 degrees": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "zoomed by 3 %": lambda image: zoomed(image, 1.03),
    "zoomed by 10 %": lambda image: zoomed(image, 1.1),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def ratios(people: list[list[Image.Image]], change: Callable[[Image.Image], Image.Image] | None) -> list[float]:
    """Of new pictures of each person, or of their trained photos changed."""
    found: list[float] = []
    for photos in people:
        trained = [(str(number), photo) for number, photo in enumerate(photos[:NUM_TRAINED])]
        unseen, new = photos[NUM_TRAINED : NUM_TRAINED + NUM_UNSEEN], photos[NUM_TRAINED + NUM_UNSEEN :]
        pictures = new if change is None else [change(photo) for _, photo in trained]
        check = check_copies([(str(number), picture) for number, picture in enumerate(pictures)], trained, unseen)
        found += [each.ratio for each in check.nearest]
    return found


def line(name: str, found: list[float]) -> tuple[str, ...]:
    """One row of the table."""
    spread = ", ".join(f"{value:.2f}" for value in np.quantile(found, (0, 0.05, 0.5, 0.95, 1)))
    return name, str(len(found)), spread, f"{np.mean(np.array(found) < COPY):.1%}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    parser.add_argument("--number", type=int, default=40)
    asked = parser.parse_args()
    folders = sorted(folder for folder in asked.people.iterdir() if folder.is_dir())[: asked.number]
    people = [[read_picture(path) for path in find_photos(folder)] for folder in folders]
    lines = [line("new pictures of the person", ratios(people, None))]
    lines += [line(f"a trained photo, {name}", ratios(people, change)) for name, change in CHANGES.items()]
    print(table(HEADER, lines))


if __name__ == "__main__":
    main()
