"""What a sweep says on Ray's metrics port, without Ray.

pytest tests/sweeps/execution/test_gauges.py     two seconds
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sweeps.config import ChampionConfig
from sweeps.execution import gauges
from sweeps.execution.gauges import RECENT_STEPS, Gauges, sweep_id
from sweeps.execution.live import Board
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import photos_key
from tests.sweeps.ledger_entries import entry, record
from training.config import SubjectConfig
from training.stats import StepStats

TAGS = {"sweep": "0123abcd"}


class Series(dict[tuple[str, str | None], float]):
    """(gauge, its trial or status) -> the last value."""


@pytest.fixture
def series(monkeypatch: pytest.MonkeyPatch) -> Series:
    """What would be on the metrics port."""
    port = Series()

    class Port:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description
            self._name, self._tag_keys = name, tag_keys

        def set(self, value: float, tags: Mapping[str, str]) -> None:
            assert set(tags) == set(self._tag_keys)
            assert tags["sweep"] == TAGS["sweep"]
            (other,) = {key for key in tags if key != "sweep"} or {"sweep"}
            port[self._name, None if other == "sweep" else tags[other]] = value

    monkeypatch.setattr(gauges, "Gauge", Port)
    return port


def steps(*seconds: float) -> list[StepStats]:
    """Optimizer steps that took so long, memory growing by 100 bytes each."""
    return [
        StepStats(
            step=i + 1, loss=0.1, learning_rate=1e-4, gradient_norm=None, seconds=took, peak_memory_bytes=100 * (i + 1)
        )
        for i, took in enumerate(seconds)
    ]


def test_a_sweep_runs_until_its_driver_ends(series: Series) -> None:
    """Whatever ends it; no trial runs or waits then, and what has ended stays."""
    board = Board("ada", ChampionConfig(), num_planned=4)
    board.put(record("a", entry(400), status="finished"))
    board.put(record("b", entry(200)))
    board.running = {"b"}
    with suppress(KeyboardInterrupt), Gauges(TAGS["sweep"]) as published:
        published.set_sweep(board)
        assert series["sweep_running", None] == 1
        states = {status: value for (name, status), value in series.items() if name == "trials"}
        assert states == {"running": 1, "finished": 1, "stopped": 0, "failed": 0, "waiting": 2}
        assert series["trials_planned", None] == sum(states.values())
        raise KeyboardInterrupt
    assert series["sweep_running", None] == series["trials", "running"] == series["trials", "waiting"] == 0
    assert series["trials", "finished"] == 1


def test_the_best_is_the_champions_and_absent_before_there_is_one(series: Series) -> None:
    """By the rule on every checkpoint; a trial's own series are of its newest."""
    board, published = Board("ada", ChampionConfig(), num_planned=2), Gauges(TAGS["sweep"])
    trial = record("a", entry(200, 0.8), entry(400, 0.9, prompt_alignment=0.1), entry(600, 0.5))
    board.put(trial)
    published.set_scores(trial)
    published.set_sweep(board)
    assert ("best_face_similarity", None) not in series
    board.put(record("base", entry(0, 0.1)))
    published.set_sweep(board)
    assert series["best_face_similarity", None] == 0.8
    assert (series["face_similarity", "a"], series["prompt_alignment", "a"], series["step", "a"]) == (0.5, 0.25, 600)


def test_the_pace_is_that_of_the_newest_steps(series: Series) -> None:
    """Step and peak memory are of the newest one; nothing is said where nothing is known."""
    published = Gauges(TAGS["sweep"])
    published.set_pace("a", [])
    published.set_scores(record("a"))
    assert not series
    published.set_pace("a", steps(*[9.0] * 7, *[0.5] * RECENT_STEPS))
    num_steps = 7 + RECENT_STEPS
    assert series == {
        ("step", "a"): num_steps,
        ("seconds_per_step", "a"): 0.5,
        ("peak_memory_bytes", "a"): 100 * num_steps,
    }


def test_a_sweeps_id_tells_its_name_to_nobody_without_its_photos(photos: Path, tmp_path: Path) -> None:
    """It is the same for every driver of a run, another for another name and for other photos."""

    def id_of(place: str, photos: Path) -> str:
        folder = RunFolder(tmp_path / place)
        folder.dir.mkdir(parents=True)
        subject = SubjectConfig(
            photos=photos, instance_prompt="a photo of sks woman", class_prompt="a photo of a woman"
        )
        folder.claim("photos", photos_key(subject, None))
        return sweep_id(folder)

    fewer = Path(shutil.copytree(photos, tmp_path / "photos"))
    min(fewer.glob("*.png")).unlink()
    ids: list[Any] = [id_of("one/ada", photos), id_of("one/bob", photos), id_of("two/ada", fewer)]
    assert len(set(ids)) == 3
    assert id_of("elsewhere/ada", photos) == ids[0]
