"""One driver a run across machines: what is alive is left alone, what is dead is taken over, nobody holds it twice.

pytest tests/sweeps/ledger/test_lease.py     a second; the clock is the test's own
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.ledger import lease as leases
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.lease import LEASE_FILE, FilePlace, Holder, Lease, Place, StoragePlace, Timing
from sweeps.ledger.mirror import MirroredRunFolder
from sweeps.ledger.storage import Storage
from training.errors import UserError


class TestClock:
    """Time passes only by waiting; whatever else happens meanwhile is called then."""

    __test__ = False

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.time, self._meanwhile = 0.0, meanwhile

    def now(self) -> float:
        """Seconds waited."""
        return self.time

    def wait(self, seconds: float) -> None:
        """No sleep."""
        self.time += seconds
        self._meanwhile()


@pytest.fixture(params=["shared folder", "storage folder", "storage of objects"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Wherever a run may be."""
    if request.param == "shared folder":
        return FilePlace(tmp_path / LEASE_FILE)
    there = tmp_path / "there" if request.param == "storage folder" else uuid.uuid4().hex
    return StoragePlace(Storage(f"{'file' if isinstance(there, Path) else 'memory'}://{there}", "run"))


def lease_of(
    machine: str, place: Place, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None] = lambda: None
) -> tuple[Lease, TestClock]:
    """A lease as a process of another machine would ask for it."""
    holder = Holder(uuid.uuid4().hex, machine, 7, "1", f"kernel of {machine}")
    monkeypatch.setattr(Holder, "this_process", classmethod(lambda _: holder))
    clock = TestClock(meanwhile)
    return Lease(place, "runs/ada", clock=clock), clock


def test_a_living_holder_is_left_alone_and_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It renews while another watches: refused at the first sign of life, not at the end of the wait."""
    held, _ = lease_of("first", place, monkeypatch)
    held.acquire()
    other, clock = lease_of("second", place, monkeypatch, meanwhile=held.renew)
    with pytest.raises(UserError, match="runs/ada: is being run already, by process 7 on first"):
        other.acquire()
    assert clock.time <= Timing().beat
    assert held.taken_by is None


def test_a_dead_holder_is_taken_over_after_it_was_watched(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the watcher's own clock; the dead one, if it was only asleep, finds out and lets go of nothing."""
    asleep, _ = lease_of("first", place, monkeypatch)
    asleep.acquire()
    other, clock = lease_of("second", place, monkeypatch)
    other.acquire()
    assert Timing().dead_after <= clock.time <= 2 * Timing().dead_after
    asleep.renew()
    assert asleep.taken_by == "process 7 on second"
    asleep.release()
    other.renew()
    assert other.taken_by is None


def test_a_released_lease_is_had_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is released under the watcher's eyes."""
    held, _ = lease_of("first", place, monkeypatch)
    held.acquire()
    held.release()
    assert place.read() is None
    held.acquire()
    other, clock = lease_of("second", place, monkeypatch, meanwhile=held.release)
    other.acquire()
    assert clock.time <= Timing().beat + Timing().settle


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 3}'])
def test_a_lease_that_cannot_be_read_is_watched_too(
    place: Place, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Its writer may have been killed at it, or be at it."""
    place.create(content)
    lease, clock = lease_of("first", place, monkeypatch)
    lease.acquire()
    assert clock.time >= Timing().dead_after


def test_of_two_that_take_over_at_one_moment_one_is_left(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both saw the dead one; the second writes while the first waits to read back what it wrote."""
    dead, _ = lease_of("dead", place, monkeypatch)
    dead.acquire()
    second, _ = lease_of("second", place, monkeypatch)

    def overwrite() -> None:
        if first_clock.time >= Timing().dead_after + Timing().settle:
            second.renew() if place.read() == second._content() else place.write(second._content())

    first, first_clock = lease_of("first", place, monkeypatch, meanwhile=overwrite)
    with pytest.raises(UserError, match="by process 7 on second"):
        first.acquire()


def test_a_lease_that_was_swept_away_is_put_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody tidied up hidden files; the run is as alive as before."""
    held, _ = lease_of("first", place, monkeypatch)
    held.acquire()
    place.remove()
    held.renew()
    assert place.read() is not None
    assert held.taken_by is None


def test_a_dead_process_of_this_machine_lets_go_at_once(tmp_path: Path) -> None:
    """Killed, its number perhaps given again: told by when the process of that number started."""
    me = Holder.this_process()
    if me.kernel is None:
        pytest.skip("needs /proc")
    place = FilePlace(tmp_path / LEASE_FILE)
    for started, is_held in ((me.started, True), ("1", False)):
        place.remove()
        place.create(leases.json.dumps({**vars(me), "id": "another", "started": started}).encode())
        clock = TestClock()
        lease = Lease(place, "runs/ada", clock=clock)
        if is_held:
            with pytest.raises(UserError, match=f"by process {os.getpid()} on "):
                lease.acquire()
        else:
            lease.acquire()
        assert clock.time <= Timing().settle
        assert RunFolder(tmp_path).has_driver()  # this process, which now has it either way


def test_who_only_looks_sees_whether_a_driver_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own machine's process is looked up; another machine's file must have changed of late."""
    folder = RunFolder(tmp_path / "ada")
    assert not folder.has_driver()
    with folder.lock():
        assert folder.has_driver()
    assert not folder.has_driver()
    there, _ = lease_of("elsewhere", folder.lease_place, monkeypatch)
    there.acquire()
    assert folder.has_driver()
    long_ago = (folder.dir / LEASE_FILE).stat().st_mtime - Timing().dead_after - 1
    os.utime(folder.dir / LEASE_FILE, (long_ago, long_ago))
    assert not folder.has_driver()


def test_two_machines_with_one_storage_do_not_both_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folders, and so their kernels' locks, are their own."""
    monkeypatch.setattr(leases, "MachineClock", TestClock)
    head, other = (MirroredRunFolder(tmp_path / who / "run", f"file://{tmp_path}/there") for who in "ab")
    with head.lock(), pytest.raises(UserError, match=f"being run already, by process {os.getpid()}"), other.lock():
        pass
    with other.lock():
        pass


def test_whoever_loses_the_lease_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread is interrupted wherever it is, and told by whom it was replaced."""
    monkeypatch.setattr(leases, "Timing", lambda: Timing(beat=0.001))
    folder = RunFolder(tmp_path)

    def be_replaced() -> None:
        for _ in range(6000):  # again and again: a renewal that was under way may write over it
            folder.lease_place.write(leases.json.dumps(vars(Holder("x", "second", 7, "1", "k"))).encode())
            threading.Event().wait(0.01)

    with pytest.raises(UserError, match="taken over by process 7 on second"), folder.lock():
        be_replaced()
    assert folder.lease_place.read() is not None, "which is the other's"


def test_after_kill_9_the_next_driver_may_start_at_once(tmp_path: Path) -> None:
    """With a storage, where the folders differ and no kernel's lock tells anything."""
    if Holder.this_process().kernel is None:
        pytest.skip("needs /proc")
    there = f"file://{tmp_path}/there"
    program = (
        "import sys; from sweeps.ledger.mirror import MirroredRunFolder\n"
        "with MirroredRunFolder(*sys.argv[1:]).lock(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", program, str(tmp_path / "a" / "run"), there],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    other = MirroredRunFolder(tmp_path / "b" / "run", there)
    with pytest.raises(UserError, match=f"being run already, by process {holder.pid}"), other.lock():
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with other.lock():
        pass
