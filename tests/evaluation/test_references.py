"""Laws of reference photos; the judge's faces are colours. `pytest tests/evaluation/test_references.py`, seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.face import mean_embedding
from evaluation.references import References, embed_references
from tests.evaluation.colour_faces import ColourEncoder, colour_photos
from training.pictures import pixel_digest


def test_photos_without_a_face_are_left_out_and_named(tmp_path: Path) -> None:
    """They do not enter the mean; photos with several faces count by the largest and are named too."""
    photos = colour_photos(tmp_path, (9, 0, 0), (0, 0, 0), (255, 255, 255))
    references = embed_references(photos, ColourEncoder())
    assert references.used == ("0.png", "2.png")
    assert references.without_face == ("1.png",)
    assert references.several_faces == ("2.png",)
    assert references.embedding == pytest.approx(mean_embedding([np.float32([1, 0, 0]), np.float32([1, 1, 1])]))


def test_photos_of_nobody_are_refused(tmp_path: Path) -> None:
    """Without a single face there is nothing to be alike to; the photos are named."""
    with pytest.raises(ValueError, match=r"got 0 of 2 \(0\.png, 1\.png\)"):
        embed_references(colour_photos(tmp_path, (0, 0, 0), (0, 0, 0)), ColourEncoder())


def test_references_survive_the_disk(tmp_path: Path) -> None:
    """Saved and loaded they are the same, bit for bit; another file is refused by its name."""
    references = embed_references(colour_photos(tmp_path, (9, 1, 0), (0, 0, 0), (255, 255, 255)), ColourEncoder())
    path = tmp_path / "reference_embedding.safetensors"
    references.save(path)
    again = References.load(path)
    assert np.array_equal(again.embeddings, references.embeddings)
    assert (again.used, again.digests, again.without_face, again.several_faces, again.face_encoder) == (
        references.used,
        references.digests,
        references.without_face,
        references.several_faces,
        references.face_encoder,
    )
    for content in (b"", b"something else"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="reference_embedding"):
            References.load(path)
    with pytest.raises(ValueError, match=r"nowhere\.safetensors"):
        References.load(tmp_path / "nowhere.safetensors")


def test_a_photo_is_not_compared_with_itself(tmp_path: Path) -> None:
    """The reference for one of several photos is the mean of the others; told by pixels, not by name or format."""
    photos = colour_photos(tmp_path, (200, 0, 0), (0, 200, 0), (0, 0, 200))
    references = embed_references(photos, ColourEncoder())
    Image.open(photos[0]).save(tmp_path / "copy.webp", lossless=True)
    without_red = references.excluding(Image.open(tmp_path / "copy.webp"))
    assert without_red == pytest.approx(np.sqrt([0, 0.5, 0.5]))
    assert references.excluding(Image.new("RGB", (8, 8), (1, 2, 3))) is None
    alone = embed_references(photos[:1], ColourEncoder())
    assert alone.excluding(Image.open(photos[0])) is None, "nothing would be left to compare with"


def test_a_digest_is_of_what_is_seen() -> None:
    """Equal for equal pixels, other for other pixels or another shape of the same bytes."""
    image = Image.new("RGB", (2, 8), "red")
    assert pixel_digest(image) == pixel_digest(image.convert("RGBA"))
    assert pixel_digest(image) != pixel_digest(Image.new("RGB", (8, 2), "red"))
    assert pixel_digest(image) != pixel_digest(Image.new("RGB", (2, 8), "blue"))
