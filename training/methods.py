"""LoRA and DreamBooth: which weights train, and how they are saved and loaded. Files are diffusers' own formats.

Either way the base model's frozen weights are never written into: a LoRA trains beside them, DreamBooth trains a copy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from peft import LoraConfig as PeftConfig
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import CLIPTextModel

from training.config import DreamBoothConfig, LoraConfig, TrainConfig
from training.layout import LORA_FILE
from training.stable_diffusion import base_pipeline, forget_path, frozen_module, load_base_model, place, shared_copy

UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_ENCODER_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]

_HALF_OR_FULL = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TrainedModules:
    """A trial's own copies of the base model's modules, in training mode."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel | None
    """None where the text encoder stays frozen: its embeddings are then computed once, on the base model."""

    def parameters(self) -> list[nn.Parameter]:
        """The weights that train, all float32: the UNet's, then the text encoder's."""
        modules = [self.unet] if self.text_encoder is None else [self.unet, self.text_encoder]
        return [parameter for module in modules for parameter in trainable(module)]


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The weights of a module that an optimizer may change."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def copy_for_training(
    config: TrainConfig, base_model: str, device: torch.device, resume_dir: Path | None = None
) -> TrainedModules:
    """Copies of the base model ready to train: from the start, or with the weights of the checkpoint at `resume_dir`.

    New adapters are drawn on the CPU from the trial's seed, so they are the same whatever the device.
    """
    dtype = _HALF_OR_FULL[config.mixed_precision]
    if isinstance(config, LoraConfig):
        unet, text_encoder = _add_adapters(config, base_model)
        if resume_dir is not None:
            _load_adapters(unet, text_encoder, resume_dir)
        place(unet, device, dtype, frozen_module(base_model, "unet", device, dtype))
        if text_encoder is not None:
            place(text_encoder, device, dtype, frozen_module(base_model, "text_encoder", device, dtype))
    else:
        unet, text_encoder = _unfrozen_copies(config, base_model, resume_dir)
        for module in (unet, text_encoder):
            if module is not None:
                place(module, device, dtype)
    unet.train()
    if text_encoder is not None:
        text_encoder.train()
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        if text_encoder is not None:
            text_encoder.activation_checkpointing_enable()
    return TrainedModules(unet, text_encoder)


def save_weights(config: TrainConfig, modules: TrainedModules, folder: Path) -> None:
    """Write what `load_lora_weights` or `from_pretrained` of plain diffusers reads."""
    if isinstance(config, LoraConfig):
        _save_adapters(modules, folder)
    else:
        modules.unet.save_pretrained(folder / "unet", safe_serialization=True)
        if modules.text_encoder is not None:
            modules.text_encoder.save_pretrained(folder / "text_encoder")


def pipeline_with_weights(
    config: TrainConfig,
    folder: Path,
    base_model: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    share_frozen: bool = False,
) -> StableDiffusionPipeline:
    """The base model's pipeline with the weights of a checkpoint folder, by the way that diffusers users load them.

    `share_frozen` as in `base_pipeline`.
    """
    if isinstance(config, LoraConfig):
        pipeline = base_pipeline(base_model, device, dtype, share_frozen=share_frozen)
        with _without_remarks_on_absent_parts():
            pipeline.load_lora_weights(str(folder), weight_name=LORA_FILE)
        for module in (pipeline.unet, pipeline.text_encoder):
            module.eval()  # peft's new layers are in training mode, in which their dropout spoils every picture
        return pipeline
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype).to(device)
    text_encoder = None
    if config.train_text_encoder:
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype).to(device)
    return base_pipeline(base_model, device, dtype, unet=unet, text_encoder=text_encoder, share_frozen=share_frozen)


@contextmanager
def _without_remarks_on_absent_parts() -> Iterator[None]:
    """Loading a LoRA of the UNet alone makes diffusers warn that it found none for the text encoder."""
    logger = logging.getLogger("diffusers.loaders.lora_base")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _add_adapters(config: LoraConfig, base_model: str) -> tuple[UNet2DConditionModel, CLIPTextModel | None]:
    base = load_base_model(base_model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        unet = shared_copy(base.unet)
        unet.add_adapter(_adapter(config, UNET_TARGETS))
        if not config.train_text_encoder:
            return unet, None
        text_encoder = shared_copy(base.text_encoder)
        text_encoder.add_adapter(_adapter(config, TEXT_ENCODER_TARGETS))
    return unet, text_encoder


def _adapter(config: LoraConfig, targets: list[str]) -> PeftConfig:
    return PeftConfig(
        r=config.rank,
        lora_alpha=config.rank if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=config.lora_dropout,
        init_lora_weights="gaussian",  # A is drawn, B is zero: step 0 is the base model
        target_modules=targets,
    )


def _save_adapters(modules: TrainedModules, folder: Path) -> None:
    layers = {"unet": convert_state_dict_to_diffusers(get_peft_model_state_dict(modules.unet))}
    if modules.text_encoder is not None:
        layers["text_encoder"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(modules.text_encoder))
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers.get("text_encoder"),
        weight_name=LORA_FILE,
        **_adapter_metadata(modules),
    )


def _adapter_metadata(modules: TrainedModules) -> dict[str, dict[str, Any]]:
    """The adapters' settings, without which alpha would come back as the rank; without the base model's path."""
    collated: dict[str, dict[str, Any]] = _collate_lora_metadata(
        {"unet": modules.unet, "text_encoder": modules.text_encoder}
    )
    for settings in collated.values():
        settings["base_model_name_or_path"] = None
        settings["target_modules"] = sorted(settings["target_modules"])
    return collated


def _load_adapters(unet: UNet2DConditionModel, text_encoder: CLIPTextModel | None, folder: Path) -> None:
    state, _ = StableDiffusionPipeline.lora_state_dict(str(folder), weight_name=LORA_FILE)
    _set_adapter(unet, convert_unet_state_dict_to_peft(_under("unet.", state)))
    if text_encoder is not None:
        _set_adapter(text_encoder, convert_state_dict_to_peft(_under("text_encoder.", state)))


def _under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def _set_adapter(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    outcome = set_peft_model_state_dict(module, state, adapter_name="default")
    left_out = [key for key in [*outcome.missing_keys, *outcome.unexpected_keys] if "lora_" in key]
    assert not left_out, f"adapter weights without a counterpart: {left_out[:3]}"


def _unfrozen_copies(
    config: TrainConfig, base_model: str, resume_dir: Path | None
) -> tuple[UNet2DConditionModel, CLIPTextModel | None]:
    assert isinstance(config, DreamBoothConfig)
    base = load_base_model(base_model)
    text_encoder = None
    if resume_dir is None:
        unet = shared_copy(base.unet)
        text_encoder = shared_copy(base.text_encoder) if config.train_text_encoder else None
    else:
        unet = UNet2DConditionModel.from_pretrained(resume_dir / "unet")
        if config.train_text_encoder:
            text_encoder = CLIPTextModel.from_pretrained(resume_dir / "text_encoder")
    forget_path(unet)
    for module in (unet, text_encoder):
        if module is not None:
            module.requires_grad_(True)
    return unet, text_encoder
