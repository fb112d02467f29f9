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
from training.errors import UserError
from training.names import shown


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
    progress: Callable[[int, int], None] = lambda made, of_all: None,
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


def prompt_lines(file: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines don't count.

    Raises:
        UserError: it cannot be read, or has none.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts: {shown(file)} cannot be read as text ({error})") from error
    if not lines:
        raise UserError(f"prompts: need 1 or more lines in {shown(file)}, got 0")
    return lines


def _counted(
    pictures: Iterable[GeneratedImage], of_all: int, progress: Callable[[int, int], None]
) -> Iterator[GeneratedImage]:
    progress(0, of_all)
    for made, picture in enumerate(pictures, start=1):
        yield picture
        progress(made, of_all)
