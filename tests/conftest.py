"""Fixtures that all rooms share: a tiny base model and drawn photos, offline and on one thread."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a diffusers folder in SD1.5's layout with small random weights; never to be changed by a test."""
    from tests.tiny_models import build_pipeline

    return str(build_pipeline(tmp_path_factory.mktemp("base") / "tiny-sd"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of six distinct drawn pictures, 96x80 px, jpg and png."""
    from tests.tiny_models import draw_photos

    return draw_photos(tmp_path_factory.mktemp("subject") / "photos")
