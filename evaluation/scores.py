"""The record of scores: a picture's and a set's, as they are written to JSON and read back. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from training.names import listed

EVALUATOR_VERSION = "1"
"""Changes whenever the same pictures, encoder and CLIP model would get other scores: stored scores are then void."""


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
    trained_similarity: FiniteFloat | None = None
    """Cosine of the largest face to the photos that were trained on, where the reference is of others."""
    left_out: bool = False
    """The picture is itself one of several reference photos and was compared with the mean of the others."""

    @property
    def key(self) -> str:
        """What makes it the same picture in two trials: its file's name, which says prompt and seed."""
        return Path(self.file).name

    def counted(self, no_face_similarity: float) -> float:
        """What the picture counts in a mean of face similarities; without a face, what a stranger's is worth."""
        return no_face_similarity if self.face_similarity is None else self.face_similarity


def mean_face_similarity(images: Sequence[ImageScore], no_face_similarity: float) -> float:
    """Of one picture or more; see `ImageScore.counted`."""
    return sum(image.counted(no_face_similarity) for image in images) / len(images)


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
    similarities: tuple[FiniteFloat, ...] = ()
    """Of each photo in the mean to the mean of the others: as like the person as another real photo is."""

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


class NearestPhoto(_Record):
    """A picture and the trained photo that it is nearest to."""

    file: str
    photo: str
    distance: FiniteFloat = Field(ge=0)
    """Root mean square of the differences of both as coarse pictures of equal brightness and contrast."""
    ratio: FiniteFloat = Field(ge=0)
    """The same by the distance to the nearest unseen photo: well below 1 is a copy."""


class CopyCheck(_Record):
    """Whether pictures of the bare instance prompt are copies of training photos."""

    nearest: tuple[NearestPhoto, ...]
    num_copies: int = Field(ge=0)
    """Pictures that are copies."""
    num_unseen: int = 0
    """Photos that were not trained on, by which nearness was judged."""

    @property
    def is_copying(self) -> bool:
        """One is enough: whoever sees it sees a photo."""
        return self.num_copies > 0


class SecondOpinion(_Record):
    """The scores of the same pictures by judges that had no part in the search."""

    face_similarity: FiniteFloat | None = None
    face_encoder: str | None = None
    prompt_alignment: FiniteFloat | None = None
    clip: str | None = None


class Examination(_Record):
    """What else is looked at in a checkpoint that may become the champion."""

    copies: CopyCheck | None = None
    """None for the base model, which has learnt no photo."""
    class_similarity: FiniteFloat | None = None
    """Face similarity of the class prompt's pictures, in [-1, 1]: how far the class has become the person."""


class Score(_Record):
    """The scores of a set of pictures."""

    face_similarity: FiniteFloat
    """Mean over all pictures, in [-1, 1]; one without a face counts `no_face_similarity`."""
    prompt_alignment: FiniteFloat | None = None
    """Mean over all pictures, in [-1, 1]; null without prompts."""
    num_images: int = Field(ge=1)
    num_faces: int = Field(ge=0)
    """Pictures with a face."""
    no_face_similarity: FiniteFloat = 0.0
    """What a picture without a face counts: what a stranger's face is worth to this encoder. 0 in 0.1."""
    face_encoder: str
    """Weights and crop: scores of different encoders are not comparable."""
    clip: str | None = None
    images: tuple[ImageScore, ...]
    references: ReferencePhotos | None = None
    passed_over: tuple[str, ...] = ()
    """Files and subfolders of a scored folder that were not looked at."""
    remarks: tuple[str, ...] = ()
    """What else the user should know, in sentences."""
