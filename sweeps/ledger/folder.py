"""The run folder: where everything of a sweep lies, and the ledger of its trials.

`trials/<trial>/trial.json` is the truth about a trial; whatever Ray, Optuna or a table knows is derived from it. A
write is whole or absent. `trials/` may be a link to a larger disk.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock, Timeout
from pydantic import ValidationError

from sweeps.ledger.lease import LEASE_FILE, FilePlace, Lease, Place, has_live_holder
from sweeps.ledger.privacy import make_run_dir
from sweeps.ledger.records import BASE_TRIAL, NewerLedgerError, TrialRecord, parse_record
from sweeps.wording import shorten
from training.errors import UserError
from training.files import write_json, write_whole
from training.layout import STATE_FILE

LedgerName = Literal["trials", "confirm"]
"""A run's ledgers: of the search, and of the finalists' trainings with other seeds."""
LEDGERS: tuple[LedgerName, ...] = get_args(LedgerName)


class RunFolder:
    """Paths of one run and one of its ledgers.

    Args:
        dir: the folder; it need not exist yet.
        ledger: whose trials these are.
    """

    def __init__(self, dir: Path | str, ledger: LedgerName = "trials") -> None:  # noqa: A002 -- the attribute's name
        self.dir = Path(dir).resolve()
        self.ledger = ledger
        self.sweep_file = self.dir / "sweep.yaml"
        self.identity_file = self.dir / "identity.json"
        self.dataset_dir = self.dir / "dataset"
        self.reference_file = self.dataset_dir / "reference_embedding.safetensors"
        self.trained_file = self.dataset_dir / "trained_embedding.safetensors"
        self.second_reference_file = self.dataset_dir / "second_reference_embedding.safetensors"
        self.trials_dir = self.dir / ledger
        self.results_csv = self.dir / "results.csv"
        self.confirm_file = self.dir / "confirm.json"
        self.work_json = self.dir / "work.json"
        self.votes_file = self.dir / "votes.jsonl"
        self.controls_dir = self.dir / "controls"
        self.renders_dir = self.dir / "renders"
        self.report_html = self.dir / "report.html"
        self.export_dir = self.dir / "export"
        self.ray_dir = self.dir / ".ray"

    @property
    def confirm(self) -> RunFolder:
        """The same run, with the ledger of its finalists' other trainings."""
        return RunFolder(self.dir, "confirm")

    def trial_dir(self, trial: str) -> Path:
        """Folder of one trial; its id never leaves the ledger's folder."""
        if trial in ("", ".", "..") or Path(trial).name != trial or "\\" in trial:
            raise UserError(f"a trial is named by one folder name below {self.trials_dir}, got {trial!r}")
        return self.trials_dir / trial

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

    def inside(self, relative: str) -> Path:
        """The file or folder that a path in trial.json names.

        Raises:
            UserError: it lies outside the run folder (a run folder may come from somebody else).
        """
        try:
            path = (self.dir / relative).resolve()
        except (ValueError, OSError, RuntimeError):  # a NUL, a name too long, links in a circle
            raise UserError(f"a path in trial.json must be a path, got {shorten(relative)}: {self.dir}") from None
        roots = (self.dir, *((self.dir / name).resolve() for name in LEDGERS))
        if not any(path.is_relative_to(root) for root in roots):
            raise UserError(f"a path in trial.json must stay inside the run folder, got {relative!r}: {self.dir}")
        return path

    def check_there(self) -> None:
        """Refuse to write where the run folder is gone: what would be made there is not the run.

        Raises:
            UserError: it was moved, deleted or detached while the sweep runs.
        """
        if not self.dir.is_dir():
            raise UserError(
                f"{self.dir}: must stay where it is while the sweep runs, and it is gone; bring it back and give the "
                "same command again"
            )

    def write(self, record: TrialRecord) -> None:
        """Put the record in the ledger, atomically.

        Raises:
            UserError: the run folder is gone.
        """
        self.check_there()
        write_json(self.trial_file(record.trial), record.model_dump(mode="json"))

    def write_sweep(self, text: str) -> None:
        """Put the resolved sweep file in the run folder, atomically."""
        write_whole(self.sweep_file, text)

    def read(self, trial: str) -> TrialRecord | None:
        """The ledger's record, or None where the trial has none yet.

        Raises:
            UserError: the file is there but is not a whole record, or a later release wrote it.
        """
        return self.read_here(trial)

    def read_here(self, trial: str) -> TrialRecord | None:
        """The record as this machine has it.

        Raises:
            UserError: the file is there but is not a whole record, or a later release wrote it.
        """
        path = self.trial_file(trial)
        try:
            return parse_record(path.read_bytes()).model_copy(update={"trial": trial})  # its folder is its name
        except FileNotFoundError:
            return None
        except NewerLedgerError as error:
            raise NewerLedgerError(f"{path}: {error}") from None
        except ValueError as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise UserError(
                f"{path}: must be a whole trial.json: {problem}; `dreamsweep run` sets it aside and goes on"
            ) from None

    def trials(self) -> list[TrialRecord]:
        """All records but the base model's, oldest first."""
        names = sorted(path.parent.name for path in self.trials_dir.glob("*/trial.json"))
        records = [record for name in names if name != BASE_TRIAL and (record := self.read_here(name)) is not None]
        return sorted(records, key=lambda record: (record.created, record.trial))

    def base(self) -> TrialRecord | None:
        """The base model's record."""
        return self.read(BASE_TRIAL)

    def drop_training_state(self, trial: str) -> None:
        """Free what only going on would need, twice the weights, once a trial does not go on."""
        for state in self.trial_dir(trial).glob(f"checkpoint-*/{STATE_FILE}"):
            state.unlink()

    def drop_passed_checkpoints(self, record: TrialRecord) -> None:
        """Free the checkpoints that a worker wrote on its way, when it was told to stop, once a later one is scored."""
        for folder in self.trial_dir(record.trial).glob("checkpoint-*"):
            if is_passed(folder.name, record):
                shutil.rmtree(folder)

    def push(self, *parts: Path, without: Sequence[str] = ()) -> None:
        """Let other machines have these files and folders: nothing to do, the folder is shared.

        Args:
            parts: files and folders in the run folder.
            without: what lies in a file or folder of such a name (`checkpoint-*`) stays as it is there.
        """

    def pull(self, *parts: Path, ending: str = "", without: Sequence[str] = ()) -> None:
        """Get what other machines wrote: nothing to do, the folder is shared.

        Args:
            parts: files and folders in the run folder.
            ending: only files whose name ends so.
            without: not what lies in a file or folder of such a name (`checkpoint-*`).
        """

    def forget(self, part: Path) -> None:
        """Take this machine's copy of a file away: nothing to do, there is one for all."""

    def claim(self, part: str, key: str) -> None:
        """Say what the run's scores depend on: `part` (photos, evaluation, base_model, ...) is `key`, for good.

        Raises:
            UserError: the folder holds a sweep with another `part`.
        """
        claims = self.identity()
        if claims.get(part, key) != key:
            raise UserError(
                f"{self.dir}: holds a sweep with another {part.replace('_', ' ')}, whose scores cannot be compared; "
                "choose another name in the sweep file or another --out"
            )
        if part not in claims:
            write_json(self.identity_file, {**claims, part: key})

    def identity(self) -> dict[str, str]:
        """Everything claimed so far.

        Raises:
            UserError: the file is there but is not whole: what the scores depend on is not known.
        """
        try:
            claims = json.loads(self.identity_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:  # neither text nor JSON
            claims = None
        if not isinstance(claims, dict) or not all(isinstance(key, str) for key in claims.values()):
            raise UserError(
                f"{self.identity_file}: must be a whole identity.json, which says what photos, evaluation and models "
                "the scores depend on; if none of them has changed since, delete this file and run the sweep again"
            )
        return claims

    @contextmanager
    def lock(self, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Hold the run alone, on this machine and on all that see it; the dead let go of it, however they died.

        Args:
            say: told when another machine's driver must first be watched for a sign of life.

        Raises:
            UserError: another process holds it, or has taken it over.
        """
        make_run_dir(self.dir)
        lock = FileLock(self.dir / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            holder_file = self.dir / ".lock.holder"
            holder = holder_file.read_text(encoding="utf-8") if holder_file.is_file() else "another process"
            raise UserError(f"{self.dir}: is being run already, by {holder}") from None
        try:
            write_whole(self.dir / ".lock.holder", f"process {os.getpid()} on {socket.gethostname()}")
            with Lease(self.lease_place, str(self.dir), say=say).held():
                yield
        finally:
            with suppress(OSError):  # a folder that cannot be written any more; the error that says so is on its way
                (self.dir / ".lock.holder").unlink(missing_ok=True)
            lock.release()

    def has_driver(self) -> bool:
        """Does a driver run it now, as far as can be told by looking?"""
        return has_live_holder(self.dir / LEASE_FILE)

    @property
    def lease_place(self) -> Place:
        """Where all machines look for who runs it."""
        return FilePlace(self.dir / LEASE_FILE)


def is_passed(checkpoint_folder: str, record: TrialRecord) -> bool:
    """Is a folder of this name (`checkpoint-<step>`) a checkpoint that was never scored, before one that was?"""
    step = int(checkpoint_folder.rpartition("-")[2])
    scored = [checkpoint.step for checkpoint in record.checkpoints]
    return step not in scored and step < max(scored, default=0)
