"""The demo's own sweep file, shortened, through Ray with the trained family: it finds something, and the same twice.

About two minutes on two idle cores: pytest tests/examples/test_demo.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.config import load_sweep
from sweeps.demo import demo_sweep_file
from sweeps.export.export import export_checkpoint
from sweeps.report.page import write_report
from sweeps.results.results import Results, read_results

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY_CPUS = 1

SHORTER = [
    "methods.lora.rank={choices: [1, 16]}",
    "methods.lora.learning_rate=4e-3",
    "methods.lora.max_train_steps=40",
    "methods.dreambooth.learning_rate=1e-4",
    "methods.dreambooth.max_train_steps=40",
    "evaluation.at_steps=[40]",
    "confirm.finalists=1",
    "confirm.prompts=[photo of sks person wearing a blue suit]",
    "render.num_inference_steps=2",
]
"""Three of the demo's trials, up to their first scoring, and the best one's settings with two other seeds.

What is looked at of the renders is that they are there, and of the finalist that it comes out the same.
"""


@pytest.fixture(scope="module")
def run_dir(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep, run once with its renders."""
    return run(tmp_path_factory.mktemp("demo"))


def run(out: Path, *overrides: str) -> Path:
    from sweeps.execution.run import run_sweep

    return run_sweep(load_sweep(demo_sweep_file(), [*SHORTER, *overrides]), out)


def without_times(results: Results) -> list[dict[str, object]]:
    """The leaderboard but for how long each trial took."""
    return [{name: value for name, value in row.as_dict().items() if name != "seconds"} for row in results.rows]


def test_the_demo_finds_that_training_brings_likeness(run_dir: Path) -> None:
    """The best trial is far above the base model's interval, a higher rank above a lower one; faces are found."""
    results = read_results(run_dir)
    assert results.num_by_status == {"finished": 3}
    assert results.base is not None
    assert results.base.face_similarity_interval is not None
    trained = [row for row in results.rows if not row.is_base]
    assert max(row.face_similarity for row in trained) > results.base.face_similarity_interval.high + 0.1
    assert results.champion.row in trained
    assert all(row.num_faces >= 0.9 * row.num_images for row in results.rows)
    likeness = {row.rank: row.face_similarity for row in trained}
    assert likeness[16] > likeness[1]


def test_the_demo_leaves_pictures_a_report_and_an_export(run_dir: Path, tmp_path: Path) -> None:
    """What `dreamsweep demo` promises to open is there, with renders of all three references."""
    report = write_report(run_dir).read_text()
    assert "data:image/" in report
    assert len(list((run_dir / "renders").rglob("*.png"))) >= 3
    assert export_checkpoint(run_dir, tmp_path / "diffusers").exists()


def test_the_demo_is_deterministic_on_cpu(run_dir: Path, tmp_path: Path) -> None:
    """A second run in another folder has the same leaderboard to the last digit."""
    again = run(tmp_path, "render=null")
    assert without_times(read_results(again)) == without_times(read_results(run_dir))
