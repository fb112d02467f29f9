"""One sample through one of Stable Diffusion's modules, as what is computed is counted. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.config import TargetBlocks, TargetModules

AdapterKind = Literal["lora", "dora", "loha", "lokr"]
PassPart = Literal["unet", "vae_encoder", "vae_decoder", "text_encoder", "controlnet"]


@dataclass(frozen=True)
class Pass:
    """A sample: one picture or its latents, or one prompt. All fields together say what it costs."""

    part: PassPart
    width: int | None = None
    """Pixels of the picture that it is about; None is the base model's own size. A text encoder has none."""
    height: int | None = None
    rank: int | None = None
    """Of the adapters in the module; None where it has none."""
    trains: bool = False
    """Whether a backward pass follows: to the adapters, or without a rank to all weights."""
    gradient_checkpointing: bool = False
    """Whether the backward pass computes activations anew."""
    target_modules: TargetModules = "attention"
    """Layers that have adapters."""
    target_blocks: TargetBlocks = "all"
    """Blocks of the UNet in which they have."""
    adapter: AdapterKind = "lora"
    """What they are."""
