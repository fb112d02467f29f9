"""A pipeline's latents to pictures, refusing what is not finite: class pictures, scored pictures and renders alike."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from training.errors import DivergedError


class NonFinitePictureError(DivergedError):
    """The model's output overflowed; saved, it would be a black picture that looks like a result."""


@torch.no_grad()
def run_pipeline(pipeline: DiffusionPipeline, place: str, **arguments: Any) -> list[Image.Image]:
    """Call a Stable Diffusion pipeline and decode its latents, refusing what is not finite.

    Raises:
        NonFinitePictureError: names `place`.
    """
    latents = pipeline(**arguments, output_type="latent", return_dict=False)[0]
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    for name, values in (("latents", latents), ("pixels", decoded)):
        if not torch.isfinite(values).all():
            raise NonFinitePictureError(
                f"pictures from {place} on: {name} are not finite in {values.dtype}; the weights have diverged "
                "(a lower learning_rate) or the precision is too low"
            )
    images: list[Image.Image] = pipeline.image_processor.postprocess(decoded, output_type="pil")
    return images
