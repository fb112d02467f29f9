"""The reference photos of a person: their faces as vectors, kept in one file, and the mean to compare pictures with.

Needs no torch: whoever has an encoder can embed, and whoever has the file can compare.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from evaluation.face import Embedding, FaceEncoder, mean_embedding
from training.errors import UserError
from training.files import whole_file
from training.pictures import pixel_digest, read_picture


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

    @property
    def embedding(self) -> Embedding:
        """The reference vector [d], unit norm."""
        return mean_embedding(list(self.embeddings))

    def excluding(self, image: Image.Image) -> Embedding | None:
        """The reference vector without `image`, if it is one of several photos; None if it is not one of them.

        A photo compared with a mean that it is part of looks more like the person than any other photo could.
        Told by equal pixels, not by the name.
        """
        digest = pixel_digest(image)
        others = [e for e, d in zip(self.embeddings, self.digests, strict=True) if d != digest]
        return mean_embedding(others) if 0 < len(others) < len(self.digests) else None

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        about = {
            "face_encoder": self.face_encoder,
            "used": self.used,
            "digests": self.digests,
            "without_face": self.without_face,
            "several_faces": self.several_faces,
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
            encoder = about.pop("face_encoder")
            return cls(encoder, embeddings, **{key: tuple(names) for key, names in about.items()})
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path}: not a whole file of reference faces ({error}); the run command makes it anew from the photos"
            ) from error


def _digest(about: str, embeddings: np.ndarray) -> str:
    return hashlib.sha256(about.encode() + np.ascontiguousarray(embeddings).tobytes()).hexdigest()


def embed_references(photos: Sequence[Path], encoder: FaceEncoder) -> References:
    """Embed reference photos, one at a time. Photos without a face are left out of the mean and listed.

    Raises:
        UserError: no photo has a face, or one is not a readable picture; names the photos.
    """
    embeddings, used, digests, without_face, several_faces = [], [], [], [], []
    for path in photos:
        image = read_picture(path)
        faces = encoder.find_faces([image])[0]
        if not faces:
            without_face.append(path.name)
            continue
        embeddings.append(faces[0].embedding)
        used.append(path.name)
        digests.append(pixel_digest(image))
        if len(faces) > 1:
            several_faces.append(path.name)
    if not used:
        raise UserError(f"photos: need 1 or more with a face, got 0 of {len(photos)} ({', '.join(without_face[:10])})")
    return References(
        face_encoder=encoder.name,
        embeddings=np.stack(embeddings),
        used=tuple(used),
        digests=tuple(digests),
        without_face=tuple(without_face),
        several_faces=tuple(several_faces),
    )
