"""The base model: loaded once a process, identified by its content, copied for whoever wants to change it."""

from __future__ import annotations

import copy
import functools
import hashlib
from pathlib import Path
from typing import Any, Literal, TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, ModelMixin, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from training.architecture import TextEncoderConfig
from training.base_model import BaseModelLook, check_base_model, check_prediction_type, config_folder, look_at
from training.base_name import BaseName, parse_base_name
from training.errors import UserError
from training.files import sha256_of
from training.model_kinds import INDEX_FILE
from training.vocabulary import SPECIAL_TOKENS, Vocabulary, check_vocabulary
from training.weights import Weights, read_json

# Bars for files that load in a second would tear the live table of a sweep apart.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

CONFIG_AND_WEIGHT_SUFFIXES = frozenset({".json", ".safetensors", ".txt"})

LOADING_ERRORS = (OSError, ValueError, KeyError, SafetensorError, StrictDataclassError)
"""What diffusers, transformers and safetensors raise at files that they cannot read."""

TRAINED_DTYPE = torch.float32
"""Of weights that train, in any precision: a bfloat16 weight cannot take a step of 1e-4 of its size."""

Part = Literal["unet", "vae", "text_encoder"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@functools.cache
def load_base_model(base_model: str) -> StableDiffusionPipeline:
    """The base model on the CPU in float32, frozen and in evaluation mode; loaded once and never to be changed.

    Args:
        base_model: a hub id, a local diffusers folder, or one `.safetensors` file in Stable Diffusion's original
            layout, with options as `BaseName` writes them. Such a file needs the small configs of its pipeline too:
            they are looked for in a folder of the file's name without suffix, else asked of the hub.

    Raises:
        UserError: there is no such model, or it is none that `check_base_model` lets pass.
    """
    return _load(base_model)


def _load(base_model: str) -> StableDiffusionPipeline:
    named = parse_base_name(base_model)
    if Path(named.name).suffix == ".safetensors":
        check_base_model(base_model)
        pipeline = _load_single_file(Path(named.name))
    else:
        pipeline = _load_folder(named, _local_folder(base_model))
    _check_loaded(named.name, pipeline)
    _skip_last_layers(pipeline.text_encoder, named.clip_skip)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False).eval()
    return pipeline


@functools.cache
def base_model_fingerprint(base_model: str) -> str:
    """Hex digest that changes when the base model's content does.

    Of a file or folder: names and content of configs and weights. Of a hub id: the id and the commit it resolves to.
    A variant and a skipped layer make another model of either.
    """
    check_base_model(base_model)
    named = parse_base_name(base_model)
    path = Path(named.name)
    if path.is_file():
        digest = _digest_files(path.parent, [path])
    elif path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file() and file.suffix in CONFIG_AND_WEIGHT_SUFFIXES)
        digest = _digest_files(path, sorted(files))
    else:
        commit = _local_folder(base_model).name
        digest = hashlib.sha256(f"{named.name}@{commit}".encode()).hexdigest()
    options = str(BaseName("", variant=named.variant, clip_skip=named.clip_skip))
    return hashlib.sha256(f"{digest}{options}".encode()).hexdigest() if options else digest


def _skip_last_layers(text_encoder: CLIPTextModel, clip_skip: int) -> None:
    """Read prompts from an earlier layer, whoever asks: the layers after it go, the last norm stays.

    This is what diffusers' `clip_skip` and A1111's clip skip compute, and the config says so to whoever saves it.
    """
    layers = text_encoder.encoder.layers
    text_encoder.encoder.layers = layers[: len(layers) - clip_skip + 1]
    text_encoder.config.num_hidden_layers = len(text_encoder.encoder.layers)


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
    """Move a `shared_copy` to where it trains: frozen weights in `frozen_dtype`, trainable ones in `TRAINED_DTYPE`.

    Trainable weights always leave the shared storage.

    Args:
        module: the copy, with its adapters if it has any.
        device: where it trains.
        frozen_dtype: precision of what does not train.
        frozen: a `frozen_module` of that device and precision, whose weights are then shared instead of copied.
    """
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device, TRAINED_DTYPE, copy=True)
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

    return _pipeline_of(base, copy_of("vae"), text_encoder or copy_of("text_encoder"), unet or copy_of("unet"))


def whole_pipeline(model: str, device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
    """A pipeline of a whole model that this process needs once: it is loaded anew and goes with the pipeline.

    Args:
        model: as for `load_base_model`: a checkpoint that was trained elsewhere is a base model by itself.
        device: where the modules are.
        dtype: their precision.

    Raises:
        UserError: as `load_base_model`.
    """
    loaded = _load(model)
    return _pipeline_of(
        loaded, *(fresh_copy(module, device, dtype) for module in (loaded.vae, loaded.text_encoder, loaded.unet))
    )


def _pipeline_of(
    base: StableDiffusionPipeline, vae: nn.Module, text_encoder: nn.Module, unet: nn.Module
) -> StableDiffusionPipeline:
    """These modules with the base model's tokenizer and noise levels."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=base.tokenizer,
        unet=unet,
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


def _load_folder(named: BaseName, folder: Path) -> StableDiffusionPipeline:
    """Part by part, because each may have a variant (`fp16`, `non_ema`) of its own."""
    base_model = named.name
    look = _look_at_local(base_model, folder)
    if named.clip_skip > look.configs.text_encoder.num_hidden_layers:
        raise UserError(
            f"base_model: clip_skip: {base_model} has a text encoder of "
            f"{look.configs.text_encoder.num_hidden_layers} layers, got {named.clip_skip}"
        )
    index = read_json(folder / INDEX_FILE)
    try:
        return StableDiffusionPipeline(
            vae=_load_model(AutoencoderKL, folder, "vae", look.vae),
            text_encoder=_load_model(CLIPTextModel, folder, "text_encoder", look.text_encoder),
            tokenizer=CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True),
            unet=_load_model(UNet2DConditionModel, folder, "unet", look.unet),
            scheduler=getattr(diffusers, index["scheduler"][1]).from_pretrained(str(folder), subfolder="scheduler"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except LOADING_ERRORS as error:
        raise UserError(f"base_model: {base_model} does not load: {_first_line(error)}") from error


def _load_model(model: Any, folder: Path, part: Part, weights: Weights) -> Any:
    """`model` is a class of diffusers or transformers: both read a folder in one way."""
    return model.from_pretrained(
        str(folder),
        subfolder=part,
        dtype=torch.float32,
        variant=weights.variant,
        use_safetensors=True,
        local_files_only=True,
    )


def _look_at_local(base_model: str, folder: Path) -> BaseModelLook:
    """What came from the hub is looked at when it is here, as a folder is before."""
    try:
        look = look_at(str(folder))
    except UserError as error:
        if base_model == str(folder):
            raise
        raise UserError(f"{error} (downloaded as {base_model})") from error
    assert look is not None
    return look


def _load_single_file(file: Path) -> StableDiffusionPipeline:
    config = config_folder(file)
    try:
        return StableDiffusionPipeline.from_single_file(
            str(file),
            dtype=torch.float32,
            safety_checker=None,
            requires_safety_checker=False,
            **({} if config is None else {"config": str(config), "local_files_only": True}),
        )
    except (*LOADING_ERRORS, SingleFileComponentError) as error:
        advice = (
            f" (without the hub it needs a folder {file.stem}/ beside the file, with the configs and tokenizer of its "
            "diffusers pipeline)"
        )
        raise UserError(
            f"base_model: {file} does not load: {_first_line(error)}{advice if config is None else ''}"
        ) from error


@functools.cache
def _local_folder(base_model: str) -> Path:
    """The folder of a local model, or the snapshot that the hub's cache holds after downloading."""
    check_base_model(base_model)
    named = parse_base_name(base_model)
    if Path(named.name).is_dir():
        return Path(named.name)
    try:
        return _download(named)
    except (OSError, ValueError) as error:
        raise UserError(
            f"base_model: {base_model} is no local folder and could not be had from the hub: {_first_line(error)}"
        ) from error


def _download(named: BaseName) -> Path:
    """The variant that is asked for; else the plain weights, or the fp16 ones where a model has no others."""
    asked = {"use_safetensors": True, "safety_checker": None, "revision": named.revision}
    try:
        return Path(StableDiffusionPipeline.download(named.name, **asked, variant=named.variant))
    except (OSError, ValueError) as error:
        # diffusers' word for: none without a variant
        if named.variant is not None or "necessary `safetensors` weights" not in str(error):
            raise
        return Path(StableDiffusionPipeline.download(named.name, **asked, variant="fp16"))


def _check_loaded(base_model: str, pipeline: StableDiffusionPipeline) -> None:
    """What the files could not tell, because configs and tokenizer came from the hub, or are read in another way."""
    tokenizer, text_encoder = pipeline.tokenizer, pipeline.text_encoder
    eos = text_encoder.config.eos_token_id
    vocabulary = Vocabulary(
        ids=tokenizer.get_vocab(),
        special_tokens={name: getattr(tokenizer, name) for name in SPECIAL_TOKENS},
        max_length=tokenizer.model_max_length,
        encode=lambda text: tokenizer(text, add_special_tokens=False).input_ids,
    )
    config = TextEncoderConfig(
        vocab_size=text_encoder.get_input_embeddings().num_embeddings,
        max_position_embeddings=text_encoder.config.max_position_embeddings,
        bos_token_id=text_encoder.config.bos_token_id,
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
    )
    try:
        check_prediction_type(pipeline.scheduler.config.prediction_type, base_model)
        check_vocabulary(vocabulary, config, f"the tokenizer of {base_model}")
    except UserError as error:
        raise UserError(f"base_model: {error}") from None


def _digest_files(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
