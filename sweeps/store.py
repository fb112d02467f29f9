"""The run folder: where everything of a sweep lies, and the ledger of its trials.

`trials/<trial>/trial.json` is the truth about a trial; whatever Ray, Optuna or a table knows is derived from it.
A write is whole or absent.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.files import write_json, write_whole

Status = Literal["running", "finished", "stopped", "failed"]
BASE_TRIAL = "base"
"""The row of the untouched base model."""

LEDGER_VERSION = 1
"""Raise it when `trial.json` changes so that older ones mean something else."""


class ScoredCheckpoint(BaseModel):
    """A scoring point of a trial; paths are relative to the run folder."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    step: int = Field(ge=0)
    checkpoint: str | None
    """None for the base model."""
    images: str
    seconds: float = 0.0
    """Since the trial's start, restarts included."""
    loss: float | None = None
    """Mean training loss since the scoring point before."""
    face_similarity: float
    """Mean over all pictures, a picture without a face counting 0; in [-1, 1], higher is more alike."""
    prompt_alignment: float
    """Mean CLIP cosine of picture and prompt, in [-1, 1]; higher follows the prompt more."""
    num_images: int
    num_faces: int
    """Pictures in which a face was found."""
    face_encoder: str | None = None
    clip: str | None = None
    """Names of the judges, with what their scores depend on."""
    image_scores: list[dict[str, Any]] = Field(default_factory=list)
    """One `ImageScore` a picture."""


class TrialRecord(BaseModel):
    """What `trial.json` holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    trial: str
    method: Literal["lora", "dreambooth", "base"]
    status: Status
    config: dict[str, Any]
    """The full `LoraConfig` or `DreamBoothConfig`; empty for the base model."""
    key: str
    """sha256 of all that the scores depend on: config, photos, base model, evaluation."""
    checkpoints: list[ScoredCheckpoint] = Field(default_factory=list)
    """In the order of their steps."""
    seconds: float = 0.0
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
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: int = LEDGER_VERSION

    @property
    def is_over(self) -> bool:
        """Has it ended, so that it is never run again?"""
        return self.status != "running" and self.fault != "machine"


class RunFolder:
    """Paths of one run and its ledger.

    Args:
        dir: the folder; it need not exist yet.
    """

    def __init__(self, dir: Path | str) -> None:  # noqa: A002 -- the attribute's name
        self.dir = Path(dir).resolve()
        self.sweep_file = self.dir / "sweep.yaml"
        self.identity_file = self.dir / "identity.json"
        self.dataset_dir = self.dir / "dataset"
        self.reference_file = self.dataset_dir / "reference_embedding.safetensors"
        self.trials_dir = self.dir / "trials"
        self.results_csv = self.dir / "results.csv"
        self.renders_dir = self.dir / "renders"
        self.report_html = self.dir / "report.html"
        self.export_dir = self.dir / "export"
        self.ray_dir = self.dir / ".ray"

    def trial_dir(self, trial: str) -> Path:
        """Folder of one trial; its id never leaves `trials/`."""
        path = (self.trials_dir / trial).resolve()
        if path.parent != self.trials_dir:
            raise ValueError(f"a trial is named by one folder name below {self.trials_dir}, got {trial!r}")
        return path

    def trial_file(self, trial: str) -> Path:
        """The trial's ledger entry."""
        return self.trial_dir(trial) / "trial.json"

    def images_dir(self, trial: str, step: int) -> Path:
        """Pictures made at a scoring point."""
        return self.trial_dir(trial) / f"images-{step}"

    def checkpoint_dir(self, trial: str, step: int) -> Path:
        """Weights at a scoring point."""
        return self.trial_dir(trial) / f"checkpoint-{step}"

    def relative(self, path: Path) -> str:
        """`path` as the ledger writes it: from the run folder, with forward slashes."""
        return path.relative_to(self.dir).as_posix()

    def write(self, record: TrialRecord) -> None:
        """Put the record in the ledger, atomically."""
        write_json(self.trial_file(record.trial), record.model_dump(mode="json"))

    def write_sweep(self, text: str) -> None:
        """Put the resolved sweep file in the run folder, atomically."""
        write_whole(self.sweep_file, text)

    def read(self, trial: str) -> TrialRecord | None:
        """The ledger's record, or None where the trial has none yet.

        Raises:
            ValueError: the file is there but is not a whole record.
        """
        path = self.trial_file(trial)
        try:
            return TrialRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise ValueError(
                f"{path}: must be a whole trial.json: {problem}; delete its folder to run it again"
            ) from None

    def trials(self) -> list[TrialRecord]:
        """All records but the base model's, oldest first."""
        names = sorted(path.parent.name for path in self.trials_dir.glob("*/trial.json"))
        records = [record for name in names if name != BASE_TRIAL and (record := self.read(name)) is not None]
        return sorted(records, key=lambda record: (record.created, record.trial))

    def base(self) -> TrialRecord | None:
        """The base model's record."""
        return self.read(BASE_TRIAL)

    def push(self, *parts: Path) -> None:
        """Let other machines have these files and folders: nothing to do, the folder is shared."""

    def pull(self, *parts: Path, ending: str = "", without: str | None = None) -> None:
        """Get what other machines wrote: nothing to do, the folder is shared.

        Args:
            parts: files and folders in the run folder.
            ending: only files whose name ends so.
            without: not the files of this name.
        """

    def claim(self, part: str, key: str) -> None:
        """Say what the run's scores depend on: `part` (photos, evaluation, base_model, ...) is `key`, for good.

        Raises:
            ValueError: the folder holds a sweep with another `part`.
        """
        claims = self.identity()
        if claims.get(part, key) != key:
            raise ValueError(
                f"{self.dir}: holds a sweep with another {part.replace('_', ' ')}, whose scores cannot be compared; "
                "choose another name in the sweep file or another --out"
            )
        if part not in claims:
            write_json(self.identity_file, {**claims, part: key})

    def identity(self) -> dict[str, str]:
        """Everything claimed so far."""
        if not self.identity_file.exists():
            return {}
        claims: dict[str, str] = json.loads(self.identity_file.read_text(encoding="utf-8"))
        return claims

    def identity_key(self, *more: str) -> str:
        """sha256 of everything claimed so far, and of `more`."""
        text = json.dumps([self.identity(), *more], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run alone; the kernel lets go of it when the holder dies, however it dies.

        Raises:
            ValueError: another process of this machine holds it.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        with (self.dir / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ValueError(f"{self.dir}: is being run already, by process {file.read().strip()}") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
