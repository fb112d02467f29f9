"""LoRA and DreamBooth: which weights train, and how they are saved and loaded. Files are diffusers' own formats.

Either way the base model's frozen weights are never written into: a LoRA trains beside them, DreamBooth trains a copy.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from peft import LoHaConfig, LoKrConfig, PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft import LoraConfig as PeftLoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from training.config import DreamBoothConfig, LoraConfig, TrainConfig
from training.layout import LORA_FILE
from training.stable_diffusion import (
    Part,
    base_pipeline,
    forget_path,
    frozen_module,
    load_base_model,
    place,
    shared_copy,
)
from training.targets import Targets, text_encoder_targets, unet_targets

FROZEN_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Of what does not train, by `mixed_precision`."""


class TrainedWeights(Protocol):
    """What a run trains, wherever it lies: in modules of its own or in a pack's bank."""

    def groups(self) -> list[list[nn.Parameter]]:
        """What the optimizer changes, all float32: the UNet's, then the text encoder's where it trains."""

    def saved(self) -> TrainedModules | LoraTensors:
        """What `save_weights` writes."""

    def optimizer_state_alone(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's `state_dict` as it would be if the run had modules of its own: the one that is saved."""

    def optimizer_state_here(self, state: dict[str, Any]) -> dict[str, Any]:
        """The way back: what was saved, for an optimizer of `groups`."""


@dataclass(frozen=True)
class TrainedModules:
    """A trial's own copies of the base model's modules, in training mode."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel | None
    """None where the text encoder stays frozen: its embeddings are then computed once, on the base model."""

    def groups(self) -> list[list[nn.Parameter]]:
        """As `TrainedWeights` says."""
        modules = [self.unet] if self.text_encoder is None else [self.unet, self.text_encoder]
        return [_trainable(module) for module in modules]

    def parameters(self) -> list[nn.Parameter]:
        """All that train, in the order of `groups`."""
        return [parameter for group in self.groups() for parameter in group]

    def saved(self) -> TrainedModules:
        """As `TrainedWeights` says."""
        return self

    def optimizer_state_alone(self, state: dict[str, Any]) -> dict[str, Any]:
        """As it is: these are modules of the run's own."""
        return state

    def optimizer_state_here(self, state: dict[str, Any]) -> dict[str, Any]:
        """As it is, but each moment in the memory format of its weight: a fused kernel takes both as they lie."""
        own = self.parameters()
        moments = {
            index: {name: _laid_out_as(own[index], value) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": moments}


@dataclass(frozen=True)
class LoraTensors:
    """A LoRA's weights under peft's names, as `{"mid_block. ... .to_q.lora_A.weight": [rank, in], ...}`."""

    unet: Mapping[str, Tensor]
    text_encoder: Mapping[str, Tensor] | None
    """None where the text encoder stays frozen."""


def _laid_out_as(weight: nn.Parameter, value: Any) -> Any:
    if not isinstance(value, Tensor) or value.shape != weight.shape or value.stride() == weight.stride():
        return value
    return torch.empty_like(weight, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def copy_for_training(
    config: TrainConfig,
    base_model: str,
    device: torch.device,
    resume_dir: Path | None = None,
    start: LoraTensors | None = None,
) -> TrainedModules:
    """Copies of the base model ready to train: from the start, or with the weights of the checkpoint at `resume_dir`.

    New adapters are drawn on the CPU from the trial's seed, so they are the same whatever the device; or they begin as
    `start` says.
    """
    dtype = FROZEN_DTYPES[config.mixed_precision]
    if isinstance(config, LoraConfig):
        unet, text_encoder = _add_adapters(config, base_model)
        if resume_dir is not None:
            _set_adapters(unet, text_encoder, load_lora(resume_dir))
        elif start is not None:
            _set_adapters(unet, text_encoder, start)
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
    if config.channels_last:
        unet.to(memory_format=torch.channels_last)  # of a LoRA this copies the frozen convolutions, which are shared
    if config.compile:
        _compile(unet)
    return TrainedModules(unet, text_encoder)


def _compile(unet: UNet2DConditionModel) -> None:
    """Let this copy be computed by `torch.compile`, in place: its weights keep their names and files.

    Shapes are fixed, so that what is compiled does not depend on the shapes that this process has seen before. Dropout
    draws as it does uncompiled.

    CUDA graphs (`reduce-overhead`) are left out: a graph's gradients lie in memory that its next replay writes over,
    and here they stay until all micro-steps of a step have been added up; and the memory of graphs is not given back
    while several trainings take turns in a process.
    """
    unet.compile(dynamic=False, options={"fallback_random": True})


def first_lora(config: LoraConfig, base_model: str) -> LoraTensors:
    """The adapters of a run's start: those that `copy_for_training` puts in, on the CPU."""
    return lora_tensors(TrainedModules(*_add_adapters(config, base_model)))


def frozen_copy(config: TrainConfig, base_model: str, part: Part, device: torch.device) -> nn.Module:
    """A module of the base model to put adapters into, in a run's precision; its weights are shared and stay."""
    return shared_copy(frozen_module(base_model, part, device, FROZEN_DTYPES[config.mixed_precision]))


def save_weights(config: TrainConfig, weights: TrainedModules | LoraTensors, folder: Path) -> None:
    """Write what `load_lora_weights` or `from_pretrained` of plain diffusers reads."""
    if isinstance(config, LoraConfig):
        save_lora(config, lora_tensors(weights) if isinstance(weights, TrainedModules) else weights, folder)
        return
    assert isinstance(weights, TrainedModules), "DreamBooth's weights are whole modules"
    weights.unet.save_pretrained(folder / "unet", safe_serialization=True)  # makes them contiguous
    if weights.text_encoder is not None:
        weights.text_encoder.save_pretrained(folder / "text_encoder")


def lora_tensors(modules: TrainedModules) -> LoraTensors:
    """The adapters' weights in these modules."""
    text_encoder = modules.text_encoder
    return LoraTensors(
        get_peft_model_state_dict(modules.unet),
        None if text_encoder is None else get_peft_model_state_dict(text_encoder),
    )


def save_lora(config: LoraConfig, tensors: LoraTensors, folder: Path) -> None:
    """Write `LORA_FILE` from bare tensors, which may be views of larger ones; no module is needed.

    With them go the adapters' settings, without which alpha would come back as the rank. What diffusers' scripts train
    has the names that they write. Everything else has peft's, after `unet.` and `text_encoder.`: diffusers' own names
    are for attention alone, and of a file with names of both kinds its loader leaves one kind out.
    """
    _assert_as_configured(config, tensors)
    settings = {
        "unet": _adapter_settings(config, _in_unet(config)),
        "text_encoder": _adapter_settings(config, _in_text_encoder(config)),
    }
    if not _is_upstreams(config):
        _save_adapters(tensors, settings, folder)
        return
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=_diffusers_named(tensors.unet),
        text_encoder_lora_layers=None if tensors.text_encoder is None else _diffusers_named(tensors.text_encoder),
        weight_name=LORA_FILE,
        unet_lora_adapter_metadata=settings["unet"],
        text_encoder_lora_adapter_metadata=settings["text_encoder"],
    )
    _sort_metadata(folder / LORA_FILE)


def _is_upstreams(config: LoraConfig) -> bool:
    """Are the adapters those that diffusers' own LoRA scripts train?"""
    return config.adapter == "lora" and config.target_modules == "attention" and not config.use_dora


def _save_adapters(tensors: LoraTensors, settings: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Under peft's names, laid out as diffusers lays out a LoRA."""
    parts = {"unet": tensors.unet, "text_encoder": tensors.text_encoder or {}}
    named = {
        f"{part}.{_read_by_all(name, part)}": tensor.contiguous()
        for part, own in parts.items()
        for name, tensor in sorted(own.items())
    }
    metadata = {f"{part}.{key}": value for part, own in settings.items() if parts[part] for key, value in own.items()}
    entries = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(metadata, indent=2, sort_keys=True)}
    save_file(named, folder / LORA_FILE, metadata=entries)
    _sort_metadata(folder / LORA_FILE)


_MAGNITUDES = ".lora_magnitude_vector"


def _read_by_all(name: str, part: str) -> str:
    """A DoRA's magnitudes in a text encoder as transformers' loader looks for them: peft's name, then `.weight`."""
    return f"{name}.weight" if part == "text_encoder" and name.endswith(_MAGNITUDES) else name


def load_lora(folder: Path) -> LoraTensors:
    """What `save_lora` wrote, on the CPU."""
    tensors = load_file(folder / LORA_FILE)
    if not any(".lora." in name or ".lora_linear_layer." in name for name in tensors):
        as_peft = {name.replace(f"{_MAGNITUDES}.weight", _MAGNITUDES): tensor for name, tensor in tensors.items()}
        return LoraTensors(_under("unet.", as_peft), _under("text_encoder.", as_peft) or None)
    state, _ = StableDiffusionPipeline.lora_state_dict(str(folder), weight_name=LORA_FILE)
    unet, text_encoder = _under("unet.", state), _under("text_encoder.", state)
    return LoraTensors(
        convert_unet_state_dict_to_peft(unet),
        convert_state_dict_to_peft(text_encoder) if text_encoder else None,
    )


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
        if _is_upstreams(config):
            with _without_remarks_on_absent_parts():
                pipeline.load_lora_weights(str(folder), weight_name=LORA_FILE)
        else:
            _load_adapters(config, pipeline, load_lora(folder))
        for module in (pipeline.unet, pipeline.text_encoder):
            module.eval()  # peft's new layers are in training mode, in which their dropout spoils every picture
        return pipeline
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype).to(device)
    text_encoder = None
    if config.train_text_encoder:
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype).to(device)
    return base_pipeline(base_model, device, dtype, unet=unet, text_encoder=text_encoder, share_frozen=share_frozen)


def _load_adapters(config: LoraConfig, pipeline: StableDiffusionPipeline, tensors: LoraTensors) -> None:
    """Put adapters into a pipeline, in its precision, without diffusers' loader.

    It knows no LoHa, and needs names of its own for some of the others.
    """
    modules = [(pipeline.unet, _in_unet(config))]
    if tensors.text_encoder is not None:
        modules.append((pipeline.text_encoder, _in_text_encoder(config)))
    for module, targets in modules:
        module.add_adapter(adapter_of(config, targets))
        module.requires_grad_(False)
    _set_adapters(pipeline.unet, pipeline.text_encoder if tensors.text_encoder is not None else None, tensors)


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
        unet.add_adapter(adapter_of(config, _in_unet(config)))
        if not config.train_text_encoder:
            return unet, None
        text_encoder = shared_copy(base.text_encoder)
        text_encoder.add_adapter(adapter_of(config, _in_text_encoder(config)))
    return unet, text_encoder


def _in_unet(config: LoraConfig) -> Targets:
    return unet_targets(config.target_modules, config.target_blocks)


def _in_text_encoder(config: LoraConfig) -> Targets:
    return text_encoder_targets(config.target_modules)


def adapter_of(config: LoraConfig, targets: Targets) -> PeftConfig:
    """Peft's description of the config's adapters in a module with these layers; step 0 is the base model."""
    layers: dict[str, Any] = {"target_modules": list(targets.ends), "exclude_modules": targets.excluded}
    if config.adapter == "loha":
        return LoHaConfig(r=config.rank, alpha=config.alpha, **layers)
    if config.adapter == "lokr":
        return LoKrConfig(r=config.rank, alpha=config.alpha, **layers)
    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        init_lora_weights="gaussian",  # A is drawn, B is zero
        **layers,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
    )


def _adapter_settings(config: LoraConfig, targets: Targets) -> dict[str, Any]:
    """What peft records of an adapter, the same at every save: a set has no order that lasts."""
    settings: dict[str, Any] = adapter_of(config, targets).to_dict()
    return {**settings, "target_modules": sorted(settings["target_modules"])}


def _sort_metadata(file: Path) -> None:
    """Put a file's metadata in one order: safetensors leaves them in another at every save, and digests differ."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same entries in another order"
        stream.seek(8)
        stream.write(text.ljust(size))  # its length is a multiple of 8, filled up with blanks


def _diffusers_named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = convert_state_dict_to_diffusers(dict(tensors))
    return {name: tensor.contiguous() for name, tensor in named.items()}  # safetensors refuses strided views


def _assert_as_configured(config: LoraConfig, tensors: LoraTensors) -> None:
    """The file says the config's rank and modules of weights that must have them."""
    assert (tensors.text_encoder is not None) == config.train_text_encoder, "text encoder: weights against config"
    for name, tensor in {**tensors.unet, **(tensors.text_encoder or {})}.items():
        if name.endswith(("lora_A.weight", "lora_B.weight")):
            rank = tensor.shape[0 if name.endswith("lora_A.weight") else 1]
            assert rank == config.rank, f"rank {rank} in {name}, {config.rank} in the config"


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def _set_adapters(unet: UNet2DConditionModel, text_encoder: CLIPTextModel | None, tensors: LoraTensors) -> None:
    for module, state in ((unet, tensors.unet), (text_encoder, tensors.text_encoder)):
        if module is not None:
            outcome = set_peft_model_state_dict(module, state, adapter_name="default")
            own = ("lora_", "hada_", "lokr_")
            left_out = [k for k in [*outcome.missing_keys, *outcome.unexpected_keys] if any(part in k for part in own)]
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
