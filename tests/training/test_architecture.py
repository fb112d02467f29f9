"""Which weights a model needs, told from its config: compared with the libraries' own modules, built without memory."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from training.architecture import (
    SCHEDULERS,
    STABLE_DIFFUSION_15_TEXT,
    STABLE_DIFFUSION_15_UNET,
    STABLE_DIFFUSION_15_VAE,
    TextEncoderConfig,
    UNetConfig,
    VaeConfig,
    text_encoder_shapes,
    unet_shapes,
    vae_shapes,
)
from training.weights import count

NO_ARGUMENTS = {"class_name", "diffusers_version", "quantization_config", "dtype"}
"""Fields of the file that are none of the module's."""

UNETS = {
    "Stable Diffusion 1.5": STABLE_DIFFUSION_15_UNET,
    "one layer, attention everywhere": UNetConfig(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=12,
    ),
    "no attention outside the middle, linear projections": UNetConfig(
        sample_size=8,
        block_out_channels=(16, 16, 32),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        layers_per_block=3,
        norm_num_groups=4,
        attention_head_dim=(2, 2, 4),
        use_linear_projection=True,
    ),
}
VAES = {
    "Stable Diffusion 1.5": STABLE_DIFFUSION_15_VAE,
    "without attention and quantising convolutions": VaeConfig(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=3,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
}
TEXT_ENCODERS = {
    "Stable Diffusion 1.5": STABLE_DIFFUSION_15_TEXT,
    "small": TextEncoderConfig(
        vocab_size=50, hidden_size=8, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    ),
}


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("name", UNETS)
def test_a_unets_weights_are_those_of_diffusers(name: str) -> None:
    """Every name and every shape."""
    with torch.device("meta"):
        module = UNet2DConditionModel(**UNETS[name].model_dump(exclude=NO_ARGUMENTS))
    assert unet_shapes(UNETS[name]) == shapes_of(module)


@pytest.mark.parametrize("name", VAES)
def test_a_vaes_weights_are_those_of_diffusers(name: str) -> None:
    """Every name and every shape."""
    with torch.device("meta"):
        module = AutoencoderKL(**VAES[name].model_dump(exclude=NO_ARGUMENTS))
    assert vae_shapes(VAES[name]) == shapes_of(module)


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_a_text_encoders_weights_are_those_of_transformers(name: str) -> None:
    """Every name and every shape."""
    with torch.device("meta"):
        module = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODERS[name].model_dump(exclude=NO_ARGUMENTS | {"torch_dtype"})))
    assert text_encoder_shapes(TEXT_ENCODERS[name]) == shapes_of(module)


def test_stable_diffusion_15_has_its_published_size() -> None:
    """860 million numbers in the UNet, 84 in the VAE, 123 in the text encoder."""
    assert count(unet_shapes(STABLE_DIFFUSION_15_UNET).values()) == 859_520_964
    assert count(vae_shapes(STABLE_DIFFUSION_15_VAE).values()) == 83_653_863
    assert count(text_encoder_shapes(STABLE_DIFFUSION_15_TEXT).values()) == 123_060_480


def test_the_schedulers_are_those_that_diffusers_has() -> None:
    """Whatever may stand in for another there, and no name that it does not know."""
    assert {scheduler.name for scheduler in KarrasDiffusionSchedulers} <= SCHEDULERS
    assert all(hasattr(diffusers, name) for name in SCHEDULERS)
