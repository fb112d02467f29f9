"""What a sample costs: FLOPs counted by torch itself, on the meta device from the base model's configs.

No weights are loaded, nothing is computed and no GPU is asked. A multiplication with its addition is two FLOPs; matrix
products and convolutions are counted, attention's among them (on the meta device it is plain matrix products), and
everything else, well under 1 % of them, is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from training.architecture import TextEncoderConfig, UNetConfig, VaeConfig
from training.base_model import Configs, configs_of
from training.config import LoraConfig
from training.errors import UserError
from training.methods import adapter_of
from training.passes import Pass
from training.targets import Targets, text_encoder_targets, unet_targets

META = torch.device("meta")
CONTROL_CHANNELS = (16, 32, 96, 256)
"""Of a ControlNet's way from the control picture to the latents, which halves it between two: diffusers' own."""


def flops_of(passes: Iterable[Pass], base_model: str) -> dict[Pass, int] | None:
    """The cost of a sample of each kind, by this base model; None where its configs are not on this machine.

    A ControlNet is taken to be built over the base model's UNet as diffusers' own are.
    """
    asked = set(passes)
    if not asked:
        return {}
    try:
        configs = configs_of(base_model)
    except UserError:
        return None
    return None if configs is None else measure(asked, configs)


def measure(passes: Iterable[Pass], configs: Configs) -> dict[Pass, int]:
    """The cost of a sample of each kind, by these configs; each is counted once a process.

    A LoRA's layers cost in proportion to their rank and change nothing else, so two ranks tell of all. Other adapters
    are counted each by itself.
    """
    return {each: _measured(each, configs) for each in passes}


def _measured(asked: Pass, configs: Configs) -> int:
    if asked.rank is None or asked.rank <= 2 or asked.adapter != "lora":
        return _counted(asked, configs)
    first, second = (_counted(_with_rank(asked, rank), configs) for rank in (1, 2))
    return first + (asked.rank - 1) * (second - first)


def _with_rank(asked: Pass, rank: int) -> Pass:
    return replace(asked, rank=rank)


@cache
def _counted(asked: Pass, configs: Configs) -> int:
    forward = _forward(asked, configs)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(asked.trains):
        answer = forward()
        if asked.trains:
            torch.autograd.backward(answer.sum())
    return int(counter.get_total_flops())


def _forward(asked: Pass, configs: Configs) -> Callable[[], Tensor]:
    """One sample's forward pass, its module and inputs made on the meta device."""
    factor = 2 ** (len(configs.vae.block_out_channels) - 1)
    native = configs.unet.sample_size * factor
    height, width = asked.height or native, asked.width or native
    latents = torch.empty(1, configs.unet.in_channels, height // factor, width // factor, device=META)
    pixels = torch.empty(1, configs.vae.in_channels, height, width, device=META)
    timesteps = torch.zeros(1, dtype=torch.long, device=META)
    length = configs.text_encoder.max_position_embeddings
    conditioning = torch.empty(1, length, configs.unet.cross_attention_dim, device=META)
    tokens = torch.zeros(1, length, dtype=torch.long, device=META)
    with META:
        if asked.part == "text_encoder":
            text_encoder = CLIPTextModel(CLIPTextConfig(**_arguments(configs.text_encoder)))
            _prepare(text_encoder, asked, text_encoder_targets(asked.target_modules))
            if asked.gradient_checkpointing:
                text_encoder.activation_checkpointing_enable()
            return lambda: text_encoder(tokens).last_hidden_state
        if asked.part in ("vae_encoder", "vae_decoder"):
            vae = AutoencoderKL.from_config(_arguments(configs.vae))
            if asked.part == "vae_encoder":
                return lambda: vae.encode(pixels).latent_dist.mean
            return lambda: vae.decode(latents).sample
        unet = UNet2DConditionModel.from_config(_arguments(configs.unet))
        if asked.part == "controlnet":
            halvings = factor.bit_length() - 1  # of the control picture, to the size of the latents
            channels = (*CONTROL_CHANNELS, *CONTROL_CHANNELS[-1:] * halvings)[: halvings + 1]
            controlnet = ControlNetModel.from_unet(
                unet, conditioning_embedding_out_channels=channels, load_weights_from_unet=False
            )
            return lambda: controlnet(latents, timesteps, conditioning, pixels).mid_block_res_sample
        _prepare(unet, asked, unet_targets(asked.target_modules, asked.target_blocks))
        if asked.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        return lambda: unet(latents, timesteps, conditioning).sample


def _prepare(module: Any, asked: Pass, targets: Targets) -> None:
    """What trains and what does not, as `methods.copy_for_training` has it."""
    module.requires_grad_(asked.trains and asked.rank is None)
    if asked.rank is not None:
        module.add_adapter(adapter_of(_config_of(asked, asked.rank), targets))
    module.train(asked.trains)


def _config_of(asked: Pass, rank: int) -> LoraConfig:
    is_dora = asked.adapter == "dora"
    return LoraConfig(
        rank=rank,
        target_modules=asked.target_modules,
        target_blocks=asked.target_blocks,
        use_dora=is_dora,
        adapter="lora" if asked.adapter == "dora" else asked.adapter,
    )


def _arguments(config: UNetConfig | VaeConfig | TextEncoderConfig) -> dict[str, Any]:
    """What the library's class is made of."""
    apart = {"class_name", "diffusers_version", "dtype", "torch_dtype", "quantization_config"}
    return config.model_dump(exclude=apart, exclude_none=True)
