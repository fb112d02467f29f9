"""The face encoders on real photos and real weights, skipped where shared/data is absent.

`pytest tests/evaluation/test_real_faces.py`, half a minute. Faces: two public figures, and the AT&T database of faces
(credit: Olivetti Research Laboratory).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.face import FaceEncoder
from evaluation.face_encoders import load_face_encoder
from evaluation.references import disagreeing, embed_references
from evaluation.score import score_folder
from training.pictures import find_pictures

INCEPTION = "face_encoders/inception_resnet_v1_msceleb_128d_fp16.safetensors"
BOUNDS = {INCEPTION: (0.85, 0.35), "dlib": (0.95, 0.87)}
"""Least similarity of one person's photos and greatest of two people's: each encoder has its own scale."""


@pytest.fixture(scope="module", params=sorted(BOUNDS), ids=["dlib", "inception"])
def judge(request: pytest.FixtureRequest, shared_data: Path) -> tuple[FaceEncoder, float, float]:
    """An encoder with its two bounds."""
    if request.param == "dlib":
        pytest.importorskip("dlib", reason="needs the extra dlib")
        return load_face_encoder("dlib"), *BOUNDS["dlib"]
    return load_face_encoder(str(shared_data / request.param), "cpu"), *BOUNDS[request.param]


def test_one_person_scores_high_and_another_low(shared_data: Path, judge: tuple[FaceEncoder, float, float]) -> None:
    """Photos of a person against the person's other photos, and another person's against them."""
    encoder, same, different = judge
    people = shared_data / "people"
    person = score_folder(people / "obama", people / "obama", encoder)
    other = score_folder(people / "biden", people / "obama", encoder)
    assert (person.num_images, person.num_faces) == (5, 5)
    assert (other.num_images, other.num_faces) == (2, 2)
    assert min(image.face_similarity or 0 for image in person.images) > same
    assert max(image.face_similarity or 1 for image in other.images) < different


def test_strangers_score_low(shared_data: Path, tmp_path: Path, judge: tuple[FaceEncoder, float, float]) -> None:
    """Ten people of the AT&T database, small and grey as they are, are found and are not the person."""
    encoder, _, different = judge
    for number in range(1, 11):
        face = Image.open(shared_data / "att_faces" / f"s{number}" / "1.pgm")
        face.convert("RGB").save(tmp_path / f"{number:02d}.png")
    score = score_folder(tmp_path, shared_data / "people" / "obama", encoder)
    assert score.num_faces == 10
    assert max(image.face_similarity or 1 for image in score.images) < different
    assert score.face_similarity < different - 0.03


def test_people_are_told_apart_in_small_grey_pictures(
    shared_data: Path, judge: tuple[FaceEncoder, float, float]
) -> None:
    """Each of five people is most like their own other photos."""
    encoder = judge[0]
    people = {}
    for number in range(1, 6):
        photos = [Image.open(shared_data / "att_faces" / f"s{number}" / f"{i}.pgm").convert("RGB") for i in (1, 4, 7)]
        people[number] = [faces[0].embedding for faces in encoder.find_faces(photos) if faces]
        assert len(people[number]) >= 2
    for number, (first, *_) in people.items():
        likeness = {other: max(float(first @ e) for e in theirs[1:]) for other, theirs in people.items()}
        assert max(likeness, key=likeness.__getitem__) == number


def test_all_photos_of_the_person_are_used(shared_data: Path, judge: tuple[FaceEncoder, float, float]) -> None:
    """Small, large, and half a face: one face is found in each."""
    references = embed_references(find_pictures(shared_data / "people" / "obama"), judge[0])
    assert len(references.used) == 5
    assert (references.without_face, references.several_faces) == ((), ())


@pytest.mark.slow
def test_strangers_among_real_people(shared_data: Path, judge: tuple[FaceEncoder, float, float]) -> None:
    """Ten photos each of 12 people: none is called a stranger among their own; of strangers put there, most are."""
    encoder = judge[0]
    people: list[np.ndarray] = []
    for number in range(1, 13):
        files = sorted((shared_data / "att_faces" / f"s{number}").glob("*.pgm"))
        faces = encoder.find_faces([Image.open(file).convert("RGB") for file in files])
        people.append(np.stack([of_one[0].embedding for of_one in faces if of_one]))
    assert sum(bool(disagreeing(own)) for own in people) == 0
    pairs = [(own, people[(i + shift) % 12][:1]) for shift in range(1, 6) for i, own in enumerate(people)]
    found = np.mean([len(own) in disagreeing(np.concatenate([own, other])) for own, other in pairs])
    assert found > 0.8


def test_a_stranger_among_five_photos_is_named(shared_data: Path, judge: tuple[FaceEncoder, float, float]) -> None:
    """One public figure's photo in the other's folder; the other's own, half a face among them, are not named."""
    people = shared_data / "people"
    own = find_pictures(people / "obama")
    assert embed_references(own, judge[0]).likely_strangers == ()
    mixed = embed_references([*own, people / "biden" / "biden.jpg"], judge[0])
    assert mixed.likely_strangers == ("biden/biden.jpg",)
