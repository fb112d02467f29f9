"""A subject's photos as a dataset folder holds them: square, without metadata, and a record of what they were.

It needs no torch: photos lie where the sweep was started, and are prepared there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from training.canonical import canonical_json
from training.config import SubjectConfig
from training.errors import UserError
from training.files import sha256_of, write_json
from training.names import name_text
from training.photos import check_photos, crop_square, num_repeats, prepared_record, read_caption, record_digest
from training.pictures import Box, find_photos, pixel_digest, read_picture


def prepare_photos(
    subject: SubjectConfig, out_dir: str | Path, find_faces: Callable[[Image.Image], Sequence[Box]] | None = None
) -> None:
    """Check the subject's photos and write them as square PNGs without metadata; done already, it does nothing.

    Args:
        subject: photos and how to cut them.
        out_dir: the dataset folder.
        find_faces: gives the boxes of the faces in a picture, the one that counts first. Without it, or with
            `crop: center`, squares are cut from the centre.

    Raises:
        UserError: from `check_photos`.
    """
    out_dir = Path(out_dir)
    if subject.crop == "center":
        find_faces = None
    key = _photos_key(subject, with_faces=find_faces is not None)
    if prepared_record(out_dir).get("key") == key and _prepared_photos_are_whole(out_dir):
        return
    photos = check_photos(subject)
    (out_dir / "dataset.json").unlink(missing_ok=True)
    shutil.rmtree(out_dir / "photos", ignore_errors=True)
    (out_dir / "photos").mkdir(parents=True)
    records = []
    for number, path in enumerate(photos):
        image = read_picture(path)
        faces = find_faces(image) if find_faces else []
        face = faces[0] if faces else None
        square = crop_square(image, face, subject.resolution)
        file = f"photos/{number:03d}.png"
        square.save(out_dir / file)
        records.append(
            {
                "file": file,
                "source": name_text(path.relative_to(subject.photos).as_posix()),
                "caption": read_caption(path),
                "repeats": num_repeats(path),
                "face": face and [round(float(edge), 1) for edge in face],
                "num_faces": len(faces) if find_faces else None,
                "pixels": pixel_digest(square),
            }
        )
    record = {"key": key, "subject": subject.model_dump(mode="json", exclude={"photos"}), "photos": records}
    write_json(out_dir / "dataset.json", {**record, "digest": record_digest(record)})


def _photos_key(subject: SubjectConfig, *, with_faces: bool) -> str:
    sources = [
        (path.relative_to(subject.photos).as_posix(), sha256_of(path), read_caption(path))
        for path in find_photos(subject.photos)
    ]
    settings = json.loads(canonical_json(subject, exclude={"photos"}))
    return key_of("v1", settings, with_faces, sources)


def key_of(*parts: object) -> str:
    """A hash that tells whether what is there was made of these."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _prepared_photos_are_whole(out_dir: Path) -> bool:
    """Are the prepared photos there, with the pixels that they had when they were made?"""
    try:
        return all(
            pixel_digest(read_picture(out_dir / photo["file"])) == photo["pixels"]
            for photo in prepared_record(out_dir)["photos"]
        )
    except UserError:  # one is missing or broken
        return False
