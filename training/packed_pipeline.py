"""A pipeline of several LoRA checkpoints at once: one pass of the frozen modules makes pictures of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from training.adapter_bank import AdapterBank
from training.checkpoint import Checkpoint
from training.config import LoraConfig
from training.methods import load_lora
from training.packed_dropout import PackedDropout
from training.stable_diffusion import base_pipeline


def packed_pipeline(
    checkpoints: Sequence[Checkpoint],
    base_model: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    guided: bool,
) -> StableDiffusionPipeline:
    """A pipeline whose batches hold every checkpoint's rows, one checkpoint's after the other's.

    It shares the base model's frozen weights with whoever else in this process uses them.

    Args:
        checkpoints: LoRAs, which all train the text encoder or all do not.
        base_model: hub id, folder or file.
        device: where the modules are.
        dtype: their precision, the adapters' too, as where diffusers loads them.
        guided: whether the pipeline is called with classifier-free guidance, where the UNet's batch holds all rows
            twice: without the prompt, then with it.
    """
    pipeline = base_pipeline(base_model, device, dtype, share_frozen=True)
    configs = [checkpoint.config for checkpoint in checkpoints]
    assert all(isinstance(config, LoraConfig) for config in configs), "only LoRAs are packed"
    loras = [load_lora(checkpoint.dir) for checkpoint in checkpoints]
    scales = [config.scale for config in configs if isinstance(config, LoraConfig)]
    passes = 2 if guided else 1
    _add_adapters(pipeline.unet, [lora.unet for lora in loras] * passes, scales * passes, dtype)
    text_loras = [lora.text_encoder for lora in loras if lora.text_encoder is not None]
    if text_loras:
        _add_adapters(pipeline.text_encoder, text_loras, scales, dtype)
    return pipeline


def _add_adapters(
    module: nn.Module, loras: Sequence[Mapping[str, Tensor]], scales: Sequence[float], dtype: torch.dtype
) -> None:
    """Let each LoRA work on its own rows of whatever goes through the module, which stays as it is otherwise."""
    device = next(module.parameters()).device
    bank = AdapterBank(module, [{name: tensor.to(dtype) for name, tensor in lora.items()} for lora in loras], device)
    bank.add_layers(scales, PackedDropout([0.0] * len(loras), device))
