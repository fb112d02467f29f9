"""A subject prepared and encoded with the tiny base model, shared by the tests of this room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import training.batches
import training.methods
import training.pack
import training.stable_diffusion
import training.step
from training.batches import Batch
from training.config import SubjectConfig
from training.dataset import Dataset, encode_dataset, load_dataset
from training.methods import LoraTensors
from training.preparation import prepare_photos
from training.stable_diffusion import load_base_model

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
    return encoded(subject, tiny_base, tmp_path_factory.mktemp("dataset") / "dataset")


def encoded(subject: SubjectConfig, base_model: str, folder: Path) -> Dataset:
    """The subject's dataset for a base model."""
    prepare_photos(subject, folder)
    encode_dataset(folder, base_model, class_images=NUM_CLASS_IMAGES, device="cpu")
    return load_dataset(folder)


@pytest.fixture
def in_float64(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training in double precision throughout, where rounding is no excuse."""
    load_base_model(dataset.base_model)  # before anything is doubled: other tests are given the same one

    def doubled(tensors: LoraTensors) -> LoraTensors:
        text_encoder = tensors.text_encoder
        return LoraTensors(
            {name: tensor.double() for name, tensor in tensors.unet.items()},
            None if text_encoder is None else {name: tensor.double() for name, tensor in text_encoder.items()},
        )

    first_lora, draw_batch, encode = training.pack.first_lora, training.step.draw_batch, training.batches._encode

    def draw(*arguments: object) -> Batch:
        batch = draw_batch(*arguments)
        return Batch(batch.latents.double(), batch.noise.double(), batch.timesteps, batch.prompts)

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(training.stable_diffusion, "TRAINED_DTYPE", torch.float64)
    monkeypatch.setitem(training.methods.FROZEN_DTYPES, "no", torch.float64)
    monkeypatch.setattr(training.pack, "first_lora", lambda *arguments: doubled(first_lora(*arguments)))
    monkeypatch.setattr(training.step, "draw_batch", draw)
    monkeypatch.setattr(training.batches, "_encode", lambda *arguments: encode(*arguments).double())
    training.batches.frozen_prompt_encoder.cache_clear()
    yield
    training.batches.frozen_prompt_encoder.cache_clear()
