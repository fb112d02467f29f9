"""A model's pictures of some prompts and their score: what a trial does at each of its scoring points, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from diffusers import StableDiffusionPipeline

from evaluation.config import EvaluationConfig
from evaluation.face import FaceEncoder
from evaluation.generate import GeneratedImage, generate, load_images, save_images
from evaluation.prompt import ClipScorer
from evaluation.rare_token import RARE_WORD
from evaluation.references import References
from evaluation.score import score_images
from evaluation.scores import Score


@dataclass(frozen=True)
class Judges:
    """By whom pictures are scored."""

    references: References
    face_encoder: FaceEncoder
    clip: ClipScorer
    rare_token: str = RARE_WORD
    """Taken out of the prompts before CLIP reads them."""


def score_model(
    pipeline: StableDiffusionPipeline,
    config: EvaluationConfig,
    judges: Judges,
    images_dir: Path,
    model: str | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Score:
    """Generate a model's pictures of all prompts and seeds into a folder, and score them as they are read from there.

    Args:
        pipeline: a loaded model, in evaluation mode.
        config: prompts, seeds, sampler and size.
        judges: of the pictures.
        images_dir: made if it is not there.
        model: name for the pictures' generation parameters; no path.
        progress: told how many pictures are made, and of how many.

    Raises:
        NonFinitePictureError: a picture has overflowed.
    """
    pictures = _counted(generate(pipeline, config), config.num_images, progress)
    save_images(pictures, images_dir, config, model)
    return score_images(
        load_images(images_dir, config), judges.references, judges.face_encoder, judges.clip, judges.rare_token
    )


def _counted(
    pictures: Iterable[GeneratedImage], of_all: int, progress: Callable[[int, int], None]
) -> Iterator[GeneratedImage]:
    progress(0, of_all)
    for made, picture in enumerate(pictures, start=1):
        yield picture
        progress(made, of_all)
