"""What is done once a sweep before its trials, as the driver knows it: the photos, and what it asks of a trial server.

It needs no torch until a face is looked for; what needs the base model is in `stages.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.config import FaceConfig, RenderConfig
from evaluation.face import face_boxes
from evaluation.face_encoders import load_face_encoder
from evaluation.references import References, embed_references
from sweeps.config import SweepConfig, class_images_needed
from sweeps.execution.task import Scoring
from sweeps.ledger.folder import RunFolder
from sweeps.photo_remarks import remarks_on_faces, remarks_on_folders
from sweeps.prompts import Text, Texts
from sweeps.space import MethodSpace
from training.config import SubjectConfig
from training.errors import UserError
from training.pictures import find_photos
from training.preparation import prepare_photos
from training.tokenizer import reader_of_base_model


def prepare_subject(subject: SubjectConfig, face: FaceConfig, folder: RunFolder) -> list[str]:
    """Crop the photos and embed their faces, on the CPU; done already, it does little.

    Returns:
        What the user should know of the photos before anything is trained on them, in sentences.

    Raises:
        UserError: a photo cannot be used, no photo has a face, or the face encoder's weights are missing.
    """
    encoder = load_face_encoder(face.encoder, "cpu")
    folder.claim("face_encoder", encoder.name)
    prepare_photos(subject, folder.dataset_dir, lambda image: face_boxes(encoder, image))
    if not _references_are_whole(folder):
        embed_references(find_photos(face.references or subject.photos), encoder).save(folder.reference_file)
    return [*remarks_on_folders(subject.photos, face.references), *remarks_on_faces(folder)]


def _references_are_whole(folder: RunFolder) -> bool:
    try:
        References.load(folder.reference_file)
    except UserError:  # none yet, or damaged since
        return False
    return True


@dataclass(frozen=True)
class Preparation:
    """What all trials share, as the driver asks for it."""

    run_dir: str
    storage: str | None
    device: str
    cpus: float
    methods: Mapping[str, MethodSpace]
    num_class_images: int
    scoring: Scoring
    render: RenderConfig | None
    texts: Texts
    uncounted_captions: tuple[Text, ...]
    """Those whose length could not be known before the base model was loaded."""

    @classmethod
    def of(cls, config: SweepConfig, folder: RunFolder, device: str, cpus: float = 1) -> Preparation:
        """As the sweep file says, on this device."""
        texts = Texts.of(config)
        return cls(
            run_dir=str(folder.dir),
            storage=config.storage,
            device=device,
            cpus=cpus,
            methods=config.methods,
            num_class_images=class_images_needed(config),
            scoring=Scoring.of(config),
            render=config.render,
            texts=texts,
            uncounted_captions=() if reader_of_base_model(config.base_model) else texts.captions,
        )
