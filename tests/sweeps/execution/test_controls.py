"""Reference pictures go to the machines that render, and stay what they are.

pytest tests/sweeps/execution/test_controls.py     a second
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evaluation.config import RenderConfig
from sweeps.execution.controls import send_controls
from sweeps.ledger.mirror import MirroredRunFolder
from sweeps.renders import RenderJob
from training.pictures import pixel_digest, read_picture


def test_references_reach_a_machine_that_does_not_have_them(tmp_path: Path) -> None:
    """Two of one name, one exchanged later for another of the same size: the renders' index tells no difference."""
    head, worker = (MirroredRunFolder(tmp_path / who / "run", f"file://{tmp_path}/there") for who in "ab")
    head.dir.mkdir(parents=True)
    place = PngInfo()
    place.add_text("Location", "48.2082, 16.3738")
    originals = [tmp_path / "left" / "mona.png", tmp_path / "right" / "mona.png"]
    for shade in (10, 20):
        for path in originals:
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (shade, 0, 0)).save(path, pnginfo=place)
            shade += 100
        render = RenderConfig(references=originals)
        sent = send_controls(render, head)
        assert sent is not None
        there = [worker.dir / path.relative_to(head.dir) for path in sent.references]
        worker.pull(worker.controls_dir)
        assert [pixel_digest(read_picture(path)) for path in there] == [
            pixel_digest(read_picture(path)) for path in originals
        ]
        assert not any(b"48.2082" in path.read_bytes() for path in there), "nor where they were taken"
        job = RenderJob(render, "base", "a photo", ())
        assert replace(job, render=sent.model_copy(update={"references": there})).index == job.index


def test_without_references_nothing_is_sent(tmp_path: Path) -> None:
    """No folder, no change."""
    folder = MirroredRunFolder(tmp_path / "run", f"file://{tmp_path}/there")
    assert send_controls(None, folder) is None
    assert send_controls(RenderConfig(), folder) == RenderConfig()
    assert not folder.controls_dir.exists()
