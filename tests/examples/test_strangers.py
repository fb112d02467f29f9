"""Strangers among drawn photos, with the demo's own judge. `pytest tests/examples/test_strangers.py`, seconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import world
from PIL import Image

from evaluation.face_encoders import load_face_encoder
from evaluation.references import disagreeing, embed_references
from training.pictures import find_photos

DEMO = Path(__file__).parents[2] / "examples" / "demo"
NUM_PEOPLE, NUM_PHOTOS = 25, 9


@cache
def drawn_faces(person: int) -> np.ndarray:
    """Up to nine faces of somebody, as the judge finds them in everyday shots: [n, d]."""
    rng = np.random.default_rng([77, person])
    identity = world.draw_identity(rng)
    pictures: list[Image.Image] = []
    for number in range(NUM_PHOTOS):
        words = {"expression": "calm", "framing": "portrait", "accessory": "glasses" if number == 8 else "none"}
        pictures.append(world.paint(identity, world.draw_shot(rng, **words), 2))
    encoder = load_face_encoder(str(DEMO / "family" / "face_encoder"), "cpu")
    return np.stack([faces[0].embedding for faces in encoder.find_faces(pictures) if faces])


def test_the_demos_photos_hold_no_stranger_until_one_is_put_among_them(tmp_path: Path) -> None:
    """By file, as a run looks at them."""
    encoder = load_face_encoder(str(DEMO / "family" / "face_encoder"), "cpu")
    photos = find_photos(DEMO / "photos")
    assert embed_references(photos, encoder).likely_strangers == ()
    rng = np.random.default_rng(5)
    world.paint(world.draw_identity(rng), world.draw_shot(rng, framing="portrait"), 4).save(tmp_path / "other.png")
    (stranger,) = embed_references([*photos, tmp_path / "other.png"], encoder).likely_strangers
    assert stranger.endswith("other.png")


def test_drawn_people_are_no_strangers_to_themselves_and_others_are() -> None:
    """Nine photos each of 25 people: at most one false alarm, and nine in ten strangers found."""
    alarms = sum(bool(disagreeing(drawn_faces(person))) for person in range(NUM_PEOPLE))
    found = 0
    for person in range(NUM_PEOPLE):
        own, other = drawn_faces(person), drawn_faces((person + 1) % NUM_PEOPLE)[:1]
        found += len(own) in disagreeing(np.concatenate([own, other]))
    assert alarms <= 1, alarms
    assert found >= 0.9 * NUM_PEOPLE, found
