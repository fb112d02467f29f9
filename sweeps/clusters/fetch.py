"""A run's report and champion, brought here from a cluster over its dashboard, whole and checked or not at all."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sweeps.clusters.dashboard import Dashboard, exit_code, start_there
from sweeps.config import NAME_LAW
from sweeps.wording import bytes_text, shorten
from training.errors import UserError
from training.files import whole_folder, write_json

MANIFEST = "manifest.json"
MARKER = "fetched.json"
"""Beside what was fetched: what it was. A folder that has it and nothing foreign may be replaced."""
ATTEMPTS = 3
"""How often a run that is written while it is fetched is fetched anew."""

Progress = Callable[[int, int], None]
"""Told the bytes that are here, and all."""


@dataclass(frozen=True)
class File:
    """One that is to be fetched."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Fetched:
    """What has come."""

    dest: Path
    what: str
    """Whose weights, in words."""
    num_files: int
    num_bytes: int
    remarks: tuple[str, ...]


class _ChangedError(Exception):
    """A file is another one than it was when it was laid out."""


def run_on_cluster(run: str, out: str) -> str:
    """The run's folder on the cluster.

    Args:
        run: its name, or its folder there.
        out: the folder of runs there.

    Raises:
        UserError: it is neither.
    """
    path = PurePosixPath(run)
    if path.is_absolute() and ".." not in path.parts and run.isprintable() and path.name:
        return str(path)
    if not NAME_LAW.fullmatch(run):
        raise UserError(f"RUN must be a run's name, or its folder on the cluster from / on, got {shorten(run)}")
    return str(PurePosixPath(out) / run)


def fetch_run(
    dashboard: Dashboard,
    run: str,
    dest: Path,
    trial: str | None = None,
    format: str | None = None,  # noqa: A002 -- the option's name
    progress: Progress = lambda _here, _all: None,
) -> Fetched:
    """Bring report, table, settings, ledger, renders and the best weights of a run.

    Photos, the numbers of a face, and pictures other than renders and those in the report stay there.

    Args:
        dashboard: the cluster's.
        run: the run's folder there.
        dest: a folder that does not exist, is empty, or holds an earlier fetch and nothing else.
        trial: whose best weights; default: the champion's.
        format: as `export` has it; default: the checkpoint as it is.
        progress: told how far it is.

    Raises:
        UserError: there is no such run or trial, `dest` is in use or its disk too small, not all came as it was.
    """
    dest = dest.expanduser().resolve()
    check_dest(dest)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _fetch(dashboard, run, dest, trial, format, progress)
        except _ChangedError as changed:
            if attempt == ATTEMPTS:
                raise UserError(
                    f"{run}: {changed} does not come as it was laid out; either the run is being written all the time, "
                    "then fetch it when it has ended, or the disk there is damaged"
                ) from None
    raise AssertionError("unreachable")


def _fetch(
    dashboard: Dashboard,
    run: str,
    dest: Path,
    trial: str | None,
    format: str | None,  # noqa: A002
    progress: Progress,
) -> Fetched:
    job = f"dreamsweep-fetch-{secrets.token_hex(8)}"
    try:
        with tempfile.TemporaryDirectory(prefix="dreamsweep-") as folder:
            asked = {"run": run, "shelf": job, "trial": trial, "format": format}
            start_there(dashboard, job, "shelf", asked, Path(folder), {})
        node = _laid_out(dashboard, job)
        manifest = json.loads(dashboard.read_file(node, f"{job}/{MANIFEST}"))
        files = files_in(manifest)
        _check_disk(dest, files)
        dest.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(dest) as part:
            part.chmod(0o700)  # as a run folder: pictures of a person
            _fetch_files(dashboard, node, job, files, part, progress)
            write_json(part / MARKER, {"run": run, "what": manifest["what"], "files": manifest["files"]})
        return Fetched(
            dest, manifest["what"], len(files), sum(file.size for file in files), tuple(map(str, manifest["remarks"]))
        )
    finally:
        with suppress(UserError, RuntimeError):  # the error that ended it is on its way
            dashboard.stop_and_forget(job)


def _laid_out(dashboard: Dashboard, job: str) -> str:
    """The machine that has the files ready."""

    def is_ready(details: Any) -> bool:
        return bool(details.driver_node_id) and dashboard.has_file(details.driver_node_id, f"{job}/{MANIFEST}")

    details = dashboard.wait(job, until=is_ready)
    if details.status.is_terminal():
        lines = [line for line in dashboard.log(job).splitlines() if line.strip()]
        last = lines[-1] if lines else str(details.message)
        if exit_code(details) == 2:
            raise UserError(last.removeprefix("dreamsweep: "))
        raise RuntimeError(f"{job} failed on the cluster: {last}")
    return str(details.driver_node_id)


def files_in(manifest: Any) -> list[File]:
    """The files of a manifest.

    Raises:
        UserError: a path would leave the folder that they go to, or stands twice.
    """
    files = [File(str(entry["path"]), int(entry["size"]), str(entry["sha256"])) for entry in manifest["files"]]
    seen = {MARKER}
    for file in files:
        parts = file.path.split("/")
        if file.path in seen or not all(parts) or {".", ".."} & set(parts) or set(file.path) & set("\\\0"):
            raise UserError(f"a fetched file must have a path of its own inside the run, got {shorten(file.path)}")
        seen.add(file.path)
    return files


def _fetch_files(
    dashboard: Dashboard, node: str, shelf: str, files: Sequence[File], into: Path, progress: Progress
) -> None:
    total = sum(file.size for file in files)
    num_here = 0

    def came(num_bytes: int) -> None:
        nonlocal num_here
        num_here += num_bytes
        progress(num_here, total)

    for number, file in enumerate(files):
        digest = hashlib.sha256()
        blocks = dashboard.stream_file(node, f"{shelf}/{number}") if file.size else iter(())
        try:
            _write(_hashed(blocks, digest, file.size), into / file.path, came)
        except OSError as error:
            raise UserError(
                f"{file.path}: did not come to its end: {error.strerror or error}; nothing was written, fetch it again"
            ) from None
        if digest.hexdigest() != file.sha256:
            raise _ChangedError(file.path)


def _write(blocks: Iterator[bytes], to: Path, came: Callable[[int], None]) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("wb") as file:
        for block in blocks:
            file.write(block)
            came(len(block))


def _hashed(blocks: Iterator[bytes], digest: Any, size: int) -> Iterator[bytes]:
    num_bytes = 0
    for block in blocks:
        digest.update(block)
        num_bytes += len(block)
        if num_bytes > size:
            return  # another file by now; its digest says so
        yield block


def _check_disk(dest: Path, files: Sequence[File]) -> None:
    there = next(folder for folder in dest.parents if folder.is_dir())
    needed, free = sum(file.size for file in files), shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{dest}: needs {bytes_text(needed)} of disk, {bytes_text(free)} are free")


def check_dest(dest: Path) -> None:
    """Refuse to replace what was not fetched.

    Raises:
        UserError: a file, or a folder with anything else in it.
    """
    if not dest.exists():
        return
    if not dest.is_dir():
        raise UserError(f"DEST must be a folder, got a file: {dest}")
    found = {path.relative_to(dest).as_posix() for path in dest.rglob("*") if not path.is_dir()}
    foreign = sorted(found - _fetched_before(dest))
    if foreign:
        raise UserError(f"DEST must be empty or an earlier fetch, found {shorten(foreign[0])} in {dest}")


def _fetched_before(dest: Path) -> set[str]:
    try:
        marker = json.loads((dest / MARKER).read_text(encoding="utf-8"))
        return {MARKER, *(str(file["path"]) for file in marker["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
