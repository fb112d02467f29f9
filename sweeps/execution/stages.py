"""What is done once a sweep, before its trials and after them; mostly where trials run.

Every stage is given the sections that it needs by the driver, which has validated them, and works in the run folder.
None reads the sweep file: what lies there may still be an older one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evaluation.checks import check_clip, check_render
from evaluation.config import FaceConfig, RenderConfig
from evaluation.face import face_boxes
from evaluation.face_encoders import load_face_encoder
from evaluation.prompt import load_clip
from evaluation.references import References, embed_references
from sweeps.config import SweepConfig, class_images_needed
from sweeps.execution.machines import check_seen
from sweeps.execution.same_models import check_same_models
from sweeps.execution.scoring import score_base, use_threads
from sweeps.execution.task import Scoring
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import open_run
from sweeps.ledger.records import BASE_TRIAL
from sweeps.photo_remarks import remarks_on_faces, remarks_on_folders
from sweeps.prompts import Text, Texts, cut_texts, refuse_cut
from sweeps.renders import RenderJob, render_best
from sweeps.space import MethodSpace, corners_of
from training.class_images import BATCH_SIZE
from training.config import METHODS, SubjectConfig
from training.dataset import (
    begin_class_images,
    draw_class_images,
    encode_dataset,
    num_class_images_missing,
    prepare_photos,
)
from training.errors import UserError
from training.layout import STATE_FILE
from training.pictures import find_photos
from training.share import ALONE, Share
from training.stable_diffusion import base_model_fingerprint, load_base_model
from training.tokenizer import reader_of_base_model, reader_of_pipeline
from training.train import check_training


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


def prepare_run(asked: Preparation) -> Iterator[str]:
    """What all trials share, made where trials run: latents, class images, the base model's scores.

    Yields:
        What is being done, for the user.

    Raises:
        UserError: the base model, the CLIP model, a ControlNet or the precision cannot be had here, or a text is longer
            than what reads it.
    """
    yield from check_models_and_encode_photos(asked)
    yield from draw_share_of_class_images(asked, ALONE)
    yield from finish_preparation(asked)


def check_models_and_encode_photos(asked: Preparation) -> Iterator[str]:
    """The first part of `prepare_run`."""
    folder = _open_run(asked)
    folder.pull(folder.controls_dir)
    base_model, device, clip = asked.scoring.base_model, asked.device, asked.scoring.evaluation.clip
    folder.claim("device", device)  # pictures are made in half precision on a GPU
    yield "checking the models"
    check_trainable(asked.methods, device)
    check_clip(clip)
    if asked.render is not None:
        check_render(asked.render)
    folder.claim("base_model", base_model_fingerprint(base_model))
    folder.claim("clip_model", load_clip(clip, device).name)
    pipeline = reader_of_pipeline(load_base_model(base_model))
    refuse_cut(asked.texts.by_pipeline, pipeline)
    refuse_cut(asked.texts.by_clip, load_clip(clip, device).reader)
    yield from (f"mind: {line}" for line in cut_texts(asked.uncounted_captions, pipeline))
    yield "encoding the photos"
    encode_dataset(folder.dataset_dir, base_model, device=device)
    if asked.num_class_images:
        begin_class_images(folder.dataset_dir, base_model)
    folder.push(folder.identity_file, folder.dataset_dir)


def shares_of_class_images(asked: Preparation, room: int) -> list[Share]:
    """Of so many processes, none without a batch of its own to draw."""
    num_processes = min(room, -(-asked.num_class_images // BATCH_SIZE))
    return [Share(rank, num_processes) for rank in range(num_processes)]


def draw_share_of_class_images(asked: Preparation, share: Share) -> Iterator[str]:
    """The second part of `prepare_run`, or one process's share of it."""
    folder = _open_run(asked)
    if missing := num_class_images_missing(folder.dataset_dir, asked.num_class_images, share):
        yield f"drawing {missing} class images"
        draw_class_images(
            folder.dataset_dir, asked.scoring.base_model, asked.num_class_images, device=asked.device, share=share
        )
        folder.push(folder.dataset_dir)


def finish_preparation(asked: Preparation) -> Iterator[str]:
    """The last part of `prepare_run`, when all class images are there; one that is damaged is drawn again."""
    folder = _open_run(asked)
    encode_dataset(
        folder.dataset_dir, asked.scoring.base_model, class_images=asked.num_class_images, device=asked.device
    )
    base = folder.base()
    if base is None or not base.is_over:
        yield "scoring the base model"
        score_base(asked.scoring, folder, asked.device)
    folder.push(folder.identity_file, folder.dataset_dir, folder.trial_dir(BASE_TRIAL))


def _open_run(asked: Preparation) -> RunFolder:
    """The run folder as this machine has it, with what is there already."""
    folder = open_run(asked.run_dir, asked.storage)
    folder.pull(folder.identity_file, folder.dataset_dir, folder.trial_dir(BASE_TRIAL))
    check_seen(folder)
    use_threads(asked.cpus)
    return folder


def check_trainable(methods: Mapping[str, MethodSpace], device: str) -> None:
    """Refuse a precision or an optimizer that this machine does not have, whichever trial would ask for it."""
    for method, space in methods.items():
        for mixed_precision in corners_of(space.get("mixed_precision", "no")):
            for use_8bit_adam in corners_of(space.get("use_8bit_adam", False)):
                trial = METHODS[method].model_validate(
                    {"mixed_precision": mixed_precision, "use_8bit_adam": use_8bit_adam}
                )
                try:
                    check_training(trial, device)
                except UserError as error:
                    raise UserError(f"methods.{method}.{error}") from None


def render_where_trials_run(job: RenderJob, run_dir: str, storage: str | None) -> Iterator[str]:
    """Render a run's best trials on a machine that may not have its files yet.

    Yields:
        What is being done, for the user.

    Raises:
        UserError: from `render_best`.
    """
    yield "rendering the best trials"
    folder = open_run(run_dir, storage)
    check_same_models(folder, job.base_model)
    folder.pull(folder.controls_dir)
    folder.pull(folder.trials_dir, ending="trial.json")
    for row in job.best:
        if row.checkpoint is not None:
            folder.inside(row.checkpoint)  # or it is refused
            folder.pull(folder.dir / row.checkpoint, without=(STATE_FILE,))
    render_best(job, folder)
    folder.push(folder.renders_dir)
