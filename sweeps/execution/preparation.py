"""What is done once a sweep before its trials, as the driver knows it: the photos, and what it asks of a trial server.

It needs no torch until a face is looked for; what needs the base model is in `stages.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.config import RenderConfig
from evaluation.face import FaceEncoder, face_boxes
from evaluation.face_encoders import load_face_encoder
from evaluation.references import References, embed_references
from sweeps.config import SweepConfig, class_images_needed, rare_token
from sweeps.execution.task import Scoring
from sweeps.held_out import claim_held_out
from sweeps.ledger.folder import RunFolder
from sweeps.photo_remarks import remarks_on_faces, remarks_on_folders, remarks_on_photos
from sweeps.prompts import Text, Texts
from sweeps.space import MethodSpace
from training.errors import UserError
from training.names import listed, name_text
from training.pictures import find_photos
from training.preparation import keep_initial_weights, prepare_photos, prepare_unseen
from training.tokenizer import reader_of_base_model


def prepare_subject(config: SweepConfig, folder: RunFolder) -> list[str]:
    """Crop the photos and embed their faces, on the CPU; done already, it does little.

    Returns:
        What the user should know of the photos before anything is trained on them, in sentences.

    Raises:
        UserError: a photo cannot be used, no photo has a face, or the face encoder's weights are missing.
    """
    subject, face = config.subject, config.evaluation.face
    encoder = load_face_encoder(face.encoder, "cpu")
    folder.claim("face_encoder", encoder.name)
    held_out = claim_held_out(config, folder)
    names = [name_text(photo.relative_to(subject.photos).as_posix()) for photo in held_out]
    prepare_photos(subject, folder.dataset_dir, lambda image: face_boxes(encoder, image), names, rare_token(subject))
    if config.initial_weights is not None:
        keep_initial_weights(config.initial_weights, folder.dataset_dir)
    all_photos = find_photos(subject.photos)
    trained = [photo for photo in all_photos if photo not in held_out]
    compared = find_photos(face.references) if face.references else held_out or all_photos
    _embed(compared, encoder, folder.reference_file)
    unseen = [photo for photo in compared if photo not in trained]
    if unseen:
        _embed(trained, encoder, folder.trained_file)
        prepare_unseen(unseen, subject, folder.dataset_dir, lambda image: face_boxes(encoder, image))
    second = config.evaluation.second_opinion
    if second is not None and second.face is not None:
        _embed(compared, load_face_encoder(second.face.encoder, "cpu"), folder.second_reference_file)
    remarks = [*remarks_on_folders(subject.photos, face.references), *remarks_on_photos(config)]
    remarks += remarks_on_faces(folder)
    return [*remarks, *([f"held out, not trained on: {listed(names)}"] if names else [])]


def _embed(photos: Sequence[Path], encoder: FaceEncoder, file: Path) -> None:
    """Write the photos' faces into a file, unless it is there and whole."""
    try:
        known = References.load(file)
    except UserError:  # none yet, or damaged since
        known = None
    if known is None or known.face_encoder != encoder.name:
        embed_references(photos, encoder).save(file)


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
            uncounted_captions=() if reader_of_base_model(config.base) else texts.captions,
        )
