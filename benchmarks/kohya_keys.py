"""Exported LoRAs of Stable Diffusion 1.5's real size in kohya's own network: is a key missing there, or one too many?

    python benchmarks/kohya_keys.py PATH_TO_SD_SCRIPTS

The checkout of kohya's `sd-scripts` is whoever's who measures; only its `networks.lora` and `library` are imported, and
none of its other requirements is needed. Weights are random: what is compared is names, shapes and scales.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sweeps.export.layouts import kohya_layout
from training.base_model import STABLE_DIFFUSION_15
from training.config import LoraConfig, TargetModules
from training.methods import adapter_of
from training.targets import text_encoder_targets, unet_targets

RANK, ALPHA = 4, 2.0


class _AsTransformers4(nn.Module):
    """A text encoder whose modules have the names that kohya's code was written for."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_model = text_encoder


def modules_of_stable_diffusion() -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Diffusers' and transformers' own, with random weights."""
    configs = STABLE_DIFFUSION_15
    unet = UNet2DConditionModel.from_config(configs.unet.model_dump(exclude_none=True))
    return unet, CLIPTextModel(CLIPTextConfig(**configs.text_encoder.model_dump(exclude_none=True)))


def exported(targets: TargetModules) -> dict[str, Tensor]:
    """What `export --format kohya` writes of a LoRA with these layers."""
    config = LoraConfig(rank=RANK, lora_alpha=ALPHA, target_modules=targets, train_text_encoder=True)
    unet, text_encoder = modules_of_stable_diffusion()
    unet.add_adapter(adapter_of(config, unet_targets(targets)))
    text_encoder.add_adapter(adapter_of(config, text_encoder_targets(targets)))
    pipeline: Any = argparse.Namespace(unet=unet, text_encoder=text_encoder)
    return kohya_layout(pipeline)


def kohyas_network(checkout: Path, *, with_convolutions: bool) -> Any:
    """Kohya's own, over its own UNet."""
    sys.path.insert(0, str(checkout))
    unet = import_module("library.original_unet").UNet2DConditionModel(
        sample_size=64, attention_head_dim=8, cross_attention_dim=768
    )
    _, text_encoder = modules_of_stable_diffusion()
    network = import_module("networks.lora").LoRANetwork(
        _AsTransformers4(text_encoder),
        unet,
        lora_dim=RANK,
        alpha=ALPHA,
        conv_lora_dim=RANK if with_convolutions else None,
        conv_alpha=ALPHA if with_convolutions else None,
    )
    for lora in [*network.text_encoder_loras, *network.unet_loras]:
        network.add_module(lora.lora_name, lora)
    return network


def main() -> None:
    """One line a set of layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    checkout = parser.parse_args().checkout
    for targets, with_convolutions in (("attention", False), ("attention+ff", False), ("all", True)):
        tensors = exported(targets)  # type: ignore[arg-type]
        network = kohyas_network(checkout, with_convolutions=with_convolutions)
        outcome = network.load_state_dict(tensors, strict=False)
        layers = {name.partition(".")[0] for name in tensors}
        own = [name for name in outcome.missing_keys if ".org_module." not in name]  # the layers that it adapts
        missing = {name.partition(".")[0] for name in own}
        scales = {lora.scale for lora in [*network.text_encoder_loras, *network.unet_loras] if lora.lora_name in layers}
        print(
            f"{targets:13} {len(layers)} layers written, {len(missing)} of kohya's without one, "
            f"{len(outcome.unexpected_keys)} unexpected keys, scale {', '.join(map(str, scales))}"
        )


if __name__ == "__main__":
    main()
