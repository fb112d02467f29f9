"""The LoRA file that a sweep's trials start from: held against their space, and the run's for good."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sweeps.config import SweepConfig
from sweeps.initial_weights import check_initial_weights
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import claim_initial_weights
from tests.sweeps.fake_run import entry, write_sweep, write_trial
from training.config import LoraConfig
from training.errors import UserError
from training.layout import LORA_FILE
from training.methods import first_lora, save_lora


@pytest.fixture
def trained(tiny_base: str, tmp_path: Path) -> Path:
    """A LoRA file of rank 2."""
    config = LoraConfig(rank=2, lora_alpha=6)
    save_lora(config, first_lora(config, tiny_base), tmp_path)
    return tmp_path / LORA_FILE


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
    file, run = trained, tmp_path / "run"
    write_sweep(run, "ada", ["sks woman"], 1, [4])
    claim_initial_weights(RunFolder(run), file)
    moved = shutil.copyfile(file, tmp_path / "elsewhere.safetensors")
    claim_initial_weights(RunFolder(run), moved)
    with pytest.raises(UserError, match="another initial weights"):
        claim_initial_weights(RunFolder(run), None)
    moved.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UserError, match="another initial weights"):
        claim_initial_weights(RunFolder(run), moved)
    other = tmp_path / "other"
    write_sweep(other, "ada", ["sks woman"], 1, [4])
    record = {"trial": "base", "method": "base", "status": "finished", "config": {}}
    write_trial(other, record, [entry(0, 0.1, trial="base")])
    claim_initial_weights(RunFolder(other), None)
    with pytest.raises(UserError, match="another initial weights"):
        claim_initial_weights(RunFolder(other), file)
