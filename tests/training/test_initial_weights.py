"""A LoRA goes on from a file: alone or in a pack it begins as the file, and trains from there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import build_peft_lora
from tests.training.test_adapters import outputs
from tests.training.test_train import assert_same, last, weights
from training.checkpoint import Checkpoint, latest_checkpoint, load_pipeline
from training.config import LoraConfig
from training.dataset import Dataset
from training.layout import LORA_FILE
from training.lora_file import read_lora_file
from training.pack_training import PackTraining
from training.preparation import INITIAL_WEIGHTS, keep_initial_weights
from training.step import start_run
from training.train import train

CPU = torch.device("cpu")
FIRST = LoraConfig(rank=2, lora_alpha=6, learning_rate=1e-2, max_train_steps=3, train_batch_size=2, seed=1)
AGAIN = LoraConfig(rank=4, learning_rate=1e-2, max_train_steps=4, train_batch_size=2, seed=2)


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The run that is gone on from."""
    return last(train(FIRST, dataset, [], out_dir=tmp_path_factory.mktemp("first"), device="cpu"))


@pytest.fixture
def going_on(dataset: Dataset, trained: Checkpoint, tmp_path: Path) -> Dataset:
    """The dataset with the run's LoRA to start from."""
    folder = shutil.copytree(dataset.dir, tmp_path / "dataset")
    keep_initial_weights(trained.dir / LORA_FILE, folder)
    return replace(dataset, dir=folder)


def test_a_file_of_peft_s_is_kept_with_its_config(dataset: Dataset, tmp_path: Path) -> None:
    """Which has its alpha: where trainings look for it, it is read to the same LoRA."""
    file = build_peft_lora(tmp_path / "peft", dataset.base_model, lora_alpha=5)
    keep_initial_weights(file, tmp_path)
    kept = read_lora_file(tmp_path / INITIAL_WEIGHTS, dataset.base_model)
    assert (kept.ranks, kept.alphas) == ((2,), (5.0,))


def unet_output(run: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, words = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 16, generator=generator)
    with torch.no_grad():
        return run.weights.unet.eval()(latents, torch.tensor([500]), words).sample


@pytest.mark.parametrize("options", [{}, {"lora_alpha_ratio": 3.0}, {"use_rslora": True, "lora_alpha": 5.0}])
def test_a_run_begins_as_the_file(options: dict[str, Any], going_on: Dataset, trained: Checkpoint) -> None:
    """At step 0 it computes what the file's model computes, whatever its own rank and scale; and it can train."""
    config = LoraConfig.model_validate({**AGAIN.model_dump(exclude_unset=True), **options})
    before = outputs(load_pipeline(trained, going_on.base_model, device="cpu"))[0]
    base = outputs(load_pipeline(None, going_on.base_model, device="cpu"))[0]
    start = unet_output(start_run(config, going_on, CPU))
    torch.testing.assert_close(start, before, rtol=1e-4, atol=1e-5)
    assert (start - base).abs().max() > 1e-3


def test_alone_or_in_a_pack_it_goes_on_alike(going_on: Dataset, dataset: Dataset, tmp_path: Path) -> None:
    """Losses are the same up to rounding, and others than from nothing."""
    alone: dict[int, float] = {}
    last(train(AGAIN, going_on, [], out_dir=tmp_path / "alone", device="cpu", on_step=alone.__setitem__))
    packed: dict[int, float] = {}
    pack = PackTraining(going_on, "cpu", on_step=lambda _, step, loss: packed.__setitem__(step, loss))
    pack.admit("a", AGAIN, [], out_dir=tmp_path / "pack")
    while pack.names:
        pack.advance()
    assert packed == pytest.approx(alone, rel=1e-4)
    from_nothing: dict[int, float] = {}
    last(train(AGAIN, dataset, [], out_dir=tmp_path / "new", device="cpu", on_step=from_nothing.__setitem__))
    assert from_nothing != pytest.approx(alone, rel=1e-3)


def test_killed_and_resumed_it_does_not_begin_again(going_on: Dataset, tmp_path: Path) -> None:
    """A checkpoint is gone on from, and not the file."""
    whole = last(train(AGAIN, going_on, [2], out_dir=tmp_path / "whole", device="cpu"))
    next(train(AGAIN, going_on, [2], out_dir=tmp_path / "pieces", device="cpu"))
    half = latest_checkpoint(tmp_path / "pieces")
    resumed = last(train(AGAIN, going_on, [2], half, out_dir=tmp_path / "pieces", device="cpu"))
    assert_same(weights(resumed), weights(whole))
