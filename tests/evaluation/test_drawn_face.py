"""Laws of the drawn characters' face encoder, with the demo's weights: pytest tests/evaluation/test_drawn_face.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.drawn_face import DrawnFaceEncoder
from evaluation.face import face_similarity
from evaluation.face_encoders import load_face_encoder
from evaluation.references import embed_references

DEMO = Path(__file__).parents[2] / "examples" / "demo"
FOLDER = DEMO / "family" / "face_encoder"


@pytest.fixture(scope="module")
def encoder() -> DrawnFaceEncoder:
    return DrawnFaceEncoder.from_folder(FOLDER)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in sorted((DEMO / "photos").glob("*.png"))]


def test_a_face_is_unit_norm_and_inside_the_picture(encoder: DrawnFaceEncoder, photos: list[Image.Image]) -> None:
    """Every photo has one face: probability in [0.5, 1], box inside the picture and over the eyes, norm 1."""
    for photo, faces in zip(photos, encoder.find_faces(photos), strict=True):
        (face,) = faces
        x0, y0, x1, y1 = face.box
        assert 0 <= x0 < 0.5 * photo.width < x1 <= photo.width
        assert 0 <= y0 < 0.45 * photo.height < y1 <= photo.height
        assert 0.5 <= face.probability <= 1
        assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-5)


def test_a_photo_alone_and_in_a_batch_are_the_same(encoder: DrawnFaceEncoder, photos: list[Image.Image]) -> None:
    """Batching changes no embedding."""
    together = encoder.find_faces(photos[:4])
    alone = [encoder.find_faces([photo])[0] for photo in photos[:4]]
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(one[0].embedding, other[0].embedding, atol=1e-5)
    assert encoder.find_faces([]) == []


def test_a_box_follows_the_picture_into_an_oblong_one(encoder: DrawnFaceEncoder, photos: list[Image.Image]) -> None:
    """In a picture twice as wide, the same photo at the right has its face there."""
    wide = Image.new("RGB", (2 * photos[0].width, photos[0].height), (127, 127, 127))
    wide.paste(photos[0], (photos[0].width // 2, 0))
    for face in encoder.find_faces([wide])[0]:
        x0, y0, x1, y1 = face.box
        assert 0 <= x0 < x1 <= wide.width
        assert 0 <= y0 < y1 <= wide.height


def test_nothing_is_no_face(encoder: DrawnFaceEncoder) -> None:
    """A flat picture and noise hold no face."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert encoder.find_faces([Image.new("RGB", (64, 64), (120, 160, 200)), Image.fromarray(noise)]) == [[], []]


def test_held_out_photos_are_the_same_person(encoder: DrawnFaceEncoder) -> None:
    """Photos of the demo's subject look like the other photos of her, and not like the people of the references."""
    references = embed_references(sorted((DEMO / "photos").glob("*.png")), encoder)

    def similarity(file: Path) -> float:
        with Image.open(file) as picture:
            (face,) = encoder.find_faces([picture.convert("RGB")])[0]
        return face_similarity(face.embedding, references.embedding)

    held_out = [similarity(file) for file in sorted((DEMO / "photos_held_out").glob("*.png"))]
    assert min(held_out) > 0.6 > 0.5 > similarity(DEMO / "controls" / "portrait.png")


def test_load_face_encoder_takes_the_folder() -> None:
    """A folder names this encoder; its name tells the weights."""
    encoder = load_face_encoder(str(FOLDER))
    assert isinstance(encoder, DrawnFaceEncoder)
    assert encoder.name.startswith("drawn ")


def test_a_broken_folder_is_refused_by_name(tmp_path: Path) -> None:
    """Missing weights, and weights of another shape, give a ValueError that names the folder."""
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        DrawnFaceEncoder.from_folder(tmp_path)
    config = json.loads((FOLDER / "config.json").read_text()) | {"embedding_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((FOLDER / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="does not fit config"):
        DrawnFaceEncoder.from_folder(tmp_path)
