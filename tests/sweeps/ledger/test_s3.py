"""What an object store adds to the laws of mirror and lease: a network, and a bucket that is somebody's.

Against a real S3 server on this machine, whose connections break as the test says.

    pytest tests/sweeps/ledger/test_s3.py     about forty seconds of processor time
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.ledger import lease as leases
from sweeps.ledger import storage as storages
from sweeps.ledger.mirror import MirroredRunFolder
from sweeps.ledger.storage import Storage, StorageError, StorageRefusedError
from tests.s3_server import Request, S3Server, Weather
from tests.sweeps.command import Command
from tests.sweeps.ledger.test_lease import TestClock
from tests.sweeps.ledger.test_mirror import record, save_weights, weights_of
from tests.sweeps.tiny_sweep import write_sweep
from training.errors import UserError


@pytest.fixture
def storage(s3: S3Server) -> str:
    return s3.new_storage()


def first(num: int, of: Callable[[Request], bool], weather: Weather) -> Callable[[Request], Weather]:
    """Weather for the first `num` requests of a kind."""
    left = [num]

    def decide(request: Request) -> Weather:
        if not of(request) or not left[0]:
            return "fine"
        left[0] -= 1
        return weather

    return decide


def is_weights(request: Request) -> bool:
    return request.path.endswith("weights.safetensors")


@pytest.mark.parametrize("weather", ["internal error", "reset", "lost", "cut"])
def test_what_breaks_once_costs_nothing(tmp_path: Path, storage: str, s3: S3Server, weather: Weather) -> None:
    """Every kind of request meets it on the way there and back: the storage's library asks again."""
    worker, reader = (MirroredRunFolder(tmp_path / who / "run", storage) for who in "ab")
    save_weights(worker, "new")
    met: set[str] = set()

    def once(request: Request) -> Weather:
        kind = f"{request.method} {'list' if 'list-type' in request.query else request.path.rpartition('.')[2]}"
        if kind in met:
            return "fine"
        met.add(kind)
        return weather

    with s3.under(once):
        worker.push(worker.trial_dir("t"))
        reader.pull(reader.trial_dir("t"))
    assert {"PUT safetensors", "GET list", "GET json", "DELETE json", "GET safetensors"} <= met
    assert weights_of(reader) == "new"


def test_a_storage_that_is_away_for_a_while_is_waited_for(
    tmp_path: Path, storage: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens; when somebody does again, the push goes on where it was."""
    worker, reader = (MirroredRunFolder(tmp_path / who / "run", storage) for who in "ab")
    save_weights(worker, "new")
    assert worker.storage.names("") == set(), "it has answered once"
    s3.stop()
    pauses: list[float] = []

    def wait(pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 2:
            s3.start()

    monkeypatch.setattr(storages.time, "sleep", wait)
    worker.push(worker.trial_dir("t"))
    reader.pull(reader.trial_dir("t"))
    assert weights_of(reader) == "new"
    assert pauses == [1.0, 2.0]


@pytest.mark.parametrize("weather", ["internal error", "reset", "denied"])
def test_a_push_that_fails_for_good_leaves_nothing_half(
    tmp_path: Path, storage: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, weather: Weather
) -> None:
    """What was there before is whole or gone, the ledger speaks of nothing else; the next machine repeats the push."""
    monkeypatch.setattr(storages, "PATIENCE_SECONDS", 0.0)
    worker, reader, successor = (MirroredRunFolder(tmp_path / who / "run", storage) for who in "abc")
    save_weights(worker, "old")
    worker.push(worker.trial_dir("t"))
    worker.write(record(seconds=1.0))
    save_weights(worker, "new")
    with s3.under(lambda request: weather if request.method == "PUT" and is_weights(request) else "fine"):
        with pytest.raises(StorageError) as failed:
            worker.push(worker.trial_dir("t"))
        assert storage in str(failed.value)
        assert isinstance(failed.value, StorageRefusedError) == (weather == "denied")
    reader.pull(reader.trial_dir("t"))
    assert weights_of(reader) is None, "no manifest vouches for it"
    assert reader.read("t") == record(seconds=1.0)
    save_weights(successor, "2nd")
    successor.push(successor.trial_dir("t"))
    reader.pull(reader.trial_dir("t"))
    assert weights_of(reader) == "2nd"


def test_what_another_machine_wrote_is_seen_at_once(tmp_path: Path, storage: str, s3: S3Server) -> None:
    """The storage's library keeps no listing, of what was there and of what was not."""
    reader = MirroredRunFolder(tmp_path / "a" / "run", storage)
    prefix = reader.storage.names("trials") or "trials/t/images-2"
    bucket = storage.split("/")[2]
    for number in range(3):
        s3.client("another").put_object(Bucket=bucket, Key=f"sweeps/run/{prefix}/{number}.png", Body=b"x")
        assert len(reader.storage.names("trials")) == number + 1
    s3.client("another").delete_object(Bucket=bucket, Key=f"sweeps/run/{prefix}/0.png")
    assert reader.storage.names("trials") == {f"{prefix}/1.png", f"{prefix}/2.png"}


def test_names_are_taken_as_they_are(tmp_path: Path, s3: S3Server) -> None:
    """Patterns of shells, quotes of URLs, other scripts: in the prefix, the run's name, files alone and in units."""
    strange = "a b+ü%20#[1]*&=;'é日本"
    storage = s3.new_storage(prefix=strange)
    writer, reader = (MirroredRunFolder(tmp_path / who / strange, storage) for who in "ab")
    names = ["a[1].txt", "a1.txt", f"renders/{strange}/sheet.png", "renders/100% *.png", "renders/ö?v=1.png"]
    for name in names:
        (writer.dir / name).parent.mkdir(parents=True, exist_ok=True)
        (writer.dir / name).write_text(name)
    writer.push(writer.dir)
    reader.pull(reader.dir / "a[1].txt", reader.dir / "a1.txt", reader.renders_dir)
    assert {name: (reader.dir / name).read_text() for name in names} == {name: name for name in names}
    writer.storage.remove("a[1].txt")
    assert writer.storage.names("") == {name for name in names if name != "a[1].txt"}


def test_large_weights_go_in_parts_or_not_at_all(tmp_path: Path, storage: str, s3: S3Server) -> None:
    """Above 100 MiB: no object before the last part is there, no parts are left where one fails for good."""
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(101 * 2**20)
        file.write(b"end")
    there, impatient, bucket = Storage(storage, "run"), Storage(storage, "run", patience=0), storage.split("/")[2]
    there.write("small", b"x")
    with (
        s3.under(lambda request: "internal error" if "partNumber=2" in request.query else "fine"),
        pytest.raises(StorageError),
    ):
        impatient.put("large.bin", large)
    assert there.names("") == {"small"}
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=bucket)
    with s3.under(first(1, lambda request: "partNumber=2" in request.query, "reset")):
        there.put("large.bin", large)
    there.fetch("large.bin", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == large.read_bytes()


REFUSED = "storage: must be one that this machine may read and write, {} is not: "


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("bucket", REFUSED + "The specified bucket does not exist"),
        ("credentials", REFUSED + "Unable to locate credentials"),
        ("rights", REFUSED + "Forbidden"),
        ("endpoint", "storage: {} does not answer as it should: Could not connect to the endpoint URL"),
    ],
)
def test_a_storage_that_is_not_to_be_had_is_named(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, wrong: str, said: str
) -> None:
    """At once, before anything starts; no bucket is made, which would hide that it is misspelt; no secret is told."""
    storage = "s3://no-such-bucket/x" if wrong == "bucket" else s3.new_storage()
    if wrong == "credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    elif wrong == "endpoint":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    buckets = s3.client().list_buckets()["Buckets"]
    with (
        s3.under(lambda request: "denied" if wrong == "rights" and request.who == "head" else "fine"),
        pytest.raises(UserError, match=said.format(storage)) as refused,
        MirroredRunFolder(tmp_path / "run", storage).lock(),
    ):
        pass
    assert "secret" not in str(refused.value)
    assert s3.client().list_buckets()["Buckets"] == buckets


def test_the_command_says_so_in_one_line(
    dreamsweep: Command, s3: S3Server, tmp_path: Path, tiny_mapping: dict[str, object]
) -> None:
    """Place and value, exit 2, no traceback."""
    sweep = write_sweep(tmp_path / "tiny.yaml", {**tiny_mapping, "storage": "s3://no-such-bucket/x"})
    ended = dreamsweep("run", sweep, "--out", tmp_path / "runs")
    said = f"dreamsweep: {REFUSED.format('s3://no-such-bucket/x')}The specified bucket does not exist"
    assert (ended.code, ended.err.splitlines()[-1]) == (2, said)


def test_two_drivers_of_two_machines_do_not_both_run(tmp_path: Path, storage: str, s3: S3Server) -> None:
    """Each a process with a folder and credentials of its own: the second is refused by the first's name."""
    program = (
        "import sys; from sweeps.ledger.mirror import MirroredRunFolder\n"
        "with MirroredRunFolder(*sys.argv[1:]).lock(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", program, str(tmp_path / "a" / "run"), storage],
        env={**os.environ, **s3.environment("first")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    other = MirroredRunFolder(tmp_path / "b" / "run", storage)
    with pytest.raises(UserError, match=f"being run already, by process {holder.pid}"), other.lock():
        pass
    assert s3.asked(who="first", path="lease.json")
    holder.kill()
    holder.wait()
    with other.lock():
        assert other.lease_place.read() is not None


def test_an_expired_lease_is_taken_over(tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine that cannot be looked into: after it has given no sign of life, by this machine's own clock."""
    monkeypatch.setattr(leases, "MachineClock", TestClock)
    run = MirroredRunFolder(tmp_path / "run", storage)
    gone = leases.Holder("x", "a machine that is gone", 7, "1", "its kernel")
    run.lease_place.write(leases.json.dumps(vars(gone)).encode())
    said: list[str] = []
    with run.lock(say=said.append):
        pass
    assert "was being run by process 7 on a machine that is gone" in said[0]


def test_a_lease_whose_creation_was_not_answered_is_ones_own(tmp_path: Path, storage: str, s3: S3Server) -> None:
    """The library asks again, finds the lease that it has just made there, and is told so."""
    run = MirroredRunFolder(tmp_path / "run", storage)
    with (
        s3.under(first(1, lambda request: request.method == "PUT" and "lease" in request.path, "lost")),
        run.lock(),
    ):
        assert run.lease_place.read() is not None


def test_a_lease_outlives_a_storage_that_is_away(
    tmp_path: Path, storage: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewals fail for a while, by errors of the library's own; the run is not interrupted, and holds it still."""
    timing = leases.Timing(beat=0.01, settle=0.0)
    monkeypatch.setattr(leases, "Timing", lambda: timing)
    failed, renewed = threading.Event(), threading.Event()

    def weather(request: Request) -> Weather:
        if "lease" not in request.path:
            return "fine"
        if not failed.is_set():
            return "internal error"
        if request.method == "PUT":
            renewed.set()
        return "fine"

    run = MirroredRunFolder(tmp_path / "run", storage)
    renew = leases.Lease.renew

    def noting(self: leases.Lease) -> None:
        try:
            renew(self)
        except OSError:
            failed.set()
            raise

    monkeypatch.setattr(leases.Lease, "renew", noting)
    with run.lock(), s3.under(weather):
        assert failed.wait(60), "nothing was asked"
        assert renewed.wait(60), "nobody renews any more"
