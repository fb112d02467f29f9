"""A run folder with a copy at the sweep's `storage`, for clusters whose machines share no folder.

Every machine has its own folder at the same path. Whoever writes a part of it pushes that part; whoever needs a part
pulls it first. Everything is compared by content, never by size or time: the weights of one trial are all of one size.

A folder that only means something as a whole (a checkpoint, the pictures of a scoring point, `dataset/`, `renders/`)
is a *unit*. Its index has the sha256 of each of its files; it is put last, and taken away before any file that it
speaks of is replaced. So a push that is cut short leaves a unit without an index, which is no unit for anybody, and
never old files under a new index. Two machines that push one unit at a time notice it, and the later one pushes again.

Every other file is small and stands alone. Which of two is newer is told by what both were when they last agreed: a
file that was written here since, and not there, is not put back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from sweeps.ledger.folder import LEDGERS, LedgerName, RunFolder, is_passed
from sweeps.ledger.lease import Place, StoragePlace
from sweeps.ledger.privacy import make_run_dir
from sweeps.ledger.records import TrialRecord
from sweeps.ledger.storage import Storage, is_hidden, matches
from training.files import sha256_of, whole_folder, write_whole
from training.layout import MANIFEST_FILE, STATE_FILE

INDEX_FILE = ".MANIFEST.json"
"""Index of a unit that has no manifest of its own, in the storage alone; the form is a checkpoint's manifest's."""
TURN_FILE = ".pushing"
"""Who pushes the unit just now."""
ATTEMPTS = 5
"""How often a unit is pushed or pulled anew because another machine pushes it at the same time."""

Index = Mapping[str, Mapping[str, Any]]
"""File name within the unit -> its `size` and `sha256`."""


class _TornError(Exception):
    """The unit changed while it was read."""


def open_run(run_dir: Path | str, storage: str | None, ledger: LedgerName = "trials") -> RunFolder:
    """The run folder with one of its ledgers, mirrored where the sweep names a storage."""
    folder = RunFolder(run_dir, ledger) if storage is None else MirroredRunFolder(run_dir, storage, ledger)
    if storage is not None:
        make_run_dir(folder.dir)
    return folder


def bring_here(folder: RunFolder, storage: str | None, *relative: str) -> None:
    """Fetch what trial.json names and this machine has nothing of; what lies here is used, with a storage or without.

    Raises:
        UserError: a path leaves the run folder, or the storage cannot be opened.
        OSError: the storage cannot be read.
    """
    missing = [folder.dir / name for name in relative if not folder.inside(name).exists()]
    if missing and storage is not None:
        open_run(folder.dir, storage).pull(*missing, without=(STATE_FILE,))


class MirroredRunFolder(RunFolder):
    """A run folder whose copy is `<storage>/<name of the run folder>`.

    Args:
        dir: this machine's folder.
        storage: fsspec address.
        ledger: whose trials these are.

    Raises:
        UserError: the address is of no kind that can be opened here.
    """

    def __init__(self, dir: Path | str, storage: str, ledger: LedgerName = "trials") -> None:  # noqa: A002 -- the attribute's name
        super().__init__(dir, ledger)
        self.storage = Storage(storage, self.dir.name)

    @property
    def confirm(self) -> RunFolder:
        """The same run, with the ledger of its finalists' other trainings."""
        return MirroredRunFolder(self.dir, self.storage.address, "confirm")

    def push(self, *parts: Path, without: Sequence[str] = ()) -> None:
        """Make the storage's copies equal to this machine's files and units; a unit that is not here is left as it is.

        A ledger entry goes only by its own name, after everything that it speaks of. A file that is named and is not
        here is taken away there.
        """
        for part in parts:
            if not part.exists() and _is_alone(self.relative(part)):
                self.storage.remove(self.relative(part))
                self.forget(part)
            files = self._files_here(part)
            # The newest checkpoint is whole there before an older one loses the state to go on with.
            for unit in sorted(_units_of(files), key=_step_of, reverse=True):
                self._push_unit(unit, without)
            for name in files:
                if _unit_of(name) is None and (part.is_file() or PurePosixPath(name).name != "trial.json"):
                    self._push_file(name)

    def pull(self, *parts: Path, ending: str = "", without: Sequence[str] = ()) -> None:
        """Fetch what the storage has of these files and units and this machine lacks or has otherwise.

        Raises:
            OSError: the storage cannot be read.
        """
        named = [self.relative(part) for part in parts]
        listed = [name for part in named for name in ([part] if _is_alone(part) else self.storage.names(part))]
        wanted = [name for name in listed if name.endswith(ending) and not matches(name, without)]
        # What a ledger entry speaks of was pushed before it: so the entry is pulled before what it speaks of.
        self._pull_files([name for name in wanted if _unit_of(name) is None])
        for unit in _units_of(wanted):
            self._pull_unit(unit, without)

    def forget(self, part: Path) -> None:
        """Take this machine's copy of a file away."""
        part.unlink(missing_ok=True)
        self._agreed_file(self.relative(part)).unlink(missing_ok=True)

    def write(self, record: TrialRecord) -> None:
        """Put the record in the ledger, here and there."""
        super().write(record)
        self.push(self.trial_file(record.trial))

    def read(self, trial: str) -> TrialRecord | None:
        """The ledger's newest record; of what it speaks of, nothing is fetched."""
        self.pull(self.trial_file(trial))
        return self.read_here(trial)

    def trials(self) -> list[TrialRecord]:
        """The newest records of all trials that this machine has heard of, oldest first."""
        self.pull(*self.trials_dir.glob("*/trial.json"))
        return super().trials()

    def drop_training_state(self, trial: str) -> None:
        """Free it here and there, also where the storage has checkpoints that this machine never had."""
        super().drop_training_state(trial)
        names = self.storage.names(self.relative(self.trial_dir(trial)))
        self.storage.remove(*(name for name in names if PurePosixPath(name).name == STATE_FILE))

    def drop_passed_checkpoints(self, record: TrialRecord) -> None:
        """Free them here and there."""
        super().drop_passed_checkpoints(record)
        units = {name: _unit_of(name) for name in self.storage.names(self.relative(self.trial_dir(record.trial)))}
        self.storage.remove(
            *(
                name
                for name, unit in units.items()
                if unit is not None
                and (folder := PurePosixPath(unit).name).startswith("checkpoint-")
                and is_passed(folder, record)
            )
        )

    @property
    def lease_place(self) -> Place:
        """In the storage, which is not waited for there: the folder is this machine's alone."""
        return StoragePlace(Storage(self.storage.address, self.dir.name, patience=0))

    # --- units

    def _push_unit(self, unit: str, without: Sequence[str]) -> None:
        index = self._index_here(unit)
        if index is None:
            return  # not whole: it goes when it is
        for _ in range(ATTEMPTS):
            here = {name for name in index if (self.dir / unit / name).is_file() and not matches(name, without)}
            there = self._index_there(unit)
            listed = {name for name in self._listed(unit) if not matches(name, without)}
            if there == index and here <= listed:
                self.storage.remove(*(f"{unit}/{name}" for name in listed - here))
                return
            known = there or {}
            changed = sorted(name for name in here if name not in listed or known.get(name) != index[name])
            if any(sha256_of(self.dir / unit / name) != index[name]["sha256"] for name in changed):
                return  # damaged here: it is not spread
            if self._put_unit(unit, index, changed, sorted(listed - here)):
                return
        raise OSError(f"{self.storage.address}: other machines write {self.dir.name}/{unit} all the time")

    def _put_unit(self, unit: str, index: Index, changed: Sequence[str], stale: Sequence[str]) -> bool:
        """Put the files, then the index; False where another machine began to push the unit meanwhile."""
        turn, turn_file = uuid.uuid4().hex.encode(), f"{unit}/{TURN_FILE}"
        self.storage.write(turn_file, turn)
        self.storage.remove(_index_file(unit))  # nothing vouches for the files while they change
        for name in changed:
            self.storage.put(f"{unit}/{name}", self.dir / unit / name)
        self.storage.remove(*(f"{unit}/{name}" for name in stale))
        if self.storage.read(turn_file).get(turn_file) != turn:
            return False
        self.storage.write(_index_file(unit), json.dumps(index, indent=2).encode())
        if self.storage.read(turn_file).get(turn_file) != turn:
            self.storage.remove(_index_file(unit))  # the files may be the other's by now
            return False
        self.storage.remove(turn_file)
        return True

    def _pull_unit(self, unit: str, without: Sequence[str]) -> None:
        """Make the unit here what it is there, if it is whole there; else leave what is here."""
        self.dir.mkdir(parents=True, exist_ok=True)
        with FileLock(self.dir / ".pull.lock"):  # trials that start side by side on one machine fetch it once
            for _ in range(ATTEMPTS):
                index = self._index_there(unit)
                if index is None:
                    return
                listed = self._listed(unit)
                wanted = {
                    name for name in index if not matches(name, without) and (name in listed or not _may_go(name))
                }
                try:
                    self._fetch_unit(unit, index, wanted)
                except (_TornError, FileNotFoundError):
                    continue
                return

    def _fetch_unit(self, unit: str, index: Index, wanted: set[str]) -> None:
        folder = self.dir / unit
        right = {name for name in index if _digest(folder / name) == index[name]["sha256"]}
        if wanted <= right and (not _is_checkpoint(unit) or self._index_here(unit) == index):
            return
        with whole_folder(folder) as part:
            kept = right if _is_checkpoint(unit) else self._names_in(folder) - (wanted - right)
            for name in kept:
                _link(folder / name, part / name)
            for name in sorted(wanted - right):
                self.storage.fetch(f"{unit}/{name}", part / name)
                if sha256_of(part / name) != index[name]["sha256"]:
                    raise _TornError(name)
            if _is_checkpoint(unit):
                (part / MANIFEST_FILE).write_text(json.dumps(index, indent=2) + "\n")

    def _index_here(self, unit: str) -> Index | None:
        folder = self.dir / unit
        if _is_checkpoint(unit):
            return _parse_index((folder / MANIFEST_FILE).read_bytes() if (folder / MANIFEST_FILE).is_file() else b"")
        return {
            name: {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
            for name in sorted(self._names_in(folder))
        }

    def _index_there(self, unit: str) -> Index | None:
        return _parse_index(self.storage.read(_index_file(unit)).get(_index_file(unit), b""))

    def _listed(self, unit: str) -> set[str]:
        """Names within the unit that the storage has, its index not counted."""
        names = {str(PurePosixPath(name).relative_to(unit)) for name in self.storage.names(unit)}
        return names - {MANIFEST_FILE} if _is_checkpoint(unit) else names

    def _names_in(self, folder: Path) -> set[str]:
        found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        return {name for name in found if not is_hidden(name)}

    # --- files that stand alone

    def _push_file(self, name: str) -> None:
        content = (self.dir / name).read_bytes()
        self.storage.write(name, content)
        self._agree(name, content)

    def _pull_files(self, names: Sequence[str]) -> None:
        for name, there in self.storage.read(*names).items():
            file = self.dir / name
            here = file.read_bytes() if file.is_file() else None
            if here != there:
                if here is not None and not self._is_newer_there(name, here, there):
                    continue
                write_whole(file, there)
            self._agree(name, there)

    def _is_newer_there(self, name: str, here: bytes, there: bytes) -> bool:
        """Was it written there since both agreed? What is damaged on one side only is the older there, always."""
        if name.endswith(".json") and _is_json(here) != _is_json(there):
            return _is_json(there)
        agreed = self._agreed_file(name)
        return not agreed.is_file() or agreed.read_text() != hashlib.sha256(there).hexdigest()

    def _agree(self, name: str, content: bytes) -> None:
        digest, agreed = hashlib.sha256(content).hexdigest(), self._agreed_file(name)
        if not agreed.is_file() or agreed.read_text() != digest:
            write_whole(agreed, digest)

    def _agreed_file(self, name: str) -> Path:
        """Where this machine keeps the sha256 of what a file was when both sides had the same."""
        return self.dir / ".agreed" / name

    def _files_here(self, part: Path) -> list[str]:
        files = [part] if part.is_file() else sorted(part.rglob("*")) if part.is_dir() else []
        names = [self.relative(file) for file in files if file.is_file()]
        return [name for name in names if not is_hidden(name)]


def _unit_of(name: str) -> str | None:
    """The unit that a file belongs to: a folder of the run, or of a trial; None where it stands alone."""
    parts = PurePosixPath(name).parts
    depth = 3 if parts[0] in LEDGERS else 1
    return "/".join(parts[:depth]) if len(parts) > depth else None


def _units_of(names: Sequence[str]) -> list[str]:
    return sorted({unit for name in names if (unit := _unit_of(name)) is not None})


def _step_of(unit: str) -> int:
    """By which units are put in order: a checkpoint's step; 0 of anything else."""
    step = unit.rpartition("-")[2]
    return int(step) if _is_checkpoint(unit) and step.isdecimal() else 0


def _is_alone(part: str) -> bool:
    """Is it by its place a file that stands alone? Trials' names have dots too."""
    parts = PurePosixPath(part).parts
    return "." in parts[-1] and (len(parts) == 1 or (len(parts) == 3 and parts[0] in LEDGERS))


def _is_checkpoint(unit: str) -> bool:
    return any(PurePosixPath(unit).match(f"{ledger}/*/checkpoint-*") for ledger in LEDGERS)


def _index_file(unit: str) -> str:
    return f"{unit}/{MANIFEST_FILE if _is_checkpoint(unit) else INDEX_FILE}"


def _may_go(name: str) -> bool:
    """May a file of the index be missing? The training state goes when nothing is to be gone on with."""
    return name == STATE_FILE


def _parse_index(content: bytes) -> Index | None:
    try:
        index = json.loads(content)
    except ValueError:
        return None
    whole = isinstance(index, dict) and all(isinstance(entry, dict) and "sha256" in entry for entry in index.values())
    return index if whole else None


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _digest(file: Path) -> str | None:
    return sha256_of(file) if file.is_file() else None


def _link(source: Path, to: Path) -> None:
    """Another name for the same bytes, or a copy where the disk has no such thing."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)
