"""A diffusers folder's weights under the names of single files, by tables of the tests' own."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_key(key: str) -> str:
    """A diffusers UNet's key as Stable Diffusion's original files have it."""
    block = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)(?:\.conv(?=\.))?\.", key)
    if block:
        side, level, kind, layer = block.groups()
        first = 3 * int(level) + (1 if side == "down" else 0)
        number = first + int(layer) if kind in ("resnets", "attentions") else first + 2
        if kind == "resnets":
            place = "0."
        elif kind == "attentions":
            place = "1."
        else:
            place = "0.op." if side == "down" else f"{1 if level == '0' else 2}.conv."
        start = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{place}"
        rest = key[block.end() :]
    else:
        there = next(end for end in UNET_ENDS if key.startswith(end + "."))
        start, rest = UNET_ENDS[there] + ".", key[len(there) + 1 :]
    if "resnets" in key:
        part, _, last = rest.rpartition(".")
        rest = f"{UNET_RESNET[part]}.{last}"
    return start + rest


def vae_key(key: str) -> str:
    """A diffusers VAE's key as Stable Diffusion's original files have it."""
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    if "attn_1" in key:
        for ours, theirs in VAE_ATTENTION.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
    return key.replace("conv_shortcut", "nin_shortcut")


def single_file_tensors(folder: str) -> dict[str, Tensor]:
    """The weights of a diffusers folder in the layout that CivitAI serves, with CLIP's `text_model.` prefix."""
    unet, vae, text = (
        load_file(next((Path(folder) / part).glob("*.safetensors"))) for part in ("unet", "vae", "text_encoder")
    )
    tensors = {f"model.diffusion_model.{unet_key(key)}": tensor for key, tensor in unet.items()}
    for key, tensor in vae.items():
        is_matrix = "mid_block.attentions" in key and tensor.ndim == 2
        tensors[f"first_stage_model.{vae_key(key)}"] = tensor[:, :, None, None].contiguous() if is_matrix else tensor
    for key, tensor in text.items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = tensor
    return tensors


def single_file_shapes_of(folder: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in single_file_tensors(folder).items()}
