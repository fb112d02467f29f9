"""A checkpoint's pipeline, prompts and seeds to pictures, with the same starting noise for every trial."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evaluation.config import EvaluationConfig
from training.errors import UserError
from training.files import whole_file
from training.finite_pictures import NonFinitePictureError, run_pipeline_by_row
from training.pictures import read_picture
from training.share import ALONE, Share

SAMPLER_NAMES = {"ddim": "DDIM", "dpmsolver++": "DPM++ 2M"}
"""Names in the generation parameters of picture files, as AUTOMATIC1111's web UI spells them."""


@dataclass(frozen=True)
class GeneratedImage:
    """One picture and what it was asked for."""

    prompt: str
    prompt_index: int
    """Place of the prompt in the config, from 0."""
    seed: int
    """Seed of the starting noise."""
    image: Image.Image

    @property
    def file(self) -> str:
        """File name: prompt index and seed."""
        return _file_name(self.prompt_index, self.seed)


def generate(
    pipeline: StableDiffusionPipeline, config: EvaluationConfig, share: Share = ALONE
) -> Iterator[GeneratedImage]:
    """Pictures of every prompt and seed of the config, prompt by prompt, in batches; or a process's share of them.

    Picture i of every prompt starts from the noise of seed `config.seed + i`: drawn in float32 on the CPU for each
    picture by itself, it is the same for every trial, device, precision and batch size. The samplers add no noise
    of their own.

    Args:
        pipeline: A loaded checkpoint, in evaluation mode. Its weights and scheduler stay as they are.
        config: Prompts, seeds, sampler and size.
        share: Of the pictures, where several processes make them.

    Raises:
        NonFinitePictureError: a picture has overflowed.
    """
    for (picture,) in generate_packed(pipeline, config, 1, share):
        if isinstance(picture, NonFinitePictureError):
            raise picture
        yield picture


def generate_packed(
    pipeline: StableDiffusionPipeline, config: EvaluationConfig, num_models: int, share: Share = ALONE
) -> Iterator[list[GeneratedImage | NonFinitePictureError]]:
    """The pictures of several models from one pipeline, in which each has its own rows of every batch.

    Each model's are those that `generate` makes with it alone, up to rounding.

    Args:
        pipeline: `training.packed_pipeline.packed_pipeline`'s.
        config: As for `generate`. A batch holds `batch_size` pictures, or one of each model where that is more.
        num_models: How many there are in the pipeline.
        share: Of the pictures, where several processes make them.

    Yields:
        For every prompt and seed each model's picture, or why it has none; that is no matter of the others'.
    """
    sampler = with_scheduler(pipeline, _scheduler(pipeline, config))
    width, height = picture_size(pipeline, config)
    all_cells = config.cells
    cells = [all_cells[place] for place in share.of(len(all_cells))]
    num_cells = max(1, config.batch_size // num_models)
    for start in range(0, len(cells), num_cells):
        batch = cells[start : start + num_cells]
        prompts = [config.prompts[prompt_index] for prompt_index, _ in batch]
        noise = torch.cat([starting_noise(pipeline, seed, width, height) for _, seed in batch])
        rows = run_pipeline_by_row(
            sampler,
            place=f"prompt {batch[0][0]}, seed {batch[0][1]}",
            prompt=prompts * num_models,
            negative_prompt=[config.negative_prompt] * len(batch) * num_models,
            latents=noise.repeat(num_models, 1, 1, 1),
            width=width,
            height=height,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
        )
        for number, (prompt_index, seed) in enumerate(batch):
            yield [
                row
                if isinstance(row, NonFinitePictureError)
                else GeneratedImage(prompts[number], prompt_index, seed, row)
                for row in rows[number :: len(batch)]
            ]


def generation_dtype(device: torch.device | str) -> torch.dtype:
    """Precision to load a pipeline in for pictures: half on a GPU, float32 on a CPU, where half is slower."""
    return torch.float16 if torch.device(device).type == "cuda" else torch.float32


def picture_size(pipeline: StableDiffusionPipeline, config: EvaluationConfig) -> tuple[int, int]:
    """Width and height in pixels; what the config leaves open is the base model's own size."""
    native = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    return config.width or native, config.height or native


def starting_noise(pipeline: StableDiffusionPipeline, seed: int, width: int, height: int) -> torch.Tensor:
    """Latents [1, 4, height / 8, width / 8] of unit variance, made on the CPU, in the pipeline's precision.

    Drawn in float32 always: at some sizes half precision draws other numbers from the same seed.
    """
    factor = pipeline.vae_scale_factor
    shape = (1, pipeline.unet.config.in_channels, height // factor, width // factor)
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
    return noise.to(pipeline.unet.dtype)


def with_scheduler(pipeline: StableDiffusionPipeline, scheduler: Any) -> StableDiffusionPipeline:
    """A quiet pipeline of the same modules with another scheduler; the given one keeps its own."""
    components = {**pipeline.components, "scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
    other = StableDiffusionPipeline(**components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def save_images(
    images: Iterable[GeneratedImage], folder: Path, config: EvaluationConfig, model: str | None = None
) -> list[Path]:
    """Write pictures as PNG, each whole or not at all, with the generation parameters in a text chunk.

    Args:
        images: Written one by one as they come.
        folder: Made if it is not there.
        config: What they were generated with.
        model: Name of the trial for the parameters; no path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in images:
        info = PngInfo()
        info.add_text("parameters", generation_parameters(picture, config, model))
        path = folder / picture.file
        with whole_file(path) as part:
            picture.image.save(part, format="PNG", pnginfo=info)
        paths.append(path)
    return paths


def load_images(folder: Path, config: EvaluationConfig) -> list[GeneratedImage]:
    """Read back the pictures that `generate` makes for this config, in its order.

    Raises:
        UserError: one is missing or broken; names it.
    """
    missing = [name for cell in config.cells if not (folder / (name := _file_name(*cell))).is_file()]
    if missing:
        raise UserError(f"{folder}: need {config.num_images} pictures, {len(missing)} are missing ({missing[0]}, ...)")
    return [
        GeneratedImage(config.prompts[index], index, seed, read_picture(folder / _file_name(index, seed)))
        for index, seed in config.cells
    ]


def generation_parameters(picture: GeneratedImage, config: EvaluationConfig, model: str | None = None) -> str:
    """The text that AUTOMATIC1111's web UI writes into a PNG and image viewers read back."""
    fields = {
        "Steps": config.num_inference_steps,
        "Sampler": SAMPLER_NAMES[config.scheduler],
        "CFG scale": config.guidance_scale,
        "Seed": picture.seed,
        "Size": f"{picture.image.width}x{picture.image.height}",
    }
    if model:
        fields["Model"] = model
    lines = [_one_line(picture.prompt), ", ".join(f"{key}: {value}" for key, value in fields.items())]
    if config.negative_prompt:
        lines.insert(1, f"Negative prompt: {_one_line(config.negative_prompt)}")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _file_name(prompt_index: int, seed: int) -> str:
    return f"{prompt_index:03d}-{seed}.png"


def _scheduler(pipeline: StableDiffusionPipeline, config: EvaluationConfig) -> Any:
    """The sampler on the base model's own noise schedule and kind of prediction; neither adds noise."""
    if config.scheduler == "ddim":
        # Latents are not bounded by 1 as pixels are, and some base models' scheduler files leave the clipping on.
        return DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    return DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, algorithm_type="dpmsolver++")
