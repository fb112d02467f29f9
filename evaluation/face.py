"""Likeness: a face as one vector, and the cosine between a face and the reference.

`FaceEncoder` is the interface that the encoders stand behind, one file each: `facenet`, `dlib_face` and `drawn_face`;
`face_encoders` chooses among them. Similarities of different encoders, or of one encoder with different crops, are not
comparable: strangers score about 0.0 with one and 0.8 with another. So an encoder's `name` holds its weights and its
crop, and stands beside every score. Numpy alone: what compares faces needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from training.errors import UserError
from training.pictures import Box

Embedding = Float[np.ndarray, " d"]
"""One face, in float32."""


@dataclass(frozen=True)
class Face:
    """One face of a picture."""

    box: Box
    """Inside the picture."""
    probability: float
    """The detector's confidence in [0, 1]; detectors differ in scale."""
    embedding: Embedding
    """[d], unit norm."""


@runtime_checkable
class FaceEncoder(Protocol):
    """Pictures to faces."""

    @property
    def name(self) -> str:
        """Weights and crop in words; equal names mean comparable similarities."""
        ...

    @property
    def stranger_similarity(self) -> float:
        """What other people's faces score, in [-1, 1]; a picture without a face is worth as much."""
        ...

    def find_faces(self, images: Sequence[Image.Image]) -> list[list[Face]]:
        """All faces of each picture, largest box first; of equal ones the more central first."""
        ...


def face_similarity(embedding: Embedding, reference: Embedding) -> float:
    """Cosine of two embeddings [d], in [-1, 1]; higher is more alike.

    Raises:
        UserError: an embedding is zero or not finite, so that it has no direction.
    """
    return float(np.clip(np.dot(unit_norm(embedding), unit_norm(reference)), -1.0, 1.0))


def mean_embedding(embeddings: Sequence[Embedding]) -> Embedding:
    """Mean of the unit-norm embeddings, brought back to unit norm: [d]. The order does not change a bit of it."""
    if not embeddings:
        raise ValueError("reference faces: need at least 1, got 0")
    stacked = np.stack([unit_norm(embedding) for embedding in embeddings]).astype(np.float64)
    # Floating-point sums depend on their order: each coordinate is summed from its smallest value up.
    return unit_norm(np.sort(stacked, axis=0).mean(axis=0))


def unit_norm(embedding: Embedding) -> Embedding:
    """The embedding's direction: [d], float32, length 1.

    Raises:
        UserError: it is zero or not finite, so that it has no direction.
    """
    norm = np.linalg.norm(embedding.astype(np.float64))
    if not np.isfinite(norm) or norm == 0:
        raise UserError(f"face embedding: need a finite norm above 0, got {norm}")
    return np.asarray(embedding / norm, dtype=np.float32)


def largest_first(faces: Sequence[Face], size: tuple[int, int]) -> list[Face]:
    """Faces by falling area of their box; of equal ones, the nearer to the centre of the picture (w, h) first."""

    def key(face: Face) -> tuple[float, float, Box]:
        x0, y0, x1, y1 = face.box
        to_centre = np.hypot((x0 + x1 - size[0]) / 2, (y0 + y1 - size[1]) / 2)
        return -(x1 - x0) * (y1 - y0), float(to_centre), face.box

    return sorted(faces, key=key)


def face_boxes(encoder: FaceEncoder, image: Image.Image) -> list[Box]:
    """Boxes of the picture's faces in pixels, largest first."""
    return [face.box for face in encoder.find_faces([image])[0]]
