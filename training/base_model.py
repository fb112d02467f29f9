"""What can be seen of a base model without torch: is this name, folder or file one that could be fine-tuned?"""

from __future__ import annotations

from pathlib import Path

from training.errors import UserError

PICKLE_SUFFIXES = frozenset({".ckpt", ".bin", ".pt", ".pth", ".pkl"})


def check_base_model(base_model: str) -> None:
    """Refuse what can be seen to be no usable base model without loading or downloading it.

    Raises:
        UserError: it is a pickle, no `.safetensors` file, no diffusers folder, or neither path nor hub id.
    """
    path = Path(base_model)
    if path.suffix in PICKLE_SUFFIXES:
        raise UserError(
            f"base_model: {base_model} is a pickle, which can run code when it is opened; convert it to .safetensors "
            "first (load it once with diffusers' StableDiffusionPipeline.from_single_file where you trust it, then "
            "save_pretrained) and name the folder or the .safetensors file here"
        )
    if path.suffix == ".safetensors" and not path.is_file():
        raise UserError(f"base_model: no such file: {base_model}")
    if path.is_file() and path.suffix != ".safetensors":
        raise UserError(f"base_model: a single file must be .safetensors, got {base_model}")
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise UserError(f"base_model: {base_model} is no diffusers folder: it has no model_index.json")
    if not path.exists() and not _looks_like_hub_id(base_model):
        raise UserError(f"base_model: no such file, folder or hub id: {base_model}")


def _looks_like_hub_id(base_model: str) -> bool:
    parts = base_model.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") for part in parts)
