"""Which layers have adapters, by the sweep file's word for it. Needs no torch.

`attention` is what diffusers' LoRA scripts adapt. `attention+ff` is what kohya's `networks.lora` adapts by default: all
linear layers and 1x1 convolutions of the transformer blocks, and the text encoder's feed-forward layers. `all` adds
what its `conv_dim` adds: the convolutions of the residual blocks, of the downsamplers and of the upsamplers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from training.config import TargetModules

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_FEED_FORWARD = ("fc1", "fc2")

UNET_TARGETS: Mapping[TargetModules, list[str]] = {
    "attention": [*_ATTENTION],
    "attention+ff": [*_ATTENTION, *_FEED_FORWARD],
    "all": [*_ATTENTION, *_FEED_FORWARD, *_CONVOLUTIONS],
}
"""Ends of the layers' names in the UNet."""
TEXT_ENCODER_TARGETS: Mapping[TargetModules, list[str]] = {
    "attention": [*_TEXT_ATTENTION],
    "attention+ff": [*_TEXT_ATTENTION, *_TEXT_FEED_FORWARD],
    "all": [*_TEXT_ATTENTION, *_TEXT_FEED_FORWARD],
}
"""Likewise in the text encoder."""


def numbers_per_rank(shapes: Mapping[str, tuple[int, ...]], targets: list[str]) -> int:
    """How many numbers one LoRA rank adds to layers.

    Args:
        shapes: name of a module's weight -> its shape, [out, in] or [out, in, height, width].
        targets: ends of the adapted layers' names.
    """
    endings = tuple(f".{target}.weight" for target in targets)
    return sum(shape[0] + math.prod(shape[1:]) for name, shape in shapes.items() if name.endswith(endings))
