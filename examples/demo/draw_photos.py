"""Draw what the demo starts from: photos of one character the family never saw, and three ControlNet references.

python examples/demo/draw_photos.py     writes photos/ (to train on), photos_held_out/ (to score against) and controls/
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import world
from PIL import Image, ImageDraw, ImageOps

SCALE = 4
"""Photos are larger than the pictures the family makes, as photos are."""
NUM_PHOTOS, NUM_HELD_OUT = 12, 6
EVERYDAY = {
    "garment": ("hoodie", "t-shirt", "sweater"),
    "expression": ("calm", "smiling"),
    "place": ("garden", "library", "beach", "studio", "wall"),
}
"""All that the photos show, so that a prompt can ask for what they do not: a suit, anger, a forest."""


def subject() -> world.Identity:
    """The person of the demo, from a seed that no other picture uses."""
    return world.draw_identity(np.random.default_rng([3, 34]))


def draw_everyday_shot(rng: np.random.Generator) -> world.Shot:
    """A shot within `EVERYDAY`, now and then with glasses."""
    words = {kind: str(rng.choice(choices)) for kind, choices in EVERYDAY.items()}
    return world.draw_shot(rng, **words, accessory="glasses" if rng.random() < 0.15 else "none")


def draw_photos(folder: Path, num_photos: int, seed: int) -> None:
    """`num_photos` everyday pictures of the subject, as 000.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([3, 34, seed])
    for index in range(num_photos):
        world.paint(subject(), draw_everyday_shot(rng), SCALE).save(folder / f"{index:03d}.png", optimize=True)


def draw_stranger(seed: int, **shot: str) -> Image.Image:
    """Somebody else, upright and in the middle: the model for a reference."""
    rng = np.random.default_rng([4, seed])
    identity = world.draw_identity(rng)
    pose = world.Shot(**shot, dx=0, dy=0, zoom=1, tilt=0, gaze=0, scene=seed)
    return world.paint(identity, pose, SCALE)


def draw_portrait() -> Image.Image:
    """An old painting in a golden frame."""
    sitter = draw_stranger(
        6, garment="dress", colour="black", expression="calm", accessory="none", place="desert", framing="portrait"
    )
    painting = ImageOps.colorize(ImageOps.grayscale(sitter), (36, 22, 14), (236, 214, 160), (140, 104, 66))
    painting = Image.blend(painting, sitter, 0.35)
    return _framed(painting, ((150, 104, 30), (226, 180, 70), (120, 80, 24)), 5)


def draw_poster() -> Image.Image:
    """A film poster in four colours."""
    hero = draw_stranger(
        11, garment="suit", colour="white", expression="angry", accessory="sunglasses", place="city", framing="close-up"
    )
    tones = np.asarray(ImageOps.grayscale(hero)) // 64
    inks = np.array([(22, 24, 58), (176, 32, 64), (244, 132, 62), (252, 232, 190)], dtype=np.uint8)
    return _framed(Image.fromarray(inks[tones]), ((250, 240, 214),), 8)


def draw_statue() -> Image.Image:
    """A bust of white stone against a plain wall."""
    model = draw_stranger(
        2, garment="t-shirt", colour="white", expression="calm", accessory="crown", place="space", framing="portrait"
    )
    stone = ImageOps.colorize(ImageOps.grayscale(model), (58, 60, 70), (250, 250, 246), (176, 176, 174))
    draw = ImageDraw.Draw(stone)
    side = stone.width
    draw.rectangle((0, side * 0.9, side, side), fill=(110, 112, 120))
    draw.rectangle((side * 0.08, side * 0.87, side * 0.92, side * 0.91), fill=(226, 226, 222))
    return stone


def _framed(picture: Image.Image, colours: tuple[world.Colour, ...], width: int) -> Image.Image:
    for colour in colours:
        inner = picture.width - 2 * width
        framed = Image.new("RGB", picture.size, colour)
        framed.paste(picture.resize((inner, inner), Image.Resampling.LANCZOS), (width, width))
        picture = framed
    return picture


def main() -> None:
    """Draw everything beside this file."""
    here = Path(__file__).parent
    draw_photos(here / "photos", NUM_PHOTOS, seed=0)
    draw_photos(here / "photos_held_out", NUM_HELD_OUT, seed=1)
    (here / "controls").mkdir(exist_ok=True)
    for name, draw in (("portrait", draw_portrait), ("poster", draw_poster), ("statue", draw_statue)):
        draw().save(here / "controls" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
