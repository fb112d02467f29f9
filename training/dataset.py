"""A subject prepared once a sweep: square photos, captions, class pictures and the VAE's view of both.

Disk is the interface. `prepare_photos` (`preparation.py`) and `encode_dataset` fill a folder, every trial reads it with
`load_dataset`:

    dataset.json               captions, sources and settings, written last
    photos/000.png             square photos without metadata
    class_photos/000.png       one's own pictures of the class, cut as the photos are
    class_images/00000.png     pictures of the class prompt by the untouched base model
    initial_weights/           the LoRA file that LoRA trainings start from, where there is one
    latents.safetensors        mean and standard deviation of each photo's (and mirrored photo's) latents
    class_latents.safetensors  the same of the class pictures
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from training.class_images import keep_only_pictures_of, make_class_images, num_missing
from training.errors import UserError
from training.files import sha256_of, write_whole
from training.photos import crop_square, prepared_record
from training.pictures import read_picture
from training.preparation import key_of
from training.share import ALONE, Share
from training.stable_diffusion import base_model_fingerprint, choose_device, frozen_module

CLASS_IMAGES = "class_images"
"""Folder of the pictures of the class prompt."""


@dataclass(frozen=True)
class Photo:
    """One prepared photo."""

    file: str
    """Name of the file it came from, relative to the photos folder."""
    caption: str | None
    """Text of its sidecar file; None where the instance prompt speaks for it."""
    image: Image.Image
    """RGB, resolution x resolution."""


@dataclass(frozen=True, eq=False)
class Latents:
    """What the VAE says of N pictures: float32 [N, 4, height / 8, width / 8] each, not yet scaled.

    Mean and standard deviation are kept rather than one draw, so that every step can draw anew as upstream does.
    """

    mean: Tensor
    std: Tensor

    def of(self, pictures: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of some of the pictures."""
        return self.mean[pictures], self.std[pictures]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared and encoded subject, as a trial reads it."""

    dir: Path
    base_model: str
    instance_prompt: str
    class_prompt: str | None
    prompts: tuple[str, ...]
    """What each photo is called: its own caption or the instance prompt."""
    repeats: tuple[int, ...]
    """How often an epoch shows each photo."""
    latents: Latents
    flipped_latents: Latents | None
    """Of the mirrored photos, in the same order; None without `random_flip`."""
    class_latents: Latents | None
    face_coverage: Tensor | None = None
    """float32 [N, h, w] in [0, 1]: which part of each latent cell lies in the photo's face, 0 all over where none was
    found; None where no face was looked for, or an earlier release did."""


def load_prepared_photos(out_dir: str | Path) -> list[Photo]:
    """The square photos of a prepared folder with their captions, in order."""
    out_dir = Path(out_dir)
    photos = []
    for record in _need_record(out_dir)["photos"]:
        photos.append(Photo(record["source"], record["caption"], read_picture(out_dir / record["file"])))
    return photos


def encode_dataset(
    out_dir: str | Path,
    base_model: str,
    *,
    class_images: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make the class pictures that are missing and encode all pictures with the base model's VAE.

    What is there already and belongs to the same photos, class prompt and base model is kept, so a killed call
    loses at most the batch it was at.

    Args:
        out_dir: a folder that `prepare_photos` filled.
        base_model: whose VAE encodes and who draws the class pictures.
        class_images: how many pictures of the class prompt prior preservation will need.
        device: default: the GPU where there is one.
        progress: called with (done, total) class pictures.

    Raises:
        UserError: class pictures are wanted but the subject has no class prompt.
    """
    out_dir, device = Path(out_dir), choose_device(device)
    record = _need_record(out_dir)
    flip = bool(record["subject"]["random_flip"])
    resolution = int(record["subject"]["resolution"])
    key = key_of("photos", base_model_fingerprint(base_model), flip, [photo["pixels"] for photo in record["photos"]])
    if _latents_key(out_dir / "latents.safetensors") != key:
        images = [photo.image for photo in load_prepared_photos(out_dir)]
        named = _encode(images, base_model, device)
        if flip:
            mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
            named |= {f"flipped_{name}": tensor for name, tensor in _encode(mirrored, base_model, device).items()}
        _save_latents(out_dir / "latents.safetensors", named, key, base_model)
    if class_images:
        class_prompt = _need_class_prompt(record)
        own = _own_class_photos(out_dir, record)[:class_images]
        drawn = make_class_images(
            out_dir / CLASS_IMAGES,
            base_model,
            class_prompt,
            class_images,
            device=device,
            progress=progress,
            first=len(own),
        )
        files = [*own, *drawn]
        key = key_of("class", base_model_fingerprint(base_model), resolution, [sha256_of(file) for file in files])
        if _latents_key(out_dir / "class_latents.safetensors") != key:
            squares = [crop_square(read_picture(file), None, resolution) for file in files]
            named = _encode(squares, base_model, device)
            _save_latents(out_dir / "class_latents.safetensors", named, key, base_model)


def begin_class_images(out_dir: str | Path, base_model: str) -> None:
    """Throw away class pictures that are of another base model or class prompt.

    Raises:
        UserError: the subject has no class prompt.
    """
    out_dir = Path(out_dir)
    keep_only_pictures_of(out_dir / CLASS_IMAGES, base_model, _need_class_prompt(_need_record(out_dir)))


def num_class_images_missing(out_dir: str | Path, class_images: int, share: Share = ALONE) -> int:
    """How many class pictures `draw_class_images` will have to draw, damaged ones not counted."""
    out_dir = Path(out_dir)
    num_own = len(_own_class_photos(out_dir, _need_record(out_dir)))
    return num_missing(out_dir / CLASS_IMAGES, class_images, share, first=num_own)


def draw_class_images(
    out_dir: str | Path, base_model: str, class_images: int, *, device: torch.device | str | None, share: Share
) -> None:
    """Make a process's share of the class pictures that are missing, so that `encode_dataset` finds them.

    Args:
        out_dir: where `begin_class_images` was called.
        base_model: who draws.
        class_images: how many there are to be.
        device: default: the GPU where there is one.
        share: of the batches.
    """
    out_dir = Path(out_dir)
    record = _need_record(out_dir)
    make_class_images(
        out_dir / CLASS_IMAGES,
        base_model,
        _need_class_prompt(record),
        class_images,
        device=choose_device(device),
        share=share,
        first=len(_own_class_photos(out_dir, record)),
    )


def _own_class_photos(out_dir: Path, record: dict[str, Any]) -> list[Path]:
    return [out_dir / photo["file"] for photo in record.get("class_photos", [])]


def load_dataset(out_dir: str | Path, base_model: str | None = None) -> Dataset:
    """Read a prepared and encoded folder.

    Args:
        out_dir: the dataset folder.
        base_model: where the base model lies on this machine, if elsewhere than where the folder was made.

    Raises:
        UserError: the folder is not prepared, not encoded, or encoded from other photos.
    """
    out_dir = Path(out_dir)
    record = _need_record(out_dir)
    file = out_dir / "latents.safetensors"
    if not file.is_file():
        raise UserError(f"dataset: no latents in {out_dir}; encode_dataset makes them")
    named, about = _read_latents(file)
    latents = Latents(named["mean"], named["std"])
    if len(latents.mean) != len(record["photos"]):
        raise UserError(f"dataset: {file} belongs to other photos than dataset.json; encode_dataset makes it anew")
    subject = record["subject"]
    return Dataset(
        dir=out_dir,
        base_model=base_model or about["base_model"],
        instance_prompt=subject["instance_prompt"],
        class_prompt=subject["class_prompt"],
        prompts=tuple(photo["caption"] or subject["instance_prompt"] for photo in record["photos"]),
        repeats=tuple(photo["repeats"] for photo in record["photos"]),
        latents=latents,
        flipped_latents=Latents(named["flipped_mean"], named["flipped_std"]) if subject["random_flip"] else None,
        class_latents=_class_latents(out_dir / "class_latents.safetensors"),
        face_coverage=_face_coverage(record, latents.mean.shape[-1]),
    )


def _face_coverage(record: dict[str, Any], num_cells: int) -> Tensor | None:
    """Of squares of `num_cells` cells a side."""
    if any(photo.get("num_faces") is None or "face_in_square" not in photo for photo in record["photos"]):
        return None  # 0.1.0 did not write it
    return torch.stack([box_coverage(photo["face_in_square"], num_cells) for photo in record["photos"]])


def box_coverage(box: Sequence[float] | None, num_cells: int) -> Tensor:
    """Which part of each cell of a square lies in a box.

    Args:
        box: x0, y0, x1, y1 in parts of the square's side; None covers nothing.
        num_cells: of a side.

    Returns:
        float32 [num_cells, num_cells] in [0, 1], rows from above.
    """
    x0, y0, x1, y1 = box or (0.0, 0.0, 0.0, 0.0)
    edges = torch.arange(num_cells + 1, dtype=torch.float64) / num_cells

    def along(low: float, high: float) -> Tensor:
        return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * num_cells

    return torch.outer(along(y0, y1), along(x0, x1)).float()


def _class_latents(file: Path) -> Latents | None:
    if not file.is_file():
        return None
    named, _ = _read_latents(file)
    return Latents(named["mean"], named["std"])


def encode_image(vae: AutoencoderKL, image: Image.Image) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [4, h / 8, w / 8] of one RGB picture's latents, on the CPU in float32."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 255
    pixels_1CHW = ((pixels - 0.5) / 0.5)[None].to(vae.device)  # noqa: N806 - the suffix names the axes
    with torch.no_grad():
        distribution = vae.encode(pixels_1CHW).latent_dist
    return distribution.mean[0].float().cpu(), distribution.std[0].float().cpu()


def _encode(images: Sequence[Image.Image], base_model: str, device: torch.device) -> dict[str, Tensor]:
    vae = frozen_module(base_model, "vae", device, torch.float32)
    encoded = [encode_image(vae, image) for image in images]  # one by one: the result must not depend on a batch
    return {"mean": torch.stack([mean for mean, _ in encoded]), "std": torch.stack([std for _, std in encoded])}


def _save_latents(file: Path, named: dict[str, Tensor], key: str, base_model: str) -> None:
    metadata = {"key": key, "base_model": base_model, "digest": _digest(named)}
    write_whole(file, save(named, metadata=metadata))


def _read_latents(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and what is said of them.

    Raises:
        UserError: the file is not there, or not as it was written (which one of 0.1.0, without a digest, cannot tell).
    """
    try:
        with safe_open(str(file), framework="pt") as stored:
            about = stored.metadata() or {}
            named = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 -- no dict
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"dataset: {file} is not whole ({error}); encode_dataset makes it anew, as the run command does"
        ) from None
    required = {"key", "base_model"}
    if not required <= about.keys() <= {*required, "digest"} or about.get("digest", _digest(named)) != _digest(named):
        raise UserError(
            f"dataset: {file} is not as it was written; encode_dataset makes it anew, as the run command does"
        )
    return named, about


def _latents_key(file: Path) -> str | None:
    """What whole latents were made of and with; None where there are none, which are then made."""
    try:
        return _read_latents(file)[1]["key"]
    except UserError:
        return None


def _digest(named: dict[str, Tensor]) -> str:
    return hashlib.sha256(save(dict(sorted(named.items())))).hexdigest()


def _need_record(out_dir: Path) -> dict[str, Any]:
    record = prepared_record(out_dir)
    if not record:
        raise UserError(f"dataset: {out_dir} holds no prepared photos (no whole dataset.json); prepare_photos makes it")
    return record


def _need_class_prompt(record: dict[str, Any]) -> str:
    class_prompt: str | None = record["subject"]["class_prompt"]
    if class_prompt is None:
        raise UserError(
            "subject.class_prompt: prior preservation needs it (the instance prompt without the rare token)"
        )
    return class_prompt
