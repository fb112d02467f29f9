"""The same weights under the names that other programs read: kohya's for a LoRA, the original ones for a whole model.

diffusers ships the opposite direction of both. The tables follow the module trees of CompVis' Stable Diffusion 1
(`model.diffusion_model`, `first_stage_model`, `cond_stage_model`) and the naming rule of kohya's `networks/lora.py`:
prefix, then the module's path with underscores for dots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from peft.tuners.loha import LoHaLayer
from peft.tuners.lokr import LoKrLayer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from training.architecture import TEXT_PREFIX, UNET_PREFIX, UNET_RESNET_NAMES, VAE_ATTENTION_NAMES, VAE_PREFIX
from training.errors import UserError

TEXT_MODEL = "text_model."
"""Part of the text encoder's names in all files of the last years; transformers 5 reads it but no longer writes it."""

VAE_RESNET_NAMES = {"conv_shortcut": "nin_shortcut"}

Renaming = tuple[str, str, Mapping[str, str]]
"""A module's path here, its path there, and the names inside it that differ."""


def with_text_model_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder's weights under the names that transformers 4 and 5 both read."""
    return {key if key.startswith(TEXT_MODEL) else TEXT_MODEL + key: tensor for key, tensor in state.items()}


# --- one file of a whole model ------------------------------------------------------------------------------------


def original_layout(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    """All weights of a Stable Diffusion 1 pipeline under the original names, on the CPU, dtypes as they are.

    Raises:
        UserError: the pipeline is not of Stable Diffusion 1's layout.
    """
    if pipeline.unet.config.use_linear_projection:
        raise UserError("checkpoint: the single-file layout is Stable Diffusion 1's, got a UNet of Stable Diffusion 2")
    text = with_text_model_prefix(pipeline.text_encoder.state_dict())
    parts = {
        UNET_PREFIX: _renamed(pipeline.unet.state_dict(), list(_unet_modules(pipeline.unet))),
        VAE_PREFIX: _vae_with_convolutions(_renamed(pipeline.vae.state_dict(), list(_vae_modules(pipeline.vae)))),
        TEXT_PREFIX: text,
    }
    return {prefix + key: tensor.cpu().contiguous() for prefix, part in parts.items() for key, tensor in part.items()}


def _renamed(state: Mapping[str, Tensor], modules: list[Renaming]) -> dict[str, Tensor]:
    return {_new_name(key, modules): tensor for key, tensor in state.items()}


def _new_name(key: str, modules: list[Renaming]) -> str:
    for here, there, inner in modules:
        if key.startswith(f"{here}."):
            rest = key.removeprefix(f"{here}.")
            for old, new in inner.items():
                if rest.startswith(f"{old}."):
                    return f"{there}.{new}.{rest.removeprefix(f'{old}.')}"
            return f"{there}.{rest}"
    raise UserError(f"checkpoint: Stable Diffusion 1's layout has no place for the weight {key}")


def _unet_modules(unet: UNet2DConditionModel) -> Iterator[Renaming]:
    """Down and up blocks are numbered through in the original: each resnet (with its attention) and each resampling."""
    yield "time_embedding.linear_1", "time_embed.0", {}
    yield "time_embedding.linear_2", "time_embed.2", {}
    yield "conv_in", "input_blocks.0.0", {}
    yield "conv_norm_out", "out.0", {}
    yield "conv_out", "out.2", {}
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0", UNET_RESNET_NAMES
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{number}.1", {}
            number += 1
        if block.downsamplers is not None:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{number}.0.op", {}
            number += 1
    yield "mid_block.resnets.0", "middle_block.0", UNET_RESNET_NAMES
    yield "mid_block.attentions.0", "middle_block.1", {}
    yield "mid_block.resnets.1", "middle_block.2", UNET_RESNET_NAMES
    number = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0", UNET_RESNET_NAMES
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{number}.1", {}
            number += 1
        if block.upsamplers is not None:
            place = 2 if hasattr(block, "attentions") else 1  # after the resnet and, where there is one, the attention
            yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{number - 1}.{place}.conv", {}


def _vae_modules(vae: AutoencoderKL) -> Iterator[Renaming]:
    """As in diffusers, but the decoder's blocks are numbered from the picture inwards."""
    yield "quant_conv", "quant_conv", {}
    yield "post_quant_conv", "post_quant_conv", {}
    for side in ("encoder", "decoder"):
        yield f"{side}.conv_in", f"{side}.conv_in", {}
        yield f"{side}.conv_norm_out", f"{side}.norm_out", {}
        yield f"{side}.conv_out", f"{side}.conv_out", {}
        yield f"{side}.mid_block.resnets.0", f"{side}.mid.block_1", VAE_RESNET_NAMES
        yield f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", VAE_ATTENTION_NAMES
        yield f"{side}.mid_block.resnets.1", f"{side}.mid.block_2", VAE_RESNET_NAMES
    for i, block in enumerate(vae.encoder.down_blocks):
        for j in range(len(block.resnets)):
            yield f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}", VAE_RESNET_NAMES
        yield f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv", {}
    last = len(vae.decoder.up_blocks) - 1
    for i, block in enumerate(vae.decoder.up_blocks):
        for j in range(len(block.resnets)):
            yield f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{last - i}.block.{j}", VAE_RESNET_NAMES
        yield f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder.up.{last - i}.upsample.conv", {}


def _vae_with_convolutions(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original VAE's attention is made of 1x1 convolutions where diffusers has linear layers."""
    linear = tuple(f".attn_1.{name}.weight" for name in ("q", "k", "v", "proj_out"))
    return {
        key: tensor[:, :, None, None] if key.endswith(linear) and tensor.ndim == 2 else tensor
        for key, tensor in state.items()
    }


# --- a LoRA as kohya writes it ------------------------------------------------------------------------------------


def kohya_layout(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    """The pipeline's one adapter under kohya's names.

    For each layer a float `alpha` and a LoRA's `lora_down` and `lora_up`, or, as LyCORIS names them, a LoHa's `hada_*`
    or a LoKr's `lokr_*`. A DoRA has no place among them: see `export`.
    """
    return {
        **_kohya_layers(pipeline.unet, "lora_unet", ""),
        **_kohya_layers(pipeline.text_encoder, "lora_te", TEXT_MODEL),
    }


def _kohya_layers(module: nn.Module, prefix: str, path_prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, LoraLayer | LoHaLayer | LoKrLayer):
            full_path = path if path.startswith(path_prefix) else path_prefix + path
            name = f"{prefix}_{full_path.replace('.', '_')}"
            own = _down_up_alpha(layer) if isinstance(layer, LoraLayer) else _lycoris_tensors(layer)
            tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
    return tensors


def _down_up_alpha(layer: Any) -> dict[str, Tensor]:
    """One layer's weights; alpha is what scales them by alpha / rank, whatever rule the adapter was made by."""
    (adapter,) = layer.lora_A
    down, up = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
    alpha = float(layer.scaling[adapter]) * down.shape[0]
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha, dtype=torch.float32)}
    assert adapter not in layer.lora_magnitude_vector, "a DoRA is not written in this layout"
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _lycoris_tensors(layer: Any) -> dict[str, Tensor]:
    """One LoHa's or LoKr's weights as LyCORIS names them.

    What scales a LoKr is written into its first factor: where both factors are whole, readers look at no alpha.
    """
    (adapter,) = layer.r
    tensors = {
        name: getattr(layer, name)[adapter].detach()
        for name in layer.adapter_layer_names
        if adapter in getattr(layer, name)
    }
    alpha, rank = float(layer.scaling[adapter]) * layer.r[adapter], layer.r[adapter]
    if isinstance(layer, LoKrLayer):
        first = "lokr_w1" if "lokr_w1" in tensors else "lokr_w1_a"
        tensors[first] = tensors[first] * (alpha / rank)
        alpha = float(rank)
    tensors["alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
