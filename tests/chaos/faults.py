"""The faults. Each is a function of a case: it starts the driver, strikes after counted progress, and mends.

Progress is counted in the judge's log; which step it is comes from the seed. Whom to kill is a pid of that log or of a
process that was started here.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from tests.chaos.log import Entry
from tests.chaos.stage import AT_ONCE, AT_STEPS, NUM_STEPS, Case, Driver, entries
from training.layout import STATE_FILE

DISK_BYTES = 96_000_000
"""Of the small disk: a sweep of this size takes half of it on either side."""
ROOM_FOR_SMALL_FILES = 150_000
"""Left free where only weights shall not find room: ledger, statistics and tiny pictures do."""
NUM_FLIPPED = 16
"""Bytes that are flipped, in the latter half of a file: among the weights, not in the header."""
DAY = timedelta(days=1)


class CannotBeMade(RuntimeError):  # noqa: N818 -- it says what happened
    """The fault needs what this machine does not allow."""


@dataclass
class Struck:
    """How a fault was made."""

    time: float = 0.0
    """When it struck, as `time.time()`."""
    first: Driver | None = None
    """The driver whose words and exit code count."""
    needs_rerun: bool = False
    """Even if the first driver ended well: something was taken away or damaged afterwards."""
    reruns: int = 1
    ended: float = 0.0
    """When the last run had ended, where that was before the fault had been cleared away."""
    notes: list[str] = field(default_factory=list)


Fault = Callable[[Case, random.Random], Struck]
FAULTS: dict[str, tuple[str, Fault]] = {}
"""Name -> what the table calls it, and how it is made."""


def fault(name: str, title: str) -> Callable[[Fault], Fault]:
    """Enter a fault in the table."""

    def enter(make: Fault) -> Fault:
        FAULTS[name] = (title, make)
        return make

    return enter


# --- progress --------------------------------------------------------------------------------------------------------


def midway(rng: random.Random) -> Callable[[list[Entry]], bool]:
    """Some trials have ended, and another has been scored and trains on: so many steps after that, by the seed."""
    further = rng.randint(1, AT_STEPS[0] - 1)

    def reached(log: list[Entry]) -> bool:
        ended = {entry["trial"] for entry in entries(log, "ended")}
        scored = {entry["trial"]: entry["step"] for entry in entries(log, "scored")}
        newest = {entry["trial"]: entry["step"] for entry in entries(log, "step")}
        return len(ended) >= AT_ONCE and any(
            newest[trial] >= step + further for trial, step in scored.items() if trial not in ended
        )

    return reached


def run_to_midway(case: Case, rng: random.Random, driver: Driver | None = None) -> Driver:
    """Start the sweep, unless a driver is at it, and wait until it is in its middle."""
    driver = driver or case.start()
    case.wait_for(midway(rng), driver)
    return driver


def newest_running(case: Case) -> Entry:
    """The newest step of a trial that has not ended."""
    log = case.log()
    ended = {entry["trial"] for entry in entries(log, "ended")}
    return next(entry for entry in reversed(entries(log, "step")) if entry["trial"] not in ended)


def kill_midway(case: Case, rng: random.Random, driver: Driver | None = None) -> Struck:
    """Kill the driver in the middle of the sweep, and wait for the end of its workers."""
    driver = run_to_midway(case, rng, driver)
    driver.send(signal.SIGKILL)
    driver.end()
    _wait_for_the_dead(case)
    return Struck(time.time(), driver)


def killed_before(case: Case, rng: random.Random) -> Struck:
    """A sweep whose driver was killed; one is killed for all cases that damage it afterwards, each has a copy."""
    driver = case.take_up_killed()
    if driver is not None:
        return Struck(time.time(), driver)
    struck = kill_midway(case, rng)
    case.keep_as_killed()
    return struck


def _wait_for_the_dead(case: Case, seconds: float = 60) -> None:
    """Until its workers are gone too: what is damaged next shall not be mended by one that lives on."""
    deadline = time.monotonic() + seconds
    pids = {entry["pid"] for entry in case.log()}
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)


# --- processes and machines ------------------------------------------------------------------------------------------


@fault("nothing", "nothing")
def nothing(case: Case, rng: random.Random) -> Struck:
    """An undisturbed sweep, which the others are compared with."""
    driver = case.start()
    struck = Struck(time.time(), driver)
    driver.end()
    return struck


@fault("driver-killed", "driver SIGKILL")
def driver_killed(case: Case, rng: random.Random) -> Struck:
    """The driver dies; its workers may outlive it for a moment, as after a real death."""
    driver = run_to_midway(case, rng)
    struck = Struck(time.time(), driver)
    driver.send(signal.SIGKILL)
    driver.end()
    return struck


@fault("worker-killed", "worker SIGKILL")
def worker_killed(case: Case, rng: random.Random) -> Struck:
    """The process of a trial in the middle of training dies."""
    driver = run_to_midway(case, rng)
    struck = Struck(time.time(), driver)
    os.kill(newest_running(case)["pid"], signal.SIGKILL)
    driver.end()
    return struck


@fault("sigterm", "SIGTERM")
def sigterm(case: Case, rng: random.Random) -> Struck:
    """The driver is told to end, as before a preemption."""
    driver = run_to_midway(case, rng)
    struck = Struck(time.time(), driver)
    driver.send(signal.SIGTERM)
    driver.end()
    struck.notes.append(f"ended {time.time() - struck.time:.0f} s after the signal")
    return struck


@contextmanager
def cluster(case: Case, num_workers: int) -> Iterator[object]:
    """A head that holds no trials and workers of one CPU each, the driver outside of it."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        for _ in range(num_workers):
            made.add_node(num_cpus=1, object_store_memory=small["object_store_memory"])
        made.wait_for_nodes()
        case.address = made.address
        yield made
    finally:
        made.shutdown()


@fault("node-lost", "node lost")
def node_lost(case: Case, rng: random.Random) -> Struck:
    """One of two machines dies with the trial on it."""
    with cluster(case, 2) as made:
        driver = run_to_midway(case, rng)
        node_id = newest_running(case)["node"]
        node = next(node for node in made.worker_nodes if node.node_id == node_id)
        struck = Struck(time.time(), driver)
        made.remove_node(node, allow_graceful=False)
        if driver.end() != 0:
            case.start().end()
        struck.ended = time.time()
    return struck


@fault("node-added", "node added")
def node_added(case: Case, rng: random.Random) -> Struck:
    """A second machine joins a sweep that began on one."""
    with cluster(case, 1) as made:
        driver = case.start()
        steps = rng.randint(2, NUM_STEPS)
        case.wait_for(lambda log: len(entries(log, "step")) >= steps, driver)
        struck = Struck(time.time(), driver)
        added = made.add_node(num_cpus=1, object_store_memory=100_000_000)
        if driver.end() != 0:
            case.start().end()
        struck.ended = time.time()
        used = sum(entry["node"] == added.node_id for entry in entries(case.log(), "step"))
        struck.notes.append(f"{used} steps on the new node" if used else "the new node stays idle")
    return struck


@fault("two-drivers", "two drivers at once")
def two_drivers(case: Case, rng: random.Random) -> Struck:
    """The same command a second time while the first still runs: early, since a driver takes a while to start."""
    first = case.start()
    case.wait_for(lambda log: bool(entries(log, "scored")), first)
    second = case.start()
    struck = Struck(time.time(), second)
    second.end()
    first.end()
    struck.ended = time.time()
    struck.notes.append(f"these are the second driver's words; the first ended with {first.process.returncode}")
    return struck


# --- disks -----------------------------------------------------------------------------------------------------------


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        raise CannotBeMade(f"needs leave to mount: {done.stderr.strip().splitlines()[0]}")


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)  # noqa: S603, S607


@contextmanager
def small_disk(case: Case) -> Iterator[None]:
    """The run folder is a small disk of its own; afterwards a folder with what was on it."""
    stand_in = case.run_dir.with_name("without-disk")
    if case.run_dir.exists():
        case.run_dir.rename(stand_in)
    case.run_dir.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "dreamsweep-chaos", str(case.run_dir))
        if stand_in.exists():
            shutil.copytree(stand_in, case.run_dir, dirs_exist_ok=True)
        yield
        saved = case.run_dir.with_name("saved")
        shutil.copytree(case.run_dir, saved, symlinks=True)
        _unmount(case.run_dir)
        case.run_dir.rmdir()
        saved.rename(case.run_dir)
    finally:
        if os.path.ismount(case.run_dir):
            _unmount(case.run_dir)


def _fill(case: Case, leaving: int) -> Path:
    """A file that takes all of the disk but so many bytes."""
    ballast = case.run_dir / "ballast"
    free = shutil.disk_usage(case.run_dir).free - leaving
    with ballast.open("wb") as stream:
        try:
            while free > 0:
                free -= stream.write(bytes(min(free, 65536)))
                stream.flush()
        except OSError:
            pass  # others wrote meanwhile: full is full
    return ballast


def _disk_full(case: Case, strike: Callable[[Driver], None], leaving: int) -> Struck:
    with small_disk(case):
        driver = case.start()
        strike(driver)
        struck = Struck(time.time(), driver)
        ballast = _fill(case, leaving)
        driver.end()
        struck.notes.append(f"ended {time.time() - struck.time:.0f} s after the disk was full")
        ballast.unlink()
        if driver.process.returncode:
            case.start().end()
        struck.ended = time.time()
    return struck


@fault("disk-full-weights", "disk full while a trial saves weights")
def disk_full_weights(case: Case, rng: random.Random) -> Struck:
    """Room for small files, none for the next checkpoint."""
    return _disk_full(case, lambda driver: case.wait_for(midway(rng), driver), ROOM_FOR_SMALL_FILES)


@fault("disk-full-ledger", "disk full while the ledger is written")
def disk_full_ledger(case: Case, rng: random.Random) -> Struck:
    """No room at all, from the moment in which a scored checkpoint is about to be entered in the books."""
    points = AT_ONCE * len(AT_STEPS) + rng.randint(1, 2)
    return _disk_full(case, lambda d: case.wait_for(lambda log: len(entries(log, "saving")) >= points, d), 0)


@fault("read-only", "folder read-only")
def read_only(case: Case, rng: random.Random) -> Struck:
    """Whoever opens a file of the run folder from now on can only read."""
    driver = run_to_midway(case, rng)
    struck = Struck(time.time(), driver)
    _mount("--bind", str(case.run_dir), str(case.run_dir))
    try:
        _mount("-o", "remount,bind,ro", str(case.run_dir))
        driver.end()
    finally:
        _unmount(case.run_dir)
    struck.notes.append(f"ended {time.time() - struck.time:.0f} s after it")
    struck.needs_rerun = True
    return struck


@fault("folder-gone", "run folder gone for a while")
def folder_gone(case: Case, rng: random.Random) -> Struck:
    """The run folder is elsewhere until the driver has ended, as a share that is detached."""
    driver = run_to_midway(case, rng)
    away = case.run_dir.with_name("away")
    struck = Struck(time.time(), driver)
    case.run_dir.rename(away)
    driver.end()
    _wait_for_the_dead(case)
    struck.notes.append(f"ended {time.time() - struck.time:.0f} s after it")
    if case.run_dir.exists():
        files = [path for path in case.run_dir.rglob("*") if path.is_file()]
        struck.notes.append(f"{len(files)} files were written where the folder had been")
        case.run_dir.rename(case.run_dir.with_name("written-meanwhile"))
    away.rename(case.run_dir)
    struck.needs_rerun = True
    return struck


# --- files, after a kill ---------------------------------------------------------------------------------------------


@fault("flipped-bytes", "checkpoint with flipped bytes")
def flipped_bytes(case: Case, rng: random.Random) -> Struck:
    """In the weights of the newest checkpoint of a trial that has not ended; the driver was killed before."""
    struck = killed_before(case, rng)
    trial, checkpoint = flip_newest_weights(case, rng)
    struck.notes.append(f"in {checkpoint} of {trial}")
    return struck


def flip_newest_weights(case: Case, rng: random.Random) -> tuple[str, str]:
    """Flip bytes of the newest weights of a trial that has not ended; which trial and checkpoint it is."""
    ended = {entry["trial"] for entry in entries(case.log(), "ended")}
    found = [(file, _trial_of(file), _checkpoint_of(file)) for file in case.run_dir.rglob("*.safetensors")]
    whole = [  # a kill may have left the part of another behind
        (file.stat().st_mtime_ns, file, trial, checkpoint)
        for file, trial, checkpoint in found
        if trial and checkpoint and trial not in ended and file.name != STATE_FILE
    ]
    _, newest, trial, checkpoint = max(whole)
    content = bytearray(newest.read_bytes())
    for place in rng.sample(range(len(content) // 2, len(content)), NUM_FLIPPED):
        content[place] ^= 0xFF
    newest.write_bytes(content)
    return trial, checkpoint


def _trial_of(file: Path) -> str | None:
    """Whose weights they are, by the config beside them: on both sides a checkpoint is this project's."""
    record = next((p / "checkpoint.json" for p in file.parents if (p / "checkpoint.json").is_file()), None)
    if record is None:
        return None
    from pydantic import TypeAdapter

    from sweeps.ledger.identity import trial_id
    from training.config import MethodConfig

    return trial_id(TypeAdapter(MethodConfig).validate_python(json.loads(record.read_text())["config"]))


def _checkpoint_of(file: Path) -> str | None:
    """The whole checkpoint that it is in."""
    return next((parent.name for parent in file.parents if re.fullmatch(r"checkpoint-\d+", parent.name)), None)


@fault("truncated-record", "record of a finished trial cut short")
def truncated_record(case: Case, rng: random.Random) -> Struck:
    """`trial.json` of a trial that had ended; Tune's counterpart is its newest experiment state."""
    struck = killed_before(case, rng)
    cut_record(case, rng)
    return struck


def cut_record(case: Case, rng: random.Random) -> str:
    """Cut the file short in which the product keeps a trial that had ended; which trial it is."""
    ended = rng.choice(sorted({entry["trial"] for entry in entries(case.log(), "ended")}))
    if case.side == "dreamsweep":
        file = case.run_dir / "trials" / ended / "trial.json"
    else:
        file = max(case.run_dir.glob("experiment_state-*.json"), key=lambda path: path.name)
    os.truncate(file, file.stat().st_size // 2)
    return str(ended)


@fault("pictures-deleted", "pictures of a scored point deleted")
def pictures_deleted(case: Case, rng: random.Random) -> Struck:
    """All pictures of one scoring point of a trial that had ended."""
    struck = killed_before(case, rng)
    folders = sorted(
        folder for folder in case.run_dir.rglob("images*") if folder.is_dir() and "base" not in folder.parts
    )
    shutil.rmtree(rng.choice(folders))
    return struck


@fault("clock-back", "clock set back by a day")
def clock_back(case: Case, rng: random.Random) -> Struck:
    """What was written before lies a day ahead of the second driver and the third.

    That is every file's own time, the times in the ledger, and those in the names of Tune's experiment states, by which
    it takes the newest. The rest of what Tune writes is left alone: there such texts are names of folders.
    """
    struck = killed_before(case, rng)
    for path in [case.run_dir, *case.run_dir.rglob("*")]:
        if path.name == "trial.json":
            path.write_text(_a_day_later(path.read_text()))
        if path.name.startswith("experiment_state-"):
            path = path.rename(path.with_name(_a_day_later(path.name)))
        moment = path.stat().st_mtime + DAY.total_seconds()
        os.utime(path, (moment, moment))
    struck.reruns = 2
    return struck


def _a_day_later(text: str) -> str:
    """Every ISO time in a text (in the names of Tune's states with dashes and an underscore) a day later."""

    def later(match: re.Match[str]) -> str:
        day = datetime.strptime(match["day"], "%Y-%m-%d") + DAY
        return day.strftime("%Y-%m-%d") + match["rest"]

    return re.sub(r"(?P<day>20\d\d-\d\d-\d\d)(?P<rest>[T_ ]\d\d[:-]\d\d[:-]\d\d)", later, text)
