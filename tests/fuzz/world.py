"""A small valid sweep and a finished run for the inputs to spoil: files of a few kilobytes, no model is loaded."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.laws import World
from tests.sweeps.fake_run import build_run
from tests.tiny_models import build_clip, build_pipeline, draw_photos


def build_world(folder: Path) -> World:
    """Models, photos and a run in `folder`, and an empty folder to put inputs into."""
    base = build_pipeline(folder / "base")
    clip = build_clip(folder / "clip")
    photos = draw_photos(folder / "photos")
    (folder / "inputs").mkdir()
    sweep = {
        "name": "ada",
        "base_model": str(base),
        "subject": {
            "photos": str(photos),
            "instance_prompt": "a photo of sks woman",
            "class_prompt": "a photo of a woman",
            "resolution": 64,
        },
        "methods": {
            "lora": {"rank": {"choices": [2, 4]}, "learning_rate": 1e-4, "max_train_steps": 8},
            "dreambooth": {"learning_rate": {"low": 1e-6, "high": 1e-4, "step": 1e-5}, "max_train_steps": 8},
        },
        "search": {"sampler": "grid"},
        "evaluation": {
            "prompts": ["sks woman in a garden"],
            "at_steps": [4, 8],
            "face": {"encoder": "dlib"},
            "clip": {"model": f"local-dir:{clip}", "pretrained": None},
        },
    }
    run = build_run(folder / "inputs" / "run", num_trials=3, at_steps=(4, 8), images_per_prompt=1, with_renders=False)
    return World(folder / "inputs", sweep, run)
