"""The three verbs against a real cluster of three nodes that asks for a token, each called as a user calls it.

pytest tests/sweeps/clusters/test_token_cluster.py     three minutes
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from sweeps.ledger.folder import RunFolder
from tests.sweeps.tiny_sweep import build_face_encoder, sweep_mapping, write_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
NAME = "zoecanary"
PROMPT = "sks woman beside a turquoise lighthouse"


@dataclass(frozen=True)
class Cluster:
    """Where it is, the ids of its nodes that hold trials, and the environment of whoever has its token."""

    dashboard: str
    session: Path
    workers: frozenset[str]
    environment: dict[str, str]

    @property
    def token(self) -> str:
        """What must stand nowhere."""
        return self.environment["RAY_AUTH_TOKEN"]

    def ask(self, path: str, method: str = "GET", token: str | None = None) -> Any:
        """The dashboard's answer."""
        said = {"Authorization": f"Bearer {token or self.token}"}
        request = urllib.request.Request(f"{self.dashboard}{path}", headers=said, method=method)  # noqa: S310
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return json.load(answer)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and two workers, in a process that ends with the tests."""
    short = Path(tempfile.mkdtemp(prefix="ds"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.sweeps.clusters.token_cluster"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "RAY_TMPDIR": str(short)},
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = json.loads(process.stdout.readline())
        yield Cluster(said["dashboard"], Path(said["session"]), frozenset(said["workers"]), environment)
    finally:
        process.stdin.close()
        process.wait()
        shutil.rmtree(short, ignore_errors=True)


@pytest.fixture(scope="module")
def desk(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: str, tiny_clip: str, photos: Path
) -> tuple[Path, dict[str, Any]]:
    """A laptop's folder of a sweep, and what is in its file."""
    folder = tmp_path_factory.mktemp("deskcanary")
    (folder / "photos").mkdir()
    for number, photo in enumerate(sorted(photos.iterdir())):
        shutil.copyfile(photo, folder / "photos" / f"holidaycanary_{number}{photo.suffix}")
    mapping = sweep_mapping(tiny_base, folder / "photos", tiny_clip, build_face_encoder(folder / "face"))
    evaluation = {**mapping["evaluation"], "prompts": [PROMPT]}
    mapping = {**mapping, "name": NAME, "evaluation": evaluation}
    mapping["subject"] = {**mapping["subject"], "photos": "photos"}
    return folder, mapping


def dreamsweep(cluster: Cluster, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Call the command on the laptop: from another folder, with the token in the environment."""
    command = [sys.executable, "-m", "sweeps", *map(str, arguments), "--address", cluster.dashboard]
    return subprocess.run(command, capture_output=True, text=True, env=cluster.environment, cwd=cwd, check=False)  # noqa: S603


def wait_for_end(cluster: Cluster, job: str, deadline_seconds: float = 120) -> str:
    """A job's last status."""
    give_up = time.monotonic() + deadline_seconds
    while (status := cluster.ask(f"/api/jobs/{job}")["status"]) in ("PENDING", "RUNNING"):
        assert time.monotonic() < give_up
        time.sleep(0.5)  # between questions: nothing announces it
    return str(status)


def sent_files(cluster: Cluster) -> list[Path]:
    """Files that lie in what jobs were sent, their folders apart."""
    parcels = [path for path in (cluster.session / "runtime_resources/working_dir_files").iterdir() if path.is_dir()]
    return [path for parcel in parcels for path in parcel.rglob("*") if path.is_file()]


def test_a_sweep_goes_there_and_comes_back(cluster: Cluster, desk: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Submitted, found to run, stopped, gone on with, followed to its end, and fetched: the bytes are the cluster's.

    Its trials ran on both workers and none on the head, under their own names.
    """
    folder, mapping = desk
    sweep, out = write_sweep(folder / "sweep.yaml", mapping), tmp_path / "runs"

    begun = dreamsweep(cluster, "submit", sweep, "--out", out, cwd=tmp_path)
    assert begun.returncode == 0, begun.stderr
    job = re.search(r"submitted (dreamsweep-\S+)", begun.stdout)
    assert job is not None
    twice = dreamsweep(cluster, "submit", sweep, "--out", out, cwd=tmp_path)
    assert twice.returncode == 2
    assert f"by job {job[1]}" in twice.stderr
    while "preparing the photos" not in cluster.ask(f"/api/jobs/{job[1]}/logs")["logs"]:
        time.sleep(0.5)  # between questions: it must hold the run before it is stopped
    cluster.ask(f"/api/jobs/{job[1]}/stop", "POST")
    wait_for_end(cluster, job[1])

    done = dreamsweep(cluster, "submit", sweep, "--out", out, "--follow", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{NAME}: 4 finished; best" in done.stdout
    assert "[4/4]" in done.stdout
    identity = RunFolder(out / NAME).identity()

    again = dreamsweep(cluster, "submit", sweep, "--out", out, "--follow", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "4 trials planned" not in again.stdout  # there was nothing left to do
    assert RunFolder(out / NAME).identity() == identity

    fetched = dreamsweep(cluster, "fetch", NAME, tmp_path / "here", "--out", out, cwd=tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    came = {path.relative_to(tmp_path / "here"): path for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert len([name for name in came if name.suffix == ".safetensors"]) == 1
    for name, path in came.items():
        if name.name != "fetched.json":
            assert path.read_bytes() == (out / NAME / name).read_bytes(), name

    actors = cluster.ask("/api/v0/actors?detail=1")["data"]["result"]["result"]
    trials = [actor for actor in actors if actor["class_name"] == "SweepTrial"]
    assert {actor["node_id"] for actor in trials} == cluster.workers
    assert {actor["repr_name"] for actor in trials} >= {"lora_r1_lr1e-3", "dreambooth_lr1e-5"}
    assert not sent_files(cluster)
    assert not list((cluster.session / "logs").glob("dreamsweep-fetch-*"))
    _nothing_is_told(cluster, folder)


def _nothing_is_told(cluster: Cluster, desk: Path) -> None:
    """The list of jobs names nobody; no log has the token, a prompt, or whence the photos came."""
    listed = json.dumps(cluster.ask("/api/jobs/"))
    for secret in (cluster.token, NAME, PROMPT, "holidaycanary", str(desk)):
        assert secret not in listed
    told = [path for path in (cluster.session / "logs").rglob("*") if path.is_file()]
    assert len(told) > 10
    for secret in (cluster.token, PROMPT, "holidaycanary", str(desk / "photos")):
        assert not [path for path in told if secret.encode() in path.read_bytes()], secret


def test_what_the_cluster_lacks_ends_with_2(
    cluster: Cluster, desk: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A base model that is not there either is named by the job, and its code is the command's."""
    folder, mapping = desk
    sweep = write_sweep(folder / "away.yaml", {**mapping, "name": "away", "base_model": "/nowhere/sd15"})
    done = dreamsweep(cluster, "submit", sweep, "--out", tmp_path / "runs", "--follow", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "dreamsweep: base_model: " in done.stdout
    assert "Traceback" not in done.stdout
    assert not sent_files(cluster)


def test_the_doctor_looks_at_every_node(cluster: Cluster, desk: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """All is well but what this machine's disk may lack, nothing is left behind, and the token is asked for."""
    folder, mapping = desk
    sweep = write_sweep(folder / "sweep.yaml", mapping)
    done = dreamsweep(cluster, "doctor", "--out", tmp_path / "runs", "--sweep", sweep, cwd=tmp_path)
    lines = done.stdout.splitlines()
    ill = [line for line in lines if not line.startswith("ok")]
    assert all("runs" in line and "free" in line for line in ill), done.stdout + done.stderr
    assert done.returncode == (1 if ill else 0)
    for said in ("token       asked for", "machines    3 up, 2 CPUs", "all see it", "within 5 s", "on all 2 machines"):
        assert any(said in line for line in lines), (said, done.stdout)
    assert not (tmp_path / "runs").exists()
    assert not sent_files(cluster)
    with pytest.raises(HTTPError, match="403"):
        cluster.ask("/api/jobs/", token="wrong")  # noqa: S106
