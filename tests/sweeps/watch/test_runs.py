"""Laws of watched run folders: what a look costs, and what is fetched.

pytest tests/sweeps/watch/test_runs.py     a second
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import yaml

from sweeps.ledger.mirror import open_run
from sweeps.report.pictures import THUMBNAIL_SIDE
from sweeps.watch import runs as runs_module
from sweeps.watch.runs import SECONDS_BETWEEN_LOOKS, SHARE_OF_A_CORE, Latest, WatchedRun
from sweeps.watch.thumbnails import Thumbnails
from tests.sweeps.fake_run import build_run


def test_one_makes_and_the_others_get_what_was_there() -> None:
    """Nobody waits for what is being made anew, and nothing is made twice."""
    latest = Latest[str]()
    assert latest.get(1, lambda: "first") == "first"
    assert latest.get(1, lambda: pytest.fail("it is there")) == "first"
    begun, may_end = threading.Event(), threading.Event()

    def slowly() -> str:
        begun.set()
        assert may_end.wait(20)
        return "second"

    maker = threading.Thread(target=latest.get, args=(2, slowly))
    maker.start()
    assert begun.wait(20)
    assert latest.get(2, lambda: pytest.fail("another makes it")) == "first"
    may_end.set()
    maker.join()
    assert latest.get(2, lambda: pytest.fail("it is there")) == "second"


def test_what_cannot_be_made_is_tried_again() -> None:
    """An error is its caller's alone."""
    latest = Latest[int]()
    with pytest.raises(ZeroDivisionError):
        latest.get(1, lambda: 1 // 0)
    assert latest.get(1, lambda: 1) == 1


def test_looking_takes_a_fifth_of_a_core_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer a page takes to make, the more seldom its files are looked at; never more than once a second."""
    time, looks = [0.0], []
    read_stamps = runs_module.read_stamps
    monkeypatch.setattr(runs_module, "read_stamps", lambda folder: (looks.append(time[0]), read_stamps(folder))[1])

    def render(_: object) -> str:
        time[0] += 2.0
        return "made in two seconds"

    monkeypatch.setattr(runs_module, "render_live_content", render)
    run = WatchedRun("ada", build_run(tmp_path / "ada", num_trials=1, images_per_prompt=1), now=lambda: time[0])
    for tick in range(400):
        (tmp_path / "ada" / "sweep.yaml").touch()
        run.content()
        time[0] = max(time[0], tick * 0.1)
    spent = 2.0 * (len(looks) - 1)
    assert 3 <= len(looks) <= time[0] / SECONDS_BETWEEN_LOOKS
    assert spent <= SHARE_OF_A_CORE * 1.5 * time[0]


def test_pictures_that_lie_in_the_storage_alone_are_fetched(tmp_path: Path) -> None:
    """A driver's machine has the scores of other machines' trials, and their pictures only when somebody looks."""
    storage = f"file://{tmp_path / 'there'}"
    run_dir = build_run(tmp_path / "ada", num_trials=1, images_per_prompt=1, with_renders=False)
    sweep = yaml.safe_load((run_dir / "sweep.yaml").read_text())
    (run_dir / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "storage": storage}))
    folder = open_run(run_dir, storage)
    folder.push(folder.trials_dir)
    time = [0.0]
    pushed = {str(path.relative_to(run_dir)) for path in run_dir.rglob("images-*")}
    for images in run_dir.glob("trials/*/images-*"):
        shutil.rmtree(images)
    run = WatchedRun("ada", run_dir, now=lambda: time[0])
    run.content()
    assert run._fetching is not None
    run._fetching.join()
    time[0] += 1
    assert run.content().content.count(b"no picture") == 0
    assert run.content().content.count(b"<img") > 0
    assert {str(path.relative_to(run_dir)) for path in run_dir.rglob("images-*")} == pushed


def test_a_storage_that_is_away_leaves_the_page(tmp_path: Path) -> None:
    """Its scores are here; the pictures are asked for again after a while."""
    run_dir = build_run(tmp_path / "ada", num_trials=1, images_per_prompt=1)
    sweep = yaml.safe_load((run_dir / "sweep.yaml").read_text())
    (run_dir / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "storage": "nosuch://place"}))
    shutil.rmtree(next(run_dir.glob("trials/lora*/images-800")))
    run = WatchedRun("ada", run_dir, now=lambda: 0.0)
    assert b"lora" in run.content().content
    assert run._fetching is not None
    run._fetching.join()
    assert run._next_fetch > 0


def test_thumbnails_are_kept_while_there_is_room(tmp_path: Path) -> None:
    """The ones asked for last; a picture made again under its name is another picture."""
    run_dir = build_run(tmp_path / "ada", num_trials=1, images_per_prompt=2)
    first, second = sorted((run_dir / "trials" / "base" / "images-0").iterdir())[:2]
    thumbnails = Thumbnails(room=10_000_000)
    made = thumbnails.get(first, THUMBNAIL_SIDE)
    assert made is not None
    assert thumbnails.get(first, THUMBNAIL_SIDE) is made
    assert thumbnails.num_bytes == len(made[1])
    first.write_bytes(second.read_bytes() + b"\0")
    again = thumbnails.get(first, THUMBNAIL_SIDE)
    assert again is not None
    assert again[1] != made[1]
    small = Thumbnails(room=len(made[1]))
    for path in (first, second, first):
        assert small.get(path, THUMBNAIL_SIDE) is not None
        assert small.num_bytes <= len(made[1])
    assert thumbnails.get(tmp_path / "nowhere.png", None) is None
