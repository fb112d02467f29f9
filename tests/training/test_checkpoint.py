"""Checkpoint folders: what plain diffusers loads, and either whole or refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from tests.tiny_models import plain_pipeline
from training import checkpoint as checkpoint_module
from training.checkpoint import (
    Checkpoint,
    drop_older_states,
    latest_checkpoint,
    load_pipeline,
    load_training_state,
    open_checkpoint,
    save_checkpoint,
)
from training.config import DreamBoothConfig, LoraConfig
from training.methods import (
    LORA_FILE,
    LoraTensors,
    TrainedModules,
    copy_for_training,
    load_lora,
    lora_tensors,
)
from training.targets import text_encoder_targets, unet_targets

CPU = torch.device("cpu")
LORA = LoraConfig(rank=3, lora_alpha=7.5, train_text_encoder=True)
DREAMBOOTH = DreamBoothConfig(train_text_encoder=True)
BOTH = pytest.mark.parametrize("config", [LORA, DREAMBOOTH], ids=["lora", "dreambooth"])
STATE = {"optimizer": {"state": {0: {"step": torch.tensor(3.0), "betas": [0.9, None, True]}}}, "empty": {}}


def trained(config: LoraConfig | DreamBoothConfig, tiny_base: str) -> TrainedModules:
    """Modules whose every trainable weight has been moved, as training would."""
    modules = copy_for_training(config, tiny_base, CPU)
    generator = torch.Generator().manual_seed(0)
    for parameter in modules.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    modules.unet.eval()
    if modules.text_encoder is not None:
        modules.text_encoder.eval()
    return modules


def save(config: LoraConfig | DreamBoothConfig, tiny_base: str, out_dir: Path, step: int = 10) -> Checkpoint:
    return save_checkpoint(out_dir, config, trained(config, tiny_base), step, tiny_base, STATE)


def in_own_memory(module: nn.Module) -> None:
    """A CPU kernel's last bit depends on how its operands lie in memory, and mapped weight files lie differently."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


def unet_output(unet: nn.Module) -> Tensor:
    in_own_memory(unet)
    generator = torch.Generator().manual_seed(1)
    latents, words = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 16, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor([10, 900]), words).sample


def text_output(text_encoder: nn.Module) -> Tensor:
    in_own_memory(text_encoder)
    with torch.no_grad():
        return text_encoder(torch.arange(77)[None]).last_hidden_state


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors and adapter settings of a LoRA file."""
    with safe_open(str(file), framework="pt") as stored:
        return load_file(file), json.loads(stored.metadata()["lora_adapter_metadata"])


def assert_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- plain diffusers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [LoraConfig(rank=1), LoraConfig(rank=4, lora_alpha=9.0), LORA, LoraConfig(rank=40, train_text_encoder=True)],
    ids=["rank 1", "alpha is not rank", "text encoder", "wider than the layers"],
)
def test_plain_diffusers_loads_a_lora_without_a_difference(config: LoraConfig, tiny_base: str, tmp_path: Path) -> None:
    """`load_lora_weights` gives the outputs of the modules in memory: difference 0, alpha and text encoder included."""
    modules = trained(config, tiny_base)
    checkpoint = save_checkpoint(tmp_path, config, modules, 10, tiny_base, STATE)
    plain = plain_pipeline(tiny_base, safety_checker=None)
    untouched = unet_output(plain.unet)
    plain.load_lora_weights(str(checkpoint.dir))
    ours = load_pipeline(checkpoint, tiny_base, device="cpu")
    for unet in (plain.unet, ours.unet):
        assert (unet_output(unet) - unet_output(modules.unet)).abs().max() == 0
    assert (unet_output(plain.unet) - untouched).abs().max() > 1e-3
    if modules.text_encoder is not None:
        for text_encoder in (plain.text_encoder, ours.text_encoder):
            assert (text_output(text_encoder) - text_output(modules.text_encoder)).abs().max() == 0


def test_the_saved_keys_are_upstreams(tiny_base: str, tmp_path: Path) -> None:
    """The file has the names that `train_dreambooth_lora.py` gives, and beside them the adapters' metadata."""
    modules = trained(LORA, tiny_base)
    checkpoint = save_checkpoint(tmp_path / "ours", LORA, modules, 10, tiny_base, STATE)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "upstream",
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(modules.unet)),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(modules.text_encoder)),
    )
    name = "pytorch_lora_weights.safetensors"
    ours, upstream = load_file(checkpoint.dir / name), load_file(tmp_path / "upstream" / name)
    assert ours.keys() == upstream.keys()
    assert all(torch.equal(ours[key], upstream[key]) for key in ours)
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight" in ours
    header_size = int.from_bytes((checkpoint.dir / name).read_bytes()[:8], "little")
    header = json.loads((checkpoint.dir / name).read_bytes()[8 : 8 + header_size])
    assert "lora_alpha" in header["__metadata__"]["lora_adapter_metadata"]


def bare_tensors(module: nn.Module, targets: list[str], rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Adapter weights under peft's names as slices of one long tensor, A transposed: as a packed trainer holds them."""
    layers = {name: layer for name, layer in module.named_modules() if name.endswith(tuple(f".{t}" for t in targets))}
    size = sum(rank * (layer.in_features + layer.out_features) for layer in layers.values())
    bank = 0.1 * torch.randn(size, generator=generator)
    tensors, start = {}, 0
    for name, layer in layers.items():
        end = start + rank * layer.in_features
        tensors[f"{name}.lora_A.weight"] = bank[start:end].view(layer.in_features, rank).T
        start, end = end, end + rank * layer.out_features
        tensors[f"{name}.lora_B.weight"] = bank[start:end].view(layer.out_features, rank)
        start = end
    return tensors


def merge(module: nn.Module, tensors: dict[str, Tensor], scale: float) -> None:
    """W + scale * B A in every layer, without peft."""
    for name in {name.rpartition(".lora_")[0] for name in tensors}:
        update = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        module.get_submodule(name).weight.data += scale * update


@pytest.mark.parametrize("config", [LORA, LoraConfig(rank=5)], ids=["alpha is not rank, text encoder", "unet alone"])
def test_a_lora_saved_from_bare_tensors_loads_to_what_they_say(
    config: LoraConfig, tiny_base: str, tmp_path: Path
) -> None:
    """Without a peft module: plain diffusers and `load_pipeline` give equal outputs, those of W + alpha/rank * B A."""
    merged = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    generator = torch.Generator().manual_seed(2)
    unet = bare_tensors(merged.unet, [*unet_targets("attention").ends], config.rank, generator)
    text_encoder = None
    if config.train_text_encoder:
        text_encoder = bare_tensors(
            merged.text_encoder, [*text_encoder_targets("attention").ends], config.rank, generator
        )
    checkpoint = save_checkpoint(tmp_path, config, LoraTensors(unet, text_encoder), 10, tiny_base, STATE)

    plain = plain_pipeline(tiny_base, safety_checker=None)
    untouched = unet_output(plain.unet)
    plain.load_lora_weights(str(checkpoint.dir))
    ours = load_pipeline(checkpoint, tiny_base, device="cpu")
    scale = (config.lora_alpha or config.rank) / config.rank
    merge(merged.unet, unet, scale)
    assert (unet_output(plain.unet) - unet_output(ours.unet)).abs().max() == 0
    torch.testing.assert_close(unet_output(ours.unet), unet_output(merged.unet), rtol=1e-4, atol=1e-5)
    assert (unet_output(ours.unet) - untouched).abs().max() > 1e-3
    if text_encoder is not None:
        merge(merged.text_encoder, text_encoder, scale)
        assert (text_output(plain.text_encoder) - text_output(ours.text_encoder)).abs().max() == 0
        torch.testing.assert_close(
            text_output(ours.text_encoder), text_output(merged.text_encoder), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("config", [LORA, LoraConfig(rank=5)], ids=["text encoder", "unet alone"])
def test_a_loras_file_is_the_same_from_modules_and_from_their_tensors(
    config: LoraConfig, tiny_base: str, tmp_path: Path
) -> None:
    """Same tensors, same settings, and `load_lora` gives back names and values as they were."""
    modules = trained(config, tiny_base)
    tensors = lora_tensors(modules)
    files = [
        save_checkpoint(tmp_path / name, config, weights, 10, tiny_base, STATE).dir / LORA_FILE
        for name, weights in (("modules", modules), ("tensors", tensors))
    ]
    (first, first_settings), (second, second_settings) = (read(file) for file in files)
    assert first_settings == second_settings
    assert_equal(first, second)
    again = load_lora(files[0].parent)
    assert_equal(again.unet, tensors.unet)
    assert_equal(again.text_encoder or {}, tensors.text_encoder or {})


def test_tensors_of_another_rank_than_the_configs_are_not_saved(tiny_base: str, tmp_path: Path) -> None:
    """Rows padded to a common rank would come back with another scale: they are cut before saving."""
    tensors = lora_tensors(trained(LoraConfig(rank=8), tiny_base))
    with pytest.raises(AssertionError, match=r"rank 8 in .* 4 in the config"):
        save_checkpoint(tmp_path, LoraConfig(rank=4), tensors, 10, tiny_base, STATE)
    assert list(tmp_path.iterdir()) == []


def test_plain_diffusers_loads_a_dreambooth_checkpoint(tiny_base: str, tmp_path: Path) -> None:
    """`from_pretrained` of the UNet's and the text encoder's folder gives the trained modules."""
    modules = trained(DREAMBOOTH, tiny_base)
    checkpoint = save_checkpoint(tmp_path, DREAMBOOTH, modules, 10, tiny_base, STATE)
    plain_unet = UNet2DConditionModel.from_pretrained(checkpoint.dir, subfolder="unet")
    plain_text_encoder = CLIPTextModel.from_pretrained(checkpoint.dir / "text_encoder")
    ours = load_pipeline(checkpoint, tiny_base, device="cpu")
    assert modules.text_encoder is not None
    for unet in (plain_unet, ours.unet):
        assert (unet_output(unet) - unet_output(modules.unet)).abs().max() == 0
    for text_encoder in (plain_text_encoder, ours.text_encoder):
        assert (text_output(text_encoder) - text_output(modules.text_encoder)).abs().max() == 0


def test_no_checkpoint_is_the_base_itself(tiny_base: str) -> None:
    """`load_pipeline(None, ...)` gives the base model's own outputs, in modules of its own."""
    plain = plain_pipeline(tiny_base, safety_checker=None)
    first, second = (load_pipeline(None, tiny_base, device="cpu") for _ in range(2))
    torch.testing.assert_close(unet_output(first.unet), unet_output(plain.unet))
    assert first.unet is not second.unet
    nn.init.zeros_(first.unet.conv_out.weight)
    assert second.unet.conv_out.weight.abs().max() > 0


@BOTH
def test_nothing_saved_says_where_files_lay_on_this_machine(
    config: LoraConfig | DreamBoothConfig, tiny_base: str, tmp_path: Path
) -> None:
    """Only `checkpoint.json` names the base model; what is passed on holds no path of the person who trained."""
    checkpoint = save(config, tiny_base, tmp_path)
    load_pipeline(checkpoint, tiny_base, device="cpu").save_pretrained(tmp_path / "pipeline")
    for folder in (checkpoint.dir, tmp_path / "pipeline"):
        for file in folder.rglob("*"):
            if file.is_file() and file.name != "checkpoint.json":
                assert str(tmp_path.parent.parent).encode() not in file.read_bytes(), file


# --- whole or refused ------------------------------------------------------------------------------------------


@BOTH
def test_a_checkpoint_opens_as_it_was_saved(
    config: LoraConfig | DreamBoothConfig, tiny_base: str, tmp_path: Path
) -> None:
    """Method, step, base and full config come back; the base may lie elsewhere on this machine."""
    saved = save(config, tiny_base, tmp_path)
    assert saved.dir == tmp_path / "checkpoint-10"
    assert open_checkpoint(saved.dir) == saved
    assert open_checkpoint(saved.dir, "elsewhere").base_model == "elsewhere"


def test_any_changed_missing_or_shortened_file_is_refused(tiny_base: str, tmp_path: Path) -> None:
    """One flipped bit anywhere in the weights or the records; the training state alone only ends resuming."""
    for config in (LORA, DREAMBOOTH):
        checkpoint = save(config, tiny_base, tmp_path / config.method)
        files = [file for file in checkpoint.dir.rglob("*") if file.is_file()]
        assert len(files) == (4 if config.method == "lora" else 7)
        for file in files:
            content = file.read_bytes()
            flipped = bytearray(content)
            flipped[len(content) // 2] ^= 1
            for damaged in (bytes(flipped), content[: len(content) // 2], None):
                file.unlink()
                if damaged is not None:
                    file.write_bytes(damaged)
                if file.name == "training_state.safetensors":
                    assert open_checkpoint(checkpoint.dir) == checkpoint
                    with pytest.raises(ValueError, match="cannot go on"):
                        load_training_state(checkpoint)
                else:
                    with pytest.raises(ValueError, match="is not whole"):
                        open_checkpoint(checkpoint.dir)
                file.write_bytes(content)
        assert open_checkpoint(checkpoint.dir) == checkpoint


def test_a_write_that_fails_leaves_no_checkpoint(
    tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk full while the last file is written: nothing under the checkpoint's name, nothing left beside it."""

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_save_tree", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save(LORA, tiny_base, tmp_path)
    assert list(tmp_path.iterdir()) == []


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from training.files import whole_folder
with whole_folder(Path(sys.argv[1])) as part:
    (part / "weights").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_no_checkpoint(tmp_path: Path) -> None:
    """What lies there after SIGKILL is not under the checkpoint's name and no checkpoint is found."""
    target = tmp_path / "checkpoint-3"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(target)], cwd=root, check=False)  # noqa: S603
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="is not whole"):
        open_checkpoint(next(tmp_path.iterdir()))


def test_the_latest_checkpoint_is_the_newest_whole_one(tiny_base: str, tmp_path: Path) -> None:
    """By step, not by name; one that is damaged or has no training state is passed over."""
    assert latest_checkpoint(tmp_path / "nowhere") is None
    for step in (9, 100, 20):
        save(LORA, tiny_base, tmp_path, step)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 100
    (newest.dir / "pytorch_lora_weights.safetensors").write_bytes(b"")
    fallback = latest_checkpoint(tmp_path)
    assert fallback is not None
    assert fallback.step == 20
    drop_older_states(fallback)
    shutil.rmtree(fallback.dir)
    assert latest_checkpoint(tmp_path) is None


def test_writing_a_step_again_replaces_it_whole(tiny_base: str, tmp_path: Path) -> None:
    """A damaged checkpoint of the same step gives way."""
    checkpoint = save(LORA, tiny_base, tmp_path)
    (checkpoint.dir / "MANIFEST.json").write_text("{")
    assert open_checkpoint(save(LORA, tiny_base, tmp_path).dir) == checkpoint
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_training_state_comes_back_as_it_was(tiny_base: str, tmp_path: Path) -> None:
    """Integer keys, nesting, None and tensors without dimensions survive, without a pickle."""
    state = load_training_state(save(LORA, tiny_base, tmp_path))
    assert state == STATE
    assert torch.equal(state["optimizer"]["state"][0]["step"], torch.tensor(3.0))
