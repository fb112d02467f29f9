"""What a job does before and after the sweep that was sent: models placed, photos kept and taken away. No Ray."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from sweeps.clusters.there import JOB_FILE
from sweeps.clusters.there.folder import SECONDS_TO_START, empty, empty_abandoned, hold
from sweeps.clusters.there.sweep import JOB_CONFIG, differing_versions, keep_here, place_model
from training.errors import UserError


def test_workers_are_not_given_the_photos() -> None:
    """What was sent stays where the driver is; the job keeps its name, by which the dashboard knows the driver."""
    config = {"runtime_env": {"working_dir": "gcs://a.zip", "py_modules": ["gcs://b.zip"]}, "metadata": {"id": "x"}}
    environment = {JOB_CONFIG: json.dumps(config)}
    keep_here(environment)
    kept = json.loads(environment[JOB_CONFIG])
    assert kept == {"runtime_env": {"py_modules": ["gcs://b.zip"]}, "metadata": {"id": "x"}}
    keep_here(without := {})
    assert without == {}


def test_a_model_is_placed_once(tmp_path: Path) -> None:
    """Whole, under its own name; the next sweep finds it there."""
    sent = tmp_path / "sent" / "encoder"
    sent.mkdir(parents=True)
    (sent / "model.safetensors").write_bytes(b"weights")
    there = tmp_path / "runs" / ".models" / "abc" / "encoder"
    place_model(sent, there, tmp_path / "runs")
    assert (there / "model.safetensors").read_bytes() == b"weights"
    before = there.stat().st_ino
    place_model(sent, there, tmp_path / "runs")
    assert there.stat().st_ino == before


def test_a_single_file_is_placed_too(tmp_path: Path) -> None:
    """A base model may be one file."""
    sent = tmp_path / "base.safetensors"
    sent.write_bytes(b"weights")
    there = tmp_path / "runs" / ".models" / "abc" / "base.safetensors"
    place_model(sent, there, tmp_path / "runs")
    assert there.read_bytes() == b"weights"


def test_a_folder_of_runs_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """As the user gave it."""
    (tmp_path / "runs").write_text("a file")
    sent = tmp_path / "base.safetensors"
    sent.write_bytes(b"weights")
    with pytest.raises(UserError, match=f"--out {tmp_path}/runs: must be writable"):
        place_model(sent, tmp_path / "runs" / ".models" / "abc" / "base.safetensors", tmp_path / "runs")


def test_differing_versions_are_named_and_missing_packages_refused() -> None:
    """Our own code was sent, so its version does not count."""
    same = {"python": platform.python_version(), "dreamsweep": "9", "torch": version("torch")}
    assert list(differing_versions(same)) == []
    (said,) = differing_versions({**same, "torch": "1.0"})
    assert "torch" in said
    assert "1.0" in said
    (said,) = differing_versions({**same, "python": "3.9.1"})
    assert "3.9.1" in said
    with pytest.raises(UserError, match="lacks no-such-package"):
        list(differing_versions({**same, "no-such-package": "1"}))


def test_what_was_sent_is_taken_away(tmp_path: Path) -> None:
    """Folders and files; what a link leads to stays."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    folder = tmp_path / "parcel"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "a.png").write_text("a")
    (folder / "link").symlink_to(outside)
    empty(folder)
    assert list(folder.iterdir()) == []
    assert (outside / "mine").is_file()


def test_what_a_killed_job_left_is_taken_away_by_the_next(tmp_path: Path) -> None:
    """Once it must have begun: neither a running job's folder nor one that is about to start, nor anybody else's."""
    for name in ("killed", "running", "starting", "stranger"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.png").write_text("a")
        (tmp_path / name / ("job.json" if name == "stranger" else JOB_FILE)).write_text("{}")
    for name in ("killed", "running"):
        long_ago = (tmp_path / name / JOB_FILE).stat().st_mtime - SECONDS_TO_START - 1
        os.utime(tmp_path / name / JOB_FILE, (long_ago, long_ago))
    with hold(tmp_path / "running"):
        empty_abandoned(tmp_path)
    assert [path.parent.name for path in sorted(tmp_path.glob("*/photo.png"))] == ["running", "starting", "stranger"]
    assert (tmp_path / "running").stat().st_mode & 0o077 == 0


DRIVER = """
import os, sys
from pathlib import Path
from sweeps.clusters.there import sweep
waiting = "import signal, sys; signal.signal(15, lambda *_: sys.exit(1)); print('on', flush=True); signal.pause()"
sys.exit(sweep._run([sys.executable, "-c", waiting], dict(os.environ), Path(sys.argv[1])))
"""


def test_a_job_that_is_stopped_takes_the_photos_away_at_once(tmp_path: Path) -> None:
    """Ray gives it three seconds, and the driver needs longer to end."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("a")
    job = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert job.stdout is not None
    assert job.stdout.readline() == b"on\n"
    job.send_signal(signal.SIGTERM)
    assert job.wait() == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", ["/nowhere/ada"])
def test_a_users_mistake_is_one_line_and_2(tmp_path: Path, run: str) -> None:
    """And what the job was asked does not stay on the cluster's disk."""
    asked = {"task": "shelf", "run": run, "shelf": "shelf", "trial": None, "format": None}
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "parcel"
    folder.mkdir(parents=True)
    (folder / JOB_FILE).write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.clusters.there"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith(f"dreamsweep: a run must be there to be fetched, and the cluster has no folder {run}")
    assert done.stdout.count("\n") == 1
    assert list(folder.iterdir()) == []
