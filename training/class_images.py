"""Pictures of the class prompt by the untouched base model: what prior preservation holds on to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler

from training.errors import UserError
from training.files import whole_file, write_json
from training.finite_pictures import run_pipeline
from training.pictures import read_picture
from training.share import ALONE, Share
from training.stable_diffusion import base_model_fingerprint, base_pipeline

_NUM_STEPS = 25  # of DPM-Solver++: as good as 50 steps of the base model's own scheduler at half the price
BATCH_SIZE = 4


def make_class_images(
    folder: Path,
    base_model: str,
    class_prompt: str,
    num_images: int,
    *,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
    share: Share = ALONE,
    first: int = 0,
) -> list[Path]:
    """Files of the class pictures number `first` to `num_images` (not counted), after drawing those that are missing.

    Picture i starts from the noise of seed i, so which call drew it makes no difference. Pictures of another prompt
    or base model are thrown away.

    Args:
        folder: of the pictures.
        base_model: who draws.
        class_prompt: what is drawn.
        num_images: how many there are to be.
        device: where to compute.
        progress: called with (there, wanted) pictures.
        share: of the batches, where several processes draw; `keep_only_pictures_of` comes before all of them.
        first: how many there are already that nobody draws.

    Raises:
        NonFinitePictureError: a picture has overflowed; what was drawn before it is kept.
    """
    keep_only_pictures_of(folder, base_model, class_prompt)
    files = _files(folder, first, num_images)
    missing = [number for number, file in files.items() if _is_in(share, number) and not _is_whole(file)]
    if missing:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        pipeline = base_pipeline(base_model, device, dtype, share_frozen=True)
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        for start in range(0, len(missing), BATCH_SIZE):
            numbers = missing[start : start + BATCH_SIZE]
            images = run_pipeline(
                pipeline,
                place=f"class picture {numbers[0]}",
                prompt=[class_prompt] * len(numbers),
                num_inference_steps=_NUM_STEPS,
                generator=[torch.Generator().manual_seed(number) for number in numbers],
            )
            for number, image in zip(numbers, images, strict=True):
                with whole_file(files[number]) as part:
                    image.save(part, format="png")
            if progress:
                progress(num_images - len(missing) + start + len(numbers), num_images)
    return list(files.values())


def _is_in(share: Share, number: int) -> bool:
    """Is it of the batches that this process draws? They are the same for any number of processes."""
    return number // BATCH_SIZE % share.world_size == share.rank


def num_missing(folder: Path, num_images: int, share: Share = ALONE, first: int = 0) -> int:
    """How many class pictures `make_class_images` would draw, damaged ones not counted."""
    files = _files(folder, first, num_images)
    return sum(_is_in(share, number) and not file.is_file() for number, file in files.items())


def _files(folder: Path, first: int, num_images: int) -> dict[int, Path]:
    return {number: folder / f"{number:05d}.png" for number in range(first, num_images)}


def _is_whole(file: Path) -> bool:
    """Is the picture there to be read? One that is not is drawn again, to the same pixels."""
    try:
        read_picture(file)
    except UserError:
        return False
    return True


def _origin(base_model: str, class_prompt: str) -> dict[str, str]:
    return {"class_prompt": class_prompt, "base_model": base_model_fingerprint(base_model)}


def _is_of(folder: Path, origin: dict[str, str]) -> bool:
    try:
        return bool(json.loads((folder / "class_images.json").read_text(encoding="utf-8")) == origin)
    except (FileNotFoundError, ValueError):  # none, or neither text nor JSON: their origin is not known
        return False


def keep_only_pictures_of(folder: Path, base_model: str, class_prompt: str) -> None:
    """Throw away class pictures of another prompt or base model."""
    origin = _origin(base_model, class_prompt)
    if _is_of(folder, origin):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "class_images.json", origin)
