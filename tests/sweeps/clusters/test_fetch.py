"""What comes back from a cluster: report, ledger and weights, whole and checked; never photos. No Ray, no network.

pytest tests/sweeps/clusters/test_fetch.py     a few seconds
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from sweeps.clusters import fetch
from sweeps.clusters.fetch import MARKER, fetch_run, files_in, run_on_cluster
from sweeps.clusters.there.shelf import put_on_shelf
from sweeps.results.results import read_results
from tests.sweeps.fake_run import build_run
from training.errors import UserError
from training.manifest import write_manifest

CANARY = b"a photo of the person"


class LocalDashboard:
    """A cluster's log folder that lies on this disk."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.forgotten: list[str] = []
        self.spoil: Callable[[str, bytes], bytes] = lambda _name, content: content

    def wait(self, _job: str, until: Callable[[Any], bool]) -> Any:
        """The job runs, and is ready."""
        details = SimpleNamespace(status=JobStatus.RUNNING, driver_node_id="head")
        assert until(details)
        return details

    def has_file(self, _node_id: str, name: str) -> bool:
        """Is it there?"""
        return (self.logs / name).is_file()

    def read_file(self, _node_id: str, name: str) -> bytes:
        """Whole."""
        return (self.logs / name).read_bytes()

    def stream_file(self, _node_id: str, name: str) -> Iterator[bytes]:
        """In two parts, and as it may have become on the way."""
        content = self.spoil(name, (self.logs / name).read_bytes())
        yield content[:1000]
        yield content[1000:]

    def stop_and_forget(self, job: str) -> None:
        """It has been told."""
        self.forgotten.append(job)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder on the cluster, with photos, weights and a training state."""
    folder = build_run(tmp_path / "cluster" / "ada", num_trials=3)
    (folder / "dataset" / "photos").mkdir(parents=True)
    (folder / "dataset" / "photos" / "0.png").write_bytes(CANARY)
    (folder / "controls").mkdir()
    (folder / "controls" / "pose.png").write_bytes(CANARY)
    champion = read_results(folder).champion.row
    assert champion is not None
    assert champion.checkpoint is not None
    checkpoint = folder / champion.checkpoint
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "pytorch_lora_weights.safetensors").write_bytes(bytes(range(256)) * 64)
    write_manifest(checkpoint)
    (checkpoint / "training_state.safetensors").write_bytes(b"twice the weights")
    return folder


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalDashboard:
    """Its dashboard."""
    logs = tmp_path / "logs"
    logs.mkdir()

    def start(_dashboard: Any, _job: str, task: str, asked: Mapping[str, Any], _folder: Path, _metadata: Any) -> None:
        assert task == "shelf"
        put_on_shelf(asked, logs / asked["shelf"], tmp_path / asked["shelf"])

    monkeypatch.setattr(fetch, "start_there", start)
    return LocalDashboard(logs)


def test_what_comes_is_a_run_folder_that_can_be_read(cluster: LocalDashboard, run: Path, tmp_path: Path) -> None:
    """Leaderboard and champion are those of the cluster, the weights are there byte for byte."""
    fetched = fetch_run(cluster, str(run), tmp_path / "here")
    there, here = read_results(run), read_results(tmp_path / "here")
    assert [row.as_dict() for row in here.rows] == [row.as_dict() for row in there.rows]
    champion = there.champion.row
    assert champion is not None
    assert champion.trial in fetched.what
    for name in ("pytorch_lora_weights.safetensors", "MANIFEST.json"):
        file = Path(str(champion.checkpoint)) / name
        assert (tmp_path / "here" / file).read_bytes() == (run / file).read_bytes()
    assert (tmp_path / "here" / "report.html").is_file()
    assert list((tmp_path / "here" / "renders").rglob("*.png"))


def test_photos_and_training_states_stay_there(cluster: LocalDashboard, run: Path, tmp_path: Path) -> None:
    """Nothing of `dataset/` or `controls/`, and nothing that only going on would need."""
    fetch_run(cluster, str(run), tmp_path / "here")
    came = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert not [path for path in came if CANARY in path.read_bytes()]
    assert not [path for path in came if path.name == "training_state.safetensors"]
    assert (tmp_path / "here").stat().st_mode & 0o077 == 0


def test_a_file_that_changed_on_the_way_is_not_taken(cluster: LocalDashboard, run: Path, tmp_path: Path) -> None:
    """A flipped bit is found, the fetch is tried anew, and in the end nothing is there and the job is forgotten."""
    cluster.spoil = lambda _name, content: content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(UserError, match="does not come as it was laid out"):
        fetch_run(cluster, str(run), tmp_path / "here")
    assert not (tmp_path / "here").exists()
    assert not list(tmp_path.glob(".here*"))
    assert len(cluster.forgotten) == fetch.ATTEMPTS


def test_a_file_that_is_cut_short_is_not_taken(cluster: LocalDashboard, run: Path, tmp_path: Path) -> None:
    """A proxy that ends an answer early leaves a file too short."""
    cluster.spoil = lambda _name, content: content[: len(content) // 2]
    with pytest.raises(UserError, match="does not come as it was laid out"):
        fetch_run(cluster, str(run), tmp_path / "here")


def test_only_an_earlier_fetch_is_replaced(cluster: LocalDashboard, run: Path, tmp_path: Path) -> None:
    """The same fetch again is fine; a folder with anything else in it is refused before anything is asked for."""
    fetch_run(cluster, str(run), tmp_path / "here")
    fetch_run(cluster, str(run), tmp_path / "here")
    (tmp_path / "here" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"found 'mine\.txt'"):
        fetch_run(cluster, str(run), tmp_path / "here")
    assert len(cluster.forgotten) == 2


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "a/../../b", "a//b", "a\\b", "", "./a", MARKER])
def test_no_path_leaves_the_folder(path: str) -> None:
    """Whatever a manifest says."""
    with pytest.raises(UserError, match="path of its own inside the run"):
        files_in({"files": [{"path": path, "size": 1, "sha256": "0"}]})


def test_a_path_stands_once() -> None:
    """Two files of one name would be one."""
    entry = {"path": "a", "size": 1, "sha256": "0"}
    with pytest.raises(UserError, match="path of its own"):
        files_in({"files": [entry, entry]})


def test_a_run_without_champion_is_fetched_without_weights(cluster: LocalDashboard, tmp_path: Path) -> None:
    """What can be looked at comes, and that there are no weights is said."""
    run = build_run(tmp_path / "cluster" / "ada", num_trials=2, num_failed=2)
    (run / "results.csv").unlink(missing_ok=True)
    fetched = fetch_run(cluster, str(run), tmp_path / "here")
    assert fetched.what == "no weights"
    assert any("no champion" in remark for remark in fetched.remarks)


def test_no_such_run_and_no_such_trial_are_named(cluster: LocalDashboard, run: Path, tmp_path: Path) -> None:
    """By the folder and the trial that were asked for."""
    with pytest.raises(UserError, match="no folder /nowhere/ada"):
        fetch_run(cluster, "/nowhere/ada", tmp_path / "here")
    with pytest.raises(UserError, match="'lora_r9'"):
        fetch_run(cluster, str(run), tmp_path / "here", trial="lora_r9")


def test_links_alone_lie_on_the_shelf(cluster: LocalDashboard, run: Path, tmp_path: Path) -> None:
    """Nothing is copied into Ray's log folder, which other users of the machine may read."""
    fetch_run(cluster, str(run), tmp_path / "here")
    (shelf,) = cluster.logs.iterdir()
    assert shelf.stat().st_mode & 0o077 == 0
    assert {path.name for path in shelf.iterdir() if not path.is_symlink()} == {"manifest.json"}
    assert json.loads((shelf / "manifest.json").read_text())["files"]


@pytest.mark.parametrize(
    ("run", "folder"), [("ada", "/mnt/runs/ada"), ("/data/x/ada", "/data/x/ada"), ("/data/x/ada/", "/data/x/ada")]
)
def test_a_run_is_named_or_a_folder_there(run: str, folder: str) -> None:
    """A name lies in the folder of runs."""
    assert run_on_cluster(run, "/mnt/runs") == folder


@pytest.mark.parametrize("run", ["../ada", "a/b", "", "/", "/mnt/../etc", "ada\n", "~/ada"])
def test_other_runs_are_refused(run: str) -> None:
    """What is neither a name nor an absolute path that stays where it is."""
    with pytest.raises(UserError, match="RUN must be"):
        run_on_cluster(run, "/mnt/runs")
