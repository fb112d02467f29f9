"""The base model: loaded once a process, identified by its content, copied for whoever wants to change it."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from pathlib import Path
from typing import Literal, TypeVar

import torch
from diffusers import DDPMScheduler, ModelMixin, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from training.base_model import check_base_model
from training.errors import UserError
from training.files import sha256_of

# Bars for files that load in a second would tear the live table of a sweep apart.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

CONFIG_AND_WEIGHT_SUFFIXES = frozenset({".json", ".safetensors", ".txt"})

Part = Literal["unet", "vae", "text_encoder"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@functools.cache
def load_base_model(base_model: str) -> StableDiffusionPipeline:
    """The base model on the CPU in float32, frozen and in evaluation mode; loaded once and never to be changed.

    Args:
        base_model: a hub id, a local diffusers folder, or one `.safetensors` file in Stable Diffusion's original
            layout. Such a file needs the small configs of its pipeline too: they are looked for in a folder of the
            file's name without suffix, else asked of the hub.

    Raises:
        UserError: there is no such model, it is a pickle, or it is not of Stable Diffusion 1.x's kind.
    """
    if Path(base_model).suffix == ".safetensors":
        pipeline = _load_single_file(Path(base_model))
    else:
        pipeline = _load_folder(base_model, _local_folder(base_model))
    _check_layout(base_model, pipeline)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False).eval()
    return pipeline


@functools.cache
def base_model_fingerprint(base_model: str) -> str:
    """Hex digest that changes when the base model's content does.

    Of a file or folder: names and content of configs and weights. Of a hub id: the id and the commit it resolves to.
    """
    check_base_model(base_model)
    path = Path(base_model)
    if path.is_file():
        return _digest_files(path.parent, [path])
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file() and file.suffix in CONFIG_AND_WEIGHT_SUFFIXES)
        return _digest_files(path, sorted(files))
    commit = _local_folder(base_model).name
    return hashlib.sha256(f"{base_model}@{commit}".encode()).hexdigest()


def training_noise_schedule(pipeline: StableDiffusionPipeline) -> DDPMScheduler:
    """The base model's own noise levels and prediction type in the form that training needs."""
    return DDPMScheduler.from_config(pipeline.scheduler.config)


def shared_copy(module: ModuleT) -> ModuleT:
    """A module tree of its own over the same storage: adapters may be put in, parameters replaced, nothing written."""
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in module.parameters()
    }
    return copy.deepcopy(module, memo)


def frozen_module(base_model: str, part: Part, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The base model's `part` where it is needed: made once per process, device and precision, for all who need it.

    Nothing may write into it. Whoever puts adapters in does so in a `shared_copy`; whoever fuses them takes a
    `fresh_copy`.
    """
    return _frozen_module(base_model, part, str(device), dtype)


@functools.cache
def _frozen_module(base_model: str, part: Part, device: str, dtype: torch.dtype) -> nn.Module:
    module: nn.Module = getattr(load_base_model(base_model), part)
    return fresh_copy(module, torch.device(device), dtype)


def place(module: nn.Module, device: torch.device, frozen_dtype: torch.dtype, frozen: nn.Module | None = None) -> None:
    """Move a `shared_copy` to where it trains: frozen weights in `frozen_dtype`, trainable ones float32.

    Trainable weights always leave the shared storage. They stay float32 under mixed precision because a bfloat16
    weight cannot take a step of 1e-4 of its size.

    Args:
        module: the copy, with its adapters if it has any.
        device: where it trains.
        frozen_dtype: precision of what does not train.
        frozen: a `frozen_module` of that device and precision, whose weights are then shared instead of copied.
    """
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device, torch.float32, copy=True)
        elif frozen is not None:
            parameter.data = frozen.get_parameter(name.replace(".base_layer.", ".")).data
        else:
            parameter.data = parameter.data.to(device, frozen_dtype)
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            setattr(owner, name, buffer.to(device))


def fresh_copy(module: ModuleT, device: torch.device, dtype: torch.dtype) -> ModuleT:
    """A copy that shares nothing with the base: whoever fuses adapters into it changes only the copy."""
    module = shared_copy(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(device, dtype, copy=True)
    return module.to(device)


def base_pipeline(
    base_model: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    unet: nn.Module | None = None,
    text_encoder: nn.Module | None = None,
    share_frozen: bool = False,
) -> StableDiffusionPipeline:
    """A pipeline of copies of the base model's modules; a `unet` or `text_encoder` given is taken as it is.

    Args:
        base_model: hub id, folder or file.
        device: where the modules are.
        dtype: their precision.
        unet: in place of the base model's.
        text_encoder: in place of the base model's.
        share_frozen: share the weights of this process's `frozen_module`s instead of copying them. The pipeline takes
            adapters all the same, but nothing may write into its weights (`fuse_lora` does).
    """
    base = load_base_model(base_model)

    def copy_of(part: Part) -> nn.Module:
        if share_frozen:
            return shared_copy(frozen_module(base_model, part, device, dtype))
        module: nn.Module = getattr(base, part)
        return fresh_copy(module, device, dtype)

    pipeline = StableDiffusionPipeline(
        vae=copy_of("vae"),
        text_encoder=text_encoder or copy_of("text_encoder"),
        tokenizer=base.tokenizer,
        unet=unet or copy_of("unet"),
        scheduler=type(base.scheduler).from_config(base.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    forget_path(pipeline.unet)
    forget_path(pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def forget_path(module: ModelMixin) -> None:
    """Diffusers saves with a module where it was loaded from: a path that is nobody else's business."""
    module.register_to_config(_name_or_path="")


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, else the GPU where there is one, else the CPU."""
    if device is not None:
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _load_folder(base_model: str, folder: Path) -> StableDiffusionPipeline:
    _check_model_index(base_model, folder)
    try:
        return StableDiffusionPipeline.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        if any(folder.rglob("*.bin")) and "safetensors" in str(error):
            raise UserError(
                f"base_model: {base_model} holds its weights as pickles (.bin); load it once with diffusers where you "
                "trust it and save it again with save_pretrained(..., safe_serialization=True)"
            ) from error
        raise UserError(f"base_model: {base_model} does not load: {_first_line(error)}") from error


def _load_single_file(file: Path) -> StableDiffusionPipeline:
    check_base_model(str(file))
    config = file.with_suffix("")
    try:
        return StableDiffusionPipeline.from_single_file(
            str(file),
            dtype=torch.float32,
            safety_checker=None,
            requires_safety_checker=False,
            **({"config": str(config), "local_files_only": True} if config.is_dir() else {}),
        )
    except (OSError, ValueError, KeyError, SingleFileComponentError) as error:
        place_for_config = f"{config.name}/ beside the file, with the configs and tokenizer of its diffusers pipeline"
        raise UserError(
            f"base_model: {file} does not load: {_first_line(error)} (without the hub it needs a folder "
            f"{place_for_config})"
        ) from error


@functools.cache
def _local_folder(base_model: str) -> Path:
    """The folder of a local model, or the snapshot that the hub's cache holds after downloading."""
    check_base_model(base_model)
    if Path(base_model).is_dir():
        return Path(base_model)
    try:
        return Path(StableDiffusionPipeline.download(base_model, use_safetensors=True, safety_checker=None))
    except (OSError, ValueError) as error:
        raise UserError(
            f"base_model: {base_model} is no local folder and could not be had from the hub: {_first_line(error)}"
        ) from error


def _check_model_index(base_model: str, folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    if "text_encoder_2" in index or "unet" not in index:
        raise UserError(
            f"base_model: need a Stable Diffusion 1.x pipeline (one text encoder, one UNet), "
            f"got {index.get('_class_name')} in {base_model}"
        )


def _check_layout(base_model: str, pipeline: StableDiffusionPipeline) -> None:
    channels = pipeline.unet.config.in_channels
    if channels != pipeline.vae.config.latent_channels:
        raise UserError(
            f"base_model: the UNet must take the VAE's {pipeline.vae.config.latent_channels} latent channels, "
            f"got {channels} in {base_model} (an inpainting or depth model?)"
        )
    prediction_type = pipeline.scheduler.config.prediction_type
    if prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"base_model: prediction_type must be epsilon or v_prediction, got {prediction_type} in {base_model}"
        )


def _digest_files(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
