"""Laws of the record of scores. `pytest tests/evaluation/test_scores.py`, a second."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from evaluation.scores import ImageScore, Score

WITH_FACE = ImageScore(
    file="000-7.png",
    prompt="sks woman",
    seed=7,
    face_similarity=0.5,
    prompt_alignment=0.25,
    num_faces=2,
    face_width=31.5,
    face_probability=0.99,
)
WITHOUT_FACE = ImageScore(file="001-7.png", face_similarity=None, num_faces=0)
SCORE = Score(face_similarity=0.25, num_images=2, num_faces=1, face_encoder="a judge", images=(WITH_FACE, WITHOUT_FACE))


def test_a_record_comes_back_from_json() -> None:
    """Written and read it is the same, a picture without a face and a set without prompts included."""
    assert Score.model_validate_json(SCORE.model_dump_json()) == SCORE
    assert ImageScore.model_validate_json(WITH_FACE.model_dump_json()) == WITH_FACE


def test_a_score_of_another_version_is_read() -> None:
    """Keys that are not known are passed over, in the set and in its pictures; what may be missing is null."""
    newer = {**WITHOUT_FACE.model_dump(), "sharpness": 0.3}
    assert ImageScore.model_validate(newer) == WITHOUT_FACE
    assert (
        ImageScore.model_validate({"file": "a.png", "face_similarity": None, "num_faces": 0}).prompt_alignment is None
    )
    assert Score.model_validate({**SCORE.model_dump(), "images": [newer], "sharpness": 0.3}).images == (WITHOUT_FACE,)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("key", ["face_similarity", "prompt_alignment"])
@pytest.mark.parametrize("record", [WITH_FACE, SCORE], ids=["picture", "set"])
def test_what_is_no_number_is_refused(record: ImageScore | Score, key: str, number: str) -> None:
    """A cosine that is not finite would sort anywhere in a leaderboard: the record that holds it is not read."""
    content: dict[str, Any] = record.model_dump(mode="json")
    text = json.dumps({**content, key: float(number)})
    assert number in text
    with pytest.raises(ValidationError, match=key):
        type(record).model_validate_json(text)


@pytest.mark.parametrize("change", [{"num_faces": -1}, {"num_faces": None}, {"file": None}])
def test_a_picture_that_is_not_described_is_refused(change: dict[str, Any]) -> None:
    """It has a name and a number of faces, which is 0 or more."""
    with pytest.raises(ValidationError, match=next(iter(change))):
        ImageScore.model_validate({**WITH_FACE.model_dump(), **change})


def test_the_same_picture_of_two_trials_has_one_key() -> None:
    """Wherever it lies: its file's name says prompt and seed."""
    elsewhere = WITH_FACE.model_copy(update={"file": "trials/lora/images-200/000-7.png", "face_similarity": 0.9})
    assert elsewhere.key == WITH_FACE.key == "000-7.png"
    assert WITHOUT_FACE.key != WITH_FACE.key
