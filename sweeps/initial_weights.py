"""The LoRA file that trials start from, looked at before anything starts: could each of them go on from it?

Only the file's header is read, and no torch is needed.
"""

from __future__ import annotations

import itertools
from typing import Any

from sweeps.config import SweepConfig
from sweeps.space import MisplacedError, corners_of
from sweeps.wording import public_name
from training.base_model import STABLE_DIFFUSION_15, configs_of
from training.config import LoraConfig
from training.errors import UserError
from training.lora_names import BaseLayers, files_of_lora, look_at_lora
from training.targets import text_encoder_targets, unet_targets
from training.weights import read_weights


def check_initial_weights(config: SweepConfig) -> None:
    """Hold `initial_weights` against the space of the LoRA trials.

    Raises:
        UserError: the file is none, of another model, or some trial of the space could not go on from it.
    """
    if config.initial_weights is None:
        return
    try:
        _check(config)
    except MisplacedError:
        raise
    except UserError as error:
        raise UserError(f"initial_weights: {error}") from None


def _check(config: SweepConfig) -> None:
    assert config.initial_weights is not None
    space = config.methods["lora"]
    file, *_ = files_of_lora(config.initial_weights)
    layers = BaseLayers.of(configs_of(config.base) or STABLE_DIFFUSION_15)
    weights = read_weights(file)
    entries = look_at_lora(file, layers, public_name(config.base_model), weights.metadata)
    shapes = weights.shapes
    rank = max(shapes[name][0] for name, (_, role) in entries.items() if role == "down")
    if any(role == "magnitude" for _, role in entries.values()):
        raise UserError(f"must be a LoRA without magnitudes, {file.name} is a DoRA")

    def corners(field: str) -> tuple[Any, ...]:
        return corners_of(space.get(field, LoraConfig.model_fields[field].default))

    def refuse(field: str, law: str) -> MisplacedError:
        return MisplacedError(f"methods.lora.{field}", f"{law} to go on from initial_weights ({file.name})")

    least = min(int(str(each)) for each in corners("rank"))
    if least < rank:
        raise refuse("rank", f"must be {rank} or more, got {least},")
    if set(corners("adapter")) != {"lora"}:
        raise refuse("adapter", f"must be lora, got {list(corners('adapter'))},")
    if True in corners("use_dora"):
        raise refuse("use_dora", "must be false")
    parts = {layer.part for layer, _ in entries.values()}
    if "text_encoder" in parts and False in corners("train_text_encoder"):
        raise refuse("train_text_encoder", "must be true")
    for modules, blocks in itertools.product(corners("target_modules"), corners("target_blocks")):
        for layer, _ in entries.values():
            in_unet = layer.part == "unet"
            targets = unet_targets(modules, blocks) if in_unet else text_encoder_targets(modules)
            if not targets.holds(layer.path):
                field, found = ("target_modules", modules) if blocks == "all" else ("target_blocks", blocks)
                raise refuse(field, f"must hold {layer.part}.{layer.path}, which {found} does not,")
