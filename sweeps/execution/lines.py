"""How a scoring point is written in a line: the same in the job's log and in a worker's."""

from __future__ import annotations

from sweeps.ledger.records import ScoredCheckpoint


def step_text(step: int, max_train_steps: int) -> str:
    """How far a trial is."""
    return f"step {step}/{max_train_steps}"


def scores_text(scores: ScoredCheckpoint) -> str:
    """Both scores of a checkpoint."""
    return f"face {scores.face_similarity:.3f}  prompt {scores.prompt_alignment:.3f}"
