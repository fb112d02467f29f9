"""The record of a picture's scores, free of torch: the judge writes it, ledgers and leaderboards read it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

EVALUATOR_VERSION = "1"
"""Changes whenever the same pictures, encoder and CLIP model would get other scores: stored scores are then void."""


class ImageScore(BaseModel):
    """One picture's scores."""

    model_config = ConfigDict(frozen=True)

    file: str
    prompt: str | None = None
    seed: int | None = None
    face_similarity: FiniteFloat | None = None
    """Cosine of the largest face to the reference, in [-1, 1]; null where there is no face, which counts as 0."""
    prompt_alignment: FiniteFloat | None = None
    """Raw CLIP cosine in [-1, 1]; null without a prompt."""
    num_faces: int = Field(default=0, ge=0)
    """Faces found in the picture."""
    face_width: float | None = None
    """Width of the largest face in pixels: small faces score lower for reasons other than likeness."""
    face_probability: float | None = None
    """The detector's confidence in the largest face, in [0, 1]."""
    left_out: bool = False
    """The picture is itself one of several reference photos and was compared with the mean of the others."""

    @property
    def key(self) -> str:
        """What makes it the same picture in two trials: its file's name, which says prompt and seed."""
        return Path(self.file).name
