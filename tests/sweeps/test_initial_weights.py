"""The LoRA file that a sweep's trials start from: held against their space, and the run's for good."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from sweeps.config import SweepConfig
from sweeps.initial_weights import check_initial_weights
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import claim_initial_weights
from tests.sweeps.fake_run import entry, write_sweep, write_trial
from tests.tiny_models import build_peft_lora
from training.config import LoraConfig
from training.errors import UserError
from training.files import sha256_of
from training.layout import LORA_FILE
from training.lora_names import PEFT_CONFIG
from training.methods import first_lora, save_lora


@pytest.fixture
def trained(tiny_base: str, tmp_path: Path) -> Path:
    """A LoRA file of rank 2."""
    config = LoraConfig(rank=2, lora_alpha=6)
    save_lora(config, first_lora(config, tiny_base), tmp_path)
    return tmp_path / LORA_FILE


@pytest.fixture
def peft_file(tiny_base: str, tmp_path: Path) -> Path:
    """A LoRA file of peft's, of rank 2, with its alpha in the config beside it alone."""
    return build_peft_lora(tmp_path / "peft", tiny_base)


def run_of(folder: Path) -> RunFolder:
    """A run folder with a sweep file."""
    write_sweep(folder, "ada", ["sks woman"], 1, [4])
    return RunFolder(folder)


def sweep(tmp_path: Path, trained: Path, base: str, **space: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "again",
            "base_model": base,
            "initial_weights": trained,
            "subject": {"photos": tmp_path, "instance_prompt": "a photo of sks woman"},
            "methods": {"lora": {"rank": {"choices": [2, 8]}, **space}},
            "evaluation": {"prompts": ["sks woman"], "at_steps": [10]},
        }
    )


def test_a_space_that_can_go_on_passes(trained: Path, tiny_base: str, tmp_path: Path) -> None:
    """All of its ranks are the file's or more; more layers than the file has do no harm."""
    check_initial_weights(sweep(tmp_path, trained, tiny_base))
    check_initial_weights(sweep(tmp_path, trained, tiny_base, target_modules="all", train_text_encoder=True))


@pytest.mark.parametrize(
    ("space", "law"),
    [
        ({"rank": {"choices": [1, 8]}}, r"methods\.lora\.rank: must be 2 or more, got 1"),
        ({"adapter": "loha"}, r"methods\.lora\.adapter: must be lora"),
        ({"use_dora": {"choices": [True, False]}}, r"methods\.lora\.use_dora: must be false"),
        (
            {"target_blocks": {"choices": ["all", "mid+up"]}},
            r"methods\.lora\.target_blocks: must hold unet\.down_blocks\.0\.\S+, which mid\+up does not",
        ),
    ],
)
def test_a_space_with_trials_that_could_not_is_refused(
    space: dict[str, Any], law: str, trained: Path, tiny_base: str, tmp_path: Path
) -> None:
    """By the key, before anything starts."""
    with pytest.raises(UserError, match=law):
        check_initial_weights(sweep(tmp_path, trained, tiny_base, **space))


@pytest.mark.parametrize(
    ("spoil", "law"),
    [
        (lambda file: file.unlink(), "initial_weights: LoRA: no such file"),
        (lambda file: file.write_bytes(file.read_bytes()[:500]), "initial_weights: LoRA: "),
        (lambda file: file.rename(file.with_suffix(".pt")), "initial_weights: LoRA: no such file"),
    ],
)
def test_a_file_that_is_none_is_refused(
    spoil: Callable[[Path], Any], law: str, trained: Path, tiny_base: str, tmp_path: Path
) -> None:
    """By its name."""
    config = sweep(tmp_path, trained, tiny_base)
    file = tmp_path / "a.safetensors"
    shutil.copyfile(trained, file)
    spoil(file)
    with pytest.raises(UserError, match=law):
        check_initial_weights(config.model_copy(update={"initial_weights": file}))


def test_without_a_lora_there_is_nothing_to_start(trained: Path, tiny_base: str, tmp_path: Path) -> None:
    """DreamBooth trains a model's own weights."""
    raw = sweep(tmp_path, trained, tiny_base).model_dump(mode="json")
    with pytest.raises(ValidationError, match="initial_weights: is for LoRA trials"):
        SweepConfig.model_validate({**raw, "methods": {"dreambooth": {}}})


def test_what_a_run_starts_from_stays(trained: Path, tmp_path: Path) -> None:
    """By content, wherever the file lies; a run that began from nothing does not begin from a file later."""
    file, run = trained, run_of(tmp_path / "run")
    claim_initial_weights(run, file)
    moved = shutil.copyfile(file, tmp_path / "elsewhere.safetensors")
    claim_initial_weights(run, moved)
    with pytest.raises(UserError, match="another initial weights"):
        claim_initial_weights(run, None)
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, moved)
    with pytest.raises(UserError, match="another initial weights"):
        claim_initial_weights(run, moved)
    other = run_of(tmp_path / "other")
    record = {"trial": "base", "method": "base", "status": "finished", "config": {}}
    write_trial(other.dir, record, [entry(0, 0.1, trial="base")])
    claim_initial_weights(other, None)
    with pytest.raises(UserError, match="another initial weights"):
        claim_initial_weights(other, file)


def test_another_alpha_beside_the_same_weights_is_another_start(peft_file: Path, trained: Path, tmp_path: Path) -> None:
    """Peft's config counts where it has the file's alphas, and nowhere else; runs that claimed weights alone go on."""
    config, folder = peft_file.with_name(PEFT_CONFIG), run_of(tmp_path / "run")
    folder.claim("initial_weights", sha256_of(peft_file))
    claim_initial_weights(folder, peft_file)
    claim_initial_weights(folder, peft_file)
    config.write_text(json.dumps({"r": 2, "lora_alpha": 5}))
    with pytest.raises(UserError, match="another adapter config of initial weights"):
        claim_initial_weights(folder, peft_file)
    other = run_of(tmp_path / "other")
    shutil.copyfile(config, trained.with_name(PEFT_CONFIG))
    claim_initial_weights(other, trained)
    assert other.identity() == {"initial_weights": sha256_of(trained)}


def test_a_file_of_peft_s_without_its_config_is_refused(peft_file: Path, tiny_base: str, tmp_path: Path) -> None:
    """By `check`, before a run has begun; with it, it passes."""
    config = sweep(tmp_path, peft_file, tiny_base)
    check_initial_weights(config)
    peft_file.with_name(PEFT_CONFIG).unlink()
    with pytest.raises(UserError, match=r"initial_weights: LoRA: .*need that file beside it"):
        check_initial_weights(config)


def test_a_file_by_numbers_is_held_against_the_space_too(tiny_base: str, tmp_path: Path) -> None:
    """Its layers are those that its metadata count (cloneofsimo's, the first files of all)."""
    tensors = {"unet:0:down": torch.ones(4, 16), "unet:0:up": torch.ones(16, 4)}
    save_file(tensors, tmp_path / "a.safetensors", {"unet": '["CrossAttention", "Attention", "GEGLU"]'})
    config = sweep(tmp_path, tmp_path / "a.safetensors", tiny_base, rank=4)
    check_initial_weights(config)
    with pytest.raises(UserError, match=r"methods\.lora\.rank: must be 4 or more, got 2"):
        check_initial_weights(sweep(tmp_path, tmp_path / "a.safetensors", tiny_base))
