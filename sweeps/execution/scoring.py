"""A checkpoint to its pictures, and these to scores, in the run folder: the same for the base model and every trial."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from evaluation.config import EvaluationConfig
from evaluation.face_encoders import load_face_encoder
from evaluation.generate import generate, generation_dtype, load_images, save_images
from evaluation.prompt import load_clip
from evaluation.references import References
from evaluation.score import score_images
from sweeps.config import SweepConfig, rare_token
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import BASE_TRIAL, ScoredCheckpoint, TrialRecord
from training.checkpoint import Checkpoint, load_pipeline
from training.share import ALONE, Share


@dataclass(frozen=True)
class Scoring:
    """What all checkpoints of a sweep are scored with."""

    base_model: str
    evaluation: EvaluationConfig
    rare_token: str
    """Left out of the prompts that CLIP reads."""

    @classmethod
    def of(cls, config: SweepConfig) -> Scoring:
        """As the sweep file says."""
        return cls(config.base_model, config.evaluation, rare_token(config.subject))


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


def score_pictures(
    scoring: Scoring, folder: RunFolder, trial: str, checkpoint: Checkpoint | None, device: str
) -> ScoredCheckpoint:
    """Score the pictures that `make_pictures` has left in the run folder."""
    evaluation = scoring.evaluation
    images_dir = folder.images_dir(trial, _step_of(checkpoint))
    score = score_images(
        load_images(images_dir, evaluation),
        References.load(folder.reference_file),
        load_face_encoder(evaluation.face.encoder, device),
        load_clip(evaluation.clip, device),
        scoring.rare_token,
    )
    assert score.prompt_alignment is not None, "a CLIP model was given"
    return ScoredCheckpoint(
        step=_step_of(checkpoint),
        checkpoint=None if checkpoint is None else folder.relative(checkpoint.dir),
        images=folder.relative(images_dir),
        face_similarity=score.face_similarity,
        prompt_alignment=score.prompt_alignment,
        num_images=score.num_images,
        num_faces=score.num_faces,
        face_encoder=score.face_encoder,
        clip=score.clip,
        image_scores=tuple(score.images),
    )


def _step_of(checkpoint: Checkpoint | None) -> int:
    return 0 if checkpoint is None else checkpoint.step


def score_base(scoring: Scoring, folder: RunFolder, device: str) -> None:
    """Score the untouched base model with the trials' own prompts and seeds: the zero line."""
    start = time.monotonic()
    make_pictures(scoring, folder, BASE_TRIAL, None, device)
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
