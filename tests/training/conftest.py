"""A subject prepared and encoded with the tiny base model, shared by the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import SubjectConfig
from training.dataset import Dataset, encode_dataset, load_dataset, prepare_photos

NUM_CLASS_IMAGES = 4


@pytest.fixture(scope="session")
def subject(photos: Path) -> SubjectConfig:
    return SubjectConfig(
        photos=photos,
        instance_prompt="a photo of sks woman",
        class_prompt="a photo of a woman",
        resolution=64,
        random_flip=True,
    )


@pytest.fixture(scope="session")
def dataset(subject: SubjectConfig, tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six photos and their mirror images, four class pictures, 64 px."""
    folder = tmp_path_factory.mktemp("dataset") / "dataset"
    prepare_photos(subject, folder)
    encode_dataset(folder, tiny_base, class_images=NUM_CLASS_IMAGES, device="cpu")
    return load_dataset(folder)
