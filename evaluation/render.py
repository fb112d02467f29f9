"""ControlNet renders of a checkpoint: the person in the pose and outlines of reference pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

from evaluation.config import RenderConfig
from evaluation.detectors import canny, load_detector
from evaluation.generate import starting_noise
from evaluation.hub import hub_answers
from evaluation.pictures import grid
from evaluation.reference_labels import reference_labels
from training.errors import UserError
from training.finite_pictures import run_pipeline
from training.names import name_text, shown
from training.pictures import read_picture

SIZE_MULTIPLE = 8
"""The pipeline takes sides that are multiples of this, in pixels."""
MIN_SIDE = 64
DETECTOR_MULTIPLE = 64
"""controlnet-aux works on sides rounded to multiples of this."""


@dataclass(frozen=True)
class Render:
    """One reference picture, what the ControlNet sees of it, and what the checkpoint makes of that."""

    reference: str
    """What tells it from the other references, as text: its file's name, or more of its path."""
    reference_image: Image.Image
    condition: Image.Image
    image: Image.Image


def render_references(pipeline: StableDiffusionPipeline, config: RenderConfig, prompt: str) -> list[Render]:
    """One picture a reference, all from the noise of the same seed.

    Args:
        pipeline: A loaded checkpoint. Its weights and scheduler stay as they are.
        config: References, ControlNet, detector, sampler and size.
        prompt: Used where the config has none.

    Raises:
        UserError: see `checks.check_render`, or the ControlNet does not fit the base model.
    """
    controlnet = load_controlnet(config.controlnet, pipeline.device, pipeline.unet.dtype)
    _check_fit(controlnet, pipeline, config.controlnet)
    components = {**pipeline.components, "safety_checker": None, "feature_extractor": None}
    components["scheduler"] = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    renderer = StableDiffusionControlNetPipeline(**components, controlnet=controlnet, requires_safety_checker=False)
    renderer.set_progress_bar_config(disable=True)
    renders = []
    for path, label in zip(config.references, reference_labels(config.references), strict=True):
        reference = read_picture(path)
        condition = condition_image(reference, config)
        (image,) = run_pipeline(
            renderer,
            place=f"reference {shown(path.name)}",
            prompt=config.prompt or prompt,
            negative_prompt=config.negative_prompt,
            image=condition,
            latents=starting_noise(pipeline, config.seed, *condition.size),
            width=condition.width,
            height=condition.height,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            controlnet_conditioning_scale=config.controlnet_conditioning_scale,
        )
        renders.append(Render(name_text(label), reference, condition, image))
    return renders


def contact_sheet(renders: Mapping[str, Sequence[Render]], cell_size: int = 256) -> Image.Image:
    """One row a reference: the reference, its condition, and one column for each trial of `renders`.

    Raises:
        ValueError: no trial or no reference, or trials with different references.
    """
    trials = list(renders)
    references = [[render.reference for render in renders[trial]] for trial in trials]
    if not references or not references[0] or any(names != references[0] for names in references):
        raise ValueError(f"contact sheet: need 1 or more trials with the same references, got {references}")
    rows = [
        [first.reference_image, first.condition, *(renders[trial][row].image for trial in trials)]
        for row, first in enumerate(renders[trials[0]])
    ]
    return grid(rows, references[0], ["reference", "condition", *trials], cell_size)


def render_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Size of a render in pixels: the longer side is `resolution`, the other keeps the aspect, down to a multiple of 8.

    Never below 64 px, where a very long picture loses its aspect.
    """
    scale = resolution / max(width, height)

    def side(length: int) -> int:
        return max(MIN_SIDE, int(length * scale + 1e-6) // SIZE_MULTIPLE * SIZE_MULTIPLE)

    return side(width), side(height)


def condition_image(reference: Image.Image, config: RenderConfig) -> Image.Image:
    """What the ControlNet sees of a reference: RGB, of the size of the render.

    A reference smaller than the render is enlarged first, so that edges have the width that the ControlNet knows.
    """
    size = render_size(*reference.size, config.resolution)
    reference = reference.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    if config.detector == "canny":
        return canny(reference, config.low_threshold, config.high_threshold)
    short_side = round(min(size) / DETECTOR_MULTIPLE) * DETECTOR_MULTIPLE
    with _numpy_seed(config.seed):
        detected = load_detector(config.detector)(reference, max(DETECTOR_MULTIPLE, short_side))
    return detected.convert("RGB").resize(size, Image.Resampling.BILINEAR)


def load_controlnet(name: str, device: torch.device | str, dtype: torch.dtype) -> ControlNetModel:
    """Load a ControlNet from a hub id or a local diffusers folder, once per process.

    Raises:
        UserError: it is not there and cannot be downloaded, or is no ControlNet.
    """
    return _load_controlnet(name, str(device), dtype)


@cache
def _load_controlnet(name: str, device: str, dtype: torch.dtype) -> ControlNetModel:
    if not Path(name).is_dir():
        hub_answers()  # settles whether it may be asked
    try:
        controlnet = ControlNetModel.from_pretrained(name, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"render.controlnet: {name} is neither here nor to be downloaded ({error!s:.200})") from error
    return controlnet.to(device).eval().requires_grad_(False)


def _check_fit(controlnet: ControlNetModel, pipeline: StableDiffusionPipeline, name: str) -> None:
    for key in ("cross_attention_dim", "block_out_channels", "in_channels"):
        need, got = pipeline.unet.config[key], controlnet.config[key]
        if need != got:
            raise UserError(f"render.controlnet: need {key} {need} of the base model, {name} has {got}")


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Numpy's global generator seeded for a block: `shuffle` draws from it, and all trials need one condition."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
