"""The record of scores: a picture's and a set's, as they are written to JSON and read back. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from training.names import listed

EVALUATOR_VERSION = "1"
"""Changes whenever the same pictures, encoder and CLIP model would get other scores: stored scores are then void."""

NO_FACE_SIMILARITY = 0.0
"""What a picture without a face counts in a mean: about what a stranger's face scores with a facenet encoder."""


class _Record(BaseModel):
    """Read again years later: a key that a newer version wrote is passed over, a number that is none is refused."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ImageScore(_Record):
    """One picture's scores."""

    file: str
    prompt: str | None = None
    seed: int | None = None
    face_similarity: FiniteFloat | None
    """Cosine of the largest face to the reference, in [-1, 1]; null where there is no face."""
    prompt_alignment: FiniteFloat | None = None
    """Raw CLIP cosine in [-1, 1]; null without a prompt."""
    num_faces: int = Field(ge=0)
    """Faces found in the picture."""
    face_width: FiniteFloat | None = None
    """Width of the largest face in pixels: small faces score lower for reasons other than likeness."""
    face_probability: FiniteFloat | None = None
    """The detector's confidence in the largest face, in [0, 1]."""
    left_out: bool = False
    """The picture is itself one of several reference photos and was compared with the mean of the others."""

    @property
    def key(self) -> str:
        """What makes it the same picture in two trials: its file's name, which says prompt and seed."""
        return Path(self.file).name

    @property
    def counted(self) -> float:
        """What the picture counts in a mean of face similarities, with or without a face."""
        return NO_FACE_SIMILARITY if self.face_similarity is None else self.face_similarity


def mean_face_similarity(images: Sequence[ImageScore]) -> float:
    """Of one picture or more, one without a face counting `NO_FACE_SIMILARITY`."""
    return sum(image.counted for image in images) / len(images)


def mean_prompt_alignment(images: Sequence[ImageScore]) -> float | None:
    """Of the pictures that have one; None where none has."""
    known = [image.prompt_alignment for image in images if image.prompt_alignment is not None]
    return sum(known) / len(known) if known else None


def num_with_face(images: Sequence[ImageScore]) -> int:
    """Pictures in which a face was found."""
    return sum(image.num_faces > 0 for image in images)


class ReferencePhotos(_Record):
    """What was found in the photos that pictures are compared with. Names are relative to their folder."""

    num_used: int = Field(ge=1)
    """Photos with a face: the mean is theirs."""
    without_face: tuple[str, ...] = ()
    """Left out of the mean."""
    several_faces: tuple[str, ...] = ()
    """The largest face was taken."""
    likely_strangers: tuple[str, ...] = ()
    """Photos whose face disagrees with the others'; they are in the mean all the same."""

    def remarks(self) -> list[str]:
        """What the user should know of them, in sentences."""
        remarks = []
        if self.without_face:
            remarks.append(f"reference photos without a face, left out of the mean: {listed(self.without_face)}")
        if self.several_faces:
            remarks.append(f"reference photos with several faces, the largest counts: {listed(self.several_faces)}")
        if self.likely_strangers:
            remarks.append(
                f"reference photos whose face is unlike the others', likely somebody else's: "
                f"{listed(self.likely_strangers)}; they are in the mean: take them out if so"
            )
        return remarks


class Score(_Record):
    """The scores of a set of pictures."""

    face_similarity: FiniteFloat
    """Mean over all pictures, in [-1, 1]; one without a face counts 0."""
    prompt_alignment: FiniteFloat | None = None
    """Mean over all pictures, in [-1, 1]; null without prompts."""
    num_images: int = Field(ge=1)
    num_faces: int = Field(ge=0)
    """Pictures with a face."""
    face_encoder: str
    """Weights and crop: scores of different encoders are not comparable."""
    clip: str | None = None
    images: tuple[ImageScore, ...]
    references: ReferencePhotos | None = None
    passed_over: tuple[str, ...] = ()
    """Files and subfolders of a scored folder that were not looked at."""
    remarks: tuple[str, ...] = ()
    """What else the user should know, in sentences."""
