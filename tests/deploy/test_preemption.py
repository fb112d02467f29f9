"""Laws of `deploy/preemption.py`: the notice is heard, Ray is told, trials get SIGTERM and their time.

pytest tests/deploy/test_preemption.py     a few seconds; two local HTTP servers stand for the clouds' metadata services
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploy import preemption
from tests.deploy.machine import CLONE


@contextmanager
def metadata(answers: dict[tuple[str, str], tuple[int, str]]) -> Iterator[str]:
    """A metadata service that answers `(method, path)`; like the real ones it refuses who does not know its headers."""
    headers = {
        "PUT": "X-aws-ec2-metadata-token-ttl-seconds",
        "aws": "X-aws-ec2-metadata-token",
        "gcp": "Metadata-Flavor",
    }

    class Service(BaseHTTPRequestHandler):
        def answer(self) -> None:
            cloud = "gcp" if self.path.startswith("/computeMetadata") else "aws"
            needed = headers["PUT" if self.command == "PUT" else cloud]
            status, body = answers.get((self.command, self.path), (404, "")) if needed in self.headers else (403, "")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


TOKEN = ("PUT", "/latest/api/token")
ACTION = ("GET", "/latest/meta-data/spot/instance-action")
PREEMPTED = ("GET", "/computeMetadata/v1/instance/preempted")


def test_aws_says_nothing_until_the_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """404 is no notice; an action is one. A proxy of the environment is not asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    answers = {TOKEN: (200, "session")}
    with metadata(answers) as url:
        assert not preemption.aws_notice(url)
        answers[ACTION] = (200, '{"action": "terminate", "time": "2026-01-01T00:00:00Z"}')
        assert preemption.aws_notice(url)


def test_gcp_says_false_and_then_true() -> None:
    """The flag is a word."""
    answers = {PREEMPTED: (200, "FALSE")}
    with metadata(answers) as url:
        assert not preemption.gcp_notice(url)
        answers[PREEMPTED] = (200, "TRUE")
        assert preemption.gcp_notice(url)


def test_a_silent_metadata_service_is_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    """It is said once, and the notice is still heard."""
    tries = iter([OSError("no route"), OSError("no route"), False, True])

    def notice() -> bool:
        answer = next(tries)
        if isinstance(answer, OSError):
            raise answer
        return answer

    preemption.wait_for(notice, poll_seconds=0)
    assert capsys.readouterr().out.count("does not answer") == 1
    assert next(tries, None) is None


def proc_with(folder: Path, processes: dict[int, list[str]]) -> Path:
    """A `/proc` in which no more runs than this."""
    for pid, arguments in processes.items():
        (folder / str(pid)).mkdir(parents=True)
        (folder / str(pid) / "cmdline").write_bytes("\0".join(arguments).encode() + b"\0\0\0")
    (folder / "self").mkdir(parents=True)
    return folder


def test_only_trials_are_seen_off(tmp_path: Path) -> None:
    """By the title that Ray gives to a trial's process, at work or not; not what merely begins so."""
    proc = proc_with(
        tmp_path,
        {
            1: ["ray::SweepTrial"],
            2: ["ray::SweepTrial.train"],
            3: ["ray::SweepTrialKeeper"],
            4: ["ray::IDLE"],
            5: ["python"],
        },
    )
    assert preemption.trials(proc) == {1, 2}


def test_the_class_of_the_trials_has_that_name() -> None:
    """A renamed class would no longer be heard of its machine's end."""
    from sweeps.execution.trial import SweepTrial

    assert f"ray::{SweepTrial.__name__}" == preemption.TRIAL


def test_ray_is_told_which_node(tmp_path: Path) -> None:
    """The command is one that Ray's own command line takes; nothing is said where no node runs."""
    from ray.scripts.scripts import drain_node

    proc = proc_with(tmp_path, {7: ["/x/raylet/raylet", "--node_id=abc", "--gcs-address=10.0.0.1:6379"]})
    command = preemption.drain_command(110, proc)
    assert command is not None
    assert command[:2] == ["ray", "drain-node"]
    asked = drain_node.make_context("drain-node", command[2:]).params
    assert (asked["address"], asked["node_id"], asked["deadline_remaining_seconds"]) == ("10.0.0.1:6379", "abc", 110)
    assert preemption.drain_command(110, proc_with(tmp_path / "other", {})) is None


TRIAL = """
import signal, sys, time
def save(*_):
    open(sys.argv[1], "w").write("saved")
    {leave}
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True: time.sleep(60)
"""


@pytest.mark.parametrize(("leave", "left"), [("sys.exit()", True), ("pass", False)])
def test_a_trial_gets_one_sigterm_and_its_time(tmp_path: Path, leave: str, left: bool) -> None:
    """It saves and leaves; one that stays is waited for no longer than there is."""
    code = TRIAL.format(leave=leave)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "saved")], stdout=subprocess.PIPE) as trial:
        try:
            assert trial.stdout is not None
            assert trial.stdout.readline() == b"ready\n"
            proc = proc_with(tmp_path / "proc", {trial.pid: ["ray::SweepTrial.step"]})
            if left:  # the kernel takes an ended process out of /proc
                threading.Thread(
                    target=lambda: (trial.wait(), (proc / f"{trial.pid}/cmdline").unlink()), daemon=True
                ).start()
            assert preemption.see_off(20 if left else 0.5, proc, poll_seconds=0.05) is left
            assert (tmp_path / "saved").read_text() == "saved"
        finally:
            trial.kill()


def test_one_watches_a_machine(tmp_path: Path) -> None:
    """A second `ray up` starts no second one."""
    with (tmp_path / f"dreamsweep-preemption-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.run(
            [sys.executable, CLONE / "deploy/preemption.py", "aws"],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert second.returncode == 0
    assert "another one watches this machine already" in second.stdout


def test_it_needs_nothing_but_python(tmp_path: Path) -> None:
    """It starts in the container before anything of dreamsweep is imported."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", CLONE / "deploy/preemption.py", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
