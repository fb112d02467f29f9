"""Base models: a folder or one file gives the same model, everything else is refused in words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.base_model import check_base_model
from training.stable_diffusion import (
    base_model_fingerprint,
    load_base_model,
    training_noise_schedule,
)

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_key(key: str) -> str:
    """A diffusers UNet's key as Stable Diffusion's original files have it."""
    block = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)(?:\.conv(?=\.))?\.", key)
    if block:
        side, level, kind, layer = block.groups()
        first = 3 * int(level) + (1 if side == "down" else 0)
        number = first + int(layer) if kind in ("resnets", "attentions") else first + 2
        if kind == "resnets":
            place = "0."
        elif kind == "attentions":
            place = "1."
        else:
            place = "0.op." if side == "down" else f"{1 if level == '0' else 2}.conv."
        start = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{place}"
        rest = key[block.end() :]
    else:
        there = next(end for end in UNET_ENDS if key.startswith(end + "."))
        start, rest = UNET_ENDS[there] + ".", key[len(there) + 1 :]
    if "resnets" in key:
        part, _, last = rest.rpartition(".")
        rest = f"{UNET_RESNET[part]}.{last}"
    return start + rest


def vae_key(key: str) -> str:
    """A diffusers VAE's key as Stable Diffusion's original files have it."""
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    if "attn_1" in key:
        for ours, theirs in VAE_ATTENTION.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
    return key.replace("conv_shortcut", "nin_shortcut")


def single_file_tensors(folder: str) -> dict[str, Tensor]:
    """The weights of a diffusers folder in the layout that CivitAI serves, with CLIP's `text_model.` prefix."""
    unet, vae, text = (
        load_file(next((Path(folder) / part).glob("*.safetensors"))) for part in ("unet", "vae", "text_encoder")
    )
    tensors = {f"model.diffusion_model.{unet_key(key)}": tensor for key, tensor in unet.items()}
    for key, tensor in vae.items():
        is_matrix = "mid_block.attentions" in key and tensor.ndim == 2
        tensors[f"first_stage_model.{vae_key(key)}"] = tensor[:, :, None, None].contiguous() if is_matrix else tensor
    for key, tensor in text.items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = tensor
    return tensors


@pytest.fixture
def single_file(tiny_base: str, tmp_path: Path) -> Path:
    """The tiny base as one file, its configs in the folder of the same name beside it."""
    file = tmp_path / "photogasm.safetensors"
    save_file(single_file_tensors(tiny_base), file)
    shutil.copytree(tiny_base, tmp_path / "photogasm", ignore=shutil.ignore_patterns("*.safetensors"))
    return file


def picture(pipeline: StableDiffusionPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipeline("a photo of sks", num_inference_steps=2, generator=generator, output_type="pt").images


def test_a_single_file_is_the_same_model_as_its_folder(single_file: Path, tiny_base: str) -> None:
    """Every weight of UNet, VAE and text encoder arrives, and so do the pictures; offline."""
    folder, file = load_base_model(tiny_base), load_base_model(str(single_file))
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(file, part).state_dict(), getattr(folder, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    torch.testing.assert_close(picture(file), picture(folder), rtol=0, atol=1e-5)
    assert file.unet.config.sample_size == folder.unet.config.sample_size == 8


def test_a_single_file_without_configs_says_what_is_missing(single_file: Path) -> None:
    """Offline, without the folder beside it, the message names the folder to put there."""
    shutil.rmtree(single_file.with_suffix(""))
    with pytest.raises(ValueError, match=r"needs a folder photogasm/ beside the file"):
        load_base_model(str(single_file))


@pytest.mark.parametrize("name", ["model.ckpt", "pytorch_model.bin", "model.pt"])
def test_pickles_are_refused_with_a_way_out(name: str, tmp_path: Path) -> None:
    """They can run code when opened: the message says how to convert."""
    (tmp_path / name).write_bytes(b"\x80\x02")
    for refuse in (check_base_model, load_base_model, base_model_fingerprint):
        with pytest.raises(ValueError, match=r"is a pickle.*convert it to \.safetensors"):
            refuse(str(tmp_path / name))


def test_a_folder_of_pickles_is_refused_too(tiny_base: str, tmp_path: Path) -> None:
    """Also when they are inside a diffusers folder."""
    folder = shutil.copytree(tiny_base, tmp_path / "pickled")
    weights = next((folder / "unet").glob("*.safetensors"))
    torch.save(load_file(weights), folder / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match="as pickles"):
        load_base_model(str(folder))


@pytest.mark.parametrize(
    ("base_model", "message"),
    [
        ("nowhere/", "no such file, folder or hub id"),
        ("./models/absent", "no such file, folder or hub id"),
        ("absent.safetensors", "no such file"),
        ("someone/not-downloaded", "could not be had from the hub"),
    ],
)
def test_a_missing_model_is_named(base_model: str, message: str) -> None:
    """A path, a file and a hub id each get their own sentence."""
    with pytest.raises(ValueError, match=message) as refusal:
        load_base_model(base_model)
    assert base_model in str(refusal.value)


def test_another_kind_of_model_is_refused(tiny_base: str, tmp_path: Path) -> None:
    """No diffusers folder, a pipeline with two text encoders, a UNet for inpainting, a prediction of the sample."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        load_base_model(str(tmp_path / "empty"))

    def changed(name: str, file: str, **fields: object) -> str:
        folder = shutil.copytree(tiny_base, tmp_path / name)
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | fields))
        return str(folder)

    two_encoders = changed("xl", "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"])
    with pytest.raises(ValueError, match=r"Stable Diffusion 1\.x"):
        load_base_model(two_encoders)
    sample = changed("sample", "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type must be"):
        load_base_model(sample)
    broken = changed("broken", "vae/config.json", latent_channels=5)
    with pytest.raises(ValueError, match="does not load"):
        load_base_model(broken)


def test_the_base_is_loaded_once_and_frozen(tiny_base: str) -> None:
    """One pipeline a process, in evaluation mode, float32, without gradients."""
    base = load_base_model(tiny_base)
    assert load_base_model(tiny_base) is base
    for module in (base.unet, base.vae, base.text_encoder):
        assert not module.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert base.safety_checker is None


def test_the_fingerprint_follows_the_content(tiny_base: str, single_file: Path, tmp_path: Path) -> None:
    """A copy elsewhere has the same one, a changed weight another; stray files don't count."""
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    (copy / "README.md").write_text("words")
    assert base_model_fingerprint(str(copy)) == base_model_fingerprint(tiny_base)
    changed = shutil.copytree(tiny_base, tmp_path / "changed")
    weights = next((changed / "vae").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert base_model_fingerprint(str(changed)) != base_model_fingerprint(tiny_base)
    assert base_model_fingerprint(str(single_file)) != base_model_fingerprint(tiny_base)


def test_training_uses_the_bases_own_noise_levels(tiny_base: str) -> None:
    """1000 scaled-linear levels from 0.00085 to 0.012, as Stable Diffusion 1.5 was trained."""
    base = load_base_model(tiny_base)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(training_noise_schedule(base).alphas_cumprod, (1 - betas).cumprod(0))
    torch.testing.assert_close(base.scheduler.alphas_cumprod, (1 - betas).cumprod(0))
