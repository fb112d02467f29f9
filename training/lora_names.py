"""LoRA files seen by their headers: which layer each weight changes, in any of the spellings. Needs no torch.

diffusers   unet.mid_block...to_q.lora_A.weight, ....lora.down.weight, ....processor.to_q_lora.down.weight
peft        base_model.model.mid_block...to_q.lora_A.weight
kohya       lora_unet_mid_block_..._to_q.lora_down.weight, .lora_up.weight, .alpha, .dora_scale; lora_te_text_model_...
by number   unet:12:down, text_encoder:3:up (cloneofsimo/lora, the first of all)

A name is looked up among all names that the base model's layers have in these spellings: nothing is guessed from
its parts, so that a name with no layer is found and not passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from training.architecture import UNET_PREFIX, single_file_shapes, text_encoder_shapes, unet_shapes
from training.base_model import FLOAT_TYPES, PICKLE_SUFFIXES, Configs
from training.errors import UserError
from training.layout import LORA_FILE
from training.model_kinds import SD2_TEXT_WIDTH, SDXL_TEXT_WIDTHS, kind_of_file
from training.names import shown
from training.weights import Tensor, Weights, read_weights

LoraPart = Literal["unet", "text_encoder"]
Role = Literal["down", "up", "alpha", "magnitude"]

PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
ADAPTER_SETTINGS = "lora_adapter_metadata"
"""Where diffusers writes rank and alpha, as JSON with `unet.` and `text_encoder.` before peft's own names."""
TEXT_MODEL = "text_model."

OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (r"\.hada_[wt]", "a LoHa (LyCORIS), whose change of a weight is no product of two matrices"),
    (r"\.lokr_[wt]", "a LoKr (LyCORIS), whose change of a weight is no product of two matrices"),
    (r"\.(oft_|boft_)", "an OFT, which rotates weights"),
    (r"\.lora_mid\.", "a LoCon with Tucker decomposition (lora_mid)"),
    (r"\.[ab][12]\.weight$", "a GLoRA (LyCORIS)"),
    (r"\.(on_input|ia3_l)", "an (IA)^3 (LyCORIS)"),
    (r"\.diff(_b)?$", "a file of whole differences (LyCORIS full)"),
    (r"\.(w|b)_norm$", "a file with differences of norms (LyCORIS)"),
    (r"^lora_controlnet$", "a Control-LoRA"),
    (r"^<.+>$|emb_params$|^bundle_emb\.|string_to_param", "a file with textual inversion embeddings"),
)
"""The first pattern that a tensor's name matches tells of a kind that is no LoRA of two matrices a layer."""

OTHER_MODELS: tuple[tuple[str, str], ...] = (
    (r"(^|\.|_)(double_blocks|single_blocks|single_transformer_blocks)(\.|_)", "Flux"),
    (r"(^|\.|_)joint_blocks(\.|_)", "Stable Diffusion 3"),
    (r"^(lora_te2_|text_encoder_2\.)|label_emb|add_embedding", "Stable Diffusion XL"),
    (r"^(transformer|lora_transformer|diffusion_model)[._]", "another model than a UNet of Stable Diffusion 1"),
)

ROLES: Mapping[str, Role] = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
    "lora.alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
}
"""What stands behind a layer's name and a dot."""
PROCESSOR_ROLES: Mapping[str, Role] = {"_lora.down.weight": "down", "_lora.up.weight": "up"}
"""What stands behind it without a dot, in diffusers' files of 2023."""

ATTENTION_1, ATTENTION_2 = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"), "attn2"
NUMBERED = re.compile(r"(?P<part>unet|text_encoder):(?P<number>\d+):(?P<role>up|down)")
NUMBERED_UNET = ("CrossAttention", "Attention", "GEGLU")
NUMBERED_TEXT = ("CLIPAttention",)


@dataclass(frozen=True)
class LayerName:
    """A linear layer or convolution of the base model."""

    part: LoraPart
    path: str
    """As today's libraries write it: `mid_block.attentions.0.transformer_blocks.0.attn1.to_q`."""

    def __str__(self) -> str:
        """`unet.conv_in`."""
        return f"{self.part}.{self.path}"


Entry = tuple[LayerName, Role]


@dataclass(frozen=True)
class BaseLayers:
    """The layers of a base model that a LoRA can change, and all their names."""

    shapes: Mapping[LayerName, tuple[int, ...]]
    """Of their weights: [out, in], or [out, in, height, width] of a convolution."""
    names: Mapping[str, LayerName]
    """In any spelling."""

    @classmethod
    def of(cls, configs: Configs) -> BaseLayers:
        """Of a base model with these configs."""
        unet, text = unet_shapes(configs.unet), text_encoder_shapes(configs.text_encoder)
        original = single_file_shapes(configs.unet, configs.vae, configs.text_encoder)["unet"]
        shapes: dict[LayerName, tuple[int, ...]] = {}
        names: dict[str, LayerName] = {}
        for (name, shape), original_name in zip(unet.items(), original, strict=True):  # both in the order of the config
            if len(shape) > 1:
                layer = LayerName("unet", name.removesuffix(".weight"))
                shapes[layer] = shape
                there = original_name.removeprefix(UNET_PREFIX).removesuffix(".weight")
                names |= dict.fromkeys(_unet_names(layer.path, there), layer)
        for name, shape in text.items():
            if len(shape) > 1 and not name.startswith("embeddings."):
                layer = LayerName("text_encoder", name.removesuffix(".weight"))
                shapes[layer] = shape
                names |= dict.fromkeys(_text_encoder_names(layer.path), layer)
        return cls(shapes, names)

    def entry(self, name: str) -> Entry | None:
        """The layer and the role of a tensor, or None where the base model has no such layer."""
        name = name.replace(".processor.", ".")
        for end, role in PROCESSOR_ROLES.items():
            if name.endswith(end) and (layer := self.names.get(name.removesuffix(end))) is not None:
                return layer, role
        stem = name
        while "." in stem:  # the longest stem first: a role has up to three dots
            stem = stem.rpartition(".")[0]
            if (layer := self.names.get(stem)) is not None:
                found = ROLES.get(name[len(stem) + 1 :])
                return None if found is None else (layer, found)
        return None


def _unet_names(path: str, original: str) -> Iterator[str]:
    spellings = [path, path.removesuffix(".0")] if path.endswith("to_out.0") else [path]
    for spelling in spellings:
        yield from (spelling, f"unet.{spelling}", f"base_model.model.{spelling}")
    yield from (f"lora_unet_{name.replace('.', '_')}" for name in (path, original))


def _text_encoder_names(path: str) -> Iterator[str]:
    """Diffusers wrote `to_q` for CLIP's `q_proj` for a time."""
    spellings = [path]
    if ".self_attn." in path:
        spellings.append(re.sub(r"(q|k|v|out)_proj$", r"to_\1", path))
    for spelling in spellings:
        for prefixed in (spelling, TEXT_MODEL + spelling):
            yield from (f"text_encoder.{prefixed}", f"base_model.model.{prefixed}")
            yield from (f"{kohya}_{prefixed.replace('.', '_')}" for kohya in ("lora_te", "lora_te1"))
        yield TEXT_MODEL + spelling


def find_lora_file(path: Path) -> Path:
    """The file itself, or the one LoRA file of a folder.

    Raises:
        UserError: it is a pickle, of another suffix, absent, or a folder without one or with several.
    """
    if path.is_dir():
        named = [path / name for name in (LORA_FILE, PEFT_FILE) if (path / name).is_file()]
        files = named[:1] or sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            some = f"{len(files)} ({', '.join(shown(file.name) for file in files[:3])})" if files else "none"
            raise UserError(f"LoRA: a folder must hold one .safetensors file, got {some} in {shown(path)}")
        return files[0]
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise UserError(
            f"LoRA: {shown(path)} is a pickle, which can run code when it is opened; need a .safetensors file"
        )
    if path.suffix != ".safetensors":
        raise UserError(f"LoRA: need a .safetensors file, got {shown(path)}")
    if not path.exists():
        raise UserError(f"LoRA: no such file: {shown(path)}")
    return path


def files_of_lora(path: Path) -> tuple[Path, ...]:
    """All that says what a LoRA is: its file, or the one of a folder, and peft's config where that has its alphas.

    Raises:
        UserError: as `find_lora_file`, the file is not whole, or `peft_config_of`.
    """
    file = find_lora_file(path)
    try:
        weights = read_weights(file)
    except UserError as error:
        raise UserError(f"LoRA: {error}") from None
    config = peft_config_of(file, weights.tensors, weights.metadata)
    return (file,) if config is None else (file, config)


def peft_config_of(file: Path, names: Iterable[str], metadata: Mapping[str, str]) -> Path | None:
    """The config of peft's that has the alphas of a LoRA file; None where the file itself has all that there are.

    Args:
        file: the LoRA's.
        names: of its tensors.
        metadata: its own.

    Raises:
        UserError: it does not lie beside the file.
    """
    names = list(names)
    if ADAPTER_SETTINGS in metadata or any(name.endswith(".alpha") for name in names):
        return None
    if file.name != PEFT_FILE and not any(name.startswith("base_model.model.") for name in names):
        return None
    config = file.with_name(PEFT_CONFIG)
    if not config.is_file():
        raise UserError(
            f"LoRA: {shown(file)} is a file of peft's, whose alpha stands in {PEFT_CONFIG}; need that file beside it"
        )
    return config


def is_lora(weights: Weights) -> bool:
    """Does a file hold what is added to layers of a model, rather than a model?"""
    is_role = any(name.endswith((*ROLES, *PROCESSOR_ROLES)) or NUMBERED.fullmatch(name) for name in weights.tensors)
    return is_role or any(re.search(pattern, name) for pattern, _ in OTHER_KINDS for name in weights.tensors)


def look_at_lora(file: Path, layers: BaseLayers, base: str, metadata: Mapping[str, str]) -> dict[str, Entry]:
    """Which layer and role each tensor of a LoRA file has; all of them have one.

    Args:
        file: a `.safetensors` file.
        layers: the base model's.
        base: what the base model is called in a message.
        metadata: the file's own.

    Raises:
        UserError: the file is not whole or of another kind, a layer is not the base model's or has another width
            there, or half of a layer is missing.
    """
    try:
        weights = read_weights(file)
    except UserError as error:
        raise UserError(f"LoRA: {error}") from None
    _check_kind(file, weights)
    numbered = any(NUMBERED.fullmatch(name) for name in weights.tensors)
    entries = dict(_numbered(file, weights, layers, metadata) if numbered else _named(file, weights, layers, base))
    _check_whole(file, entries)
    for name, (layer, role) in entries.items():
        _check_tensor(file, name, weights.tensors[name], layer, role, layers, base)
    return entries


def _check_kind(file: Path, weights: Weights) -> None:
    for pattern, kind in OTHER_KINDS:
        for name in weights.tensors:
            if re.search(pattern, name):
                raise UserError(
                    f"LoRA: {shown(file)} is {kind}; need a LoRA of two matrices a layer, got the weight {shown(name)}"
                )
    for pattern, model in OTHER_MODELS:
        for name in weights.tensors:
            if re.search(pattern, name):
                raise UserError(
                    f"LoRA: {shown(file)} is of {model}; need one of Stable Diffusion 1, got the weight {shown(name)}"
                )
    if not is_lora(weights):
        kind_or_none = kind_of_file(weights.shapes)
        what = kind_or_none or "a whole checkpoint, which is a model by itself"
        raise UserError(f"LoRA: {shown(file)} is {what}; need a LoRA file")


def _named(file: Path, weights: Weights, layers: BaseLayers, base: str) -> Iterator[tuple[str, Entry]]:
    for name in weights.tensors:
        entry = layers.entry(name)
        if entry is None:
            raise UserError(
                f"LoRA: every weight of {shown(file)} must belong to a layer of {shown(base)}, which has none for "
                f"{shown(name)}"
            )
        yield name, entry


def _numbered(
    file: Path, weights: Weights, layers: BaseLayers, metadata: Mapping[str, str]
) -> Iterator[tuple[str, Entry]]:
    order = {
        "unet": _numbered_unet(layers, _classes(file, metadata, "unet", NUMBERED_UNET)),
        "text_encoder": _numbered_text(layers, _classes(file, metadata, "text_encoder", NUMBERED_TEXT)),
    }
    for name in weights.tensors:
        match = NUMBERED.fullmatch(name)
        of_part = order[match["part"]] if match else []
        if match is None or int(match["number"]) >= len(of_part):
            raise UserError(
                f"LoRA: every weight of {shown(file)} must belong to one of the {len(of_part)} layers that its "
                f"metadata names, got {shown(name)}"
            )
        yield name, (of_part[int(match["number"])], "up" if match["role"] == "up" else "down")


def _classes(file: Path, metadata: Mapping[str, str], part: str, known: Sequence[str]) -> set[str]:
    """The classes of modules whose layers were adapted, as the file's metadata list them."""
    text = metadata.get(part)
    if text is None:
        return set()
    try:
        classes = TypeAdapter(set[str]).validate_json(text)
    except ValidationError:
        classes = set()
    if not classes or not classes <= set(known):
        raise UserError(f"LoRA: {shown(file)}: {part} must be of {', '.join(known)}, got {shown(text[:80])}")
    return classes


def _numbered_unet(layers: BaseLayers, classes: set[str]) -> list[LayerName]:
    """In the order that diffusers' modules had in 2022: the middle block last, the feed-forward between attentions."""
    attention = bool(classes & {"CrossAttention", "Attention"})
    blocks = dict.fromkeys(
        layer.path.rpartition(".attn1.")[0]
        for layer in layers.shapes
        if layer.part == "unet" and layer.path.endswith("attn1.to_q")
    )
    in_order = sorted(blocks, key=lambda block: block.startswith("mid_block."))  # stable
    inside = [*(ATTENTION_1 if attention else ()), *(("ff.net.0.proj",) if "GEGLU" in classes else ())]
    inside += [name.replace("attn1", ATTENTION_2) for name in ATTENTION_1] if attention else []
    return [LayerName("unet", f"{block}.{name}") for block in in_order for name in inside]


def _numbered_text(layers: BaseLayers, classes: set[str]) -> list[LayerName]:
    """In the order of transformers' CLIPAttention: key, value, query, output."""
    blocks = [
        layer.path.removesuffix(".q_proj")
        for layer in layers.shapes
        if layer.part == "text_encoder" and layer.path.endswith(".self_attn.q_proj")
    ]
    names = ("k_proj", "v_proj", "q_proj", "out_proj") if classes else ()
    return [LayerName("text_encoder", f"{block}.{name}") for block in blocks for name in names]


def _check_whole(file: Path, entries: Mapping[str, Entry]) -> None:
    there: dict[Entry, str] = {}
    for name, entry in entries.items():
        if entry in there:
            raise UserError(
                f"LoRA: {shown(file)} must hold a layer once, got {shown(there[entry])} and {shown(name)} for it"
            )
        there[entry] = name
    for (layer, _), name in there.items():
        missing = [role for role in ("down", "up") if (layer, role) not in there]
        if missing:
            raise UserError(f"LoRA: {shown(file)} has no {' and no '.join(missing)} matrix to go with {shown(name)}")


def _check_tensor(
    file: Path, name: str, tensor: Tensor, layer: LayerName, role: Role, layers: BaseLayers, base: str
) -> None:
    """The width of each side as the base model's layer has it, and numbers that can be multiplied."""
    if tensor.dtype not in FLOAT_TYPES and role != "alpha":
        raise UserError(f"LoRA: {shown(file)}: weights must be floating point, got {tensor.dtype} in {shown(name)}")
    shape = layers.shapes[layer]
    if role == "alpha":
        fits, wanted = tensor.shape in ((), (1,)), "one number"
    elif role == "magnitude":
        fits = tensor.shape[:1] == shape[:1] and all(side == 1 for side in tensor.shape[1:])
        fits = fits or tensor.shape == (1, shape[0], 1, 1)  # as peft has it of a convolution
        wanted = f"one number for each of {shape[0]} outputs"
    elif role == "down":
        inputs = (shape[1], *shape[2:])
        fits = len(tensor.shape) > 1 and _squeezed(tensor.shape[1:]) == _squeezed(inputs)
        wanted = f"rank x {_text(inputs)}"
    else:
        fits = len(tensor.shape) > 1 and tensor.shape[0] == shape[0] and all(side == 1 for side in tensor.shape[2:])
        wanted = f"{shape[0]} x rank"
    if not fits:
        raise UserError(
            f"LoRA: {shown(file)} must fit {shown(base)}: {layer} takes {wanted}, got {_text(tensor.shape)} in "
            f"{shown(name)}{_of_another_model(layer, role, tensor)}"
        )


def _of_another_model(layer: LayerName, role: Role, tensor: Tensor) -> str:
    """The model that the width of the text embeddings tells of."""
    if role == "down" and layer.path.endswith(("attn2.to_k", "attn2.to_v")):
        if tensor.shape[1] == SD2_TEXT_WIDTH:
            return " (a LoRA of Stable Diffusion 2)"
        if tensor.shape[1] in SDXL_TEXT_WIDTHS:
            return " (a LoRA of Stable Diffusion XL)"
    return ""


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution is a matrix, and programs write it as either."""
    return shape[:1] if all(side == 1 for side in shape[1:]) else shape


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
