"""Every machine holds its own models against what the run claims, before it trains or renders with them.

A hub's model may have another commit in one machine's cache, a folder of one name other weights in it. The run's scores
would be of several models, and nobody would know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from evaluation.checks import check_clip
from evaluation.config import EvaluationConfig
from evaluation.face_encoders import load_face_encoder
from evaluation.prompt import clip_name
from sweeps.execution.machines import check_seen, this_machine
from sweeps.ledger.folder import RunFolder
from training.errors import UserError
from training.stable_diffusion import base_model_fingerprint


def check_same_models(folder: RunFolder, base_model: str, judges: EvaluationConfig | None = None) -> None:
    """Compare this machine's base model, and its judges where they are used, with the run's.

    Raises:
        UserError: one is missing or another one; names the machine.
    """
    folder.pull(folder.identity_file)
    check_seen(folder)
    claims = folder.identity()
    with _naming_this_machine():
        _compare(claims, "base_model", base_model, base_model_fingerprint(base_model))
        if judges is not None:
            encoder = load_face_encoder(judges.face.encoder, "cpu")
            _compare(claims, "face_encoder", judges.face.encoder, encoder.name)
            check_clip(judges.clip)
            _compare(claims, "clip_model", judges.clip.model, clip_name(judges.clip))


def _compare(claims: dict[str, str], part: str, asked: str, found: str) -> None:
    claimed = claims.get(part, found)
    if claimed != found:
        raise UserError(
            f"{part.replace('_', ' ')} {asked}: must be the one that the run began with ({claimed[:60]}), "
            f"this machine has another ({found[:60]})"
        )


@contextmanager
def _naming_this_machine() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"machine {this_machine()['machine']}: {error}") from error
