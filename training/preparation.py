"""A subject's photos as a dataset folder holds them: square, without metadata, and a record of what they were.

It needs no torch: photos lie where the sweep was started, and are prepared there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from training.canonical import canonical_json
from training.captions import caption_of
from training.config import SubjectConfig
from training.errors import UserError
from training.files import sha256_of, write_json
from training.lora_names import files_of_lora
from training.names import name_text, shown
from training.photos import check_photos, crop_square, face_in_square, num_repeats, prepared_record, record_digest
from training.pictures import Box, find_photos, pixel_digest, read_picture

UNSEEN = "unseen"
"""Folder of the dataset's for photos that are not trained on."""
INITIAL_WEIGHTS = "initial_weights"
"""Folder of the dataset's with the file that its LoRA trainings start from."""
CLASS_PHOTOS = "class_photos"
"""Folder of the dataset's for one's own pictures of the class."""


_FOLDERS = frozenset({"photos", "class_images"})
"""Fields of a subject that say where pictures lie, which is known by their content."""


def prepare_photos(
    subject: SubjectConfig,
    out_dir: str | Path,
    find_faces: Callable[[Image.Image], Sequence[Box]] | None = None,
    held_out: Collection[str] = (),
    rare_token: str | None = None,
) -> None:
    """Check the subject's photos and write them as square PNGs without metadata; done already, it does nothing.

    Args:
        subject: photos and how to cut them.
        out_dir: the dataset folder.
        find_faces: gives the boxes of the faces in a picture, the one that counts first. Without it, or with
            `crop: center`, squares are cut from the centre.
        held_out: names, relative to the photos' folder, of those that are not trained on.
        rare_token: which captions may leave open; default: the subject's, where it is given.

    Raises:
        UserError: from `check_photos`, `class_photos` or `captions.caption_of`.
    """
    out_dir = Path(out_dir)
    if subject.crop == "center":
        find_faces = None
    captions = _captions(subject, rare_token)
    key = _photos_key(subject, captions, held_out, with_faces=find_faces is not None)
    if prepared_record(out_dir).get("key") == key and _prepared_photos_are_whole(out_dir):
        return
    photos = check_photos(subject)
    (out_dir / "dataset.json").unlink(missing_ok=True)
    trained = [path for path in photos if _name(path, subject) not in held_out]
    record = {
        "key": key,
        "subject": subject.model_dump(mode="json", exclude=set(_FOLDERS)),
        "photos": _cut(trained, subject, out_dir, "photos", find_faces, captions),
    }
    if subject.class_images is not None:
        record["class_photos"] = _cut(class_photos(subject), subject, out_dir, CLASS_PHOTOS, find_faces)
    write_json(out_dir / "dataset.json", {**record, "digest": record_digest(record)})


def _captions(subject: SubjectConfig, rare_token: str | None) -> dict[Path, str | None]:
    """Of each photo, with the person's name in it; None where the instance prompt speaks for it."""
    named = subject.model_copy(update={"rare_token": rare_token or subject.rare_token})
    return {photo: caption_of(photo, named) for photo in find_photos(subject.photos)}


def class_photos(subject: SubjectConfig) -> list[Path]:
    """One's own pictures of the class, sorted by name; none where no folder is named.

    Raises:
        UserError: the folder has none, or files that cannot be read.
    """
    if subject.class_images is None:
        return []
    try:
        photos = find_photos(subject.class_images)
    except UserError as error:
        raise UserError(f"subject.class_images: {error}") from None
    if not photos:
        raise UserError(f"subject.class_images: need 1 or more pictures, got 0 in {shown(subject.class_images)}")
    return photos


def keep_initial_weights(source: Path, out_dir: str | Path) -> None:
    """Copy a LoRA file, with peft's config where that has its alphas, to where trainings look for it.

    Raises:
        UserError: from `files_of_lora`.
    """
    files = files_of_lora(source)
    folder = Path(out_dir) / INITIAL_WEIGHTS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def prepare_unseen(
    photos: Sequence[Path],
    subject: SubjectConfig,
    out_dir: str | Path,
    find_faces: Callable[[Image.Image], Sequence[Box]] | None = None,
) -> None:
    """Write photos that are not trained on as the trained ones are cut; done already, it does nothing.

    Args:
        photos: of the same person, wherever they lie.
        subject: how to cut them.
        out_dir: the dataset folder.
        find_faces: as for `prepare_photos`.
    """
    out_dir = Path(out_dir)
    key = key_of("v1", subject.resolution, subject.crop, [sha256_of(photo) for photo in photos])
    index = out_dir / f"{UNSEEN}.json"
    if index.is_file() and json.loads(index.read_text()) == key:
        return
    _cut(photos, subject, out_dir, UNSEEN, None if subject.crop == "center" else find_faces)
    write_json(index, key)


def load_unseen(out_dir: str | Path) -> list[Image.Image]:
    """What `prepare_unseen` wrote: RGB squares; none where there are no such photos."""
    return [read_picture(file) for file in sorted((Path(out_dir) / UNSEEN).glob("*.png"))]


def _cut(
    photos: Sequence[Path],
    subject: SubjectConfig,
    out_dir: Path,
    folder: str,
    find_faces: Callable[[Image.Image], Sequence[Box]] | None,
    captions: Mapping[Path, str | None] | None = None,
) -> list[dict[str, Any]]:
    """Write photos as squares into a folder of the dataset's; what is said of each."""
    shutil.rmtree(out_dir / folder, ignore_errors=True)
    (out_dir / folder).mkdir(parents=True)
    records = []
    for number, path in enumerate(photos):
        image = read_picture(path)
        faces = find_faces(image) if find_faces else []
        face = faces[0] if faces else None
        square = crop_square(image, face, subject.resolution)
        file = f"{folder}/{number:03d}.png"
        square.save(out_dir / file)
        records.append(
            {
                "file": file,
                "source": _name(path, subject) if folder == "photos" else name_text(path.name),
                "caption": None if captions is None else captions[path],
                "repeats": num_repeats(path),
                "face": face and [round(float(edge), 1) for edge in face],
                "face_in_square": face
                and [round(edge, 4) for edge in face_in_square(image.size, face, subject.resolution)],
                "num_faces": len(faces) if find_faces else None,
                "pixels": pixel_digest(square),
            }
        )
    return records


def _name(photo: Path, subject: SubjectConfig) -> str:
    return name_text(photo.relative_to(subject.photos).as_posix())


def _photos_key(
    subject: SubjectConfig, captions: Mapping[Path, str | None], held_out: Collection[str], *, with_faces: bool
) -> str:
    """Of earlier releases' too: a folder that has its photos prepared keeps them as they were read then."""
    sources = [
        (path.relative_to(subject.photos).as_posix(), sha256_of(path), caption) for path, caption in captions.items()
    ]
    settings = json.loads(canonical_json(subject, exclude=_FOLDERS))
    of_class = [sha256_of(path) for path in class_photos(subject)]
    more = [*([sorted(held_out)] if held_out else []), *([{"class": of_class}] if of_class else [])]
    return key_of("v1", settings, with_faces, sources, *more)


def key_of(*parts: object) -> str:
    """A hash that tells whether what is there was made of these."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _prepared_photos_are_whole(out_dir: Path) -> bool:
    """Are the prepared photos there, with the pixels that they had when they were made?"""
    record = prepared_record(out_dir)
    try:
        return all(
            pixel_digest(read_picture(out_dir / photo["file"])) == photo["pixels"]
            for photo in [*record["photos"], *record.get("class_photos", [])]
        )
    except UserError:  # one is missing or broken
        return False
