"""When a run's renders are due, by what the sweep asks for now. No torch model is loaded.

pytest tests/sweeps/test_renders.py     a few seconds
"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from evaluation.config import RenderConfig
from sweeps.config import SweepConfig, load_sweep
from sweeps.ledger.folder import RunFolder
from sweeps.renders import INDEX, due_renders
from tests.sweeps.fake_run import build_run
from training.files import write_json


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run whose sweep file asked for no renders."""
    return RunFolder(build_run(tmp_path / "ada", num_trials=4, with_renders=False))


def asking_for(folder: RunFolder, **render: object) -> SweepConfig:
    """The run's sweep, given a render section since."""
    config = load_sweep(folder.sweep_file)
    return config.model_copy(update={"render": RenderConfig(**render)})  # type: ignore[arg-type]


def picture(path: Path, colour: str = "blue") -> Path:
    """A reference picture."""
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def test_a_render_section_added_to_a_finished_run_is_due_at_once(folder: RunFolder) -> None:
    """What the sweep asks for now counts, not what lies in the run folder from the last time."""
    assert due_renders(load_sweep(folder.sweep_file), folder) is None
    job = due_renders(asking_for(folder, references=[str(picture(folder.dir / "a.png"))], top=2), folder)
    assert job is not None
    assert len(job.best) == 2
    assert due_renders(asking_for(folder, references=[]), folder) is None


def test_renders_are_due_until_they_are_there(folder: RunFolder) -> None:
    """Of these trials, these references and these settings; any other ones are due again."""
    references = {name: str(picture(folder.dir / name)) for name in ("a.png", "b.png", "other/a.png")}
    config = asking_for(folder, references=[references["a.png"]])
    job = due_renders(config, folder)
    assert job is not None
    write_json(folder.renders_dir / INDEX, job.index)
    assert due_renders(config, folder) is None
    for changed in (
        {"references": [references["b.png"]]},
        {"references": [references["a.png"], references["other/a.png"]]},
        {"references": [references["a.png"]], "top": 1},
        {"references": [references["a.png"]], "seed": 1},
    ):
        assert due_renders(asking_for(folder, **changed), folder) is not None
    picture(Path(references["a.png"]), colour="red")
    assert due_renders(config, folder) is not None, "the same name, another picture"
    picture(Path(references["a.png"]))
    (folder.renders_dir / INDEX).write_text("{")
    assert due_renders(config, folder) is not None
