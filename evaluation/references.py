"""The reference photos of a person: their faces as vectors, kept in one file, and the mean to compare pictures with.

Needs no torch: whoever has an encoder can embed, and whoever has the file can compare.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from evaluation.face import Embedding, FaceEncoder, face_similarity, mean_embedding
from evaluation.scores import ReferencePhotos
from training.errors import UserError
from training.files import whole_file
from training.names import listed, name_text
from training.pictures import pixel_digest, read_picture

STRANGER_ANGLE = 2.5
"""How many times further from the mean of the others than the others are a face is before it is called a stranger's.

Angles, not cosines: encoders differ in scale (two people are 80 degrees apart with one, 25 with another), and the ratio
of angles is nearly the same for all. `docs/log.md` has what it finds and what it misses."""
SAME_ANGLE = 8.0
"""Degrees. Photos of one minute agree to less than any two days do: no less is taken for what is usual."""


@dataclass(frozen=True)
class References:
    """What the reference photos of one person say about their face. Biometric data: keep it on the machine."""

    face_encoder: str
    """Name of the encoder that made the embeddings."""
    embeddings: Float[np.ndarray, "n d"]
    """[n, d]: the largest face of each photo in `used`, unit norm."""
    used: tuple[str, ...]
    """Names of the photos with a face."""
    digests: tuple[str, ...]
    """`pixel_digest` of each photo in `used`."""
    without_face: tuple[str, ...] = ()
    several_faces: tuple[str, ...] = ()
    """Photos of `used` in which more than one face was found; the largest was taken."""
    no_face_similarity: float = 0.0
    """What a picture without a face counts; 0 in files of 0.1."""

    @property
    def embedding(self) -> Embedding:
        """The reference vector [d], unit norm."""
        return mean_embedding(list(self.embeddings))

    @property
    def leave_one_out(self) -> tuple[float, ...]:
        """Similarity of each photo to the mean of the others, in [-1, 1]: how like the person another real photo is.

        None of a single photo.
        """
        faces = list(self.embeddings)
        if len(faces) < 2:
            return ()
        return tuple(
            face_similarity(face, mean_embedding([*faces[:place], *faces[place + 1 :]]))
            for place, face in enumerate(faces)
        )

    def excluding(self, image: Image.Image) -> Embedding | None:
        """The reference vector without `image`, if it is one of several photos; None if it is not one of them.

        A photo compared with a mean that it is part of looks more like the person than any other photo could.
        Told by equal pixels, not by the name.
        """
        digest = pixel_digest(image)
        others = [e for e, d in zip(self.embeddings, self.digests, strict=True) if d != digest]
        return mean_embedding(others) if 0 < len(others) < len(self.digests) else None

    @property
    def likely_strangers(self) -> tuple[str, ...]:
        """Photos of `used` whose face disagrees with the others', see `disagreeing`. They stay in the mean."""
        return tuple(self.used[i] for i in disagreeing(self.embeddings))

    @property
    def summary(self) -> ReferencePhotos:
        """What the photos are, without anything about the face itself."""
        return ReferencePhotos(
            num_used=len(self.used),
            without_face=self.without_face,
            several_faces=self.several_faces,
            likely_strangers=self.likely_strangers,
            similarities=self.leave_one_out,
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        about = {
            "face_encoder": self.face_encoder,
            "used": self.used,
            "digests": self.digests,
            "without_face": self.without_face,
            "several_faces": self.several_faces,
            "no_face_similarity": self.no_face_similarity,
        }
        text = json.dumps(about)
        metadata = {"references": text, "digest": _digest(text, self.embeddings)}
        with whole_file(Path(path)) as part:
            save_file({"embeddings": self.embeddings}, part, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> References:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, is not such a file, or not as it was written (which one of 0.1.0, without a
                digest, cannot tell).
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                embeddings = file.get_tensor("embeddings")
            text = metadata["references"]
            if not metadata.keys() <= {"references", "digest"} or metadata.get(
                "digest", _digest(text, embeddings)
            ) != _digest(text, embeddings):
                raise ValueError("changed since it was written")
            about = json.loads(text)
            encoder, no_face = about.pop("face_encoder"), float(about.pop("no_face_similarity", 0.0))
            names = {key: tuple(names) for key, names in about.items()}
            return cls(encoder, embeddings, no_face_similarity=no_face, **names)
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path}: not a whole file of reference faces ({error}); the run command makes it anew from the photos"
            ) from error


def _digest(about: str, embeddings: np.ndarray) -> str:
    return hashlib.sha256(about.encode() + np.ascontiguousarray(embeddings).tobytes()).hexdigest()


def disagreeing(embeddings: Float[np.ndarray, "n d"]) -> tuple[int, ...]:
    """Which of n unit-norm faces [n, d] are likely somebody else's, in order.

    Leave-one-out: the face that is least like the mean of the others is compared with how alike those are among
    themselves (the median of each one's angle to the mean of the rest of them), and taken out if it is
    `STRANGER_ANGLE` times further away; then the next. So two photos of one stranger do not hide each other. Fewer
    than half are ever taken out, and of two photos none: there is no telling which of them is the person.
    """
    remaining = list(range(len(embeddings)))
    strangers: list[int] = []
    while len(remaining) >= 3 and 2 * (len(strangers) + 1) < len(embeddings):
        angles = _angles_to_the_others(embeddings[remaining])
        suspect = remaining[int(angles.argmax())]
        others = [i for i in remaining if i != suspect]
        usual = max(float(np.median(_angles_to_the_others(embeddings[others]))), SAME_ANGLE)
        if angles.max() <= STRANGER_ANGLE * usual:
            break
        strangers.append(suspect)
        remaining = others
    return tuple(sorted(strangers))


def _angles_to_the_others(embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Degrees between each of n faces and the mean of the others; 90 where the others cancel out."""
    faces = embeddings.astype(np.float64)
    others = faces.sum(axis=0) - faces
    lengths = np.linalg.norm(others, axis=1)
    cosines = np.divide((faces * others).sum(axis=1), lengths, out=np.zeros(len(faces)), where=lengths > 1e-9)
    angles: np.ndarray = np.degrees(np.arccos(cosines.clip(-1, 1)))
    return angles


def embed_references(photos: Sequence[Path], encoder: FaceEncoder) -> References:
    """Embed reference photos, one at a time. Photos without a face are left out of the mean and listed.

    Raises:
        UserError: no photo has a face, or one is not a readable picture; names the photos.
    """
    embeddings, used, digests, without_face, several_faces = [], [], [], [], []
    for path, name in zip(photos, _names(photos), strict=True):
        image = read_picture(path)
        faces = encoder.find_faces([image])[0]
        if not faces:
            without_face.append(name)
            continue
        embeddings.append(faces[0].embedding)
        used.append(name)
        digests.append(pixel_digest(image))
        if len(faces) > 1:
            several_faces.append(name)
    if not used:
        raise UserError(f"photos: need 1 or more with a face, got 0 of {len(photos)} ({listed(without_face)})")
    return References(
        face_encoder=encoder.name,
        embeddings=np.stack(embeddings),
        used=tuple(used),
        digests=tuple(digests),
        without_face=tuple(without_face),
        several_faces=tuple(several_faces),
        no_face_similarity=encoder.stranger_similarity,
    )


def _names(photos: Sequence[Path]) -> list[str]:
    """The photos' names as text, with their folders where they lie in several."""
    folders = {path.parent for path in photos}
    root = Path(os.path.commonpath(folders)) if len(folders) > 1 else None
    return [name_text(path.relative_to(root).as_posix() if root else path.name) for path in photos]
