"""A model that may have been trained anywhere: a LoRA file, a whole checkpoint or a sweep's, told apart by its content.

All become pipelines over the same base model, so that their pictures can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import StableDiffusionPipeline

from training.base_model import PICKLE_SUFFIXES, check_base_model
from training.checkpoint import Checkpoint, load_pipeline, open_checkpoint
from training.errors import UserError
from training.layout import LORA_FILE
from training.lora_file import LoraFile, pipeline_with_lora_file, read_lora_file
from training.lora_names import PEFT_FILE, is_lora
from training.model_kinds import INDEX_FILE
from training.names import name_text, shown
from training.stable_diffusion import whole_pipeline
from training.weights import read_weights

RECORD = "checkpoint.json"
"""A checkpoint folder of a sweep has it."""

BASE_NAME = "base model"
"""In tables and over pictures."""
CALLED_ALIKE = re.compile(rf"{re.escape(LORA_FILE)}|{re.escape(PEFT_FILE)}|model\.safetensors|checkpoint-\d+")
"""Names that say nothing without their folder's."""

ModelKind = Literal["lora", "checkpoint"]


@dataclass(frozen=True)
class ElsewhereModel:
    """A model that was looked at, and will load."""

    path: Path
    kind: ModelKind
    content: LoraFile | Checkpoint | str
    """A LoRA as it was read, a sweep's checkpoint, or the name of a whole model."""

    @property
    def what(self) -> str:
        """In words: `LoRA of rank 4`, `checkpoint`."""
        if isinstance(self.content, LoraFile):
            ranks = "-".join(map(str, (self.content.ranks[0], self.content.ranks[-1])[: len(self.content.ranks)]))
            return f"{self.content.method} of rank {ranks}"
        if isinstance(self.content, Checkpoint):
            return f"{self.content.method} checkpoint, step {self.content.step}"
        return "checkpoint"

    def pipeline(self, base_model: str | None, device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
        """In evaluation mode; of a LoRA, the base model's frozen weights are shared with others of this process.

        Args:
            base_model: what a LoRA changes; not asked of a whole model.
            device: where it computes.
            dtype: its precision.
        """
        if isinstance(self.content, str):
            return whole_pipeline(self.content, device, dtype)
        assert base_model is not None, "as `open_model` asked for"
        if isinstance(self.content, LoraFile):
            return pipeline_with_lora_file(self.content, base_model, device, dtype, share_frozen=True)
        return load_pipeline(self.content, base_model, device=device, dtype=dtype, share_frozen=True)


def open_model(path: Path, base_model: str | None) -> ElsewhereModel:
    """Look at a model and refuse what would not load; a LoRA is read whole, and nothing else is loaded.

    Args:
        path: a LoRA file or a folder with one, a whole checkpoint (a file or a diffusers folder), or a checkpoint
            folder of a sweep.
        base_model: what a LoRA, or a sweep's checkpoint, is a change of.

    Raises:
        UserError: it is none of these, not whole, of another model, or needs a base model and has none.
    """
    if not path.exists() and not path.is_symlink():
        raise UserError(f"no such file or folder: {shown(path)}")
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise UserError(
            f"{shown(path)} is a pickle, which can run code when it is opened; need a .safetensors file or a folder"
        )
    if (path / RECORD).is_file():
        checkpoint = open_checkpoint(path, _needed(base_model, path))
        return ElsewhereModel(path, "lora" if checkpoint.method == "lora" else "checkpoint", checkpoint)
    if _is_whole(path):
        check_base_model(str(path))
        return ElsewhereModel(path, "checkpoint", str(path))
    return ElsewhereModel(path, "lora", read_lora_file(path, _needed(base_model, path)))


def model_names(models: Sequence[ElsewhereModel]) -> list[str]:
    """A name for each that no other has: its file's, with its folder's where that says nothing."""
    names: list[str] = []
    for model in models:
        path = model.path.absolute()  # a link has its own name
        name = path.name if path.is_dir() else path.stem
        if CALLED_ALIKE.fullmatch(path.name):
            name = f"{path.parent.name}/{name}"
        number, unique = 1, name_text(name)
        while unique in (*names, BASE_NAME):
            number += 1
            unique = f"{name_text(name)} ({number})"
        names.append(unique)
    return names


def _needed(base_model: str | None, path: Path) -> str:
    if base_model is None:
        raise UserError(f"--base-model: need the model that {shown(path)} is a change of, got none")
    return base_model


def _is_whole(path: Path) -> bool:
    """A whole model, or something that is refused as if it were one; else a LoRA."""
    if path.is_dir():
        return (path / INDEX_FILE).exists() or not any(path.glob("*.safetensors"))
    return path.suffix == ".safetensors" and not is_lora(read_weights(path))
