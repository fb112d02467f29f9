"""What a sample costs, counted without weights; the figures are those of Stable Diffusion 1.5's published shapes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from training.base_model import STABLE_DIFFUSION_15, configs_of
from training.config import LoraConfig
from training.flops import _counted, flops_of, measure
from training.methods import copy_for_training
from training.passes import Pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "tera"),
    [
        (Pass("unet"), 0.803),
        (Pass("unet", trains=True), 2.407),
        (Pass("unet", rank=16, trains=True), 1.725),
        (Pass("vae_encoder"), 1.117),
        (Pass("vae_decoder"), 2.515),
        (Pass("text_encoder"), 0.013),
        (Pass("text_encoder", trains=True), 0.040),
        (Pass("controlnet"), 0.283),
    ],
)
def test_the_cost_of_stable_diffusion_15(asked: Pass, tera: float) -> None:
    """At 512 px, as computed from layer shapes; 0.126 of the UNet's 0.803 are attention's own matrix products."""
    assert round(measure([asked], STABLE_DIFFUSION_15)[asked] / 1e12, 3) == tera


@pytest.mark.parametrize("trains", [True, False])
def test_a_loras_cost_is_linear_in_its_rank(tiny_base: str, trains: bool) -> None:
    """What two ranks tell of a third is what is counted there."""
    asked = Pass("unet", 64, 64, 7, trains)
    costs = flops_of([asked], tiny_base)
    assert costs is not None
    configs = configs_of(tiny_base)
    assert configs is not None
    assert costs[asked] == _counted(asked, configs) > _counted(dataclasses.replace(asked, rank=6), configs)


@pytest.mark.parametrize("train_text_encoder", [True, False])
def test_a_real_training_step_costs_what_is_measured_without_weights(tiny_base: str, train_text_encoder: bool) -> None:
    """Forward and backward pass of the very modules that train, on the CPU.

    Of attention's fused kernel on CPUs torch's counter knows nothing, so attention is computed as matrix products.
    """
    config = LoraConfig(rank=3, train_text_encoder=train_text_encoder)
    modules = copy_for_training(config, tiny_base, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        modules.unet(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 77, 16)).sample.sum().backward()
        if modules.text_encoder is not None:
            modules.text_encoder(torch.zeros(1, 77, dtype=torch.long)).last_hidden_state.sum().backward()
    asked = [Pass("unet", 64, 64, 3, True), *([Pass("text_encoder", rank=3, trains=True)] * train_text_encoder)]
    costs = flops_of(asked, tiny_base)
    assert costs is not None
    assert counter.get_total_flops() == sum(costs.values())


def test_checkpointing_computes_activations_anew(tiny_base: str) -> None:
    """It costs up to one further forward pass."""
    plain, sparing = Pass("unet", trains=True), Pass("unet", trains=True, gradient_checkpointing=True)
    forward = Pass("unet")
    costs = flops_of([plain, sparing, forward], tiny_base)
    assert costs is not None
    assert costs[plain] < costs[sparing] <= costs[plain] + costs[forward]


@pytest.mark.parametrize("base_model", ["nobody/has-this", "/nowhere/model", "/nowhere/model.safetensors"])
def test_a_base_model_that_is_not_here_has_no_cost(base_model: str) -> None:
    """Nothing fails for it."""
    assert flops_of([Pass("unet")], base_model) is None


def test_nothing_to_measure_needs_no_base_model() -> None:
    """What was measured by an earlier run is not asked again, wherever the model is now."""
    assert flops_of([], "/nowhere/model") == {}


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_a_controlnet_is_counted_for_latents_of_any_size(tiny_base: str, levels: int) -> None:
    """Its control picture is as large as the picture, which a VAE of so many levels makes so many times smaller."""
    configs = configs_of(tiny_base)
    assert configs is not None
    vae = configs.vae.model_copy(
        update={
            "block_out_channels": (8,) * levels,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
        }
    )
    asked = Pass("controlnet", 64, 64)
    assert measure([asked], dataclasses.replace(configs, vae=vae))[asked] > 0
