"""Base models: a folder or one file gives the same model, everything else is refused in words."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.training.single_file import single_file_tensors
from tests.training.test_vocabulary import split_files
from training import base_model, stable_diffusion
from training.base_model import check_base_model, look_at
from training.errors import UserError
from training.stable_diffusion import (
    base_model_fingerprint,
    load_base_model,
    training_noise_schedule,
)


@pytest.fixture
def single_file(tiny_sd15: str, tmp_path: Path) -> Path:
    """The tiny base as one file, its configs in the folder of the same name beside it."""
    file = tmp_path / "photogasm.safetensors"
    save_file(single_file_tensors(tiny_sd15), file)
    shutil.copytree(tiny_sd15, tmp_path / "photogasm", ignore=shutil.ignore_patterns("*.safetensors"))
    return file


def picture(pipeline: StableDiffusionPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipeline("a photo of sks", num_inference_steps=2, generator=generator, output_type="pt").images


def test_a_single_file_is_the_same_model_as_its_folder(single_file: Path, tiny_sd15: str) -> None:
    """Every weight of UNet, VAE and text encoder arrives, and so do the pictures; offline."""
    folder, file = load_base_model(tiny_sd15), load_base_model(str(single_file))
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(file, part).state_dict(), getattr(folder, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    torch.testing.assert_close(picture(file), picture(folder), rtol=0, atol=1e-5)
    assert file.unet.config.sample_size == folder.unet.config.sample_size == 8


def test_a_single_file_without_configs_says_what_is_missing(
    single_file: Path, tiny_sd15: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, without the folder beside it, the message names the folder to put there."""
    look = look_at(tiny_sd15)
    assert look is not None
    monkeypatch.setattr(base_model, "STABLE_DIFFUSION_15", look.configs)  # so that the file's widths are the usual ones
    shutil.rmtree(single_file.with_suffix(""))
    with pytest.raises(UserError, match=r"needs a folder photogasm/ beside the file"):
        load_base_model(str(single_file))


def test_a_refused_file_with_its_configs_beside_it_is_not_told_to_put_them_there(single_file: Path) -> None:
    """The advice is for whom it helps."""
    os.truncate(single_file, single_file.stat().st_size // 2)
    with pytest.raises(UserError, match="cut short") as refusal:
        load_base_model(str(single_file))
    assert "beside" not in str(refusal.value)


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
    ("name", "message"),
    [
        ("nowhere/", "no such file, folder or hub id"),
        ("./models/absent", "no such file, folder or hub id"),
        ("absent.safetensors", "no such file"),
        ("someone/not-downloaded", "could not be had from the hub"),
    ],
)
def test_a_missing_model_is_named(name: str, message: str) -> None:
    """A path, a file and a hub id each get their own sentence."""
    with pytest.raises(ValueError, match=message) as refusal:
        load_base_model(name)
    assert name in str(refusal.value)


def drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def change(name: str, **fields: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))


def halve(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def lose_one_weight(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "conv_out.weight"}, file)


UNUSABLE: dict[str, Callable[[Path], object]] = {
    "no index": drop("model_index.json"),
    "no JSON": lambda folder: (folder / "model_index.json").write_text("[1, 2"),
    "two text encoders": change("model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]),
    "inpainting": change("unet/config.json", in_channels=9),
    "prediction of the sample": change("scheduler/scheduler_config.json", prediction_type="sample"),
    "configs that disagree": change("vae/config.json", latent_channels=5),
    "no text encoder": drop("text_encoder/model.safetensors"),
    "half a VAE": halve("vae/diffusion_pytorch_model.safetensors"),
    "one weight too few": lose_one_weight,
    "no tokenizer": drop("tokenizer/tokenizer.json"),
    "another tokenizer": change("tokenizer/tokenizer_config.json", bos_token="a</w>"),  # noqa: S106
    "a prompt without end": change("tokenizer/tokenizer_config.json", model_max_length=1000),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_loading_refuses_in_the_words_of_the_check(name: str, tiny_base: str, tmp_path: Path) -> None:
    """A folder, and what a single file has beside it."""
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    UNUSABLE[name](folder)
    with pytest.raises(UserError) as checked:
        check_base_model(str(folder))
    with pytest.raises(UserError) as loaded:
        load_base_model(str(folder))
    assert str(loaded.value) == str(checked.value)


def test_a_tokenizer_is_looked_at_once_more_when_it_is_loaded(
    single_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configs and tokenizer of a single file may come from the hub, where the check had nothing to read."""
    monkeypatch.setattr(stable_diffusion, "check_base_model", lambda _: None)
    (single_file.with_suffix("") / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"does not fit the text encoder: need the 49,408 tokens .* got [0-9]\b"):
        load_base_model(str(single_file))


def rename_weights(folder: Path, variant: str, *parts: str) -> None:
    for part in parts:
        for file in (folder / part).glob("*.safetensors"):
            file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def equal_weights(ours: StableDiffusionPipeline, theirs: StableDiffusionPipeline) -> bool:
    return all(
        torch.equal(tensor, getattr(theirs, part).state_dict()[key])
        for part in ("unet", "vae", "text_encoder")
        for key, tensor in getattr(ours, part).state_dict().items()
    )


def test_a_folder_of_variants_alone_is_the_same_model(tiny_base: str, tmp_path: Path) -> None:
    """`fp16` in all parts, another in one: each part is loaded from what it has, and sized and identified by it."""
    folder = shutil.copytree(tiny_base, tmp_path / "variants")
    (folder / "unet" / "LICENSE").touch()  # a name without a dot
    rename_weights(folder, "fp16", "vae", "text_encoder")
    rename_weights(folder, "non_ema", "unet")
    check_base_model(str(folder))
    assert equal_weights(load_base_model(str(folder)), load_base_model(tiny_base))
    before = base_model_fingerprint(str(folder))
    weights = folder / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    base_model_fingerprint.cache_clear()
    assert base_model_fingerprint(str(folder)) != before


def test_the_plain_weights_are_loaded_where_a_variant_lies_beside_them(tiny_base: str, tmp_path: Path) -> None:
    """As diffusers does when nobody asks for a variant."""
    folder = shutil.copytree(tiny_base, tmp_path / "both")
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(
        {name: tensor.half() + 1 for name, tensor in load_file(plain).items()},
        plain.with_name("diffusion_pytorch_model.fp16.safetensors"),
    )
    assert equal_weights(load_base_model(str(folder)), load_base_model(tiny_base))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_shards_are_the_same_model(variant: str | None, tiny_base: str, tmp_path: Path) -> None:
    """As the libraries write them, plain or as a variant."""
    folder = shutil.copytree(tiny_base, tmp_path / "sharded")
    base = load_base_model(tiny_base)
    for part in ("unet", "text_encoder"):
        next((folder / part).glob("*.safetensors")).unlink()
        getattr(base, part).save_pretrained(folder / part, variant=variant, max_shard_size="400KB")
        assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1
    check_base_model(str(folder))
    assert equal_weights(load_base_model(str(folder)), base)


def test_stable_diffusion_15s_own_tokenizer_layout_loads(tiny_base: str, tmp_path: Path) -> None:
    """`vocab.json` and `merges.txt` instead of `tokenizer.json`: the same ids."""
    folder = shutil.copytree(tiny_base, tmp_path / "split")
    split_files(folder / "tokenizer")
    text = "a photo of sks woman, smiling"
    ours, theirs = load_base_model(str(folder)).tokenizer, load_base_model(tiny_base).tokenizer
    assert ours(text).input_ids == theirs(text).input_ids


def test_a_hub_model_without_plain_weights_is_had_as_fp16(
    tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Diffusers downloads nothing where it has not been told the variant; what came is looked at as a folder is."""
    snapshot = shutil.copytree(tiny_base, tmp_path / "snapshot")
    rename_weights(snapshot, "fp16", "unet", "vae", "text_encoder")

    def download(name: str, variant: str | None = None, **_: object) -> str:
        if variant is None:
            raise OSError("Could not find the necessary `safetensors` weights in {} (variant=None)")
        return str(snapshot)

    monkeypatch.setattr(StableDiffusionPipeline, "download", download)
    assert equal_weights(load_base_model("owner/half"), load_base_model(tiny_base))
    (snapshot / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json \(downloaded as owner/half-again\)"):
        load_base_model("owner/half-again")


def test_the_base_is_loaded_once_and_frozen(tiny_base: str) -> None:
    """One pipeline a process, in evaluation mode, float32, without gradients."""
    base = load_base_model(tiny_base)
    assert load_base_model(tiny_base) is base
    for module in (base.unet, base.vae, base.text_encoder):
        assert not module.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert base.safety_checker is None


def test_the_fingerprint_follows_the_content(tiny_sd15: str, single_file: Path, tmp_path: Path) -> None:
    """A copy elsewhere has the same one, a changed weight another; stray files don't count."""
    copy = shutil.copytree(tiny_sd15, tmp_path / "copy")
    (copy / "README.md").write_text("words")
    assert base_model_fingerprint(str(copy)) == base_model_fingerprint(tiny_sd15)
    changed = shutil.copytree(tiny_sd15, tmp_path / "changed")
    weights = next((changed / "vae").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert base_model_fingerprint(str(changed)) != base_model_fingerprint(tiny_sd15)
    assert base_model_fingerprint(str(single_file)) != base_model_fingerprint(tiny_sd15)


def test_training_uses_the_bases_own_noise_levels(tiny_base: str) -> None:
    """1000 scaled-linear levels from 0.00085 to 0.012, as Stable Diffusion 1.5 was trained."""
    base = load_base_model(tiny_base)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(training_noise_schedule(base).alphas_cumprod, (1 - betas).cumprod(0))
    torch.testing.assert_close(base.scheduler.alphas_cumprod, (1 - betas).cumprod(0))
