"""A sweep small enough for tests: tiny base model, drawn photos, a face encoder that sees a face in everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from evaluation.drawn_face import DrawnFaceNetwork
from sweeps.execution.cluster import TrialResources
from training.config import METHODS


def build_face_encoder(folder: Path) -> Path:
    """An encoder folder of random weights that finds one face in any picture."""
    folder.mkdir(parents=True)
    settings = {"side": 16, "channels": [4, 4, 4, 4], "embedding_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DrawnFaceNetwork(**settings)
    with torch.no_grad():
        network.find.weight.zero_()
        network.find.bias.copy_(torch.tensor([9.0, 0.2, 0.2, 0.8, 0.8]))
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


def sweep_mapping(base_model: str, photos: Path, clip: str, face_encoder: Path) -> dict[str, Any]:
    """Two methods, four trials of two scoring points, two pictures each; `clip` is a `local-dir:` name."""
    return {
        "name": "tiny",
        "base_model": base_model,
        "subject": {
            "photos": str(photos),
            "instance_prompt": "a photo of sks woman",
            "class_prompt": "a photo of a woman",
            "resolution": 64,
        },
        "methods": {
            "lora": {"rank": {"choices": [1, 2]}, "learning_rate": 1e-3, "max_train_steps": 4, "train_batch_size": 1},
            "dreambooth": {"learning_rate": {"choices": [1e-5, 1e-4]}, "max_train_steps": 4, "train_batch_size": 1},
        },
        "search": {"sampler": "grid"},
        "evaluation": {
            "prompts": ["sks woman in a garden"],
            "images_per_prompt": 2,
            "at_steps": [2, 4],
            "num_inference_steps": 2,
            "face": {"encoder": str(face_encoder)},
            "clip": {"model": clip, "pretrained": None},
        },
        "resources": {"cpus_per_trial": 1, "gpus_per_trial": 0},
    }


def write_sweep(path: Path, mapping: dict[str, Any]) -> Path:
    """Write a sweep file."""
    path.write_text(yaml.safe_dump(mapping))
    return path


ONE_CPU = {method: TrialResources(cpus=1, gpus=0) for method in METHODS}
"""What `check_cluster` would find for a trial that is alone in a test's process."""
