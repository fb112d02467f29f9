"""What the user should know of the photos: what of a folder is not read, and whose face is where. For every verb alike.

Files alone are read here; whoever wants faces looked for brings an encoder or a prepared run folder.
"""

from __future__ import annotations

from pathlib import Path

from evaluation.face import FaceEncoder, face_boxes
from evaluation.references import embed_references
from sweeps.config import SweepConfig, class_images_needed
from sweeps.ledger.folder import RunFolder
from sweeps.results.results import reference_photos
from training.photos import crop_remarks, face_in_square, photo_remarks, remarks_on_crops
from training.pictures import find_photos, look_into, read_picture
from training.preparation import class_photos


def remarks_on_folders(photos: Path, references: Path | None) -> list[str]:
    """Files and subfolders of the photos' folders that are passed over, and pictures of several frames."""
    folders = [photos] if references is None else [photos, references]
    return list(dict.fromkeys(remark for folder in folders for remark in look_into(folder, kohya=True).remarks()))


def remarks_on_photos(config: SweepConfig) -> list[str]:
    """Photos that teach little: near duplicates, blurred ones, small ones.

    Raises:
        UserError: a photo cannot be read.
    """
    return photo_remarks(config.subject)


def remarks_on_class_images(config: SweepConfig) -> list[str]:
    """Whether one's own pictures of the class are used, and all of them.

    Raises:
        UserError: there are none, or some that cannot be read.
    """
    num_own, num_used = len(class_photos(config.subject)), class_images_needed(config)
    if num_own and not num_used:
        return [
            "subject.class_images are not used: no method has with_prior_preservation with prior_from: class_images"
        ]
    if num_own > num_used:
        return [f"of {num_own} subject.class_images the first {num_used} are used (num_class_images)"]
    return []


def remarks_on_faces(folder: RunFolder) -> list[str]:
    """What a run found in its photos: faces that are missing, too many, or somebody else's.

    Raises:
        UserError: the file of reference faces is damaged.
    """
    found = reference_photos(folder)
    return [*crop_remarks(folder.dataset_dir), *(found.remarks() if found else ())]


def look_for_faces(config: SweepConfig, encoder: FaceEncoder) -> list[str]:
    """The same before there is a run, with an encoder.

    Raises:
        UserError: a photo cannot be read, or no reference photo has a face.
    """
    photos = find_photos(config.subject.photos)
    remarks = []
    if config.subject.crop == "face":
        names = [photo.relative_to(config.subject.photos).as_posix() for photo in photos]
        num_faces, sides = {}, {}
        for name, photo in zip(names, photos, strict=True):
            image = read_picture(photo)
            boxes = face_boxes(encoder, image)
            num_faces[name] = len(boxes)
            if boxes:
                x0, y0, x1, y1 = face_in_square(image.size, boxes[0], config.subject.resolution)
                sides[name] = max(x1 - x0, y1 - y0)
        remarks += remarks_on_crops(num_faces, sides)
    references = config.evaluation.face.references
    return remarks + embed_references(find_photos(references) if references else photos, encoder).summary.remarks()
