"""A pipeline's latents to pictures, refusing what is not finite: class pictures, scored pictures and renders alike."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from training.errors import DivergedError


class NonFinitePictureError(DivergedError):
    """The model's output overflowed; saved, it would be a black picture that looks like a result."""


def run_pipeline(pipeline: DiffusionPipeline, place: str, **arguments: Any) -> list[Image.Image]:
    """Call a Stable Diffusion pipeline and decode its latents, refusing what is not finite.

    Raises:
        NonFinitePictureError: names `place`.
    """
    pictures = run_pipeline_by_row(pipeline, place, **arguments)
    for picture in pictures:
        if isinstance(picture, NonFinitePictureError):
            raise picture
    return [picture for picture in pictures if isinstance(picture, Image.Image)]


@torch.no_grad()
def run_pipeline_by_row(
    pipeline: DiffusionPipeline, place: str, **arguments: Any
) -> list[Image.Image | NonFinitePictureError]:
    """As `run_pipeline`, for a batch whose rows have nothing to do with each other: each is a picture or its error."""
    latents = pipeline(**arguments, output_type="latent", return_dict=False)[0]
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    errors: dict[int, NonFinitePictureError] = {}
    for name, values in (("pixels", decoded), ("latents", latents)):
        for row in torch.isfinite(values).flatten(1).all(1).logical_not().nonzero().flatten().tolist():
            errors[row] = NonFinitePictureError(
                f"pictures from {place} on: {name} are not finite in {values.dtype}; the weights have diverged "
                "(a lower learning_rate) or the precision is too low"
            )
    images = pipeline.image_processor.postprocess(decoded.nan_to_num(), output_type="pil")
    return [errors.get(row, image) for row, image in enumerate(images)]
