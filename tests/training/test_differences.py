"""What the same settings do otherwise than in diffusers' scripts: each written difference is there to be seen."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize
from transformers import CLIPTextModel

from benchmarks.trainings import DEMO, PROMPT
from tests.training import test_loss, test_train
from training.batches import draw_batch
from training.config import (
    DIFFERENCES_FROM_DIFFUSERS,
    DIFFERENCES_IN_BEHAVIOUR,
    DreamBoothConfig,
    LoraConfig,
    SubjectConfig,
)
from training.dataset import Dataset, load_prepared_photos
from training.methods import copy_for_training
from training.pictures import read_picture
from training.preparation import prepare_photos
from training.stats import STATS_FILE, read_stats
from training.step import micro_step_inputs, micro_step_loss, start_run
from training.train import train

CPU = torch.device("cpu")

HELD_BY = {
    "train_batch_size": "test_batches_run_on_over_an_epochs_end",
    "gradient_accumulation_steps": "test_a_step_has_all_of_its_micro_steps_where_accelerate_has_fewer",
    "loss": "test_the_loss_of_a_step_is_the_mean_of_its_micro_steps",
    "train_text_encoder": "test_a_text_encoder_of_half_precision_trains_in_float32",
    "mixed_precision": "test_small_steps_move_a_lora_under_bf16",
    "snr_gamma": "test_min_snr_looks_at_the_instance_half_alone",
}
"""The test of each difference, here or in a module beside."""


def test_every_written_difference_is_held_by_a_test() -> None:
    """None is claimed only, and none is held and unwritten."""
    assert HELD_BY.keys() == DIFFERENCES_IN_BEHAVIOUR.keys()
    modules: list[ModuleType | None] = [inspect.getmodule(test_every_written_difference_is_held_by_a_test)]
    names = {name for module in [*modules, test_train, test_loss] for name in vars(module)}
    assert set(HELD_BY.values()) <= names


def times_shown(dataset: Dataset, config: LoraConfig, micro_steps: range) -> list[int]:
    """How often each photo stands in these batches; its first latent tells it from the others."""
    batches = [draw_batch(config, dataset, micro_step, 1000) for micro_step in micro_steps]
    latents = torch.cat([batch.latents for batch in batches]).flatten(1)
    nearest = torch.cdist(latents, dataset.latents.mean.flatten(1)).argmin(dim=1)
    return torch.bincount(nearest, minlength=len(dataset.repeats)).tolist()


@pytest.fixture
def unmirrored(dataset: Dataset) -> Dataset:
    """Six photos, as they are, each with latents far from the others'."""
    latents = dataset.latents
    shift = 100.0 * torch.arange(6.0)[:, None, None, None]
    far = type(latents)(latents.mean + shift, latents.std)
    return Dataset(**{**vars(dataset), "latents": far, "flipped_latents": None})


def test_batches_run_on_over_an_epochs_end(unmirrored: Dataset) -> None:
    """Three batches of four are two epochs of six photos; the second batch is whole, and of both epochs."""
    config = LoraConfig(train_batch_size=4)
    assert [sum(times_shown(unmirrored, config, range(step, step + 1))) for step in range(3)] == [4, 4, 4]
    assert times_shown(unmirrored, config, range(3)) == [2] * 6


def test_a_step_has_all_of_its_micro_steps_where_accelerate_has_fewer(unmirrored: Dataset) -> None:
    """Of six photos, four accumulated: three steps show each photo twice. Accelerate's show four, two, four, two."""
    config = LoraConfig(train_batch_size=1, gradient_accumulation_steps=4)
    assert times_shown(unmirrored, config, range(12)) == [2] * 6

    accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
    weight = torch.nn.Linear(1, 1, bias=False)
    model, loader = accelerator.prepare(weight, DataLoader(torch.ones(6, 1), batch_size=1))
    micro_steps, gradients = [0], []
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(batch).sum())
                micro_steps[-1] += 1
                if accelerator.sync_gradients:
                    gradients.append(weight.weight.grad.item())
                    weight.weight.grad = None
                    micro_steps.append(0)
    assert micro_steps == [4, 2, 4, 2, 0]
    assert gradients == [1.0, 0.5, 1.0, 0.5]


def test_the_loss_of_a_step_is_the_mean_of_its_micro_steps(dataset: Dataset, tmp_path: Path) -> None:
    """Not the last one's."""
    config = LoraConfig(train_batch_size=1, gradient_accumulation_steps=3, max_train_steps=1, seed=5)
    for _ in train(config, dataset, (), out_dir=tmp_path, device=CPU):
        pass
    run = start_run(config, dataset, CPU)
    losses = []
    for micro_step in run.micro_steps:
        inputs = micro_step_inputs(run, micro_step)
        prediction = run.weights.unet(inputs.noisy_latents, inputs.timesteps, inputs.conditioning).sample
        losses.append(micro_step_loss(run, prediction, inputs).item())
    (step,) = read_stats(tmp_path / STATS_FILE)
    assert step.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert step.loss != pytest.approx(losses[-1], rel=1e-2)


def test_a_text_encoder_of_half_precision_trains_in_float32(tiny_base: str, tmp_path: Path) -> None:
    """Transformers loads it as it is stored, in half precision, which the full script then refuses."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    CLIPTextModel.from_pretrained(base / "text_encoder").half().save_pretrained(base / "text_encoder")
    assert CLIPTextModel.from_pretrained(base / "text_encoder").dtype == torch.float16
    modules = copy_for_training(DreamBoothConfig(train_text_encoder=True), str(base), CPU)
    assert modules.text_encoder is not None
    assert {parameter.dtype for parameter in modules.parameters()} == {torch.float32}
    (file,) = (base / "text_encoder").glob("*.safetensors")
    stored = {name: tensor.float() for name, tensor in load_file(file).items()}
    trained = modules.text_encoder.state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in stored.items())


def test_resizing_is_the_lora_scripts_and_not_the_full_ones(tmp_path: Path) -> None:
    """The demo's photos, fourfold smaller: as torchvision's lanczos to the level, up to 31 levels from bilinear."""
    assert "image_interpolation_mode" in DIFFERENCES_FROM_DIFFUSERS
    subject = SubjectConfig(photos=DEMO / "photos", instance_prompt=PROMPT, resolution=64, crop="center")
    prepare_photos(subject, tmp_path)
    gaps: dict[InterpolationMode, list[np.ndarray]] = {InterpolationMode.LANCZOS: [], InterpolationMode.BILINEAR: []}
    for file, photo in zip(sorted((DEMO / "photos").glob("*.png")), load_prepared_photos(tmp_path), strict=True):
        for mode, found in gaps.items():
            theirs = np.asarray(resize(read_picture(file), [64, 64], interpolation=mode), dtype=np.int16)
            found.append(np.abs(np.asarray(photo.image, dtype=np.int16) - theirs))
    assert np.max(gaps[InterpolationMode.LANCZOS]) == 0
    assert np.max(gaps[InterpolationMode.BILINEAR]) == 31
    assert np.mean(gaps[InterpolationMode.BILINEAR]) == pytest.approx(1.9, abs=0.05)
