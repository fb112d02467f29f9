"""LoRA files trained anywhere, in one form: diffusers', peft's, kohya's and cloneofsimo's, with nothing left out.

diffusers' own loader drops `dora_scale`, passes over what has no layer with a line in a log, and takes the commonest
alpha for all layers of attention (docs/log.md). So a file's weights are matched with the base model's layers by name
and width here (`training.lora_names`), and put into it by peft under the rank and alpha of each.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig as PeftConfig
from peft import set_peft_model_state_dict
from peft.tuners.lora import LoraLayer as PeftLayer
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from training.base_model import STABLE_DIFFUSION_15, configs_of
from training.errors import UserError
from training.lora_names import (
    ADAPTER_SETTINGS,
    TEXT_MODEL,
    BaseLayers,
    LayerName,
    LoraPart,
    Role,
    find_lora_file,
    look_at_lora,
    peft_config_of,
)
from training.methods import LoraTensors
from training.names import shown
from training.stable_diffusion import base_pipeline
from training.weights import read_json

BASE_MODEL_KEYS = ("ss_sd_model_name", "modelspec.architecture", "ss_base_model_version")
ADAPTER = "default"
MAX_ALPHA = 1e30
"""No file means more; JSON can say numbers that no float holds."""


@dataclass(frozen=True)
class LoraLayer:
    """What a LoRA adds to one layer: `up @ down * alpha / rank`. All float32, on the CPU."""

    down: Tensor
    """[rank, in], or [rank, in, height, width] of a convolution."""
    up: Tensor
    """[out, rank], or [out, rank, 1, 1]."""
    alpha: float
    magnitude: Tensor | None = None
    """[out], of a DoRA: the norms that the changed weight's rows are given."""

    @property
    def rank(self) -> int:
        """Width between the two matrices."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """The change of the layer's weight, before a DoRA's norms: in the shape of the weight."""
        product = self.up.flatten(1) @ self.down.flatten(1)
        return (product * self.scale).reshape(self.up.shape[0], *self.down.shape[1:])


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as it was read: its layers by the base model's own paths."""

    path: Path
    unet: Mapping[str, LoraLayer]
    text_encoder: Mapping[str, LoraLayer]
    """Empty where the file leaves the text encoder alone."""
    metadata: Mapping[str, str]
    """What the file says of itself: `ss_*` of kohya's, `modelspec.*`."""

    @property
    def layers(self) -> list[LoraLayer]:
        """Of both parts."""
        return [*self.unet.values(), *self.text_encoder.values()]

    @property
    def ranks(self) -> tuple[int, ...]:
        """All that there are, ascending."""
        return tuple(sorted({layer.rank for layer in self.layers}))

    @property
    def alphas(self) -> tuple[float, ...]:
        """All that there are, ascending."""
        return tuple(sorted({layer.alpha for layer in self.layers}))

    @property
    def is_dora(self) -> bool:
        """Does it also set the norms of the weights?"""
        return any(layer.magnitude is not None for layer in self.layers)

    @property
    def method(self) -> str:
        """`DoRA`, `LoRA`, or with convolutions `LoCon`."""
        if self.is_dora:
            return "DoRA"
        return "LoCon" if any(layer.down.shape[2:] > (1, 1) for layer in self.layers) else "LoRA"

    @property
    def base_model_name(self) -> str | None:
        """What it says it was trained from, if it says so."""
        return next((self.metadata[key] for key in BASE_MODEL_KEYS if self.metadata.get(key)), None)

    @property
    def trigger_phrase(self) -> str | None:
        """What it says calls its subject, if it says so."""
        return self.metadata.get("modelspec.trigger_phrase") or None


def read_lora_file(path: Path | str, base_model: str | None = None) -> LoraFile:
    """Read a LoRA file, or the one LoRA file of a folder; every one of its weights is in what comes back.

    Args:
        path: a `.safetensors` file, or a folder with one. A folder of peft's has its `adapter_config.json` beside it.
        base_model: what it is to change: hub id, folder or file. Default: Stable Diffusion 1.5's own widths.

    Raises:
        UserError: a pickle, a file that is cut short, of another kind or of another model, a weight that belongs to
            no layer, half a layer, or numbers that are not finite.
    """
    file = find_lora_file(Path(path))
    configs = None if base_model is None else configs_of(base_model)
    metadata = _metadata(file)
    layers = BaseLayers.of(configs or STABLE_DIFFUSION_15)
    entries = look_at_lora(file, layers, base_model if configs and base_model else "Stable Diffusion 1.5", metadata)
    parts: dict[LayerName, dict[Role, Tensor]] = {}
    with safe_open(str(file), framework="pt") as stored:
        for name, (layer, role) in entries.items():
            tensor = stored.get_tensor(name).float()
            if not torch.isfinite(tensor).all():
                raise UserError(f"LoRA: {shown(file)}: weights must be finite, got NaN or infinity in {shown(name)}")
            parts.setdefault(layer, {})[role] = tensor
    alphas = _alphas(file, entries, parts, metadata)
    read = {
        layer: _layer(file, layer, tensors, alphas.get(layer), layers.shapes[layer])
        for layer, tensors in sorted(parts.items(), key=lambda item: str(item[0]))
    }
    lora = LoraFile(file, _of_part("unet", read), _of_part("text_encoder", read), metadata)
    _check_dora(lora)
    return lora


def pipeline_with_lora_file(
    lora: LoraFile, base_model: str, device: torch.device, dtype: torch.dtype, *, share_frozen: bool = False
) -> StableDiffusionPipeline:
    """The base model's pipeline with a LoRA file's layers beside its own, in evaluation mode.

    `share_frozen` as in `base_pipeline`.

    Args:
        lora: read for this base model.
        base_model: hub id, folder or file.
        device: where it computes.
        dtype: its precision.
        share_frozen: share the frozen weights with whoever else in this process uses them.

    Raises:
        UserError: the base model has other widths than the one that the file was read for.
    """
    pipeline = base_pipeline(base_model, device, dtype, share_frozen=share_frozen)
    for part, module, layers in (
        ("unet", pipeline.unet, lora.unet),
        ("text_encoder", pipeline.text_encoder, lora.text_encoder),
    ):
        _check_base(lora, part, module, layers, base_model)
        if layers:
            _put_in(module, layers)
        module.requires_grad_(False).eval()
    return pipeline


def with_lora_file(start: LoraTensors, lora: LoraFile, alpha: float) -> LoraTensors:
    """The tensors that a run of this start would begin from if it went on from the file: the same change of weights.

    The file's matrices take the first places; what remains of the rank keeps the start's `lora_A` beside a `lora_B` of
    zeros, so that it changes nothing and can train. `lora_B` is scaled by the file's alpha / rank over the run's.

    Args:
        start: the run's own start, `training.methods.first_lora`'s: which layers train, of which rank.
        lora: read for the run's base model.
        alpha: the run's.

    Raises:
        UserError: the file changes a layer that the run does not train, has a larger rank than the run, or is a DoRA.
    """
    if lora.is_dora:
        raise UserError(f"LoRA: {shown(lora.path)} is a DoRA; need a LoRA to go on from, training knows no magnitudes")
    if lora.text_encoder and start.text_encoder is None:
        raise UserError(
            f"LoRA: {shown(lora.path)} changes the text encoder; need train_text_encoder: true to go on from it"
        )
    unet = _with_layers(lora, "unet", start.unet, lora.unet, alpha)
    if start.text_encoder is None:
        return LoraTensors(unet, None)
    return LoraTensors(unet, _with_layers(lora, "text_encoder", start.text_encoder, lora.text_encoder, alpha))


# --- reading ------------------------------------------------------------------------------------------------------


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(str(file), framework="pt") as stored:
            return dict(stored.metadata() or {})
    except (OSError, SafetensorError):
        return {}  # `look_at_lora` says what is wrong with it


def _of_part(part: LoraPart, layers: Mapping[LayerName, LoraLayer]) -> dict[str, LoraLayer]:
    return {name.path: layer for name, layer in layers.items() if name.part == part}


def _layer(
    file: Path, name: LayerName, tensors: Mapping[Role, Tensor], alpha: float | None, shape: tuple[int, ...]
) -> LoraLayer:
    """In the shape of the base model's layer: a 1x1 convolution may be written as a matrix."""
    down, up = tensors["down"], tensors["up"]
    rank = down.shape[0]
    if rank < 1 or up.shape[1] != rank:
        raise UserError(
            f"LoRA: {shown(file)}: both matrices of a layer must have one rank of 1 or more, got {rank} and "
            f"{up.shape[1]} in {name}"
        )
    alpha = float(rank) if alpha is None else alpha
    if not math.isfinite(alpha) or alpha == 0:
        raise UserError(f"LoRA: {shown(file)}: alpha must be a finite number other than 0, got {alpha} in {name}")
    magnitude = tensors.get("magnitude")
    return LoraLayer(
        down.reshape(rank, *shape[1:]).contiguous(),
        up.reshape(shape[0], rank, *(1 for _ in shape[2:])).contiguous(),
        alpha,
        None if magnitude is None else magnitude.flatten().contiguous(),
    )


def _alphas(
    file: Path,
    entries: Mapping[str, tuple[LayerName, Role]],
    tensors: Mapping[LayerName, Mapping[Role, Tensor]],
    metadata: Mapping[str, str],
) -> dict[LayerName, float]:
    """The alpha of each layer that has one: its own tensor, else the adapter's settings. Else it is the rank."""
    own = {layer: float(of_layer["alpha"].item()) for layer, of_layer in tensors.items() if "alpha" in of_layer}
    if own:
        return own
    ranks = {layer: of_layer["down"].shape[0] for layer, of_layer in tensors.items()}
    if ADAPTER_SETTINGS in metadata:
        settings = _parsed(file, metadata[ADAPTER_SETTINGS])
        found: dict[LayerName, float] = {}
        for part in ("unet", "text_encoder"):
            of_part = {key.removeprefix(f"{part}."): settings[key] for key in settings if key.startswith(f"{part}.")}
            of_layers = {layer: rank for layer, rank in ranks.items() if layer.part == part}
            if of_part:
                found |= _alphas_by_settings(file, of_part, of_layers)
        return found
    config = peft_config_of(file, entries, metadata)
    return {} if config is None else _alphas_by_settings(config, read_json(config), ranks)


def _parsed(file: Path, text: str) -> dict[str, Any]:
    try:
        return TypeAdapter(dict[str, Any]).validate_json(text)
    except ValidationError:
        raise UserError(
            f"LoRA: {shown(file)}: {ADAPTER_SETTINGS} must be a JSON object, got {shown(text[:60])}"
        ) from None


def _is_number(value: object) -> bool:
    """One that a float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_ALPHA


def _alphas_by_settings(
    file: Path, settings: Mapping[str, Any], ranks: Mapping[LayerName, int]
) -> dict[LayerName, float]:
    """As peft reads its own settings; a pattern is taken for a layer's name, or its end, and must be one."""
    common, patterns = settings.get("lora_alpha"), settings.get("alpha_pattern") or {}
    numbers = (common, *patterns.values()) if isinstance(patterns, dict) else (patterns,)
    wrong = [value for value in numbers if not _is_number(value)]
    if wrong:
        raise UserError(
            f"LoRA: {shown(file)}: lora_alpha and what alpha_pattern gives must be numbers, got "
            f"{shown(repr(wrong[0])[:60])}"
        )
    alphas = {layer: float(common) for layer in ranks}  # type: ignore[arg-type] # a number, as was seen
    for pattern, alpha in patterns.items():
        end = pattern.removeprefix("^").replace("\\.", ".").removeprefix(TEXT_MODEL)
        named = [layer for layer in ranks if layer.path == end or layer.path.endswith(f".{end}")]
        if not named:
            raise UserError(
                f"LoRA: {shown(file)}: alpha_pattern must name layers of the file, got {shown(pattern[:80])}"
            )
        alphas |= dict.fromkeys(named, float(alpha))
    if settings.get("use_rslora"):
        return {layer: alpha * math.sqrt(ranks[layer]) for layer, alpha in alphas.items()}
    return alphas


def _check_dora(lora: LoraFile) -> None:
    """Peft makes all layers of a module DoRA's, or none."""
    for part, layers in (("unet", lora.unet), ("text_encoder", lora.text_encoder)):
        without = [path for path, layer in layers.items() if layer.magnitude is None]
        if without and len(without) < len(layers):
            raise UserError(
                f"LoRA: {shown(lora.path)}: all layers of the {part} or none must have a magnitude (dora_scale), got "
                f"none for {without[0]}"
            )


# --- putting it into a model --------------------------------------------------------------------------------------


def _check_base(lora: LoraFile, part: str, module: nn.Module, layers: Mapping[str, LoraLayer], base_model: str) -> None:
    """It may have been read for another base model, or before this one was on the machine."""
    weights = dict(module.named_parameters())
    for path, layer in layers.items():
        weight, delta = weights.get(f"{path}.weight"), (layer.up.shape[0], *layer.down.shape[1:])
        if weight is None or tuple(weight.shape) != delta:
            there = "no such layer" if weight is None else " x ".join(map(str, weight.shape))
            raise UserError(
                f"LoRA: {shown(lora.path)} must fit {shown(base_model)}: {part}.{path} is "
                f"{' x '.join(map(str, delta))} in the file, and {there} in the model"
            )


def _put_in(module: Any, layers: Mapping[str, LoraLayer]) -> None:
    """Peft's layers beside the module's own, each of its rank and alpha, with the file's weights."""
    rank, alpha = (Counter(values).most_common(1)[0][0] for values in _ranks_and_alphas(layers))
    config = PeftConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={f"^{re.escape(path)}": layer.rank for path, layer in layers.items() if layer.rank != rank},
        alpha_pattern={f"^{re.escape(path)}": layer.alpha for path, layer in layers.items() if layer.alpha != alpha},
        target_modules=sorted(layers),
        use_dora=any(layer.magnitude is not None for layer in layers.values()),
    )
    with torch.random.fork_rng(devices=[]):  # what it draws is overwritten
        module.add_adapter(config, adapter_name=ADAPTER)
    set_peft_model_state_dict(module, _peft_named(layers), adapter_name=ADAPTER)
    _assert_all_there(module, layers)


def _ranks_and_alphas(layers: Mapping[str, LoraLayer]) -> tuple[list[int], list[float]]:
    return [layer.rank for layer in layers.values()], [layer.alpha for layer in layers.values()]


def _peft_named(layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        tensors[f"{path}.lora_A.weight"] = layer.down
        tensors[f"{path}.lora_B.weight"] = layer.up
        if layer.magnitude is not None:
            shape = (1, -1, *(1 for _ in layer.down.shape[2:])) if layer.down.ndim > 2 else (-1,)
            tensors[f"{path}.lora_magnitude_vector"] = layer.magnitude.reshape(shape)
    return tensors


def _assert_all_there(module: nn.Module, layers: Mapping[str, LoraLayer]) -> None:
    """Peft passes over what it does not know, and matches names by their ends."""
    put: dict[str, Any] = {path: each for path, each in module.named_modules() if isinstance(each, PeftLayer)}
    assert put.keys() == layers.keys(), f"adapted layers differ: {sorted(put.keys() ^ layers.keys())[:3]}"
    for path, layer in layers.items():
        adapter = put[path]
        assert math.isclose(adapter.scaling[ADAPTER], layer.scale), f"scale of {path}"
        there = {"down": adapter.lora_A[ADAPTER].weight, "up": adapter.lora_B[ADAPTER].weight}
        if layer.magnitude is not None:
            there["magnitude"] = adapter.lora_magnitude_vector[ADAPTER].weight
        for name, weight in there.items():
            wanted = getattr(layer, name).to(weight.device, weight.dtype)
            assert torch.equal(weight.flatten(), wanted.flatten()), f"{name} of {path}"


def _with_layers(
    lora: LoraFile, part: str, start: Mapping[str, Tensor], layers: Mapping[str, LoraLayer], alpha: float
) -> dict[str, Tensor]:
    trained = {name.removesuffix(".lora_A.weight") for name in start if name.endswith(".lora_A.weight")}
    tensors = {
        name: tensor.clone() if name.endswith(".lora_A.weight") else torch.zeros_like(tensor)
        for name, tensor in start.items()
    }
    for path, layer in layers.items():
        if path not in trained:
            raise UserError(
                f"LoRA: {shown(lora.path)} changes {part}.{path}, which this run does not train; need a file of the "
                "attention layers alone to go on from"
            )
        down, up = tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"]
        rank = down.shape[0]
        if layer.rank > rank:
            raise UserError(
                f"LoRA: {shown(lora.path)} has rank {layer.rank}; need a rank of {layer.rank} or more to go on from "
                f"it, got {rank}"
            )
        down[: layer.rank] = layer.down
        up[:, : layer.rank] = layer.up * (layer.scale / (alpha / rank))
    return tensors
