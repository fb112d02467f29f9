"""Laws of reference photos; the judge's faces are colours. `pytest tests/evaluation/test_references.py`, seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.face import mean_embedding
from evaluation.references import References, disagreeing, embed_references
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


def test_photos_in_subfolders_keep_their_folders_name(tmp_path: Path) -> None:
    """Two of one name in kohya's folders are told apart; a name that is no UTF-8 is text all the same."""
    folders = [tmp_path / "5_sks", tmp_path / "9_sks"]
    photos = []
    for folder in folders:
        folder.mkdir()
        photos += colour_photos(folder, (9, 0, 0), (0, 0, 0))
    photos.append(photos[0].rename(folders[0] / "caf\udce9.png"))
    references = embed_references(photos[1:], ColourEncoder())
    assert references.used == ("9_sks/0.png", r"5_sks/caf\xe9.png")
    assert references.without_face == ("5_sks/1.png", "9_sks/1.png")
    references.save(tmp_path / "faces.safetensors")
    assert References.load(tmp_path / "faces.safetensors").summary == references.summary


def test_what_was_found_is_said_in_words(tmp_path: Path) -> None:
    """Who was left out, who was taken, who is unlike; and nothing where there is nothing to say."""
    plain = [(200, 10 * i, 0) for i in range(5)]
    photos = colour_photos(tmp_path, *plain, (0, 0, 0), (0, 0, 250), (255, 255, 255))
    summary = embed_references(photos, ColourEncoder()).summary
    assert (summary.num_used, summary.without_face, summary.several_faces) == (7, ("5.png",), ("7.png",))
    assert summary.likely_strangers == ("6.png", "7.png")
    without, several, strangers = summary.remarks()
    assert without == "reference photos without a face, left out of the mean: 5.png"
    assert several == "reference photos with several faces, the largest counts: 7.png"
    assert strangers.startswith(
        "reference photos whose face is unlike the others', likely somebody else's: 6.png, 7.png;"
    )
    assert embed_references(photos[:5], ColourEncoder()).summary.remarks() == []


# --- likely strangers ------------------------------------------------------------------------------------------------


def faces_of(direction: np.ndarray, degrees: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Faces [count, d], each at this angle from one direction."""
    away = rng.normal(size=(count, len(direction)))
    away -= away @ direction[:, None] * direction
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    return (np.cos(np.radians(degrees)) * direction + np.sin(np.radians(degrees)) * away).astype(np.float32)


def people(degrees_apart: float, rng: np.random.Generator, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Two directions [size] at this angle."""
    one = np.eye(size)[0]
    return one, faces_of(one, degrees_apart, 1, rng)[0].astype(np.float64)


@pytest.mark.parametrize(("between_people", "within_one"), [(80, 20), (28, 7)], ids=["facenet's scale", "dlib's"])
@pytest.mark.parametrize(("num_own", "num_strange"), [(2, 1), (5, 1), (6, 2), (9, 2), (40, 3)])
def test_strangers_are_found_on_every_scale(
    between_people: float, within_one: float, num_own: int, num_strange: int
) -> None:
    """One, or several of one and the same stranger, wherever they stand; most of a folder is never a stranger."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        own, other = people(between_people, rng)
        faces = np.concatenate(
            [faces_of(own, within_one, num_own, rng), faces_of(other, within_one * 0.5, num_strange, rng)]
        )
        order = rng.permutation(len(faces))
        strangers = tuple(np.flatnonzero(order >= num_own).tolist())
        assert disagreeing(faces[order]) == strangers


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 50])
@pytest.mark.parametrize("degrees", [0.0, 1.0, 10.0, 30.0, 60.0])
def test_one_person_is_no_stranger(count: int, degrees: float) -> None:
    """However alike or unlike the photos are, if all are equally so; of two photos neither is the stranger."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert disagreeing(faces_of(np.eye(128)[0], degrees, count, rng)) == ()
    assert disagreeing(np.eye(2, dtype=np.float32)) == ()
    assert disagreeing(np.float32([[1, 0], [-1, 0], [1, 0], [-1, 0]])) == (), "others that cancel out"


def test_photos_of_one_minute_do_not_make_another_day_a_stranger() -> None:
    """Nine frames of a film and a photo that is 15 degrees off."""
    rng = np.random.default_rng(0)
    own = np.eye(128)[0]
    assert disagreeing(np.concatenate([faces_of(own, 1, 9, rng), faces_of(own, 15, 1, rng)])) == ()
