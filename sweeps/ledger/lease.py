"""One driver a run, on whichever machine: a lease that its holder renews, and that the dead let go of.

A kernel's lock ends at its machine, and over a network file system it may. So the holder also keeps a small file where
the run is, in the shared folder or in the storage, and changes it every few seconds. Whoever finds one watches it: if
it does not *change* for long enough by the watcher's own clock, its holder is dead. Clocks of two machines are never
compared. On the holder's own machine its process is looked up instead, which takes no time.

No store can promise that two watchers do not take over a dead lease at one moment, so the one who takes it reads it
back after a while, and every holder reads before it renews: it stops when it finds another's name.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from sweeps.ledger.storage import Storage
from training.errors import UserError

LEASE_FILE = ".lease.json"


@dataclass(frozen=True)
class Timing:
    """In seconds."""

    beat: float = 5.0
    """Between two renewals."""
    dead_after: float = 45.0
    """A lease that has not changed for so long belongs to nobody: a hung file system is forgiven half a minute."""
    settle: float = 1.0
    """How long after a doubtful taking the lease is read back."""


class Clock(Protocol):
    """What passes time."""

    def now(self) -> float:
        """Seconds since some moment; never set back."""

    def wait(self, seconds: float) -> None:
        """Until so many seconds have passed."""


class MachineClock:
    """This machine's monotonic clock."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


class Place(Protocol):
    """Where a lease lies."""

    creates_for_certain: bool
    """Can `create` succeed for one caller only?"""

    def read(self) -> bytes | None:
        """What lies there, or None."""

    def create(self, content: bytes) -> bool:
        """Put it there if nothing is; False where something is."""

    def write(self, content: bytes) -> None:
        """Replace what lies there."""

    def remove(self) -> None:
        """Take it away, if it is there."""


class FilePlace:
    """A file in a folder that machines may share."""

    creates_for_certain = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes | None:
        """What lies there, or None."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def create(self, content: bytes) -> bool:
        """Put it there if nothing is; the folder must be there."""
        try:
            file = self._path.open("xb")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(content)
        except OSError:  # such as a full disk: an empty lease would be watched for nothing
            self._path.unlink(missing_ok=True)
            raise
        return True

    def write(self, content: bytes) -> None:
        """In place: another machine of a network file system sees a file's content sooner than its replacement."""
        with self._path.open("r+b") as file:
            file.write(content)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Take it away, if it is there."""
        self._path.unlink(missing_ok=True)


class StoragePlace:
    """A file in the run's storage."""

    creates_for_certain = False

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read(self) -> bytes | None:
        """What lies there, or None."""
        return self._storage.read(LEASE_FILE).get(LEASE_FILE)

    def create(self, content: bytes) -> bool:
        """Put it there if nothing is."""
        return self._storage.create(LEASE_FILE, content)

    def write(self, content: bytes) -> None:
        """Replace what lies there."""
        self._storage.write(LEASE_FILE, content)

    def remove(self) -> None:
        """Take it away, if it is there."""
        self._storage.remove(LEASE_FILE)


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease, as it calls itself in it."""

    id: str
    """Of this taking alone."""
    host: str
    pid: int
    started: str | None
    """When the process started, in its kernel's own count; None where the system does not tell."""
    kernel: str | None
    """Which boot of which machine, and which numbering of processes in it; None where the system does not tell."""

    def __str__(self) -> str:
        """As messages name it."""
        return f"process {self.pid} on {self.host}"

    @classmethod
    def this_process(cls) -> Holder:
        """A new name for this process."""
        return cls(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _start_of(os.getpid()), _this_kernel())

    @property
    def lives(self) -> bool | None:
        """Does the process run? None where that cannot be seen from here."""
        if self.kernel is None or self.started is None or self.kernel != _this_kernel():
            return None
        return _start_of(self.pid) == self.started


def _start_of(pid: int) -> str | None:
    """The process's start in clock ticks since boot, by which a number that was given again is told; Linux."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _this_kernel() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


class Lease:
    """A claim to run something alone.

    Args:
        place: where it lies.
        what: the run, as messages name it.
        timing: how often it is renewed and when it counts as dead.
        clock: by which it is watched.
        say: told when somebody else's lease must be watched.
    """

    def __init__(
        self,
        place: Place,
        what: str,
        timing: Timing | None = None,
        clock: Clock | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._place, self._what, self._say = place, what, say
        self._timing, self._clock = timing or Timing(), clock or MachineClock()
        self._me = Holder.this_process()
        self._beats = 0
        self.taken_by: str | None = None
        """Who holds it now, where this process has lost it."""
        self._has_failed = False

    def acquire(self) -> None:
        """Take the lease.

        Raises:
            UserError: another process holds it and lives.
        """
        while True:
            found = self._place.read()
            doubtful = found is not None or not self._place.creates_for_certain
            if found is None:
                if not self._place.create(self._content()):
                    self._clock.wait(self._timing.settle)
                    continue
            elif found != self._content():  # our own, where only the answer to its creation was lost
                self._check_dead(found)
                if self._place.read() != found:
                    continue  # somebody was quicker
                self._place.write(self._content())
            if doubtful:
                self._clock.wait(self._timing.settle)
            if self._place.read() == self._content():
                return

    def renew(self) -> None:
        """Show that this process lives, or find out who has taken over; then `taken_by` says who."""
        found = self._place.read()
        if found is None:
            self._place.create(self._content())
            return
        holder = _holder_in(found)
        if holder is not None and holder.id != self._me.id:
            self.taken_by = str(holder)
            return
        self._beats += 1
        self._place.write(self._content())

    def release(self) -> None:
        """Let go of it, if it is still this process's."""
        if self._place.read() == self._content():
            self._place.remove()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it, renewed by a thread; the main thread is interrupted when it is lost.

        Raises:
            UserError: another process holds it; or, at the end, another has taken it over meanwhile.
        """
        self.acquire()
        is_over = threading.Event()
        in_main_thread = threading.current_thread() is threading.main_thread()
        thread = threading.Thread(target=self._keep, args=(is_over, in_main_thread), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            if self.taken_by is not None:
                raise UserError(
                    f"{self._what}: has been taken over by {self.taken_by}, which saw no sign of life here "
                    f"for {self._timing.dead_after:g} s; it goes on there"
                )
            if self._has_failed:
                raise RuntimeError(f"{self._what}: cannot be held any longer: its lease was not renewed")
            with suppress(OSError):  # a folder that cannot be written any more: the dead let go of it
                self.release()

    def _keep(self, is_over: threading.Event, in_main_thread: bool) -> None:
        self._has_failed = True  # unless the loop ends as it should
        try:
            while self.taken_by is None and not is_over.wait(self._timing.beat):
                try:
                    self.renew()
                except OSError:
                    continue  # the folder is away: if another takes over meanwhile, the next renewal finds out
            self._has_failed = False
        finally:
            if in_main_thread and (self._has_failed or self.taken_by is not None):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _check_dead(self, found: bytes) -> None:
        """Return when the lease's holder is dead, or has let go of it."""
        holder = _holder_in(found)
        lives = None if holder is None else holder.lives
        if lives is None:
            lives = self._changes(found, holder)
        if lives:
            raise UserError(f"{self._what}: is being run already, by {holder or 'another process'}")

    def _changes(self, found: bytes, holder: Holder | None) -> bool:
        self._say(
            f"{self._what}: was being run by {holder or 'another process'}; taking over if it gives no sign of life "
            f"for {self._timing.dead_after:g} s"
        )
        since = self._clock.now()
        while self._clock.now() - since < self._timing.dead_after:
            self._clock.wait(self._timing.beat)
            now = self._place.read()
            if now != found:
                return now is not None
        return False

    def _content(self) -> bytes:
        return json.dumps({**asdict(self._me), "beats": f"{self._beats:012d}"}).encode()


def has_live_holder(lease_file: Path) -> bool:
    """Does somebody run it, as far as can be told by looking? Nobody who looks takes part in the lease.

    On the holder's own machine its process is looked up; of another machine's a file that has just changed speaks.
    """
    try:
        content, changed = lease_file.read_bytes(), lease_file.stat().st_mtime
    except FileNotFoundError:
        return False
    holder = _holder_in(content)
    lives = None if holder is None else holder.lives
    return time.time() - changed < Timing().dead_after if lives is None else lives


def _holder_in(content: bytes) -> Holder | None:
    try:
        fields = json.loads(content)
        return Holder(**{name: fields[name] for name in Holder.__dataclass_fields__})
    except (ValueError, KeyError, TypeError):
        return None
