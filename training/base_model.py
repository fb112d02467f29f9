"""What can be seen of a base model without torch: is this name, folder or file one that could be fine-tuned?

The answer is the loader's: what passes here loads, and what would not load, or would load with weights drawn at random
or with a tokenizer of another model, is refused by its name. Only configs and the headers of weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from pydantic import ValidationError

from training.architecture import (
    SCHEDULERS,
    STABLE_DIFFUSION_15_TEXT,
    STABLE_DIFFUSION_15_UNET,
    STABLE_DIFFUSION_15_VAE,
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    SchedulerConfig,
    Shapes,
    TextEncoderConfig,
    UNetConfig,
    VaeConfig,
    single_file_shapes,
    text_encoder_shapes,
    unet_shapes,
    vae_shapes,
)
from training.base_name import BaseName, parse_base_name
from training.errors import UserError
from training.model_kinds import INDEX_FILE, NEEDED, PARTS, kind_of_file, kind_of_folder, kind_of_pipeline, kind_of_unet
from training.vocabulary import check_vocabulary, read_vocabulary
from training.weights import Tensor, Weights, folder_weights, read_json, read_weights

PICKLE_SUFFIXES = frozenset({".ckpt", ".bin", ".pt", ".pth", ".pkl"})
FLOAT_TYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
PREDICTION_TYPES = ("epsilon", "v_prediction")
TEXT_MODEL = "text_model."
NAMES_SHOWN = 3
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"

OLD_VAE_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the VAE's attention in files of before 2023, Stable Diffusion 1.5's own among them; diffusers reads both."""

ConfigT = TypeVar("ConfigT", UNetConfig, VaeConfig, TextEncoderConfig)


@dataclass(frozen=True)
class _Part(Generic[ConfigT]):
    """One model of the pipeline: where it lies, how its config is read, and which weights that config asks for."""

    name: str
    stem: str
    classes: tuple[str, ...]
    config: type[ConfigT]
    shapes: Callable[[ConfigT], Shapes]


UNET = _Part("unet", DIFFUSERS_STEM, ("UNet2DConditionModel",), UNetConfig, unet_shapes)
VAE = _Part("vae", DIFFUSERS_STEM, ("AutoencoderKL",), VaeConfig, vae_shapes)
TEXT_ENCODER = _Part("text_encoder", TRANSFORMERS_STEM, ("CLIPTextModel",), TextEncoderConfig, text_encoder_shapes)

MODELS = (UNET.name, VAE.name, TEXT_ENCODER.name)


@dataclass(frozen=True)
class Configs:
    """The configs of the pipeline's three models, and what they were trained to predict."""

    unet: UNetConfig
    vae: VaeConfig
    text_encoder: TextEncoderConfig
    prediction_type: str


STABLE_DIFFUSION_15 = Configs(
    STABLE_DIFFUSION_15_UNET, STABLE_DIFFUSION_15_VAE, STABLE_DIFFUSION_15_TEXT, prediction_type="epsilon"
)


@dataclass(frozen=True)
class BaseModelLook:
    """A local base model as its configs and headers tell it."""

    configs: Configs
    unet: Weights
    vae: Weights
    text_encoder: Weights


def check_base_model(base_model: str) -> None:
    """Refuse what can be seen to be no usable base model without loading or downloading it.

    Raises:
        UserError: it is a pickle, cut short, of another kind, incomplete, its tokenizer does not fit, or it is neither
            path nor hub id.
    """
    look_at(base_model)


def look_at(base_model: str) -> BaseModelLook | None:
    """Read the configs and headers of a base model, and check them; None for a hub id.

    Args:
        base_model: a hub id, a local diffusers folder, or one `.safetensors` file.

    Raises:
        UserError: as `check_base_model`.
    """
    try:
        return _look_at(base_model)
    except UserError as error:
        raise UserError(f"base_model: {error}") from None
    except OSError as error:  # a folder that may not be listed, a disk that fails
        raise UserError(f"base_model: {base_model} cannot be read: {error.strerror or error}") from error


def _look_at(base_model: str) -> BaseModelLook | None:
    named = parse_base_name(base_model)
    look = _look_at_named(named.name)
    if look is None:
        _check_cached_index(named)
        return None
    for option in ("revision", "variant"):
        if (value := getattr(named, option)) is not None:
            raise UserError(f"{option} is a hub id's, got {value} for {named.name}, which lies here")
    return replace(look, configs=_with_clip_skip(look.configs, named))


def _with_clip_skip(configs: Configs, named: BaseName) -> Configs:
    """The text encoder as it is read.

    Raises:
        UserError: nothing of it would be left.
    """
    layers = configs.text_encoder.num_hidden_layers
    if not 1 <= named.clip_skip <= layers:
        raise UserError(f"clip_skip: {named.name} has a text encoder of {layers} layers, got {named.clip_skip}")
    text_encoder = configs.text_encoder.model_copy(update={"num_hidden_layers": layers - named.clip_skip + 1})
    return replace(configs, text_encoder=text_encoder)


def _look_at_named(base_model: str) -> BaseModelLook | None:
    path = Path(base_model)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise UserError(
            f"{base_model} is a pickle, which can run code when it is opened; convert it to .safetensors "
            "first (load it once with diffusers' StableDiffusionPipeline.from_single_file where you trust it, then "
            "save_pretrained) and name the folder or the .safetensors file here"
        )
    if path.suffix == ".safetensors":
        return _look_at_file(path)
    if path.is_file():
        raise UserError(f"a single file must be .safetensors, got {base_model}")
    if path.is_dir():
        return _look_at_folder(path)
    if not _looks_like_hub_id(base_model):
        raise UserError(f"no such file, folder or hub id: {base_model}")
    return None


def configs_of(base_model: str) -> Configs | None:
    """The configs alone, those of a hub id from the hub's cache; None where they are not on this machine.

    Raises:
        UserError: as `check_base_model`.
    """
    look = look_at(base_model)
    if look is not None:
        return look.configs
    named = parse_base_name(base_model)
    cached = try_to_load_from_cache(named.name, INDEX_FILE, revision=named.revision)
    folder = Path(cached).parent if isinstance(cached, str) else None
    if folder is None or not all((folder / part / "config.json").is_file() for part in MODELS):
        return None
    try:
        return _with_clip_skip(_look_at_configs(folder), named)
    except UserError as error:
        raise UserError(f"base_model: {error}") from None


def config_folder(file: Path) -> Path | None:
    """The folder with the configs and the tokenizer of a single file's pipeline, where there is one beside it."""
    folder = file.with_suffix("")
    return folder if folder.is_dir() else None


def check_prediction_type(prediction_type: object, place: object) -> None:
    """Refuse what training has no target for.

    Raises:
        UserError: it is neither of the two.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise UserError(f"prediction_type must be {' or '.join(PREDICTION_TYPES)}, got {prediction_type} in {place}")


# --- a diffusers folder -------------------------------------------------------------------------------------------


def _look_at_folder(folder: Path) -> BaseModelLook:
    if not (folder / INDEX_FILE).is_file():
        kind, instead = kind_of_folder(folder)
        raise UserError(f"{folder} has no {INDEX_FILE}: it is {kind}; {instead}")
    configs = _look_at_configs(folder)
    return BaseModelLook(
        configs,
        _weights_of(UNET, folder, configs.unet),
        _weights_of(VAE, folder, configs.vae),
        _weights_of(TEXT_ENCODER, folder, configs.text_encoder),
    )


def _look_at_configs(folder: Path) -> Configs:
    """All of a diffusers folder but its weights."""
    _check_index(folder / INDEX_FILE, str(folder))
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(f"{folder} is incomplete: it has no {part}/")
    _check_unet_kind(folder / "unet" / "config.json")
    scheduler = _read_config(folder / "scheduler" / "scheduler_config.json", SchedulerConfig)
    check_prediction_type(scheduler.prediction_type, folder)
    configs = Configs(
        _config_of(UNET, folder), _config_of(VAE, folder), _config_of(TEXT_ENCODER, folder), scheduler.prediction_type
    )
    _check_together(configs, folder)
    tokenizer = folder / "tokenizer"
    check_vocabulary(read_vocabulary(tokenizer), configs.text_encoder, f"the tokenizer in {tokenizer}")
    return configs


def _check_index(index_file: Path, name: str) -> None:
    index = read_json(index_file)
    class_name = index.get("_class_name")
    kind = kind_of_pipeline(str(class_name), index)
    if kind is not None:
        raise UserError(f"{name} is {kind}; {NEEDED}")
    for part, classes in _part_classes().items():
        entry = index.get(part)
        named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if not isinstance(named, str):
            raise UserError(f"{index_file} names no {part}; {NEEDED}")
        if named not in classes:
            raise UserError(f"{index_file}: {part} must be {' or '.join(sorted(classes))}, got {named}")


def _part_classes() -> Mapping[str, frozenset[str]]:
    models = {part.name: frozenset(part.classes) for part in (UNET, VAE, TEXT_ENCODER)}
    return models | {"tokenizer": frozenset({"CLIPTokenizer", "CLIPTokenizerFast"}), "scheduler": SCHEDULERS}


def _check_unet_kind(config_file: Path) -> None:
    """A UNet of another model is named before its config is read field by field."""
    config = read_json(config_file) if config_file.is_file() else {}
    channels, width = config.get("in_channels"), config.get("cross_attention_dim")
    shapes: Shapes = {}
    if isinstance(channels, int):
        shapes["conv_in.weight"] = (0, channels)
    if isinstance(width, int):
        shapes["attn2.to_k.weight"] = (0, width)
    if config.get("addition_embed_type") == "text_time":
        shapes["add_embedding.linear_1.weight"] = ()
    kind = kind_of_unet(shapes, "")
    if kind is not None:
        raise UserError(f"{config_file} is of {kind}; {NEEDED}")


def _config_of(part: _Part[ConfigT], folder: Path) -> ConfigT:
    return _read_config(folder / part.name / "config.json", part.config)


ReadT = TypeVar("ReadT", UNetConfig, VaeConfig, TextEncoderConfig, SchedulerConfig)


def _read_config(file: Path, model: type[ReadT]) -> ReadT:
    if not file.is_file():
        raise UserError(f"{file.parent} is incomplete: it has no {file.name}")
    read_json(file)  # for its sentence on what is no JSON
    try:
        return model.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        got = f", got {first['input']!r}" if first["type"] not in ("value_error", "missing") else ""
        raise UserError(f"{file}: {f'{field}: ' if field else ''}{message}{got}") from None


def _check_together(configs: Configs, place: Path) -> None:
    """The three must speak of the same latents and the same text embeddings."""
    unet, latents = configs.unet, configs.vae.latent_channels
    if not unet.in_channels == unet.out_channels == latents:
        raise UserError(
            f"the UNet must take and give the VAE's {latents} latent channels, "
            f"got {unet.in_channels} and {unet.out_channels} in {place}"
        )
    if unet.cross_attention_dim != configs.text_encoder.hidden_size:
        raise UserError(
            f"the UNet must take the text encoder's {configs.text_encoder.hidden_size} wide embeddings, "
            f"got cross_attention_dim {unet.cross_attention_dim} in {place}"
        )


def _weights_of(part: _Part[ConfigT], folder: Path, config: ConfigT) -> Weights:
    weights = folder_weights(folder / part.name, part.stem)
    there = {_today(name): tensor for name, tensor in weights.tensors.items()}
    _check_tensors(part.shapes(config), there, str(folder / part.name), "its config.json")
    return weights


def _today(name: str) -> str:
    """The name as today's libraries write it."""
    name = name.removeprefix(TEXT_MODEL)
    if ".attentions." in name:
        for old, new in OLD_VAE_ATTENTION.items():
            name = name.replace(old, new)
    return name


def _check_tensors(needed: Shapes, there: Mapping[str, Tensor], place: str, source: str) -> None:
    """Every weight must be there, in its shape, as floating point numbers."""
    for name in (name for name in needed if name in there):
        shape, tensor = needed[name], there[name]
        if _squeezed(tensor.shape, name) != _squeezed(shape, name):
            raise UserError(f"{place} does not fit {source}: {name} must be {_text(shape)}, got {_text(tensor.shape)}")
        if tensor.dtype not in FLOAT_TYPES:
            raise UserError(
                f"{place}: weights must be floating point numbers, got {tensor.dtype} in {name} (quantised?)"
            )
    missing = [name for name in needed if name not in there]
    if missing:
        more = f" and {len(missing) - NAMES_SHOWN:,} more" if len(missing) > NAMES_SHOWN else ""
        raise UserError(
            f"{place} is incomplete: {len(missing):,} of {len(needed):,} weights are missing "
            f"({', '.join(missing[:NAMES_SHOWN])}{more})"
        )


def _squeezed(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The VAE's attention is made of 1x1 convolutions in original files and of linear layers in diffusers'."""
    return shape[:2] if ".mid.attn_1." in name else shape


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


# --- one file -----------------------------------------------------------------------------------------------------


def _look_at_file(file: Path) -> BaseModelLook:
    if not file.exists() and not file.is_symlink():
        raise UserError(f"no such file: {file}")
    weights = read_weights(file)
    kind = kind_of_file(weights.shapes)
    if kind is not None:
        raise UserError(f"{file} is {kind}; {_inside_folder(file) or NEEDED}")
    folder = config_folder(file)
    configs = STABLE_DIFFUSION_15 if folder is None else _configs_beside(file, folder)
    beside = f"a folder {file.stem}/ beside the file, with the configs and tokenizer of its diffusers pipeline"
    source = f"Stable Diffusion 1.5 (another needs {beside})" if folder is None else f"the configs in {folder}"
    for part, needed in single_file_shapes(configs.unet, configs.vae, configs.text_encoder).items():
        if not needed.keys() & weights.tensors.keys():
            raise UserError(f"{file} holds no {part.replace('_', ' ')}; {NEEDED}")
        _check_tensors(needed, weights.tensors, f"{file} ({part})", source)
    if "v_pred" in weights.tensors and configs.prediction_type != "v_prediction":
        raise UserError(
            f"{file} was trained with v_prediction (it holds v_pred), but its scheduler says "
            f"{configs.prediction_type}; it needs {beside}, whose scheduler_config.json says v_prediction"
        )
    return BaseModelLook(
        configs, *(_beginning_with(prefix, weights) for prefix in (UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX))
    )


def _beginning_with(prefix: str, weights: Weights) -> Weights:
    return Weights(weights.files, {name: tensor for name, tensor in weights.tensors.items() if name.startswith(prefix)})


def _inside_folder(file: Path) -> str | None:
    """The way out for who named one part of a diffusers folder."""
    folder = file.absolute().parent.parent
    return f"name the folder {folder}" if (folder / INDEX_FILE).is_file() else None


def _configs_beside(file: Path, folder: Path) -> Configs:
    if not (folder / INDEX_FILE).is_file():
        raise UserError(
            f"{folder} beside {file.name} must hold the configs and the tokenizer of its diffusers pipeline, "
            f"but has no {INDEX_FILE} (the folder of the file's name is read as that)"
        )
    return _look_at_configs(folder)


# --- a hub id -----------------------------------------------------------------------------------------------------


def _looks_like_hub_id(base_model: str) -> bool:
    parts = base_model.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") for part in parts)


def _check_cached_index(named: BaseName) -> None:
    """What was downloaded before tells its kind; what was not is not asked for."""
    try:
        cached = try_to_load_from_cache(named.name, INDEX_FILE, revision=named.revision)
    except HFValidationError:
        raise UserError(f"no such file, folder or hub id: {named.name}") from None
    if isinstance(cached, str):
        _check_index(Path(cached), named.name)
