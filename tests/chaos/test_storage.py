"""A sweep over an object store: machines that share no disk, one lost with its disk, one that may not write, an outage.

    pytest -m ray tests/chaos/test_storage.py -s     four minutes on two idle cores; prints who moved what

Every machine sees its own folder under the run's path (a mount namespace, as root), has credentials of its own, and is
told apart by them in the S3 server's access log.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from sweeps.ledger.folder import RunFolder
from sweeps.results.results import read_results
from tests.chaos.faults import midway
from tests.chaos.judge import Outcome, judge
from tests.chaos.log import Entry
from tests.chaos.stage import AT_STEPS, PATIENCE_SECONDS, ROOT, Case, Driver, Stage, entries
from tests.s3_server import Request, S3Server, Weather
from training.checkpoint import open_checkpoint
from training.layout import STATE_FILE

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STORE_BYTES = 100_000_000
"""Of a node's object store, through which nothing of a sweep goes."""
NUM_FAILING = 12
"""Requests that meet the outage: more than the library's own attempts at one."""


class Machine:
    """A Ray node of one CPU with a disk of its own at the run folder's path.

    Args:
        name: its access key.
        address: of the cluster.
        run_dir: the path that is another folder on each machine.
        disk: what it has there.
        environment: what it knows of the storage.
    """

    def __init__(self, name: str, address: str, run_dir: Path, disk: Path, environment: dict[str, str]) -> None:
        self.name, self.disk = name, disk
        disk.mkdir()
        ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--address", address, "--num-cpus=1"]
        self.process = subprocess.Popen(  # noqa: S603
            [*in_own_mounts(disk, run_dir), *start, f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"],
            env={**os.environ, **ours},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        said = ""
        while "Ray runtime started" not in said:
            line = self.process.stdout.readline()
            assert line, f"{name} did not join: {said}"
            said += line

    def has(self, pid: int) -> bool:
        """Is it a process of this machine?"""
        while pid > 1:
            if pid == self.process.pid:
                return True
            pid = parent_of(pid)
        return False

    def lose(self, pid: int) -> None:
        """The machine of this worker dies, and its disk with it."""
        os.kill(parent_of(pid), signal.SIGKILL)  # the node's raylet, which its workers do not outlive
        os.kill(pid, signal.SIGKILL)  # but one that stands still
        self.process.wait(PATIENCE_SECONDS)
        shutil.rmtree(self.disk)

    def leave(self) -> None:
        """Be shut down."""
        if self.process.poll() is None:
            self.process.terminate()  # which ends its children, too
            self.process.wait(PATIENCE_SECONDS)


def in_own_mounts(disk: Path, at: Path) -> list[str]:
    """The beginning of a command that sees `disk` at another path than anybody else does."""
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(disk), str(at)]


def parent_of(pid: int) -> int:
    """The process that started it."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def needs_mounts(tmp_path: Path) -> None:
    """Skip where no mount namespace can be had."""
    (tmp_path / "a").mkdir()
    try:
        tried = subprocess.run([*in_own_mounts(tmp_path / "a", tmp_path), "true"], capture_output=True, check=False)  # noqa: S603
    except FileNotFoundError:
        pytest.skip("needs unshare and mount of util-linux")
    if tried.returncode:
        pytest.skip(f"needs root, to give each machine a disk of its own: {tried.stderr.decode().strip()}")


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A head that holds no trials."""
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    try:
        yield made
    finally:
        made.shutdown()


@pytest.mark.usefixtures("needs_mounts")
def test_a_sweep_over_an_object_store_loses_a_machine_and_nothing_else(
    s3: S3Server, stage: Stage, undisturbed: Outcome, tmp_path: Path
) -> None:
    """Trials, steps and champion as if nothing had happened; the driver fetches the champion's weights alone."""
    storage = s3.new_storage(prefix="sweeps/of ada")
    case = stage.case("storage", "dreamsweep")
    machines: list[Machine] = []

    def join(name: str) -> Machine:
        machines.append(Machine(name, str(case.address), case.run_dir, tmp_path / name, s3.environment(name)))
        return machines[-1]

    try:
        with cluster() as made, s3.under(where_the_third_may_not_write):
            case.address = made.address
            join("first")
            join("second")
            driver = case.start(f"storage={storage}", "search.max_concurrent_trials=3", "resources.pack_size=1")
            case.wait_for(lambda log: len({entry["node"] for entry in entries(log, "step")}) == 2, driver)
            outage = Outage(NUM_FAILING)
            with s3.under(outage):
                case.wait_for(lambda _: outage.is_over, driver)
            join("third")
            case.wait_for(lambda _: "is set aside" in words_of(case, driver), driver)
            is_midway, trained_on = midway(random.Random(0)), list[Entry]()

            def has_steps_to_lose(log: list[Entry]) -> bool:
                trained_on[:] = stopped_with_steps_to_lose(case) if is_midway(log) else []
                return bool(trained_on)

            case.wait_for(has_steps_to_lose, driver)
            worker = trained_on[-1]["pid"]
            lost = next(machine for machine in machines if machine.has(worker))
            lost.lose(worker)
            assert driver.end() == 0, driver.last_words
            ray_logs = Path(made.head_node.get_logs_dir_path())
            telling = [file for file in ray_logs.rglob("*") if file.is_file() and b"secret-of-" in file.read_bytes()]
        log, outcome, said = case.log(), case.outcome(), words_of(case, driver)
    finally:
        for machine in machines:
            machine.leave()
        run_dir = case.run_dir
        case.clear_away()
    run_dir = case.out.with_name("storage-dreamsweep") / run_dir.name

    verdict = judge(log, outcome, undisturbed)
    assert (verdict.lost, verdict.unfinished, verdict.champion_changed, verdict.repeated_beyond) == (0, 0, False, 0)
    assert 0 < verdict.repeated <= AT_STEPS[0], "since its last scoring point"
    assert any(record.num_restarts for record in RunFolder(run_dir).trials()), "somebody trained on what was lost"
    assert "one that this machine may read and write" in said, "the third machine was named with what it lacks"
    written = {request.who for request in s3.asked(method="PUT", path="/checkpoint-") if request.status == 200}
    assert written == {"first", "second"}, "each with its own credentials"
    assert not telling, "which are nobody else's to see"

    champion = read_results(run_dir).champion.row
    assert champion is not None
    assert champion.checkpoint is not None
    open_checkpoint(run_dir / champion.checkpoint)
    weights = [request for request in s3.asked(method="GET", path="/checkpoint-") if is_weights(request)]
    fetched = {request.path.partition("/trials/")[2] for request in weights if request.who == "head"}
    assert fetched
    assert all(f"trials/{path}".startswith(champion.checkpoint) for path in fetched), "of the weights, the champion's"
    assert not list(run_dir.rglob(STATE_FILE))
    print(f"\n{verdict}\n{traffic(s3.log)}")  # noqa: T201 -- what docs/reliability.md has

    bucket, prefix = storage.removeprefix("s3://").split("/", 1)
    listed = s3.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert all(entry["Key"].startswith(f"{prefix}/tiny/") for entry in listed)
    assert any("/dataset/" in entry["Key"] for entry in listed), "the photos are there"
    assert {request.acl for request in s3.log} == {None}, "and nobody is let in who is not let into the bucket"


def beyond_its_last_score(log: list[Entry]) -> list[Entry]:
    """Steps that a trial takes again when its machine is lost: it has not ended, and none of them is being scored."""
    ended = {entry["trial"] for entry in entries(log, "ended")}
    scored = {entry["trial"]: entry["step"] for entry in entries(log, "saving")}
    running = [entry for entry in entries(log, "step") if entry["trial"] not in ended]
    return [entry for entry in running if entry["step"] > scored.get(entry["trial"], 0)]


def stopped_with_steps_to_lose(case: Case) -> list[Entry]:
    """Such steps of a process that stands still between two scoring points; none where no process has any.

    At a scoring point it may have saved them already, and another machine goes on from there.
    """

    def between_points() -> dict[int, list[Entry]]:
        steps: dict[int, list[Entry]] = {}
        for entry in beyond_its_last_score(case.log()):
            steps.setdefault(entry["pid"], []).append(entry)
        return {pid: taken for pid, taken in steps.items() if taken[-1]["step"] not in AT_STEPS}

    for pid in between_points():
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:  # of the machine that was set aside
            continue
        if taken := between_points().get(pid):
            return taken
        os.kill(pid, signal.SIGCONT)
    return []


def where_the_third_may_not_write(request: Request) -> Weather:
    """A machine that joined with credentials for reading only."""
    return "denied" if request.who == "third" and request.method in ("PUT", "DELETE") else "fine"


class Outage:
    """So many requests fail, whoever asks."""

    def __init__(self, num_requests: int) -> None:
        self._left = num_requests

    def __call__(self, _: Request) -> Weather:
        """As of a server that is starting up."""
        if self.is_over:
            return "fine"
        self._left -= 1
        return "internal error"

    @property
    def is_over(self) -> bool:
        """Have they all failed?"""
        return not self._left


def words_of(case: Case, driver: Driver) -> str:
    """What the driver has said so far."""
    return (case.out / f"words-{case.drivers.index(driver)}.err").read_text(errors="replace")


def is_weights(request: Request) -> bool:
    """Does it ask for weights or an optimizer?"""
    return request.path.endswith(".safetensors")


def traffic(log: list[Request]) -> str:
    """Bytes by who moved them, which way, and of what."""
    moved: Counter[tuple[str, str, str]] = Counter()
    for request in log:
        part = request.path.partition("/tiny/")[2]
        what = (
            "weights"
            if "/checkpoint-" in part
            else "pictures"
            if "/images-" in part
            else "dataset"
            if part.startswith("dataset")
            else "ledger and lists"
        )
        moved[request.who, "up", what] += request.received
        moved[request.who, "down", what] += request.sent
    counts = Counter(request.who for request in log)
    lines = [f"{who} {way} {what} {num / 1e6:.2f} MB" for (who, way, what), num in sorted(moved.items()) if num]
    return "\n".join([*lines, *(f"{who} {num} requests" for who, num in sorted(counts.items()))])
