"""What the command line may ask before anything heavy is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.single_file import single_file_shapes_of
from tests.training.test_vocabulary import split_files
from training.architecture import (
    STABLE_DIFFUSION_15_TEXT,
    STABLE_DIFFUSION_15_UNET,
    STABLE_DIFFUSION_15_VAE,
    single_file_shapes,
    text_encoder_shapes,
    unet_shapes,
    vae_shapes,
)
from training.base_model import check_base_model, look_at
from training.errors import UserError

TORCH_FREE = [
    "training",
    "training.architecture",
    "training.base_model",
    "training.config",
    "training.files",
    "training.model_kinds",
    "training.paths",
    "training.photos",
    "training.pictures",
    "training.stats",
    "training.vocabulary",
    "training.weights",
]

IMPORT_AND_LIST = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_checks_and_readers_import_neither_torch_nor_diffusers() -> None:
    """`dreamsweep check`, the report and the live page read configs, photos and files without seconds of imports."""
    root = Path(__file__).parents[2]
    listed = subprocess.run(  # noqa: S603
        [sys.executable, "-c", IMPORT_AND_LIST, *TORCH_FREE], cwd=root, check=True, capture_output=True, text=True
    )
    loaded = set(listed.stdout.split())
    assert "training" in loaded
    assert not loaded & {"torch", "torchvision", "diffusers", "transformers", "peft", "accelerate"}


Shapes = Mapping[str, tuple[int, ...]]


def write_header(file: Path, shapes: Shapes, dtype: str = "F16") -> Path:
    """A whole safetensors file of zeros that takes no disk: header, then a hole of the right size."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, size = end, 2
        for side in shape:
            size *= side
        end = start + size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        stream.truncate(8 + len(content) + end)
    return file


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def refusal(base_model: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        check_base_model(str(base_model))
    return str(caught.value)


@pytest.fixture
def folder(tiny_sd15: str, tmp_path: Path) -> Path:
    """A copy of the tiny base model to break."""
    return shutil.copytree(tiny_sd15, tmp_path / "model")


@pytest.fixture
def genuine(tiny_sd15: str, tmp_path: Path) -> Path:
    """Stable Diffusion 1.5's folder as its publishers made it, with holes for weights: configs and names of 2022."""
    folder = tmp_path / "stable-diffusion-v1-5"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def old_name(name: str) -> str:
        for new, before in old.items():
            name = name.replace(new, before) if ".attentions." in name else name
        return name

    write_header(folder / "unet" / "diffusion_pytorch_model.safetensors", unet_shapes(STABLE_DIFFUSION_15_UNET))
    vae = {old_name(name): shape for name, shape in vae_shapes(STABLE_DIFFUSION_15_VAE).items()}
    write_header(folder / "vae" / "diffusion_pytorch_model.safetensors", vae)
    text = {f"text_model.{name}": shape for name, shape in text_encoder_shapes(STABLE_DIFFUSION_15_TEXT).items()}
    write_header(folder / "text_encoder" / "model.safetensors", text | {"text_model.embeddings.position_ids": (1, 77)})
    parts = {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"} | parts)
    write_json(
        folder / "unet" / "config.json",
        {
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.6.0",
            "act_fn": "silu",
            "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280],
            "center_input_sample": False,
            "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": 4,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-05,
            "norm_num_groups": 32,
            "out_channels": 4,
            "sample_size": 64,
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        },
    )
    write_json(
        folder / "vae" / "config.json",
        {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": 512,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
    )
    write_json(
        folder / "text_encoder" / "config.json",
        {
            "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "dropout": 0.0,
            "eos_token_id": 2,
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "pad_token_id": 1,
            "vocab_size": 49408,
        },
    )
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "PNDMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
        },
    )
    shutil.copytree(Path(tiny_sd15) / "tokenizer", folder / "tokenizer")
    split_files(folder / "tokenizer")
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    write_json(
        folder / "tokenizer" / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": token | {"content": "<|startoftext|>"},
            "do_lower_case": True,
            "eos_token": token | {"content": "<|endoftext|>"},
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": token | {"content": "<|endoftext|>"},
        },
    )
    return folder


STABLE_DIFFUSION_15_FILE = {
    name: shape
    for part in single_file_shapes(STABLE_DIFFUSION_15_UNET, STABLE_DIFFUSION_15_VAE, STABLE_DIFFUSION_15_TEXT).values()
    for name, shape in part.items()
}
UNET_STEM, TEXT_STEM, VAE_STEM = "model.diffusion_model.", "cond_stage_model.", "first_stage_model."


# --- what passes --------------------------------------------------------------------------------------------------


def test_stable_diffusion_15_passes(genuine: Path, tmp_path: Path) -> None:
    """Its folder, its one file (with what CivitAI's files hold beside the weights), and its hub id, unasked."""
    look = look_at(str(genuine))
    assert look is not None
    assert look.configs.unet.sample_size == 64
    beside = {
        "model_ema.decay": (1,),
        "alphas_cumprod": (1000,),
        f"{TEXT_STEM}transformer.text_model.position_ids": (1,),
    }
    check_base_model(str(write_header(tmp_path / "v1-5.safetensors", STABLE_DIFFUSION_15_FILE | beside)))
    check_base_model("stable-diffusion-v1-5/stable-diffusion-v1-5")


def test_a_folder_may_hold_other_files(folder: Path) -> None:
    """Previews, notes, pickles and other variants beside the plain weights."""
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_text("not even looked at")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"PK")
    (folder / "LICENSE").touch()
    look = look_at(str(folder))
    assert look is not None
    assert look.unet.variant is None


def rename_weights(folder: Path, variant: str, *parts: str) -> None:
    for part in parts:
        for file in (folder / part).glob("*.safetensors"):
            file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def test_a_variant_is_taken_where_there_is_no_plain_file(folder: Path) -> None:
    """Part by part; fp16 before others; two others leave it open and are refused."""
    rename_weights(folder, "fp16", "text_encoder", "vae")
    rename_weights(folder, "non_ema", "unet")
    look = look_at(str(folder))
    assert look is not None
    assert (look.unet.variant, look.vae.variant, look.text_encoder.variant) == ("non_ema", "fp16", "fp16")
    (non_ema,) = look.unet.files
    shutil.copy(non_ema, folder / "unet" / "diffusion_pytorch_model.ema.safetensors")
    assert "variants ema, non_ema and no plain weights" in refusal(folder)
    shutil.copy(non_ema, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    look = look_at(str(folder))
    assert look is not None
    assert look.unet.variant == "fp16"


# --- one file -----------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Shapes, str]] = {
    "lora by kohya": ({"lora_unet_down_blocks_0.lora_down.weight": (4, 320)}, "a LoRA"),
    "lora by peft": ({"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": (4, 320)}, "a LoRA"),
    "lycoris": ({"lycoris_mid.hada_w1_a": (4, 320)}, "a LoRA"),
    "embedding": ({"emb_params": (8, 768)}, "a textual inversion embedding"),
    "embedding by diffusers": ({"<ada>": (768,)}, "a textual inversion embedding"),
    "controlnet": ({"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}, "a ControlNet"),
    "controlnet by diffusers": ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, "a ControlNet"),
    "ip-adapter": ({"image_proj.proj.weight": (3072, 1024)}, "an IP-Adapter"),
    "motion": ({"down_blocks.0.motion_modules.0.norm.weight": (320,)}, "a motion module"),
    "sdxl": ({"conditioner.embedders.1.model.ln_final.weight": (1280,)}, "a Stable Diffusion XL checkpoint"),
    "refiner": ({"conditioner.embedders.0.model.ln_final.weight": (1280,)}, "a Stable Diffusion XL refiner"),
    "sdxl unet": ({"add_embedding.linear_1.weight": (1280, 2816), "down_blocks.0.a": (1,)}, "a Stable Diffusion XL"),
    "sd3": ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (9, 3)}, "a Stable Diffusion 3 model"),
    "flux": ({"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "a Flux model"),
    "sd2": ({"cond_stage_model.model.ln_final.weight": (1024,)}, "a Stable Diffusion 2 checkpoint"),
    "sd2 unet": ({f"{UNET_STEM}input_blocks.1.1.attn2.to_k.weight": (320, 1024)}, "a Stable Diffusion 2 model"),
    "unet": ({"conv_in.weight": (320, 4, 3, 3), "down_blocks.0.resnets.0.norm1.weight": (320,)}, "a UNet alone"),
    "original unet": ({f"{UNET_STEM}input_blocks.0.0.weight": (320, 4, 3, 3)}, "a UNet alone"),
    "vae": ({"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)}, "a VAE alone"),
    "original vae": ({f"{VAE_STEM}encoder.conv_in.weight": (128, 3, 3, 3)}, "a VAE alone"),
    "text encoder": ({"text_model.embeddings.token_embedding.weight": (49408, 768)}, "a text encoder alone"),
    "clip": ({"visual.conv1.weight": (8, 3, 8, 8)}, "a whole CLIP model"),
    "t5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8)}, "a T5 text encoder"),
    "safety checker": ({"concept_embeds": (17, 768)}, "a safety checker"),
    "face encoder": ({"conv2d_1a.conv.weight": (32, 3, 3, 3)}, "a face encoder"),
    "upscaler": ({"conv_first.weight": (64, 3, 3, 3)}, "an upscaler"),
    "language model": ({"model.layers.0.self_attn.q_proj.weight": (8, 8)}, "a language model"),
    "something": ({"w": (3,), "b": (1,)}, r"no model that is known here \(its first tensors: w, b\)"),
}


@pytest.mark.parametrize("name", KINDS)
def test_another_kind_of_file_is_told_what_it_is(name: str, tmp_path: Path) -> None:
    """And what is needed in its place."""
    shapes, kind = KINDS[name]
    file = write_header(tmp_path / "given.safetensors", shapes)
    with pytest.raises(UserError, match=f"given\\.safetensors is {kind}.*need a whole Stable Diffusion 1"):
        check_base_model(str(file))


@pytest.mark.parametrize(
    ("channels", "kind"), [(9, "inpainting"), (8, "InstructPix2Pix"), (5, "depth"), (7, "upscaler")]
)
def test_a_unet_that_takes_more_than_latents_is_told_what_it_is(channels: int, kind: str, tmp_path: Path) -> None:
    """All else in the file is Stable Diffusion 1.5's."""
    first = {f"{UNET_STEM}input_blocks.0.0.weight": (320, channels, 3, 3)}
    file = write_header(tmp_path / "given.safetensors", STABLE_DIFFUSION_15_FILE | first)
    assert kind in refusal(file)


@pytest.mark.parametrize(("stem", "part"), [(VAE_STEM, "vae"), (TEXT_STEM, "text encoder")])
def test_a_checkpoint_without_a_part_is_refused(stem: str, part: str, tmp_path: Path) -> None:
    """Pruned files are common."""
    shapes = {name: shape for name, shape in STABLE_DIFFUSION_15_FILE.items() if not name.startswith(stem)}
    assert f"holds no {part}" in refusal(write_header(tmp_path / "pruned.safetensors", shapes))


def test_one_weight_too_few_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    """Diffusers would draw it at random."""
    name = f"{UNET_STEM}middle_block.0.in_layers.2.weight"
    missing = {key: shape for key, shape in STABLE_DIFFUSION_15_FILE.items() if key != name}
    message = refusal(write_header(tmp_path / "missing.safetensors", missing))
    assert "missing.safetensors (unet) is incomplete: 1 of 686 weights are missing" in message
    assert name in message
    other = STABLE_DIFFUSION_15_FILE | {name: (640, 640, 3, 3)}
    message = refusal(write_header(tmp_path / "other.safetensors", other))
    assert f"{name} must be 1280 x 1280 x 3 x 3, got 640 x 640 x 3 x 3" in message
    assert "another needs a folder other/ beside the file" in message
    quantised = write_header(tmp_path / "quantised.safetensors", STABLE_DIFFUSION_15_FILE, "I16")
    assert "must be floating point numbers, got I16" in refusal(quantised)


def test_a_file_that_says_v_prediction_needs_configs_that_say_so(tmp_path: Path) -> None:
    """Without them it would be trained as if it predicted the noise."""
    file = write_header(tmp_path / "v.safetensors", STABLE_DIFFUSION_15_FILE | {"v_pred": (1,)})
    assert "trained with v_prediction" in refusal(file)


BEGINNINGS = {
    "empty": (b"", "is empty"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n", "git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html><body>Please log in</body></html>", "a web page"),
    "json": (b'{"error": "Access to model is restricted"}', "JSON or text"),
    "pickle": (b"\x80\x02}q\x00." + bytes(100), "a pickle by PyTorch"),
    "zip": (b"PK\x03\x04" + bytes(100), "a pickle by PyTorch"),
    "zeros": (bytes(1000), "zeros"),
    "gguf": (b"GGUF" + bytes(100), "a GGUF file"),
    "noise": (bytes(range(255, 100, -1)), "no safetensors file"),
    "five bytes": (b"12345", "no safetensors file"),
    "no tensors": (b"\x02\0\0\0\0\0\0\0{}", "holds no tensors"),
    "no JSON": (b"\x04\0\0\0\0\0\0\0{]}]", "damaged header"),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_something_else_under_the_name_of_weights_is_told_what_it_is(name: str, tmp_path: Path, folder: Path) -> None:
    """As a single file, and as a part's weights inside a folder."""
    content, message = BEGINNINGS[name]
    for file, base_model in (
        (tmp_path / "given.safetensors", tmp_path / "given.safetensors"),
        (folder / "vae" / "diffusion_pytorch_model.safetensors", folder),
    ):
        file.write_bytes(content)
        assert message in refusal(base_model)
        assert str(file) in refusal(base_model)


def test_a_download_that_goes_on_is_named(tmp_path: Path) -> None:
    """A folder of that name, a link to nothing, and a file that aria2 has not finished."""
    (tmp_path / "folder.safetensors").mkdir()
    assert "folder.safetensors is a folder, not a file" in refusal(tmp_path / "folder.safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "nowhere")
    assert "link.safetensors cannot be read: No such file" in refusal(tmp_path / "link.safetensors")
    file = write_header(tmp_path / "half.safetensors", STABLE_DIFFUSION_15_FILE)
    (tmp_path / "half.safetensors.aria2").touch()
    assert "still being downloaded" in refusal(file)


@pytest.fixture
def whole(tiny_sd15: str, tmp_path: Path) -> Path:
    """The tiny base as one file with its configs beside it."""
    shutil.copytree(tiny_sd15, tmp_path / "whole", ignore=shutil.ignore_patterns("*.safetensors"))
    return write_header(tmp_path / "whole.safetensors", single_file_shapes_of(tiny_sd15))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_short_anywhere_is_refused(data: st.DataObject, whole: Path) -> None:
    """By how many bytes are there of how many, within the header too."""
    file = whole.with_name("cut.safetensors")
    if not file.exists():
        check_base_model(str(whole))
        shutil.copytree(whole.with_suffix(""), file.with_suffix(""))
    length = data.draw(st.integers(0, whole.stat().st_size - 1))
    shutil.copy(whole, file)
    os.truncate(file, length)
    assert str(file) in refusal(file)
    if length > 8:
        assert "cut short" in refusal(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ENTRY = st.fixed_dictionaries(
    {}, optional={"dtype": st.sampled_from(["F16", "F32", "X"]) | JSON, "shape": JSON, "data_offsets": JSON}
)
HEADER = st.dictionaries(st.sampled_from(["a", "__metadata__", f"{UNET_STEM}x"]), ENTRY | JSON, max_size=3)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=64) | HEADER.map(lambda header: json.dumps(header).encode()), tail=st.binary(max_size=8)
)
def test_no_header_makes_more_than_a_refusal(content: bytes, tail: bytes, tmp_path: Path) -> None:
    """Whatever bytes or JSON stand in it."""
    file = tmp_path / "fuzzed.safetensors"
    for before in (b"", len(content).to_bytes(8, "little")):
        file.write_bytes(before + content + tail)
        assert str(file) in refusal(file)


# --- a folder -----------------------------------------------------------------------------------------------------


def test_every_file_of_a_folder_is_missed(folder: Path) -> None:
    """Each by its name or its folder's."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    assert len(files) == 10
    for file in files:
        content = file.read_bytes()
        file.unlink()
        message = refusal(folder)
        assert file.name in message
        assert str(file.parent) in message
        file.write_bytes(content)
    check_base_model(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\ufeff{}", '{"a": ' * 2000, "\x00"])
def test_a_broken_config_is_named(content: str, folder: Path) -> None:
    """Every JSON file of the folder, whatever is broken in it."""
    for file in sorted(folder.rglob("*.json")):
        before = file.read_text()
        file.write_text(content)
        assert f"{file} must be a JSON object" in refusal(folder)
        file.write_text(before)


@pytest.fixture(scope="module")
def demo_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo's base model, whose small vocabulary is read in no time."""
    source = Path(__file__).parents[2] / "examples" / "demo" / "family" / "base_model"
    return shutil.copytree(source, tmp_path_factory.mktemp("demo") / "base_model")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), value=JSON)
def test_no_value_in_a_config_makes_more_than_a_refusal(data: st.DataObject, value: Any, demo_base: Path) -> None:
    """Of any field of any config; where the value makes no difference, it passes."""
    files = [*sorted(demo_base.rglob("*config.json")), *sorted(demo_base.rglob("tokenizer.json"))]
    file = data.draw(st.sampled_from([*files, demo_base / "model_index.json"]))
    field = data.draw(st.sampled_from(sorted(json.loads(file.read_text()))))
    passes_or_is_refused(demo_base, file, field, value)


def passes_or_is_refused(base: Path, file: Path, field: str, value: Any) -> None:
    """With this value in this field; afterwards the file is as it was."""
    before = file.read_text()
    edit(file, **{field: value})
    try:
        check_base_model(str(base))
    except UserError as error:
        assert str(base) in str(error)  # noqa: PT017 -- passing is right too
    finally:
        file.write_text(before)


@pytest.mark.parametrize("value", [[], {}, [None, []], [[], {}], [1, 2], ["diffusers", {}], 1, True, "", "x\x00"])
def test_no_awkward_value_makes_more_than_a_refusal(value: object, demo_base: Path) -> None:
    """In every field of every config, one after the other."""
    for file in [*sorted(demo_base.rglob("*config.json")), demo_base / "model_index.json"]:
        for field in json.loads(file.read_text()):
            passes_or_is_refused(demo_base, file, field, value)


CHANGES: dict[str, tuple[str, dict[str, object], str]] = {
    "sdxl": ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "a Stable Diffusion XL model"),
    "two encoders": ("model_index.json", {"text_encoder_2": ["transformers", "X"]}, "a model with two text encoders"),
    "transformer": (
        "model_index.json",
        {"_class_name": "Foo", "transformer": ["diffusers", "X"]},
        "transformer \\(Foo",
    ),
    "inpainting index": ("model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"}, "an inpainting model"),
    "no vae": ("model_index.json", {"vae": [None, None]}, "names no vae"),
    "tiny vae": (
        "model_index.json",
        {"vae": ["diffusers", "AutoencoderTiny"]},
        "vae must be AutoencoderKL, got Autoen",
    ),
    "scheduler": ("model_index.json", {"scheduler": ["diffusers", "Foo"]}, "scheduler must be DDIMScheduler or"),
    "inpainting": ("unet/config.json", {"in_channels": 9}, "is of an inpainting model"),
    "sd2": ("unet/config.json", {"cross_attention_dim": 1024}, "is of a Stable Diffusion 2 model"),
    "sdxl unet": ("unet/config.json", {"addition_embed_type": "text_time"}, "is of a Stable Diffusion XL model"),
    "other width": ("unet/config.json", {"cross_attention_dim": 24}, "text encoder's 16 wide embeddings"),
    "other channels": ("unet/config.json", {"block_out_channels": [16, 16, 32, 64]}, "does not fit its config.json"),
    "blocks": ("unet/config.json", {"down_block_types": ["AttnDownBlock2D"] * 4}, "unet/config.json: down_block_types"),
    "latents": ("vae/config.json", {"latent_channels": 16}, "the VAE's 16 latent channels, got 4"),
    "sample": ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type must be epsilon or"),
    "rows": (
        "text_encoder/config.json",
        {"vocab_size": 30000},
        "does not fit the text encoder: need the 30,000 tokens",
    ),
    "layers": ("text_encoder/config.json", {"num_hidden_layers": 3}, "16 of 52 weights are missing"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_kind_of_folder_is_told_what_it_is(name: str, folder: Path) -> None:
    """Or which two of its files do not belong together."""
    file, fields, message = CHANGES[name]
    edit(folder / file, **fields)
    with pytest.raises(UserError, match=message):
        check_base_model(str(folder))


def hub_cache(folder: Path) -> Path:
    cached = folder.parent / "models--owner--name"
    shutil.copytree(folder, cached / "snapshots" / "abc")
    return cached


def wrapped(folder: Path) -> Path:
    folder.rename(folder.parent / "inner")
    folder.mkdir()
    return (folder.parent / "inner").rename(folder / "model").parent


def with_files(*names: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name in names:
            file = folder.parent / "given" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
        return folder.parent / "given"

    return make


def with_config(**config: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_json(folder.parent / "given" / "config.json", config)
        return folder.parent / "given"

    return make


def single_files(folder: Path) -> Path:
    write_header(folder.parent / "given" / "a-lora.safetensors", {"lora_unet_x": (4, 4)})
    return write_header(folder.parent / "given" / "dream.safetensors", STABLE_DIFFUSION_15_FILE).parent


def empty(folder: Path) -> Path:
    (folder.parent / "given").mkdir()
    return folder.parent / "given"


FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "hub cache of a model": (hub_cache, r"name its snapshot: .*/models--owner--name/snapshots/abc"),
    "hub cache": (with_files("models--owner--name/refs"), "a hub cache; name a model by its hub id"),
    "one folder too far up": (wrapped, r"name .*/model/model"),
    "one folder too far down": (lambda folder: folder / "unet", r"one part of a model; name the whole: .*/model"),
    "controlnet": (with_config(_class_name="ControlNetModel"), "it is a ControlNet"),
    "unet": (with_config(_class_name="UNet2DConditionModel"), "it is the UNet alone"),
    "transformers": (with_config(architectures=["CLIPModel"]), "it is a CLIP model"),
    "language model": (with_config(model_type="llama"), r"a model of its own \(llama\)"),
    "lora": (with_files("pytorch_lora_weights.safetensors"), "it is a LoRA"),
    "trial's checkpoint": (with_files("checkpoint.json", "pytorch_lora_weights.safetensors"), "a sweep's trial"),
    "run folder": (with_files("sweep.yaml", "trials/x"), "a sweep's run folder"),
    "no index": (with_files("unet/config.json", "vae/config.json"), "not whole: it holds unet, vae"),
    "single files": (single_files, r"a folder of single files; name one of them: .*/given/dream\.safetensors$"),
    "pickles": (with_files("model.ckpt"), "a folder of pickles"),
    "photos": (with_files("a.jpg"), r"something else \(a\.jpg"),
    "empty": (empty, "an empty folder"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_no_pipeline_is_told_what_it_is(name: str, folder: Path) -> None:
    """And what to name in its place, where that can be seen."""
    make, message = FOLDERS[name]
    with pytest.raises(UserError, match=rf"has no model_index\.json: it is .*|{message}") as caught:
        check_base_model(str(make(folder)))
    assert re.search(message, str(caught.value))


def test_a_part_named_alone_is_shown_its_folder(folder: Path) -> None:
    """Who names the UNet's weights means the folder around them."""
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert f"a UNet alone, without VAE and text encoder; name the folder {folder}" in refusal(file)


def test_a_missing_shard_is_named(folder: Path) -> None:
    """The index says which there are; a broken index is named itself."""
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shard = plain.rename(folder / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors")
    assert "has no weights: need diffusion_pytorch_model.safetensors" in refusal(folder)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    write_json(index, {"weight_map": {"a": shard.name, "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}})
    assert "diffusion_pytorch_model-00002-of-00002.safetensors is missing" in refusal(folder)
    write_json(index, {"weight_map": {"a": shard.name}})
    check_base_model(str(folder))
    write_json(index, {"weight_map": {"a": "../../elsewhere.safetensors"}})
    assert f"{index} must have a weight_map" in refusal(folder)
    write_json(index, {"weight_map": {"a": shard.name}})
    shutil.copy(shard, plain)
    assert "holds both" in refusal(folder)


def test_the_folder_beside_a_single_file_is_held_to_the_same(tiny_sd15: str, tmp_path: Path) -> None:
    """Its index, its tokenizer, its configs: each refused by its own name, with no advice to put a folder there."""
    file = write_header(tmp_path / "tiny.safetensors", single_file_shapes_of(tiny_sd15))
    assert "another needs a folder tiny/ beside the file" in refusal(file)
    configs = shutil.copytree(tiny_sd15, tmp_path / "tiny", ignore=shutil.ignore_patterns("*.safetensors"))
    check_base_model(str(file))
    for name in ("model_index.json", "tokenizer/tokenizer.json", "unet/config.json"):
        content = (configs / name).read_bytes()
        (configs / name).unlink()
        message = refusal(file)
        assert Path(name).name in message
        assert "another needs a folder" not in message
        (configs / name).write_bytes(content)
    edit(configs / "unet" / "config.json", block_out_channels=[16, 16, 32, 64])
    assert "does not fit the configs in" in refusal(file)


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.ckpt", "is a pickle"),
        ("MODEL.CKPT", "is a pickle"),
        ("absent.safetensors", "no such file"),
        ("notes.txt", r"must be \.safetensors"),
        ("empty", r"no model_index\.json"),
        ("./someone/something", "no such file, folder or hub id"),
        ("some one/some?thing", "no such file, folder or hub id"),
    ],
)
def test_what_is_no_base_model_is_refused_by_name(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own sentence, in which it stands."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").touch()
    with pytest.raises(ValueError, match=message) as refusal:
        check_base_model(name)
    assert name in str(refusal.value)


def test_a_hub_id_of_another_kind_is_refused_where_it_was_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache tells; nothing is asked of the hub."""
    snapshot = tmp_path / "models--owner--xl" / "snapshots" / "abc"
    write_json(snapshot / "model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "owner/xl is a Stable Diffusion XL model" in refusal("owner/xl")
