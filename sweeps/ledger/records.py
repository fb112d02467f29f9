"""What `trial.json` holds: the record of a trial and of each of its scored checkpoints. Typed, and free of torch."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic_core import from_json

from evaluation.scores import Examination, ImageScore, SecondOpinion
from training.config import METHODS, MethodConfig
from training.errors import UserError

Status = Literal["running", "finished", "stopped", "failed"]
BASE_TRIAL = "base"
"""The row of the untouched base model."""

LEDGER_VERSION = 2
"""Raise it when `trial.json` changes so that older ones mean something else; older ones must go on being understood.

2: a trial's random numbers are a function of its seed and the step; under 1 (0.1.0) the same seed drew other ones.
"""


class NewerLedgerError(UserError):
    """A record that a later release wrote: it may mean what this one cannot know."""


class ScoredCheckpoint(BaseModel):
    """A scoring point of a trial; paths are relative to the run folder."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    step: int = Field(ge=0)
    checkpoint: str | None
    """None for the base model."""
    images: str | None
    seconds: FiniteFloat = 0.0
    """Of the trial's, by then."""
    loss: float | None = None
    """Mean training loss since the scoring point before."""
    face_similarity: FiniteFloat
    """Mean over all pictures, one without a face counting `no_face_similarity`; in [-1, 1], higher is more alike."""
    no_face_similarity: FiniteFloat = 0.0
    """What a stranger's face is worth to the encoder; 0 in runs of 0.1."""
    prompt_alignment: FiniteFloat
    """Mean CLIP cosine of picture and prompt, in [-1, 1]; higher follows the prompt more."""
    num_images: int
    num_faces: int
    """Pictures in which a face was found."""
    face_encoder: str | None = None
    clip: str | None = None
    """Names of the judges, with what their scores depend on."""
    image_scores: tuple[ImageScore, ...] = Field(default=(), repr=False)
    """One a picture."""
    diversity: FiniteFloat | None = None
    """How far pictures of one prompt are from each other, in [0, 1]; None without two of any."""
    second_opinion: SecondOpinion | None = None
    """By other judges, where the sweep file names some."""
    examination: Examination | None = None
    """Of a finalist's checkpoint."""
    screened: bool = False
    """Scored by the first pictures of each prompt alone (`evaluation.screening`)."""
    pack: tuple[str, ...] = ()
    """Trials that it was trained with since the scoring point before, itself among them, in the order of their rows:
    how sums were rounded depends on it. Empty where it was trained alone."""


class TrialRecord(BaseModel):
    """What `trial.json` holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    trial: str
    method: Literal["lora", "dreambooth", "base"]
    status: Status
    config: dict[str, Any]
    """The full `LoraConfig` or `DreamBoothConfig`; empty for the base model."""
    checkpoints: tuple[ScoredCheckpoint, ...] = ()
    """In the order of their steps."""
    seconds: float = 0.0
    """Of its life so far, restarts included; its part of them where it is trained in a pack."""
    number: int = 0
    """Its place in the search: the how-manieth question to the sampler it answers."""
    drawn: dict[str, Any] = Field(default_factory=dict)
    """Everything the sampler drew with it, values that this method has no use for included."""
    sampler_notes: dict[str, Any] = Field(default_factory=dict)
    """What the sampler itself keeps of it, such as its generation."""
    reason: str | None = None
    """Why it failed or was stopped."""
    fault: Literal["trial", "machine"] | None = None
    """Whose fault a failure was: the settings' own (not tried again) or the machine's (tried again by the next run)."""
    started: str | None = None
    """When its training began; None while it waits."""
    num_restarts: int = 0
    """How often the machine, not the trial, made it begin anew."""
    machine: str | None = None
    """Address of the machine that has it, or had it last."""
    node_id: str | None = None
    """The same, by the name that this Ray cluster gave it."""
    pack: tuple[str, ...] = ()
    """Trials that it is trained with, itself among them, in the order of their rows; empty where it is alone."""
    spares_memory: bool = False
    """It ran out of GPU memory and goes on with gradient checkpointing, which changes no number."""
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: int = LEDGER_VERSION

    @property
    def is_base(self) -> bool:
        """Is it the untouched base model's row, the zero line?"""
        return self.method == BASE_TRIAL

    @property
    def is_over(self) -> bool:
        """Has it ended, so that it is never run again?"""
        return self.status != "running" and self.fault != "machine"

    @property
    def method_config(self) -> MethodConfig:
        """The trial's hyperparameters as their own model.

        Raises:
            UserError: it is the base model's record, or holds a config that this version does not know.
        """
        if self.is_base:
            raise UserError(f"trial {self.trial!r}: the base model has no hyperparameters")
        try:
            return METHODS[self.method].model_validate(self.config)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in ("config", *first["loc"]))
            raise UserError(
                f"trials/{self.trial}/trial.json: {place}: {first['msg']}; delete its folder to run it again"
            ) from None


def parse_record(content: bytes) -> TrialRecord:
    """Read what `trial.json` holds, of this version or an older one.

    Raises:
        NewerLedgerError: a later release wrote it.
        ValueError: it is no JSON, or (a `pydantic.ValidationError`) no whole record.
    """
    with suppress(ValidationError):  # the short way, in half the time; a refusal takes the long one, which says why
        record = TrialRecord.model_validate_json(content)
        if record.version <= LEDGER_VERSION:
            return record
    raw = from_json(content)
    version = raw.get("version", 1) if isinstance(raw, dict) else 1
    if isinstance(version, int) and version > LEDGER_VERSION:
        raise NewerLedgerError(
            f"written by a later release of dreamsweep (ledger version {version}, this one reads up to "
            f"{LEDGER_VERSION}); upgrade dreamsweep"
        )
    return TrialRecord.model_validate(raw)
