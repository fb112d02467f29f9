"""Adapters other than diffusers' plain ones: where they sit, what they compute, and that they come back from disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.tiny_models import plain_pipeline
from tests.training.test_train import last
from training.base_model import STABLE_DIFFUSION_15
from training.checkpoint import load_pipeline
from training.config import LoraConfig, TargetBlocks, TargetModules, is_packable
from training.dataset import Dataset
from training.flops import measure
from training.layout import LORA_FILE
from training.methods import TrainedModules, copy_for_training, load_lora, lora_tensors
from training.passes import Pass
from training.step import start_run
from training.targets import Targets, numbers_per_rank, text_encoder_targets, unet_targets
from training.train import train

CPU = torch.device("cpu")
PLAIN = LoraConfig(rank=3, learning_rate=1e-2, max_train_steps=3, train_batch_size=2, train_text_encoder=True, seed=5)
VARIANTS = {
    "attention+ff": PLAIN.model_copy(update={"target_modules": "attention+ff"}),
    "all": PLAIN.model_copy(update={"target_modules": "all"}),
    "rslora": PLAIN.model_copy(update={"use_rslora": True}),
    "dora": PLAIN.model_copy(update={"use_dora": True}),
    "dora on all": PLAIN.model_copy(update={"use_dora": True, "target_modules": "all"}),
    "alpha ratio": PLAIN.model_copy(update={"lora_alpha_ratio": 0.5}),
    "loha": PLAIN.model_copy(update={"adapter": "loha", "lora_alpha": 6.0}),
    "lokr": PLAIN.model_copy(update={"adapter": "lokr", "lora_alpha_ratio": 2.0}),
    "up blocks": PLAIN.model_copy(update={"target_blocks": "up"}),
    "dora on all of the middle": PLAIN.model_copy(
        update={"use_dora": True, "target_modules": "all", "target_blocks": "mid"}
    ),
    "loha on all on the way": PLAIN.model_copy(
        update={"adapter": "loha", "target_modules": "all", "target_blocks": "down+up"}
    ),
    "loha on all": PLAIN.model_copy(update={"adapter": "loha", "target_modules": "all"}),
}
LORAS = [name for name, config in VARIANTS.items() if config.adapter == "lora"]
EACH = pytest.mark.parametrize("variant", VARIANTS)


def moved(config: LoraConfig, base: str) -> TrainedModules:
    """Adapters whose every weight has been moved, as training would."""
    modules = copy_for_training(config, base, CPU)
    generator = torch.Generator().manual_seed(0)
    for parameter in modules.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return modules


def update_of(layer: nn.Module, base: Tensor, config: LoraConfig) -> Tensor:
    """W' - W, from the papers' equations and the layer's own tensors, in the shape of W."""
    flat = base.flatten(1)
    if config.adapter == "loha":  # Yeh et al. 2023, equation 4
        first, second = (
            getattr(layer, f"hada_w{n}_a")["default"] @ getattr(layer, f"hada_w{n}_b")["default"] for n in (1, 2)
        )
        return (config.scale * first * second).view(base.shape)
    if config.adapter == "lokr":  # equation 6
        factors = []
        for n in (1, 2):
            whole = getattr(layer, f"lokr_w{n}")
            parts = (getattr(layer, f"lokr_w{n}_a"), getattr(layer, f"lokr_w{n}_b"))
            factors.append(whole["default"] if "default" in whole else parts[0]["default"] @ parts[1]["default"])
        return (config.scale * torch.kron(*factors)).view(base.shape)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    product = config.scale * b.flatten(1) @ a.flatten(1)
    if not config.use_dora:
        return product.view(base.shape)
    direction = flat + product  # Liu et al. 2024, equation 5
    magnitude = layer.lora_magnitude_vector["default"].weight.flatten()
    return (magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True) - flat).view(base.shape)


def adapted(module: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in module.named_modules() if hasattr(layer, "base_layer")}


def outputs(pipeline: StableDiffusionPipeline) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = pipeline.tokenizer(["a photo of sks woman"], padding="max_length", return_tensors="pt").input_ids
    latents, words = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 16, generator=generator)
    with torch.no_grad():
        return [
            pipeline.unet(latents, torch.tensor([500]), words).sample,
            pipeline.text_encoder(tokens).last_hidden_state,
        ]


# --- where ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "unet_layers", "text_layers"), [("attention", 128, 48), ("attention+ff", 192, 72), ("all", 278, 72)]
)
def test_presets_adapt_as_many_layers_as_upstreams(targets: TargetModules, unet_layers: int, text_layers: int) -> None:
    """Of Stable Diffusion 1.5: diffusers' scripts 128; kohya's networks.lora says 192 and 72 when it begins.

    With `conv_dim` kohya adds the 22 residual blocks' two convolutions and time projection, the 14 shortcuts and the
    three down- and three upsamplers.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(STABLE_DIFFUSION_15.unet.model_dump(exclude_none=True))
        text_encoder = CLIPTextModel(CLIPTextConfig(**STABLE_DIFFUSION_15.text_encoder.model_dump(exclude_none=True)))

    def count(module: nn.Module, of: Targets) -> int:
        return sum(of.holds(name) for name, _ in module.named_modules())

    assert count(unet, unet_targets(targets)) == unet_layers
    assert count(text_encoder, text_encoder_targets(targets)) == text_layers
    parts = [count(unet, unet_targets(targets, block)) for block in ("down", "mid", "up")]
    pairs = [count(unet, unet_targets(targets, two)) for two in ("down+mid", "down+up", "mid+up")]
    assert min(parts) > 0
    assert sum(parts) == unet_layers
    assert pairs == [unet_layers - part for part in reversed(parts)]


@EACH
def test_adapters_sit_where_the_preset_says(variant: str, tiny_base: str) -> None:
    """In every layer of its names and in no other, and begin as nothing: step 0 is the base model."""
    config = VARIANTS[variant]
    modules = copy_for_training(config, tiny_base, CPU)
    of_unet = unet_targets(config.target_modules, config.target_blocks)
    of_text_encoder = text_encoder_targets(config.target_modules)
    for module, targets in ((modules.unet, of_unet), (modules.text_encoder, of_text_encoder)):
        assert module is not None
        plain = {name.replace(".base_layer", "") for name, _ in module.named_modules()}
        expected = {name for name in plain if targets.holds(name)}
        assert set(adapted(module)) == expected != set()
        for layer in adapted(module).values():
            assert update_of(layer, layer.base_layer.weight, config).abs().max() < 1e-6


@pytest.mark.parametrize("blocks", ["all", "up", "down+mid"])
@pytest.mark.parametrize("targets", get_args(TargetModules))
def test_a_rank_adds_as_many_numbers_as_counted(targets: TargetModules, blocks: TargetBlocks, tiny_base: str) -> None:
    """By which disk and packs are measured."""
    config = PLAIN.model_copy(update={"target_modules": targets, "target_blocks": blocks})
    modules = copy_for_training(config, tiny_base, CPU)
    unet, text_encoder = (sum(parameter.numel() for parameter in group) for group in modules.groups())
    shapes = {
        name.replace(".base_layer", ""): tuple(parameter.shape)
        for name, parameter in modules.unet.named_parameters()
        if "lora_" not in name
    }
    assert unet == config.rank * numbers_per_rank(shapes, unet_targets(targets, blocks))
    assert text_encoder > 0


# --- what ----------------------------------------------------------------------------------------------------------


@EACH
def test_a_layer_computes_what_the_paper_says(variant: str, tiny_base: str) -> None:
    """Weights with the update written into them answer as the adapted modules do."""
    config = VARIANTS[variant]
    modules = moved(config, tiny_base)
    plain = plain_pipeline(tiny_base, safety_checker=None, dtype=torch.float32)
    untouched = outputs(plain)
    for module, own in ((modules.unet, plain.unet), (modules.text_encoder, plain.text_encoder)):
        assert module is not None
        for name, layer in adapted(module.eval()).items():
            weight = own.get_submodule(name).weight
            weight.data = weight.data + update_of(layer, layer.base_layer.weight, config).detach()
    plain_tokens = plain.tokenizer
    ours = StableDiffusionPipeline(
        plain.vae, modules.text_encoder, plain_tokens, modules.unet, plain.scheduler, None, None, None, False
    )
    for expected, answer, before in zip(outputs(plain), outputs(ours), untouched, strict=True):
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)
        assert (answer - before).abs().max() > 1e-3


def test_scales_are_alpha_over_rank_or_over_its_root() -> None:
    """And a ratio keeps the first over all ranks."""
    for rank in (1, 4, 64):
        assert LoraConfig(rank=rank).scale == 1
        assert LoraConfig(rank=rank, lora_alpha=2).scale == 2 / rank
        assert LoraConfig(rank=rank, lora_alpha_ratio=0.5).scale == 0.5
        assert LoraConfig(rank=rank, lora_alpha=2, use_rslora=True).scale == pytest.approx(2 / math.sqrt(rank))


# --- and back ------------------------------------------------------------------------------------------------------


@EACH
def test_a_trained_adapter_comes_back_from_disk(variant: str, dataset: Dataset, tmp_path: Path) -> None:
    """As tensors to the bit, and as the pipeline that pictures are made with."""
    config = VARIANTS[variant]
    run = start_run(config, dataset, CPU)
    assert is_packable(config) == (variant in ("rslora", "alpha ratio", "up blocks"))
    checkpoint = last(train(config, dataset, [], out_dir=tmp_path, device="cpu"))
    back = copy_for_training(config, dataset.base_model, CPU, checkpoint.dir)
    stored = load_lora(checkpoint.dir)
    for ours, theirs in (
        (lora_tensors(back).unet, stored.unet),
        (lora_tensors(back).text_encoder, stored.text_encoder),
    ):
        assert ours is not None
        assert theirs is not None
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(*pair) for pair in zip(run.weights.parameters(), back.parameters(), strict=True))
    pipeline = load_pipeline(checkpoint, dataset.base_model, device="cpu")
    trained = StableDiffusionPipeline(
        pipeline.vae,
        back.text_encoder and back.text_encoder.eval(),
        pipeline.tokenizer,
        back.unet.eval(),
        pipeline.scheduler,
        None,
        None,
        None,
        False,
    )
    for loaded, expected in zip(outputs(pipeline), outputs(trained), strict=True):
        torch.testing.assert_close(loaded, expected, rtol=1e-5, atol=1e-6)
    before = outputs(load_pipeline(None, dataset.base_model, device="cpu"))
    assert all(
        (loaded - untouched).abs().max() > 1e-5 for loaded, untouched in zip(outputs(pipeline), before, strict=True)
    )


@pytest.mark.parametrize("variant", LORAS)
def test_plain_diffusers_loads_every_lora(variant: str, dataset: Dataset, tmp_path: Path) -> None:
    """Wherever it sits, its scale and its magnitudes included."""
    checkpoint = last(train(VARIANTS[variant], dataset, [], out_dir=tmp_path, device="cpu"))
    plain = plain_pipeline(dataset.base_model, safety_checker=None, dtype=torch.float32)
    plain.load_lora_weights(str(checkpoint.dir), weight_name=LORA_FILE)
    ours = load_pipeline(checkpoint, dataset.base_model, device="cpu")
    for module in (plain.unet, plain.text_encoder):
        module.eval()
    for answer, expected in zip(outputs(plain), outputs(ours), strict=True):
        assert torch.equal(answer, expected)


def test_adapters_of_more_layers_cost_more() -> None:
    """FLOPs are counted with the layers and the kind that a trial has."""
    asked = {
        (targets, kind): Pass("unet", 64, 64, 4, True, target_modules=targets, adapter=kind)
        for targets in get_args(TargetModules)
        for kind in ("lora", "loha")
    }
    dora, lokr = (Pass("unet", 64, 64, 4, True, adapter=kind) for kind in ("dora", "lokr"))
    in_some_blocks = Pass("unet", 64, 64, 4, True, target_blocks="mid+up")
    costs = measure([*asked.values(), in_some_blocks, dora, lokr], STABLE_DIFFUSION_15)
    for kind in ("lora", "loha"):
        few, more, most = (costs[asked[targets, kind]] for targets in ("attention", "attention+ff", "all"))
        assert few < more < most
    plain = costs[asked["attention", "lora"]]
    assert costs[in_some_blocks] < plain < costs[asked["attention", "loha"]]
    assert costs[dora] > plain
    assert costs[lokr] > 0
