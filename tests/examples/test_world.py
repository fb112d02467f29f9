"""Laws of the drawn world. Costs two seconds: pytest tests/examples/test_world.py."""

from __future__ import annotations

from dataclasses import replace

import draw_photos
import numpy as np
import pytest
import world
from PIL import Image

from tests.examples.conftest import DEMO


def pixels(identity: world.Identity | None, shot: world.Shot) -> np.ndarray:
    return np.asarray(world.paint(identity, shot)).astype(int)


def test_a_seed_names_a_picture() -> None:
    """The same seed draws the same person, shot and pixels."""
    first, second = (np.random.default_rng(3) for _ in range(2))
    assert np.array_equal(
        pixels(world.draw_identity(first), world.draw_shot(first)),
        pixels(world.draw_identity(second), world.draw_shot(second)),
    )


def test_captions_never_tell_who_someone_is() -> None:
    """A caption is a function of the shot alone: nothing of the identity enters it but a name that is given."""
    shot = world.draw_shot(
        np.random.default_rng(0),
        garment="hoodie",
        colour="red",
        expression="smiling",
        accessory="glasses",
        place="beach",
        framing="portrait",
    )
    assert world.write_caption(shot) == "photo of a person wearing a red hoodie, smiling, with glasses, at the beach"
    assert world.write_caption(shot, "sks", ("garment", "place")) == "photo of sks person, smiling, with glasses"


@pytest.mark.parametrize("kind", world.CHOICES)
def test_every_captioned_attribute_can_be_seen(kind: str) -> None:
    """Changing one word of a caption changes at least 20 pixels, for every pair of words."""
    rng = np.random.default_rng(1)
    who, shot = world.draw_identity(rng), world.draw_shot(rng, accessory="none", place="studio")
    painted = [pixels(who, replace(shot, **{kind: choice})) for choice in world.CHOICES[kind]]
    for index, one in enumerate(painted):
        for other in painted[:index]:
            assert (np.abs(one - other).max(axis=2) > 16).sum() >= 20


def test_strangers_look_different_in_the_same_shot() -> None:
    """Two people in one shot differ within the face's box; without people only the place is left."""
    rng = np.random.default_rng(2)
    one, other, shot = world.draw_identity(rng), world.draw_identity(rng), world.draw_shot(rng, accessory="none")
    x0, y0, x1, y1 = (round(edge) for edge in world.face_box(one, shot))
    difference = np.abs(pixels(one, shot) - pixels(other, shot)).max(axis=2)
    assert difference[y0:y1, x0:x1].mean() > 10
    assert np.array_equal(pixels(None, shot), pixels(None, replace(shot, expression="angry", garment="suit")))


def test_identity_vectors_have_one_scale() -> None:
    """A person as numbers: the promised length, all within [-1, 1], different for different people."""
    rng = np.random.default_rng(4)
    vectors = np.stack([world.draw_identity(rng).vector() for _ in range(50)])
    assert vectors.shape == (50, world.num_identity_values())
    assert np.abs(vectors).max() <= 1
    assert len(np.unique(vectors, axis=0)) == 50


def test_the_demo_photos_are_what_the_script_draws() -> None:
    """The committed photos can be made again, pixel for pixel, and held-out ones are none of the training ones."""
    rng = np.random.default_rng([3, 34, 0])
    first = world.paint(draw_photos.subject(), draw_photos.draw_everyday_shot(rng), draw_photos.SCALE)
    with Image.open(DEMO / "photos" / "000.png") as photo:
        assert np.array_equal(np.asarray(photo), np.asarray(first))
    photos = {file.read_bytes() for file in (DEMO / "photos").glob("*.png")}
    held_out = {file.read_bytes() for file in (DEMO / "photos_held_out").glob("*.png")}
    assert (len(photos), len(held_out)) == (draw_photos.NUM_PHOTOS, draw_photos.NUM_HELD_OUT)
    assert not photos & held_out
