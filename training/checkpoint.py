"""Checkpoint folders: whole or absent, verified when opened, readable by plain diffusers.

checkpoint-200/
  pytorch_lora_weights.safetensors      a LoRA with its adapter metadata, or
  unet/, text_encoder/                  the trained modules of DreamBooth
  checkpoint.json                       method, step, config, base model
  training_state.safetensors            optimizer, schedule; gone from older checkpoints than one that was taken
  MANIFEST.json                         size and sha256 of every file above
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.config import DreamBoothConfig, LoraConfig, MethodConfig
from training.errors import UserError
from training.files import whole_folder
from training.layout import STATE_FILE
from training.manifest import verify_training_state, verify_weights, write_manifest
from training.methods import LoraTensors, TrainedModules, pipeline_with_weights, save_weights
from training.stable_diffusion import base_pipeline, choose_device

_FOLDER = re.compile(r"checkpoint-(?P<step>\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    dir: Path
    method: str
    """`lora` or `dreambooth`."""
    step: int
    """Optimizer steps taken."""
    base_model: str
    """What it was trained from, as it was given there."""
    config: LoraConfig | DreamBoothConfig


def save_checkpoint(
    out_dir: Path,
    config: LoraConfig | DreamBoothConfig,
    weights: TrainedModules | LoraTensors,
    step: int,
    base_model: str,
    training_state: Mapping[str, Any],
) -> Checkpoint:
    """Write `out_dir/checkpoint-<step>` as a whole.

    Args:
        out_dir: the trial's folder.
        config: the trial's.
        weights: what was trained; of a LoRA the bare tensors are enough.
        step: optimizer steps taken.
        base_model: what it was trained from.
        training_state: nested dicts and lists of tensors and plain values, which `load_training_state` gives back.
    """
    folder = checkpoint_dir(out_dir, step)
    with whole_folder(folder) as part:
        save_weights(config, weights, part)
        record = {"method": config.method, "step": step, "base_model": base_model, "config": config.model_dump()}
        (part / "checkpoint.json").write_text(json.dumps(record, indent=2) + "\n")
        _save_tree(training_state, part / STATE_FILE)
        write_manifest(part)
    return Checkpoint(folder, config.method, step, base_model, config)


def checkpoint_dir(out_dir: Path, step: int) -> Path:
    """Where a trial's checkpoint of a step lies."""
    return out_dir / f"checkpoint-{step}"


def drop_older_states(checkpoint: Checkpoint) -> None:
    """Free what going on from older checkpoints of the trial would need, twice the weights."""
    for older, step in _checkpoint_folders(checkpoint.dir.parent):
        if step < checkpoint.step:
            (older / STATE_FILE).unlink(missing_ok=True)


def open_checkpoint(folder: str | Path, base_model: str | None = None) -> Checkpoint:
    """Read a checkpoint folder after comparing its weights with its manifest.

    Args:
        folder: the checkpoint.
        base_model: where the base model lies on this machine, if elsewhere than where the checkpoint was made.

    Raises:
        UserError: the folder is not whole: a file is missing, cut short or changed.
    """
    folder = Path(folder)
    try:
        verify_weights(folder)
        record = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        config = TypeAdapter(MethodConfig).validate_python(record["config"])
        return Checkpoint(folder, record["method"], int(record["step"]), base_model or record["base_model"], config)
    except ValidationError as error:
        raise UserError(f"checkpoint: {folder} has a config of another version: {error.errors()[0]['msg']}") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"checkpoint: {folder} is not whole: {error}") from error


def latest_checkpoint(
    out_dir: str | Path, base_model: str | None = None, up_to: int | None = None
) -> Checkpoint | None:
    """The newest checkpoint (of steps `up_to`) from which a trial can go on; damaged ones are passed over."""
    for folder, step in sorted(_checkpoint_folders(Path(out_dir)), key=lambda pair: pair[1], reverse=True):
        if up_to is not None and step > up_to:
            continue
        try:
            checkpoint = open_checkpoint(folder, base_model)
            _verify_training_state(checkpoint)
        except ValueError:
            continue
        return checkpoint
    return None


def load_training_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """What training needs besides the weights: optimizer and schedule, on the CPU.

    Raises:
        UserError: the checkpoint has no training state (an older one of its trial), or it is damaged.
    """
    _verify_training_state(checkpoint)
    state: dict[str, Any] = _load_tree(checkpoint.dir / STATE_FILE)
    return state


def load_pipeline(
    checkpoint: Checkpoint | None,
    base_model: str,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    share_frozen: bool = False,
) -> StableDiffusionPipeline:
    """A pipeline with a checkpoint's weights, or the base model itself for None; its modules are its own.

    Args:
        checkpoint: from `train` or `open_checkpoint`.
        base_model: hub id, folder or file of the base model on this machine.
        device: default: the GPU where there is one.
        dtype: default: float16 on a GPU, float32 on the CPU.
        share_frozen: share the base model's frozen weights with whoever else in this process uses them, instead of
            copying gigabytes: for making pictures, not for fusing or changing weights.
    """
    device = choose_device(device)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    if checkpoint is None:
        return base_pipeline(base_model, device, dtype, share_frozen=share_frozen)
    return pipeline_with_weights(
        checkpoint.config, checkpoint.dir, base_model, device, dtype, share_frozen=share_frozen
    )


def _checkpoint_folders(out_dir: Path) -> list[tuple[Path, int]]:
    if not out_dir.is_dir():
        return []
    matches = ((folder, _FOLDER.fullmatch(folder.name)) for folder in out_dir.iterdir() if folder.is_dir())
    return [(folder, int(match["step"])) for folder, match in matches if match]


def _verify_training_state(checkpoint: Checkpoint) -> None:
    try:
        verify_training_state(checkpoint.dir)
    except OSError as error:
        raise UserError(f"checkpoint: training cannot go on from {checkpoint.dir}: {error}") from error


def _save_tree(tree: Mapping[str, Any], file: Path) -> None:
    """Nested dicts, lists, tensors and plain values as one safetensors file: tensors by number, the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    outline = json.dumps(_take_tensors(tree, tensors))
    save_file(tensors, file, metadata={"outline": outline})


def _load_tree(file: Path) -> Any:
    with safe_open(str(file), framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
        return _put_tensors(json.loads(stored.metadata()["outline"]), tensors)


def _take_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, Mapping):  # as pairs: an optimizer's keys are integers, which JSON objects cannot have
        return {"dict": [[key, _take_tensors(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [_take_tensors(value, tensors) for value in tree]
    return tree


def _put_tensors(outline: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(outline, list):
        return [_put_tensors(value, tensors) for value in outline]
    if isinstance(outline, dict) and "tensor" in outline:
        return tensors[outline["tensor"]]
    if isinstance(outline, dict):
        return {key: _put_tensors(value, tensors) for key, value in outline["dict"]}
    return outline
