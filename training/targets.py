"""Which layers have adapters, by the sweep file's words for it. Needs no torch.

`attention` is what diffusers' LoRA scripts adapt. `attention+ff` is what kohya's `networks.lora` adapts by default: all
linear layers and 1x1 convolutions of the transformer blocks, and the text encoder's feed-forward layers. `all` adds
what its `conv_dim` adds: the convolutions of the residual blocks, of the downsamplers and of the upsamplers.
`target_blocks` names the blocks of the UNet that have them; a text encoder has no such blocks, and adapters throughout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from training.config import TargetBlocks, TargetModules

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_FEED_FORWARD = ("fc1", "fc2")

_UNET_ENDS: Mapping[TargetModules, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "attention+ff": (*_ATTENTION, *_FEED_FORWARD),
    "all": (*_ATTENTION, *_FEED_FORWARD, *_CONVOLUTIONS),
}
_TEXT_ENCODER_ENDS: Mapping[TargetModules, tuple[str, ...]] = {
    "attention": _TEXT_ATTENTION,
    "attention+ff": (*_TEXT_ATTENTION, *_TEXT_FEED_FORWARD),
    "all": (*_TEXT_ATTENTION, *_TEXT_FEED_FORWARD),
}
_BLOCKS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}


@dataclass(frozen=True)
class Targets:
    """The layers of a module that have adapters, as peft is told."""

    ends: tuple[str, ...]
    """Ends of their names."""
    excluded: str | None = None
    """Regular expression; a layer whose whole name matches has none all the same."""

    def holds(self, layer: str) -> bool:
        """Has the layer of this name within its module an adapter?"""
        is_excluded = self.excluded is not None and re.fullmatch(self.excluded, layer)
        return layer.endswith(tuple(f".{end}" for end in self.ends)) and not is_excluded


def unet_targets(modules: TargetModules, blocks: TargetBlocks = "all") -> Targets:
    """Of a UNet's layers, those of the named kinds in the named blocks."""
    if blocks == "all":
        return Targets(_UNET_ENDS[modules])
    others = [name for word, name in _BLOCKS.items() if word not in blocks.split("+")]
    return Targets(_UNET_ENDS[modules], rf"({'|'.join(others)})\..*")


def text_encoder_targets(modules: TargetModules) -> Targets:
    """Likewise of a text encoder's."""
    return Targets(_TEXT_ENCODER_ENDS[modules])


def numbers_per_rank(shapes: Mapping[str, tuple[int, ...]], targets: Targets) -> int:
    """How many numbers one LoRA rank adds to layers.

    Args:
        shapes: name of a module's weight -> its shape, [out, in] or [out, in, height, width].
        targets: which of them are adapted.
    """
    layers = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    return sum(shape[0] + math.prod(shape[1:]) for layer, shape in layers.items() if targets.holds(layer))
