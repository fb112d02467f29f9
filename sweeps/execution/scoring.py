"""A checkpoint to its pictures, and these to scores, in the run folder: the same for the base model and every trial."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from evaluation.copies import diversity
from evaluation.face_encoders import load_face_encoder
from evaluation.generate import (
    GeneratedImage,
    generate,
    generate_packed,
    generation_dtype,
    load_images,
    save_images,
)
from evaluation.prompt import load_clip
from evaluation.rare_token import without_rare_token
from evaluation.references import References
from evaluation.score import score_images
from evaluation.scores import SecondOpinion
from sweeps.execution.ends import OutOfGpuMemory
from sweeps.execution.task import Scoring
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import BASE_TRIAL, ScoredCheckpoint, TrialRecord
from training.checkpoint import Checkpoint, load_pipeline
from training.finite_pictures import NonFinitePictureError
from training.packed_pipeline import packed_pipeline
from training.share import ALONE, Share
from training.stable_diffusion import choose_device


def make_pictures(
    scoring: Scoring,
    folder: RunFolder,
    trial: str,
    checkpoint: Checkpoint | None,
    device: str,
    share: Share = ALONE,
) -> None:
    """Generate a checkpoint's pictures, or a process's share of them, into the run folder; None is the base model."""
    evaluation = scoring.evaluation
    pipeline = load_pipeline(
        checkpoint, scoring.base_model, device=device, dtype=generation_dtype(device), share_frozen=True
    )
    images_dir = folder.images_dir(trial, _step_of(checkpoint))
    save_images(generate(pipeline, evaluation, share), images_dir, evaluation, model=trial)


Point = tuple[str, Checkpoint]
"""A trial's checkpoint."""


def make_packed_pictures(
    scoring: Scoring, folder: RunFolder, points: Sequence[Point], device: str
) -> dict[Point, Exception]:
    """Generate the pictures of several LoRA checkpoints in one pass, as `make_pictures` does of each.

    Where memory runs out, in as many passes as it takes.

    Args:
        scoring: the sweep's.
        folder: the run's.
        points: the checkpoints, which all train the text encoder or all do not.
        device: where to compute.

    Returns:
        Why a checkpoint has no pictures, for those that have none.
    """
    if not points:
        return {}
    try:
        with telling_of_gpu_memory():
            return dict(_made_in_one_pass(scoring, folder, points, device))
    except OutOfGpuMemory as error:
        if len(points) == 1:
            return {points[0]: error}
    half = len(points) // 2
    return make_packed_pictures(scoring, folder, points[:half], device) | make_packed_pictures(
        scoring, folder, points[half:], device
    )


def _made_in_one_pass(
    scoring: Scoring, folder: RunFolder, points: Sequence[Point], device: str
) -> dict[Point, NonFinitePictureError]:
    evaluation = scoring.evaluation
    pipeline = packed_pipeline(
        [checkpoint for _, checkpoint in points],
        scoring.base_model,
        choose_device(device),
        generation_dtype(device),
        guided=evaluation.guidance_scale > 1,
    )
    failed: dict[Point, NonFinitePictureError] = {}
    for pictures in generate_packed(pipeline, evaluation, len(points)):
        for point, picture in zip(points, pictures, strict=True):
            trial, checkpoint = point
            if isinstance(picture, NonFinitePictureError):
                failed[point] = picture
            else:
                save_images([picture], folder.images_dir(trial, checkpoint.step), evaluation, model=trial)
    return failed


@contextmanager
def telling_of_gpu_memory() -> Iterator[None]:
    """Where memory runs out, say who has it: nobody can ask once the worker has gone."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        others = max(0, total - free - torch.cuda.memory_reserved())
        raise OutOfGpuMemory(str(error), others, total) from error


def score_pictures(
    scoring: Scoring, folder: RunFolder, trial: str, checkpoint: Checkpoint | None, device: str
) -> ScoredCheckpoint:
    """Score the pictures that `make_pictures` has left in the run folder."""
    evaluation = scoring.evaluation
    images_dir = folder.images_dir(trial, _step_of(checkpoint))
    pictures = load_images(images_dir, evaluation)
    score = score_images(
        pictures,
        References.load(folder.reference_file),
        load_face_encoder(evaluation.face.encoder, device),
        load_clip(evaluation.clip, device),
        scoring.rare_token,
        References.load(folder.trained_file) if folder.trained_file.is_file() else None,
    )
    assert score.prompt_alignment is not None, "a CLIP model was given"
    return ScoredCheckpoint(
        step=_step_of(checkpoint),
        checkpoint=None if checkpoint is None else folder.relative(checkpoint.dir),
        images=folder.relative(images_dir),
        face_similarity=score.face_similarity,
        no_face_similarity=score.no_face_similarity,
        prompt_alignment=score.prompt_alignment,
        num_images=score.num_images,
        num_faces=score.num_faces,
        face_encoder=score.face_encoder,
        clip=score.clip,
        image_scores=tuple(score.images),
        diversity=diversity([(picture.prompt, picture.image) for picture in pictures]),
        second_opinion=_second_opinion(scoring, folder, pictures, device),
    )


def _second_opinion(
    scoring: Scoring, folder: RunFolder, pictures: Sequence[GeneratedImage], device: str
) -> SecondOpinion | None:
    """The same pictures' scores by judges that the search does not hear."""
    second, opinion = scoring.second_opinion, SecondOpinion()
    if second is None:
        return None
    if second.face is not None:
        encoder = load_face_encoder(second.face.encoder, device)
        score = score_images(pictures, References.load(folder.second_reference_file), encoder)
        opinion = SecondOpinion(face_similarity=score.face_similarity, face_encoder=score.face_encoder)
    if second.clip is not None:
        clip = load_clip(second.clip, device)
        texts = [without_rare_token(picture.prompt, scoring.rare_token) for picture in pictures]
        alignments = clip.prompt_alignment([picture.image for picture in pictures], texts)
        alignment = sum(alignments) / len(alignments)
        opinion = opinion.model_copy(update={"prompt_alignment": alignment, "clip": clip.name})
    return opinion


def _step_of(checkpoint: Checkpoint | None) -> int:
    return 0 if checkpoint is None else checkpoint.step


def score_base(scoring: Scoring, folder: RunFolder, device: str) -> None:
    """Score the untouched base model with the trials' own prompts and seeds: the zero line.

    Of pictures that it has been scored by before, none is drawn again.
    """
    start = time.monotonic()
    before = folder.base()
    num_images = before.checkpoints[0].num_images if before is not None and before.is_over else 0
    missing = scoring.beyond(num_images // len(scoring.evaluation.prompts)) if num_images else scoring
    make_pictures(missing, folder, BASE_TRIAL, None, device)
    scored = score_pictures(scoring, folder, BASE_TRIAL, None, device)
    seconds = time.monotonic() - start
    folder.push(folder.trial_dir(BASE_TRIAL))  # before the ledger speaks of it
    folder.write(
        TrialRecord(
            trial=BASE_TRIAL,
            method="base",
            status="finished",
            config={},
            checkpoints=(scored.model_copy(update={"seconds": seconds}),),
            seconds=seconds,
        )
    )


def use_threads(cpus: float) -> None:
    """As many torch threads as the trial has CPUs: more would fight with its neighbours."""
    torch.set_num_threads(max(1, int(cpus)))
