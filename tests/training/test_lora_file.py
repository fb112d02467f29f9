"""Laws of LoRA files from elsewhere: whatever the spelling, all of a file counts, at its own scale. Half a minute."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from sweeps.export.layouts import kohya_layout
from tests.training.single_file import single_file_tensors, unet_key
from training.architecture import single_file_shapes, unet_shapes
from training.base_model import STABLE_DIFFUSION_15, configs_of
from training.checkpoint import Checkpoint, load_pipeline, save_checkpoint
from training.config import LoraConfig
from training.elsewhere import open_model
from training.errors import UserError
from training.layout import LORA_FILE
from training.lora_file import LoraFile, pipeline_with_lora_file, read_lora_file, with_lora_file
from training.lora_names import BaseLayers, LayerName, _text_encoder_names, _unet_names
from training.methods import LoraTensors, copy_for_training, first_lora, pipeline_with_weights
from training.stable_diffusion import load_base_model

CPU = torch.device("cpu")
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1"
TEXT = "encoder.layers.1.self_attn"
LAYERS = {  # path in the UNet -> rank, alpha
    f"{ATTENTION}.to_q": (3, 1.0),
    f"{ATTENTION}.to_out.0": (2, 4.0),
    "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k": (1, -0.5),
    "down_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj": (4, 4.0),
    "down_blocks.1.attentions.0.proj_in": (2, 1.0),
    "down_blocks.0.resnets.0.conv1": (2, 3.0),
    "down_blocks.0.downsamplers.0.conv": (3, 1.0),
    "up_blocks.3.resnets.1.conv_shortcut": (2, 1.0),
    "mid_block.resnets.0.time_emb_proj": (2, 2.0),
    "time_embedding.linear_1": (2, 0.5),
    "conv_in": (1, 1.0),
}
TEXT_LAYERS = {f"{TEXT}.q_proj": (2, 1.0), f"{TEXT}.out_proj": (1, 3.0), "encoder.layers.0.mlp.fc1": (3, 1.5)}

Part = dict[str, tuple[Tensor, Tensor, float]]
"""Path -> down, up, alpha."""


def drawn(module: torch.nn.Module, ranks: Mapping[str, tuple[int, float]], seed: int) -> Part:
    """Matrices that fit a module's layers."""
    generator = torch.Generator().manual_seed(seed)
    weights = dict(module.named_parameters())
    part: Part = {}
    for path, (rank, alpha) in ranks.items():
        shape = weights[f"{path}.weight"].shape
        down = torch.randn(rank, *shape[1:], generator=generator)
        up = 0.1 * torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator)
        part[path] = (down, up, alpha)
    return part


@pytest.fixture(scope="module")
def unet_part(tiny_sd15: str) -> Part:
    return drawn(load_base_model(tiny_sd15).unet, LAYERS, 1)


@pytest.fixture(scope="module")
def text_part(tiny_sd15: str) -> Part:
    return drawn(load_base_model(tiny_sd15).text_encoder, TEXT_LAYERS, 2)


def kohya(unet: Part, text: Part, te: str = "lora_te_text_model") -> dict[str, Tensor]:
    """As kohya's and LyCORIS' trainers write it."""
    tensors: dict[str, Tensor] = {}
    for prefix, part in (("lora_unet", unet), (te, text)):
        for path, (down, up, alpha) in part.items():
            name = f"{prefix}_{path.replace('.', '_')}"
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def written(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata=metadata)
    return file


def merged(module: torch.nn.Module, part: Part) -> dict[str, Tensor]:
    """The weights with the deltas added, by nothing of the code under test."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for path, (down, up, alpha) in part.items():
        delta = torch.einsum("or,ri->oi", up.flatten(1).double(), down.flatten(1).double()) * alpha / down.shape[0]
        state[f"{path}.weight"] += delta.reshape(state[f"{path}.weight"].shape).float()
    return state


@torch.no_grad()
def outputs(pipeline: StableDiffusionPipeline) -> tuple[Tensor, Tensor]:
    """What the UNet and the text encoder say to something."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, 49000, (1, 77), generator=generator)
    latents, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 16, generator=generator)
    noise = pipeline.unet(latents, torch.tensor([500]), context).sample
    return noise, pipeline.text_encoder(tokens).last_hidden_state


def assert_equal_outputs(got: StableDiffusionPipeline, wanted: StableDiffusionPipeline, tolerance: float) -> None:
    for mine, theirs in zip(outputs(got), outputs(wanted), strict=True):
        assert (mine - theirs).abs().max() <= tolerance


def with_merged(base: str, unet: Part, text: Part) -> StableDiffusionPipeline:
    pipeline = load_pipeline(None, base, device="cpu", dtype=torch.float32)
    pipeline.unet.load_state_dict(merged(pipeline.unet, unet))
    pipeline.text_encoder.load_state_dict(merged(pipeline.text_encoder, text))
    return pipeline


def loaded(lora: LoraFile, base: str) -> StableDiffusionPipeline:
    return pipeline_with_lora_file(lora, base, CPU, torch.float32, share_frozen=True)


def test_a_file_does_what_its_deltas_added_to_the_weights_do(
    tiny_sd15: str, unet_part: Part, text_part: Part, tmp_path: Path
) -> None:
    """`up @ down * alpha / rank` of every layer, by its own rank and alpha, convolutions and both modules alike."""
    file = written(kohya(unet_part, text_part), tmp_path / "a.safetensors")
    lora = read_lora_file(file, tiny_sd15)
    assert lora.method == "LoCon"
    assert lora.ranks == (1, 2, 3, 4)
    base = load_pipeline(None, tiny_sd15, device="cpu", dtype=torch.float32)
    wanted = with_merged(tiny_sd15, unet_part, text_part)
    for mine, theirs in zip(outputs(base), outputs(wanted), strict=True):
        assert (mine - theirs).abs().max() > 0.01, "the deltas are seen"
    assert_equal_outputs(loaded(lora, tiny_sd15), wanted, 2e-5)


def test_the_base_model_stays_as_it_was(tiny_sd15: str, unet_part: Part, text_part: Part, tmp_path: Path) -> None:
    """The frozen weights are shared with others of this process."""
    before = outputs(load_pipeline(None, tiny_sd15, device="cpu", dtype=torch.float32, share_frozen=True))
    loaded(read_lora_file(written(kohya(unet_part, text_part), tmp_path / "a.safetensors"), tiny_sd15), tiny_sd15)
    after = outputs(load_pipeline(None, tiny_sd15, device="cpu", dtype=torch.float32, share_frozen=True))
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def trained(base_model: str, folder: Path, train_text_encoder: bool) -> Checkpoint:
    """As training writes it, with an alpha that is not the rank."""
    config = LoraConfig(rank=3, lora_alpha=5, learning_rate=1e-3, train_text_encoder=train_text_encoder, seed=1)
    modules = copy_for_training(config, base_model, CPU)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return save_checkpoint(folder, config, modules, 4, base_model, {})


@pytest.fixture(scope="module")
def both_modules(tiny_sd15: str, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return trained(tiny_sd15, tmp_path_factory.mktemp("both"), True)


@pytest.fixture(scope="module", params=[True, False], ids=["both modules", "the UNet alone"])
def checkpoint(
    request: pytest.FixtureRequest, tiny_sd15: str, both_modules: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return both_modules if request.param else trained(tiny_sd15, tmp_path_factory.mktemp("unet"), False)


def trial_pipeline(checkpoint: Checkpoint) -> StableDiffusionPipeline:
    assert isinstance(checkpoint.config, LoraConfig)
    return pipeline_with_weights(checkpoint.config, checkpoint.dir, checkpoint.base_model, CPU, torch.float32)


def test_our_own_file_is_read_to_the_same_bits_as_a_trial_reads_it(checkpoint: Checkpoint) -> None:
    """By its file and by its folder."""
    wanted = trial_pipeline(checkpoint)
    for path in (checkpoint.dir / LORA_FILE, checkpoint.dir):
        lora = read_lora_file(path, checkpoint.base_model) if path.suffix else open_model(path, checkpoint.base_model)
        if isinstance(lora, LoraFile):
            assert (lora.ranks, lora.alphas) == ((3,), (5.0,))
            assert_equal_outputs(loaded(lora, checkpoint.base_model), wanted, 0)
        else:
            assert_equal_outputs(lora.pipeline(checkpoint.base_model, CPU, torch.float32), wanted, 0)


def test_half_precision_is_a_trial_s_too(both_modules: Checkpoint) -> None:
    """As pictures are made on a GPU: the adapters have the precision of the weights beside them."""
    half = torch.bfloat16
    config = both_modules.config
    assert isinstance(config, LoraConfig)
    wanted = pipeline_with_weights(config, both_modules.dir, both_modules.base_model, CPU, half, share_frozen=True)
    lora = read_lora_file(both_modules.dir, both_modules.base_model)
    got = pipeline_with_lora_file(lora, both_modules.base_model, CPU, half, share_frozen=True)
    for mine, theirs in ((got.unet, wanted.unet), (got.text_encoder, wanted.text_encoder)):
        weights = [{str(p.dtype) for name, p in each.named_parameters() if "lora_" in name} for each in (mine, theirs)]
        assert weights[0] == weights[1]
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, 49000, (1, 77), generator=generator)
    latents, context = (torch.randn(*shape, generator=generator).to(half) for shape in ((1, 4, 8, 8), (1, 77, 16)))
    with torch.no_grad():
        for call in (
            lambda pipeline: pipeline.unet(latents, torch.tensor([500]), context).sample,
            lambda pipeline: pipeline.text_encoder(tokens).last_hidden_state,
        ):
            assert torch.equal(call(got), call(wanted))


def test_our_kohya_export_is_read_to_the_same_bits(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its alpha is a tensor in the file."""
    wanted = trial_pipeline(checkpoint)
    lora = read_lora_file(written(kohya_layout(wanted), tmp_path / "a.safetensors"), checkpoint.base_model)
    assert_equal_outputs(loaded(lora, checkpoint.base_model), wanted, 0)


# --- spellings ----------------------------------------------------------------------------------------------------

ATTENTION_ONLY = {f"{ATTENTION}.to_q": (2, 2.0), f"{ATTENTION}.to_out.0": (2, 2.0)}
TEXT_ATTENTION_ONLY = {f"{TEXT}.q_proj": (2, 2.0), f"{TEXT}.out_proj": (2, 2.0)}


def dotted(down: str, up: str, unet: str = "unet.", text: str = "text_encoder.") -> Callable[[Part, Part], Any]:
    def names(unet_part: Part, text_part: Part) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for prefix, part in ((unet, unet_part), (text, text_part)):
            for path, (a, b, _) in part.items():
                tensors |= {f"{prefix}{path}.{down}.weight": a, f"{prefix}{path}.{up}.weight": b}
        return tensors

    return names


def processors(unet_part: Part, text_part: Part) -> dict[str, Tensor]:
    """Diffusers' files of early 2023."""
    tensors: dict[str, Tensor] = {}
    for path, (a, b, _) in unet_part.items():
        block, _, name = path.removesuffix(".0").rpartition(".")
        stem = f"unet.{block}.processor.{name}_lora"
        tensors |= {f"{stem}.down.weight": a, f"{stem}.up.weight": b}
    for path, (a, b, _) in text_part.items():
        stem = f"text_encoder.text_model.{path.replace('q_proj', 'to_q').replace('out_proj', 'to_out')}_lora"
        tensors |= {f"{stem}.down.weight": a, f"{stem}.up.weight": b}
    return tensors


def original_names(unet_part: Part, text_part: Part) -> dict[str, Tensor]:
    """Kohya's rule over the original module tree, as trainers that do not know diffusers write it."""
    tensors = kohya({}, text_part, "lora_te1_text_model")
    for path, (a, b, alpha) in unet_part.items():
        stem = "lora_unet_" + unet_key(f"{path}.weight").removesuffix(".weight").replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(alpha)}
    return tensors


SPELLINGS: dict[str, Callable[[Part, Part], Any]] = {
    "diffusers": dotted("lora_A", "lora_B"),
    "diffusers with text_model": dotted("lora_A", "lora_B", text="text_encoder.text_model."),
    "diffusers of 2023": dotted("lora.down", "lora.up"),
    "diffusers with linear layers": dotted("lora_linear_layer.down", "lora_linear_layer.up"),
    "diffusers with processors": processors,
    "kohya": kohya,
    "original names": original_names,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_read_to_the_same_layers(tiny_sd15: str, tmp_path: Path, spelling: str) -> None:
    """Names, matrices and scale, whoever wrote the file."""
    base = load_base_model(tiny_sd15)
    unet, text = drawn(base.unet, ATTENTION_ONLY, 3), drawn(base.text_encoder, TEXT_ATTENTION_ONLY, 4)
    lora = read_lora_file(written(SPELLINGS[spelling](unet, text), tmp_path / "a.safetensors"), tiny_sd15)
    for got, wanted in ((lora.unet, unet), (lora.text_encoder, text)):
        assert got.keys() == wanted.keys()
        for path, (down, up, alpha) in wanted.items():
            assert torch.equal(got[path].down, down)
            assert torch.equal(got[path].up, up)
            assert got[path].scale == alpha / len(down)


def test_a_file_of_peft_has_the_alpha_of_the_config_beside_it(tiny_sd15: str, unet_part: Part, tmp_path: Path) -> None:
    """With its patterns and its other rule of scale; without the config nothing is guessed."""
    names = dotted("lora_A", "lora_B", unet="base_model.model.")
    written(names(unet_part, {}), tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"adapter_config\.json; need that file beside it"):
        read_lora_file(tmp_path, tiny_sd15)
    config = {"r": 4, "lora_alpha": 6, "alpha_pattern": {"^conv_in": 3}, "use_rslora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    lora = read_lora_file(tmp_path, tiny_sd15)
    assert {path: layer.alpha for path, layer in lora.unet.items()} == {
        path: 3.0 if path == "conv_in" else 6.0 for path in LAYERS
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    scales = {path: layer.scale for path, layer in read_lora_file(tmp_path, tiny_sd15).unet.items()}
    assert scales[f"{ATTENTION}.to_out.0"] == pytest.approx(6 / 2**0.5)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {"nowhere": 3}}))
    with pytest.raises(UserError, match="alpha_pattern must name layers of the file, got nowhere"):
        read_lora_file(tmp_path, tiny_sd15)


def test_a_file_by_numbers_follows_its_metadata_s_classes(tiny_sd15: str, tmp_path: Path) -> None:
    """Attention, feed-forward, cross attention of each block; the middle block last; key, value, query, output."""
    order = [
        *(f"{ATTENTION}.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        f"{ATTENTION.replace('attn1', 'ff')}.net.0.proj",
        *(f"{ATTENTION.replace('attn1', 'attn2')}.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    ]
    base = load_base_model(tiny_sd15)
    part = drawn(base.unet, dict.fromkeys(order, (2, 2.0)), 5)
    text = drawn(base.text_encoder, {f"{TEXT}.{name}_proj": (2, 2.0) for name in ("k", "v", "q", "out")}, 6)
    first = 9 * 15  # layers of a block, blocks before the middle one
    tensors = {f"unet:{first + i}:down": part[path][0] for i, path in enumerate(order)}
    tensors |= {f"unet:{first + i}:up": part[path][1] for i, path in enumerate(order)}
    tensors |= {f"text_encoder:{4 + i}:down": down for i, (down, _, _) in enumerate(text.values())}
    tensors |= {f"text_encoder:{4 + i}:up": up for i, (_, up, _) in enumerate(text.values())}
    metadata = {"unet": '["CrossAttention", "Attention", "GEGLU"]', "text_encoder": '["CLIPAttention"]'}
    lora = read_lora_file(written(tensors, tmp_path / "a.safetensors", metadata), tiny_sd15)
    assert_equal_outputs(loaded(lora, tiny_sd15), with_merged(tiny_sd15, part, text), 2e-5)
    for spoilt in ({**metadata, "unet": '["ResnetBlock2D"]'}, {"text_encoder": '["CLIPAttention"]'}):
        with pytest.raises(UserError, match=r"a\.safetensors"):
            read_lora_file(written(tensors, tmp_path / "a.safetensors", spoilt), tiny_sd15)


@pytest.mark.parametrize("which", ["Stable Diffusion 1.5", "tiny"])
def test_no_name_is_that_of_two_layers(tiny_sd15: str, which: str) -> None:
    """In all spellings together, so that whatever is found is what was meant."""
    configs = STABLE_DIFFUSION_15 if which == "Stable Diffusion 1.5" else configs_of(tiny_sd15)
    assert configs is not None
    layers = BaseLayers.of(configs)
    spelt: dict[str, LayerName] = {}
    original = single_file_shapes(configs.unet, configs.vae, configs.text_encoder)["unet"]
    there = dict(zip(unet_shapes(configs.unet), original, strict=True))
    for layer in layers.shapes:
        name = there.get(f"{layer.path}.weight", "").removeprefix("model.diffusion_model.").removesuffix(".weight")
        names = _unet_names(layer.path, name) if layer.part == "unet" else _text_encoder_names(layer.path)
        for spelling in names:
            assert spelt.setdefault(spelling, layer) == layer
    assert spelt == dict(layers.names)
    if which == "Stable Diffusion 1.5":
        in_kohya_s = [layer for layer in layers.shapes if re.search(r"attentions.*(to_|ff|proj_)", layer.path)]
        assert len(in_kohya_s) == 192, "what kohya's networks.lora adapts in the UNet"
        assert sum(layer.part == "text_encoder" for layer in layers.shapes) == 72


HUGE = "1" + 400 * "0"
SETTINGS = {
    "no JSON": "{",
    "a list": "[]",
    "nested without end": "[" * 100_000,
    "no number": '{"unet.r": 2, "unet.lora_alpha": "2"}',
    "more than a float holds": '{"unet.r": 2, "unet.lora_alpha": ' + HUGE + "}",
    "no finite number": '{"unet.r": 2, "unet.lora_alpha": NaN}',
    "no number for a pattern": '{"unet.r": 2, "unet.lora_alpha": 2, "unet.alpha_pattern": {"conv_in": true}}',
}


@pytest.mark.parametrize("case", SETTINGS)
def test_broken_settings_of_an_adapter_are_refused(tiny_sd15: str, tmp_path: Path, case: str) -> None:
    """They come from whoever made the file."""
    metadata = {"lora_adapter_metadata": SETTINGS[case]}
    with pytest.raises(
        UserError,
        match=r"a\.safetensors: (lora_adapter_metadata must be|lora_alpha and what alpha_pattern gives must be)",
    ):
        read_lora_file(written(SOUND, tmp_path / "a.safetensors", metadata), tiny_sd15)


def test_half_precision_and_what_a_file_says_of_itself(tiny_sd15: str, unet_part: Part, tmp_path: Path) -> None:
    """Weights become float32; base model and trigger phrase are read from either kind of metadata."""
    tensors = {name: tensor.half() for name, tensor in kohya(unet_part, {}).items()}
    metadata = {"ss_sd_model_name": "sd15.safetensors", "modelspec.trigger_phrase": "sks woman"}
    lora = read_lora_file(written(tensors, tmp_path / "a.safetensors", metadata), tiny_sd15)
    assert (lora.base_model_name, lora.trigger_phrase) == ("sd15.safetensors", "sks woman")
    assert lora.unet["conv_in"].down.dtype == torch.float32


# --- DoRA ---------------------------------------------------------------------------------------------------------


def with_norms(part: Part, module: torch.nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A DoRA's norms as LyCORIS writes them, and the weights that it makes, by its definition."""
    generator = torch.Generator().manual_seed(9)
    scales, state = {}, merged(module, part)
    for path in part:
        weight = state[f"{path}.weight"]
        norms = weight.flatten(1).norm(dim=1).reshape(-1, *(1 for _ in weight.shape[1:]))
        wanted = norms * (1 + 0.3 * torch.rand(norms.shape, generator=generator))
        scales[f"lora_unet_{path.replace('.', '_')}.dora_scale"] = wanted
        state[f"{path}.weight"] = weight * (wanted / norms)
    return scales, state


def test_a_dora_gives_weights_their_norms(tiny_sd15: str, unet_part: Part, tmp_path: Path) -> None:
    """The loader of diffusers would drop them and go on."""
    wanted = load_pipeline(None, tiny_sd15, device="cpu", dtype=torch.float32)
    scales, state = with_norms(unet_part, wanted.unet)
    plain = with_merged(tiny_sd15, unet_part, {})
    wanted.unet.load_state_dict(state)
    assert (outputs(wanted)[0] - outputs(plain)[0]).abs().max() > 0.01
    file = written({**kohya(unet_part, {}), **scales}, tmp_path / "a.safetensors")
    lora = read_lora_file(file, tiny_sd15)
    assert lora.method == "DoRA"
    assert_equal_outputs(loaded(lora, tiny_sd15), wanted, 5e-5)
    some = written({**kohya(unet_part, {}), **dict(list(scales.items())[:2])}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="all layers of the unet or none"):
        read_lora_file(some, tiny_sd15)


# --- refused ------------------------------------------------------------------------------------------------------

STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
SOUND = {f"{STEM}.lora_down.weight": torch.ones(2, 32), f"{STEM}.lora_up.weight": torch.ones(32, 2)}
CROSS = STEM.replace("attn1_to_q", "attn2_to_k")


def wide(width: int) -> dict[str, Tensor]:
    return {f"{CROSS}.lora_down.weight": torch.ones(2, width), f"{CROSS}.lora_up.weight": torch.ones(32, 2)}


REFUSED: dict[str, tuple[dict[str, Tensor], list[str]]] = {
    "Stable Diffusion 2": (wide(1024), [f"{CROSS}.lora_down.weight", "rank x 16", "2 x 1024", "Stable Diffusion 2"]),
    "Stable Diffusion XL": (wide(2048), [f"{CROSS}.lora_down.weight", "Stable Diffusion XL"]),
    "its second text encoder": ({"lora_te2_text_model_x.lora_down.weight": torch.ones(2, 2)}, ["XL", "lora_te2_"]),
    "Flux": ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(2, 2)}, ["Flux", "double_blocks"]),
    "a transformer": ({"transformer.blocks.0.to_q.lora_A.weight": torch.ones(2, 2)}, ["transformer.blocks.0"]),
    "LoHa": ({f"{STEM}.hada_w1_a": torch.ones(2, 2)}, ["LoHa", "hada_w1_a"]),
    "LoKr": ({f"{STEM}.lokr_w1": torch.ones(2, 2)}, ["LoKr", "lokr_w1"]),
    "Tucker": ({f"{STEM}.lora_mid.weight": torch.ones(2, 2)}, ["Tucker", "lora_mid"]),
    "whole differences": ({f"{STEM}.diff": torch.ones(2, 2)}, ["whole differences", f"{STEM}.diff"]),
    "embeddings beside it": ({**SOUND, "<s1>": torch.ones(16)}, ["textual inversion", "<s1>"]),
    "a layer that is not there": ({**SOUND, "lora_unet_nowhere.lora_down.weight": torch.ones(2, 2)}, ["unet_nowhere"]),
    "a role that is not there": ({**SOUND, f"{STEM}.lora_side.weight": torch.ones(2, 2)}, [f"{STEM}.lora_side"]),
    "a bias": ({**SOUND, f"{STEM}.lora_up.bias": torch.ones(32)}, [f"{STEM}.lora_up.bias"]),
    "half a layer": ({f"{STEM}.lora_down.weight": torch.ones(2, 32)}, ["no up matrix", STEM]),
    "an alpha alone": ({**SOUND, f"{CROSS}.alpha": torch.tensor(1.0)}, ["no down and no up", f"{CROSS}.alpha"]),
    "two ranks": ({**SOUND, f"{STEM}.lora_up.weight": torch.ones(32, 3)}, ["one rank", "2 and 3"]),
    "a layer twice": (
        {**SOUND, f"unet.{ATTENTION}.to_q.lora_A.weight": torch.ones(2, 32)},
        ["a layer once", STEM, f"unet.{ATTENTION}.to_q.lora_A.weight"],
    ),
    "NaN": ({**SOUND, f"{STEM}.lora_up.weight": torch.full((32, 2), torch.nan)}, ["finite", f"{STEM}.lora_up"]),
    "alpha of 0": ({**SOUND, f"{STEM}.alpha": torch.tensor(0.0)}, ["alpha must be", "other than 0"]),
    "whole numbers": ({**SOUND, f"{STEM}.lora_up.weight": torch.ones(32, 2).int()}, ["floating point", "I32"]),
    "norms of inputs": ({**SOUND, f"{STEM}.dora_scale": torch.ones(1, 32)}, ["32 outputs", "1 x 32"]),
    "something else": ({"weight": torch.ones(2)}, ["no model that is known", "need a LoRA"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_left_out_is_refused_by_name(tiny_sd15: str, tmp_path: Path, case: str) -> None:
    """The file, the law and the weight stand in one line."""
    tensors, named = REFUSED[case]
    with pytest.raises(UserError) as refused:
        read_lora_file(written(tensors, tmp_path / "a\n.safetensors"), tiny_sd15)
    assert "\n" not in str(refused.value)
    for part in ("a\\n.safetensors", *named):
        assert part in str(refused.value)


def broken_files(folder: Path, tiny_sd15: str) -> Iterator[tuple[Path, str]]:
    for name in ("a.pt", "a.bin", "a.ckpt"):
        (folder / name).write_bytes(b"\x80\x02")
        yield folder / name, "is a pickle"
    (folder / "a.gguf").write_bytes(b"GGUF")
    yield folder / "a.gguf", r"need a \.safetensors file"
    yield folder / "absent.safetensors", "no such file"
    whole = written(SOUND, folder / "whole.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-5])
    yield folder / "cut.safetensors", "is cut short"
    (folder / "page.safetensors").write_bytes(b"<html>" + bytes(100))
    yield folder / "page.safetensors", "is a web page"
    (folder / "empty").mkdir()
    yield folder / "empty", "must hold one .safetensors file, got none"
    yield folder, r"must hold one .safetensors file, got \d+"
    single = {name: tensor.contiguous() for name, tensor in single_file_tensors(tiny_sd15).items()}
    (folder / "single").mkdir()
    yield written(single, folder / "single" / "model.safetensors"), "is a whole checkpoint"


def test_a_file_that_is_no_whole_lora_file_is_refused(tiny_sd15: str, tmp_path: Path) -> None:
    """Pickles are not opened at all."""
    for path, law in broken_files(tmp_path, tiny_sd15):
        with pytest.raises(UserError, match=law):
            read_lora_file(path, tiny_sd15)


def test_a_file_of_stable_diffusion_15_does_not_fit_another_width(tiny_sd15: str, tmp_path: Path) -> None:
    """Without a base model it is read by Stable Diffusion 1.5's own widths; put into another it is refused."""
    tensors = {f"{CROSS}.lora_down.weight": torch.ones(2, 768), f"{CROSS}.lora_up.weight": torch.ones(1280, 2)}
    lora = read_lora_file(written(tensors, tmp_path / "a.safetensors"))
    with pytest.raises(UserError, match="1280 x 768 in the file, and 32 x 16 in the model"):
        loaded(lora, tiny_sd15)


# --- going on from a file -----------------------------------------------------------------------------------------


def deltas(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Path -> change of the weight, of peft-named tensors of one alpha."""
    stems = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith("lora_A.weight")]
    found = {}
    for stem in stems:
        down, up = tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]
        found[stem] = up @ down * alpha / len(down)
    return found


@pytest.mark.parametrize("rank", [3, 8])
def test_a_run_that_goes_on_from_a_file_begins_with_its_deltas(checkpoint: Checkpoint, rank: int) -> None:
    """Whatever rank and alpha the run has; what is left of its rank can still train."""
    lora = read_lora_file(checkpoint.dir / LORA_FILE, checkpoint.base_model)
    both = bool(lora.text_encoder)
    config = LoraConfig(rank=rank, lora_alpha=2, learning_rate=1e-3, train_text_encoder=both, seed=8)
    tensors = with_lora_file(first_lora(config, checkpoint.base_model), lora, 2)
    for layers, got in ((lora.unet, tensors.unet), (lora.text_encoder, tensors.text_encoder or {})):
        found = deltas(got, 2)
        assert found.keys() == layers.keys()
        for path, layer in layers.items():
            assert torch.allclose(found[path], layer.delta(), atol=1e-6)
            assert got[f"{path}.lora_A.weight"].any(1).all(), "a row of zeros beside zeros would never move"


def test_what_the_refused_files_spoil_is_sound(tiny_sd15: str, tmp_path: Path) -> None:
    """So that they are refused for what was changed."""
    assert read_lora_file(written(SOUND, tmp_path / "a.safetensors"), tiny_sd15).ranks == (2,)


def test_layers_that_the_file_lacks_start_from_nothing(tiny_sd15: str, tmp_path: Path) -> None:
    """The run's own draw stays, and changes nothing."""
    lora = read_lora_file(written(SOUND, tmp_path / "a.safetensors"), tiny_sd15)
    start = first_lora(LoraConfig(rank=4, learning_rate=1e-3), tiny_sd15)
    found = deltas(with_lora_file(start, lora, 4).unet, 4)
    assert torch.equal(found.pop(f"{ATTENTION}.to_q"), torch.full((32, 32), 2.0))
    assert found
    assert not any(delta.any() for delta in found.values())


def test_a_file_that_a_run_cannot_go_on_from_is_refused(
    tiny_sd15: str, unet_part: Part, text_part: Part, tmp_path: Path
) -> None:
    """A layer that does not train, a larger rank, a text encoder that stays frozen, magnitudes."""
    start = first_lora(LoraConfig(rank=2, learning_rate=1e-3), tiny_sd15)

    def refuse(tensors: dict[str, Tensor], law: str) -> None:
        lora = read_lora_file(written(tensors, tmp_path / "a.safetensors"), tiny_sd15)
        with pytest.raises(UserError, match=law):
            with_lora_file(start, lora, 2)

    refuse(kohya({"conv_in": unet_part["conv_in"]}, {}), r"unet\.conv_in, which this run does not train")
    refuse(kohya({f"{ATTENTION}.to_q": unet_part[f"{ATTENTION}.to_q"]}, {}), "has rank 3; need a rank of 3 or more")
    refuse(kohya({}, text_part), "need train_text_encoder: true")
    refuse({**SOUND, f"{STEM}.dora_scale": torch.ones(32, 1)}, "is a DoRA")


def test_the_run_s_tensors_are_what_peft_loads(both_modules: Checkpoint) -> None:
    """They have the names and shapes of a run's own start."""
    lora = read_lora_file(both_modules.dir / LORA_FILE, both_modules.base_model)
    assert isinstance(both_modules.config, LoraConfig)
    start = first_lora(both_modules.config, both_modules.base_model)
    tensors = with_lora_file(start, lora, 5)
    assert isinstance(tensors, LoraTensors)
    assert {name: tensor.shape for name, tensor in tensors.unet.items()} == {
        name: tensor.shape for name, tensor in start.unet.items()
    }


# --- told apart ---------------------------------------------------------------------------------------------------


def test_models_are_told_apart_by_their_content(tiny_sd15: str, both_modules: Checkpoint, tmp_path: Path) -> None:
    """A LoRA, a diffusers folder, a single file, a sweep's checkpoint; each loads as what it is."""
    file = tmp_path / "other.safetensors"
    written({name: tensor.contiguous() for name, tensor in single_file_tensors(tiny_sd15).items()}, file)
    configs = tmp_path / "other"
    load_base_model(tiny_sd15).save_pretrained(str(configs))
    models = {
        "lora": open_model(both_modules.dir / LORA_FILE, tiny_sd15),
        "folder": open_model(Path(tiny_sd15), None),
        "file": open_model(file, None),
        "trial": open_model(both_modules.dir, tiny_sd15),
    }
    assert [model.kind for model in models.values()] == ["lora", "checkpoint", "checkpoint", "lora"]
    assert models["lora"].what == "LoRA of rank 3"
    base = load_pipeline(None, tiny_sd15, device="cpu", dtype=torch.float32)
    for name in ("folder", "file"):
        assert_equal_outputs(models[name].pipeline(None, CPU, torch.float32), base, 0)
    assert_equal_outputs(models["trial"].pipeline(tiny_sd15, CPU, torch.float32), trial_pipeline(both_modules), 0)


def test_what_is_no_model_is_refused(both_modules: Checkpoint, tmp_path: Path) -> None:
    """By name; and a LoRA is nothing without its base model."""
    (tmp_path / "a.ckpt").write_bytes(b"\x80")
    (tmp_path / "notes").mkdir()
    for path, law in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "a.ckpt", "is a pickle"),
        (tmp_path / "notes", "an empty folder"),
    ):
        with pytest.raises(UserError, match=law):
            open_model(path, both_modules.base_model)
    with pytest.raises(UserError, match="--base-model: need the model"):
        open_model(both_modules.dir / LORA_FILE, None)


def test_real_files_are_read_whole_or_refused(shared_data: Path) -> None:
    """Of cloneofsimo's: all 192 layers of the one at rank 4; the other brings embeddings of words along."""
    file = shared_data / "sd_lora" / "analog_svd_rank4.safetensors"
    lora = read_lora_file(file)
    assert (len(lora.unet), len(lora.text_encoder), lora.ranks, lora.alphas) == (144, 48, (4,), (4.0,))
    assert sum(layer.down.numel() + layer.up.numel() for layer in lora.layers) == sum(
        tensor.numel() for tensor in load_file(file).values()
    )
    with pytest.raises(UserError, match="textual inversion embeddings"):
        read_lora_file(shared_data / "sd_lora" / "lora_disney.safetensors")
