"""A machine as it is: its Python, packages, GPUs, disk and clock. No package is needed for it, and no torch loaded."""

from __future__ import annotations

import csv
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

QUERY = "name,memory.total,memory.used,driver_version"


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    memory_mib: int
    used_mib: int
    driver: str


@dataclass(frozen=True)
class Machine:
    """What a look at a machine finds."""

    python: str
    versions: dict[str, str]
    """Package -> version, of those asked for that are there."""
    gpus: tuple[Gpu, ...]
    free_bytes: int | None
    """On the disk of the folder that was asked for; None where there is no such folder."""
    probe: str
    """What the probe says as this machine sees it."""
    writes: str
    """Why the folder cannot be written; empty where it can."""
    models: dict[str, bool]
    """Model -> is it here?"""
    clock: float
    """Seconds since 1970."""


def look_at_machine(packages: Sequence[str], folder: str, probe: str, models: Sequence[str]) -> Machine:
    """Look.

    Args:
        packages: whose versions are wanted.
        folder: a folder that all machines should see and write.
        probe: name of a file in it.
        models: paths, and hub ids of what should be in the hub's cache.
    """
    place = Path(folder)
    file = place / probe
    return Machine(
        python=platform.python_version(),
        versions=versions_of(packages),
        gpus=gpus_here(),
        free_bytes=shutil.disk_usage(place).free if place.is_dir() else None,
        probe=file.read_text() if probe and file.is_file() else "",
        writes=_problem_with_writing(place),
        models={model: has_model(model) for model in models},
        clock=time.time(),
    )


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def gpus_here() -> tuple[Gpu, ...]:
    """What NVIDIA's driver says; none where there is no such driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    asked = [program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ()
    return gpus_in(said)


def gpus_in(said: str) -> tuple[Gpu, ...]:
    """The GPUs of nvidia-smi's table; one whose memory it does not know has 0."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(said.splitlines()) if len(row) == 4]
    return tuple(Gpu(name, _number(total), _number(used), driver) for name, total, used, driver in rows)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def has_model(model: str) -> bool:
    """Is it a path that is here, or in the cache of the hub?"""
    if model.startswith("/"):
        return Path(model).exists()
    from huggingface_hub import try_to_load_from_cache

    names = ("model_index.json", "config.json")
    return any(isinstance(try_to_load_from_cache(model, name), str) for name in names)


def _problem_with_writing(folder: Path) -> str:
    probe = folder / f".probe-{os.getpid()}-{time.time_ns()}"
    try:
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""
