"""Gives the trials of this machine the time to save before the machine is taken away.

    python preemption.py aws                  on a spot machine: wait for the notice, two minutes before the end
    python preemption.py gcp                  the same, half a minute before it
    python preemption.py now --seconds 100    the end is certain: what Kubernetes runs before it stops a pod (preStop)

Ray is told that nothing new may start here, and every trial gets SIGTERM, saves a checkpoint and leaves. It runs beside
Ray on a worker, in the same container, and needs Python alone.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

TRIAL = "ray::SweepTrial"
"""Title of a process that trains: alone while it waits, with `.step` or the like while it works."""
POLL_SECONDS = 2.0
AWS_METADATA = "http://169.254.169.254"
GCP_METADATA = "http://metadata.google.internal"

# No proxy of the environment is asked: the metadata service answers this machine alone.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def aws_notice(metadata: str = AWS_METADATA) -> bool:
    """Is this spot instance about to be taken? Version 2 of the metadata service wants a session's token first.

    Raises:
        OSError: the metadata service does not answer.
    """
    session = urllib.request.Request(
        f"{metadata}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    )
    with _open(session, timeout=2) as answer:
        token = answer.read().decode()
    action = urllib.request.Request(
        f"{metadata}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with _open(action, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        if error.code == 404:  # no notice yet, or no spot instance
            return False
        raise


def gcp_notice(metadata: str = GCP_METADATA) -> bool:
    """Has this machine been preempted?

    Raises:
        OSError: the metadata service does not answer.
    """
    preempted = urllib.request.Request(
        f"{metadata}/computeMetadata/v1/instance/preempted", headers={"Metadata-Flavor": "Google"}
    )
    with _open(preempted, timeout=2) as answer:
        return bool(answer.read().decode().strip().upper() == "TRUE")


CLOUDS: dict[str, tuple[Callable[[], bool], float]] = {"aws": (aws_notice, 110), "gcp": (gcp_notice, 25)}
"""Who is asked, and the seconds between notice and end, less some to spare."""


def wait_for(notice: Callable[[], bool], poll_seconds: float = POLL_SECONDS) -> None:
    """Return once the notice is there; a metadata service that does not answer is said once and asked again."""
    silent = False
    while True:
        try:
            if notice():
                return
            silent = False
        except OSError as error:
            if not silent:
                say(f"the metadata service does not answer, asked again: {error}")
            silent = True
        time.sleep(poll_seconds)


def processes(proc: Path = Path("/proc")) -> Iterator[tuple[int, list[str]]]:
    """This user's processes: id and arguments."""
    for folder in proc.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if folder.stat().st_uid == os.getuid():
                yield (
                    int(folder.name),
                    (folder / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0"),
                )
        except (FileNotFoundError, ProcessLookupError):
            continue  # has ended meanwhile


def trials(proc: Path = Path("/proc")) -> set[int]:
    """Process ids of the trials here."""
    return {pid for pid, arguments in processes(proc) if arguments[0] == TRIAL or arguments[0].startswith(f"{TRIAL}.")}


def drain_command(seconds: float, proc: Path = Path("/proc")) -> list[str] | None:
    """What tells Ray that this node will be gone in so many seconds; None where no node runs."""
    for _, arguments in processes(proc):
        if Path(arguments[0]).name == "raylet":
            said = dict(argument.partition("=")[::2] for argument in arguments)
            return [
                *("ray", "drain-node", f"--address={said['--gcs-address']}", f"--node-id={said['--node_id']}"),
                *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the machine is about to be taken away"),
                f"--deadline-remaining-seconds={seconds:.0f}",
            ]
    return None


def see_off(seconds: float, proc: Path = Path("/proc"), poll_seconds: float = 0.5) -> bool:
    """Tell Ray, send every trial SIGTERM once, and wait until they have left; did they, in that time?"""
    deadline = time.monotonic() + seconds
    drain = drain_command(seconds, proc)
    if drain is not None:
        try:
            subprocess.Popen(drain, stdin=subprocess.DEVNULL)  # takes seconds to start: the trials need not wait for it
        except OSError as error:
            say(f"Ray could not be told: {error}")
    told: set[int] = set()
    while left := trials(proc):
        for pid in left - told:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
            say(f"trial in process {pid}: asked to save and leave")
        told |= left
        if time.monotonic() > deadline:
            say(f"{len(left)} trials did not leave in {seconds:.0f} s")
            return False
        time.sleep(poll_seconds)
    say(f"{len(told)} trials have left")
    return True


def say(text: str) -> None:
    """One line with the time, for the log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} dreamsweep: {text}", flush=True)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="See the trials of this machine off before it is taken away.")
    parser.add_argument("when", choices=[*CLOUDS, "now"])
    parser.add_argument("--seconds", type=float, help="from the notice to the end")
    asked = parser.parse_args()
    if asked.when == "now":
        return 0 if see_off(asked.seconds or 100) else 1
    lock = (Path(tempfile.gettempdir()) / f"dreamsweep-preemption-{os.getuid()}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another one watches this machine already")
        return 0
    notice, seconds = CLOUDS[asked.when]
    say(f"watching for the notice of {asked.when}")
    wait_for(notice)
    say("the machine is about to be taken away")
    return 0 if see_off(asked.seconds or seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
