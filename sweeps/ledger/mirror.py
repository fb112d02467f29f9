"""A run folder with a copy at the sweep's `storage`, for clusters whose machines share no folder.

Every machine has its own folder at the same path. Whoever writes a part of it pushes that part; whoever needs a part
pulls it first. Any address that fsspec knows will do: `s3://bucket/prefix`, `gs://...`, a mounted folder. A push that
is cut short needs no care: weights are verified by their manifest, and a trial's ledger entry is pushed last.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import fsspec

from sweeps.ledger.folder import RunFolder
from sweeps.ledger.privacy import make_run_dir
from sweeps.ledger.records import TrialRecord
from training.errors import UserError
from training.files import whole_file
from training.layout import STATE_FILE

CHANGING = (".json", ".yaml", ".csv")
"""Files that are written more than once; any other of the same size is the same."""
GROWING = ".jsonl"
"""Files that are appended to: the longer one is the newer, and one that grows here is not put back."""


def open_run(run_dir: Path | str, storage: str | None) -> RunFolder:
    """The run folder, mirrored where the sweep names a storage."""
    folder = RunFolder(run_dir) if storage is None else MirroredRunFolder(run_dir, storage)
    if storage is not None:
        make_run_dir(folder.dir)
    return folder


class MirroredRunFolder(RunFolder):
    """A run folder whose copy is `<storage>/<name of the run folder>`.

    Args:
        dir: this machine's folder.
        storage: fsspec address.

    Raises:
        UserError: the address is of no kind that can be opened here.
    """

    def __init__(self, dir: Path | str, storage: str) -> None:  # noqa: A002 -- the attribute's name
        super().__init__(dir)
        try:
            self._filesystem, root = fsspec.core.url_to_fs(storage)
        except (ImportError, ValueError) as error:
            raise UserError(f"storage: {storage} cannot be opened: {error}") from None
        self._root = PurePosixPath(root) / self.dir.name

    def push(self, *parts: Path) -> None:
        """Make the storage's copies of these files and folders equal to this machine's."""
        for part in parts:
            here, there = self._sizes_here(part), self._sizes_there(part)
            for name, size in here.items():
                if name.endswith(CHANGING) or there.get(name) != size:
                    self._filesystem.makedirs(str((self._root / name).parent), exist_ok=True)
                    self._filesystem.put_file(str(self.dir / name), str(self._root / name))
            for name in there.keys() - here.keys():
                self._filesystem.rm_file(str(self._root / name))

    def pull(self, *parts: Path, ending: str = "", without: str | None = None) -> None:
        """Fetch what the storage has of these files and folders and this machine lacks or has otherwise."""
        for part in parts:
            here = self._sizes_here(part)
            for name, size in self._sizes_there(part).items():
                wanted = name.endswith(ending) and PurePosixPath(name).name != without
                if wanted and _is_newer_there(name, here.get(name), size):
                    self._fetch(name)

    def write(self, record: TrialRecord) -> None:
        """Put the record in the ledger, here and there."""
        super().write(record)
        self.push(self.trial_file(record.trial))

    def read(self, trial: str) -> TrialRecord | None:
        """The ledger's record, and with it the pictures and weights that it speaks of."""
        self.pull(self.trial_dir(trial), without=STATE_FILE)
        return super().read(trial)

    def _fetch(self, name: str) -> None:
        with whole_file(self.dir / name) as part:
            self._filesystem.get_file(str(self._root / name), str(part))

    def _sizes_here(self, part: Path) -> dict[str, int]:
        files = [part] if part.is_file() else sorted(part.rglob("*")) if part.is_dir() else []
        sizes = {self.relative(file): file.stat().st_size for file in files if file.is_file()}
        return {name: size for name, size in sizes.items() if not _is_hidden(name)}

    def _sizes_there(self, part: Path) -> dict[str, int]:
        self._filesystem.invalidate_cache()
        found = self._filesystem.find(str(self._root / self.relative(part)), detail=True)
        return {str(PurePosixPath(path).relative_to(self._root)): int(info["size"]) for path, info in found.items()}


def _is_hidden(name: str) -> bool:
    """A file that is not finished yet, or lies in a folder that is not."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _is_newer_there(name: str, size_here: int | None, size_there: int) -> bool:
    if name.endswith(GROWING):
        return size_here is None or size_here < size_there
    return name.endswith(CHANGING) or size_here != size_there
