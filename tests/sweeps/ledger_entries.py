"""Ledger records made by hand."""

from __future__ import annotations

from sweeps.ledger.records import BASE_TRIAL, ScoredCheckpoint, TrialRecord
from training.config import LoraConfig


def entry(step: int, face_similarity: float = 0.5, prompt_alignment: float = 0.25) -> ScoredCheckpoint:
    """A scoring point of four pictures."""
    return ScoredCheckpoint(
        step=step,
        checkpoint=f"trials/t/checkpoint-{step}",
        images=f"trials/t/images-{step}",
        face_similarity=face_similarity,
        prompt_alignment=prompt_alignment,
        num_images=4,
        num_faces=3,
    )


def record(trial: str = "t", *checkpoints: ScoredCheckpoint, **changes: object) -> TrialRecord:
    """A LoRA of 400 steps that took ten seconds a scoring point, or the base model's row."""
    config = LoraConfig(rank=4, learning_rate=1e-4, max_train_steps=400)
    is_base = trial == BASE_TRIAL
    made = TrialRecord(
        trial=trial,
        method="base" if is_base else "lora",
        status="finished" if is_base else "running",
        config={} if is_base else config.model_dump(mode="json"),
        checkpoints=checkpoints,
        seconds=10.0 * len(checkpoints),
    )
    return made.model_copy(update=changes)
