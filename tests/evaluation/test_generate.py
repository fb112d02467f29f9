"""Laws of generation, on a tiny SD1.5. `pytest tests/evaluation/test_generate.py`, half a minute."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from peft import LoraConfig as PeftConfig
from PIL import Image

from evaluation.config import EvaluationConfig
from evaluation.generate import (
    GeneratedImage,
    generate,
    generate_packed,
    generation_dtype,
    load_images,
    picture_size,
    save_images,
    starting_noise,
)
from training.checkpoint import Checkpoint, load_pipeline, save_checkpoint
from training.config import LoraConfig
from training.finite_pictures import NonFinitePictureError
from training.methods import copy_for_training
from training.packed_pipeline import packed_pipeline
from training.share import Share
from training.stable_diffusion import load_base_model

PROMPTS = ["sks woman in a garden", "a photo of sks woman"]


def config(**changes: Any) -> EvaluationConfig:
    few = {"prompts": PROMPTS, "images_per_prompt": 2, "at_steps": [1], "num_inference_steps": 3, "batch_size": 4}
    return EvaluationConfig(**{**few, **changes})


def pixels(images: list[GeneratedImage]) -> np.ndarray:
    return np.stack([np.asarray(image.image, dtype=int) for image in images])


def weights_hash(pipeline: StableDiffusionPipeline) -> str:
    digest = hashlib.sha256()
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for name, value in module.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def pipeline(tiny_base: str) -> StableDiffusionPipeline:
    """The tiny base, loaded as a checkpoint is."""
    return StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)


def test_every_prompt_and_seed_gives_one_picture(pipeline: StableDiffusionPipeline) -> None:
    """Prompts in their order, seeds counted from the config's; the file name tells both."""
    images = list(generate(pipeline, config(seed=7)))
    assert [image.file for image in images] == ["000-7.png", "000-8.png", "001-7.png", "001-8.png"]
    assert [image.prompt for image in images] == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    assert {image.image.size for image in images} == {(64, 64)}
    assert {image.image.mode for image in images} == {"RGB"}


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
def test_pictures_do_not_depend_on_the_batch_size(pipeline: StableDiffusionPipeline, scheduler: str) -> None:
    """Batches are a matter of memory: pictures differ at most by rounding, one level of 255."""
    one, three, four = (
        pixels(list(generate(pipeline, config(scheduler=scheduler, batch_size=size)))) for size in (1, 3, 4)
    )
    assert np.abs(one - three).max() <= 1
    assert np.abs(one - four).max() <= 1


@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_processes_that_share_the_pictures_make_each_once(pipeline: StableDiffusionPipeline, world_size: int) -> None:
    """In shares of equal size; together they are the pictures that one process makes, at most rounding apart."""
    alone = list(generate(pipeline, config()))
    shares = [list(generate(pipeline, config(), Share(rank, world_size))) for rank in range(world_size)]
    together = [image for own in shares for image in own]
    assert [image.file for image in together] == [image.file for image in alone]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert np.abs(pixels(together) - pixels(alone)).max() <= 1


def test_the_same_call_gives_the_same_pictures(pipeline: StableDiffusionPipeline) -> None:
    """Bit for bit, whatever was drawn from torch's global generator in between, which is left alone."""
    first = pixels(list(generate(pipeline, config())))
    torch.randn(3)
    state = torch.get_rng_state()
    again = pixels(list(generate(pipeline, config())))
    assert np.array_equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_prompt_and_negative_prompt_change_pictures(pipeline: StableDiffusionPipeline) -> None:
    """What is asked for reaches the model."""
    images = pixels(list(generate(pipeline, config())))
    assert np.abs(images[0] - images[1]).mean() > 1, "the seed"
    assert np.abs(images[0] - images[2]).max() > 1, "the prompt"
    for change in ({"negative_prompt": "ugly"}, {"guidance_scale": 3.0}, {"num_inference_steps": 5}):
        assert np.abs(images - pixels(list(generate(pipeline, config(**change))))).max() > 1, change


def test_a_growing_config_keeps_its_pictures(pipeline: StableDiffusionPipeline) -> None:
    """More prompts or more seeds add pictures and change none."""
    few = {
        image.file: pixels([image]) for image in generate(pipeline, config(prompts=PROMPTS[:1], images_per_prompt=1))
    }
    more = {image.file: pixels([image]) for image in generate(pipeline, config(images_per_prompt=3))}
    assert np.abs(few["000-0.png"] - more["000-0.png"]).max() <= 1


def test_all_trials_start_from_the_same_noise(pipeline: StableDiffusionPipeline, tiny_base: str) -> None:
    """The noise of a seed is a function of seed and size alone: not of weights, precision, order or batch."""
    other = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    with torch.no_grad():
        for parameter in other.unet.parameters():
            parameter.mul_(1.1)
    noise = starting_noise(pipeline, 3, 64, 64)
    assert noise.shape == (1, 4, 8, 8)
    assert torch.equal(noise, starting_noise(other, 3, 64, 64))
    other.to(dtype=torch.float16)
    for size in ((64, 64), (72, 40)):  # 180 numbers: no multiple of 16, where half precision alone would draw others
        assert torch.equal(starting_noise(other, 3, *size), starting_noise(pipeline, 3, *size).half())
    assert not torch.equal(noise, starting_noise(pipeline, 4, 64, 64))


def test_the_pipeline_comes_back_as_it_was(pipeline: StableDiffusionPipeline) -> None:
    """Weights, scheduler and its kind are untouched by generating."""
    before, scheduler = weights_hash(pipeline), pipeline.scheduler
    list(generate(pipeline, config()))
    assert weights_hash(pipeline) == before
    assert pipeline.scheduler is scheduler


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
def test_pictures_equal_plain_diffusers(pipeline: StableDiffusionPipeline, name: str) -> None:
    """The same pictures as diffusers' own pipeline with that scheduler, prompt and starting noise."""
    one = config(prompts=PROMPTS[:1], images_per_prompt=1, scheduler=name, negative_prompt="ugly")
    (ours,) = generate(pipeline, one)
    if name == "ddim":
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    else:
        scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    plain = StableDiffusionPipeline(**{**pipeline.components, "scheduler": scheduler}, requires_safety_checker=False)
    (expected,) = plain(
        PROMPTS[0],
        negative_prompt="ugly",
        latents=torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0)),
        num_inference_steps=3,
        guidance_scale=7.5,
    ).images
    assert np.abs(np.asarray(ours.image, int) - np.asarray(expected, int)).max() <= 1


def test_the_size_is_the_configs_or_the_models(pipeline: StableDiffusionPipeline) -> None:
    """Width and height are not swapped, and what is left open is the model's own size."""
    assert picture_size(pipeline, config()) == (64, 64)
    wide = config(prompts=PROMPTS[:1], images_per_prompt=1, width=96, height=40)
    (image,) = generate(pipeline, wide)
    assert image.image.size == (96, 40)


def test_pictures_go_to_disk_and_back(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    """Read back, they are the same; a missing one is named; a half-written one is never left under its name."""
    images = list(generate(pipeline, config()))
    paths = save_images(images, tmp_path / "images-1", config())
    assert sorted(path.name for path in (tmp_path / "images-1").iterdir()) == [image.file for image in images]
    again = load_images(tmp_path / "images-1", config())
    assert np.array_equal(pixels(images), pixels(again))
    assert [(i.file, i.prompt, i.prompt_index, i.seed) for i in images] == [
        (i.file, i.prompt, i.prompt_index, i.seed) for i in again
    ]
    paths[2].unlink()
    with pytest.raises(ValueError, match=r"need 4 pictures, 1 are missing \(001-0\.png"):
        load_images(tmp_path / "images-1", config())


def test_files_carry_their_generation_parameters(tmp_path: Path) -> None:
    """In AUTOMATIC1111's form: prompt, negative prompt, settings, each on its line; and no path of this machine."""
    settings = config(
        prompts=["sks woman,\nin a garden"], negative_prompt="ugly", scheduler="ddim", num_inference_steps=35
    )
    picture = GeneratedImage(settings.prompts[0], 0, 42, Image.new("RGB", (768, 512)))
    (path,) = save_images([picture], tmp_path, settings, model="lora_r16_lr1e-4_3f2a9c")
    text = Image.open(path).text["parameters"]  # type: ignore[attr-defined]
    assert text.split("\n") == [
        "sks woman, in a garden",
        "Negative prompt: ugly",
        "Steps: 35, Sampler: DDIM, CFG scale: 7.5, Seed: 42, Size: 768x512, Model: lora_r16_lr1e-4_3f2a9c",
    ]
    assert str(tmp_path).encode() not in path.read_bytes()


def test_a_diverged_model_is_an_error_and_no_black_picture(tiny_base: str) -> None:
    """Weights that overflow are told with prompt and seed."""
    diverged = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    with torch.no_grad():
        diverged.unet.conv_out.weight.fill_(torch.inf)
    with pytest.raises(NonFinitePictureError, match=r"prompt 0, seed 0.*latents are not finite"):
        next(generate(diverged, config()))
    broken_vae = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    with torch.no_grad():
        broken_vae.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(NonFinitePictureError, match="pixels are not finite"):
        next(generate(broken_vae, config()))


def test_half_precision_is_for_gpus() -> None:
    """CPUs generate in float32."""
    assert generation_dtype("cpu") == torch.float32
    assert generation_dtype(torch.device("cuda", 0)) == torch.float16


def test_a_checkpoints_pipeline_leaves_the_cached_base_alone(tiny_base: str) -> None:
    """Pictures with a LoRA differ from the base's; generating with either changes no weight of the cached base."""
    before = weights_hash(load_base_model(tiny_base))
    base = load_pipeline(None, tiny_base, device="cpu")
    tuned = load_pipeline(None, tiny_base, device="cpu")
    tuned.unet.add_adapter(
        PeftConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    images = pixels(list(generate(base, config())))
    assert np.abs(images - pixels(list(generate(tuned, config())))).max() > 1
    assert np.array_equal(images, pixels(list(generate(base, config()))))
    assert weights_hash(load_base_model(tiny_base)) == before


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_checkpoints_in_one_pass_make_the_pictures_of_each_alone(
    train_text_encoder: bool, guidance_scale: float, tiny_base: str, tmp_path: Path
) -> None:
    """Of other ranks, alphas and text encoders, guided or not: at most one level of 255 apart, and no weight moves."""
    checkpoints = [
        moved_lora(LoraConfig(rank=rank, lora_alpha=alpha, train_text_encoder=train_text_encoder), tiny_base, tmp_path)
        for rank, alpha in ((1, None), (4, 9.0), (3, None))
    ]
    settings = config(guidance_scale=guidance_scale, images_per_prompt=3, batch_size=6, negative_prompt="ugly")
    before = weights_hash(load_base_model(tiny_base))
    packed = packed_pipeline(checkpoints, tiny_base, torch.device("cpu"), torch.float32, guided=guidance_scale > 1)
    together = list(zip(*generate_packed(packed, settings, len(checkpoints)), strict=True))
    assert weights_hash(load_base_model(tiny_base)) == before
    for checkpoint, ours in zip(checkpoints, together, strict=True):
        alone = list(generate(load_pipeline(checkpoint, tiny_base, device="cpu"), settings))
        assert [picture.file for picture in ours] == [picture.file for picture in alone]
        assert np.abs(pixels(ours) - pixels(alone)).max() <= 1
    first, second, third = (pixels(list(pictures)) for pictures in together)
    assert np.abs(first - second).max() > 1
    assert np.abs(second - third).max() > 1


def test_a_checkpoint_that_has_diverged_has_no_pictures_and_the_others_have_theirs(
    tiny_base: str, tmp_path: Path
) -> None:
    """Why is said for each of its pictures."""
    whole = [moved_lora(LoraConfig(rank=rank), tiny_base, tmp_path) for rank in (2, 3)]
    diverged = moved_lora(LoraConfig(rank=1), tiny_base, tmp_path, by=1e38)
    packed = packed_pipeline([whole[0], diverged, whole[1]], tiny_base, torch.device("cpu"), torch.float32, guided=True)
    first, second, third = zip(*generate_packed(packed, config(), 3), strict=True)
    assert all("latents are not finite" in str(error) for error in second)
    for checkpoint, ours in zip(whole, (first, third), strict=True):
        alone = list(generate(load_pipeline(checkpoint, tiny_base, device="cpu"), config()))
        assert np.abs(pixels(ours) - pixels(alone)).max() <= 1


def moved_lora(config: LoraConfig, tiny_base: str, folder: Path, by: float = 0.1) -> Checkpoint:
    """A LoRA checkpoint whose weights are as if trained."""
    modules = copy_for_training(config, tiny_base, torch.device("cpu"))
    generator = torch.Generator().manual_seed(config.rank)
    for parameter in modules.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)
    return save_checkpoint(folder / f"{config.rank}", config, modules, 1, tiny_base, {})
