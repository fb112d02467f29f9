"""Killed at any step and resumed: nothing of it is left, whatever the options. Random kill points from a fixed seed."""

from __future__ import annotations

import random
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import NUM_CLASS_IMAGES
from tests.training.test_train import assert_same, last, weights
from training.checkpoint import latest_checkpoint
from training.config import METHODS, DreamBoothConfig, LoraConfig, LrScheduler
from training.dataset import Dataset, box_coverage
from training.train import train

STEPS = 6
CHECKPOINTS = [2, 4]
PLAIN: dict[str, Any] = {"learning_rate": 1e-3, "train_batch_size": 1, "max_train_steps": STEPS, "seed": 6}
PRIOR = {"with_prior_preservation": True, "num_class_images": NUM_CLASS_IMAGES}
TEXT = {"train_text_encoder": True}
SCHEDULES: list[LrScheduler] = [
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
]
OPTIONS: dict[str, dict[str, Any]] = {
    **{f"lora {schedule}": {"lr_scheduler": schedule, "lr_warmup_steps": 2} for schedule in SCHEDULES},
    "lora offset noise and captions": {
        "noise_offset": 0.1,
        "caption_dropout_rate": 0.4,
        "shuffle_caption": True,
        "keep_tokens": 1,
    },
    "lora face": {"face_loss_weight": 4.0, **TEXT},
    "lora prodigy": {"optimizer": "prodigy", "learning_rate": 1.0, **TEXT},
    "lora adafactor": {"optimizer": "adafactor", "text_encoder_learning_rate": 1e-4, **TEXT},
    "lora stop": {"stop_text_encoder_training": 4, "lora_dropout": 0.3, **TEXT},
    "lora dora": {"use_dora": True, "target_modules": "all", **TEXT},
    "lora rslora": {
        "use_rslora": True,
        "lora_alpha_ratio": 2.0,
        "target_modules": "attention+ff",
        "target_blocks": "mid+up",
    },
    "lora loha": {"adapter": "loha", **TEXT},
    "lora lokr": {"adapter": "lokr"},
    "lora prior of base": {**PRIOR, "prior_from": "base_model", **TEXT},
    "dreambooth prodigy": {"optimizer": "prodigy", "learning_rate": 1.0, **PRIOR},
    "dreambooth adafactor": {"optimizer": "adafactor", "gradient_accumulation_steps": 2},
    "dreambooth stop": {"stop_text_encoder_training": 3, **TEXT, **PRIOR, "snr_gamma": 5.0},
    "dreambooth prior of base": {**PRIOR, "prior_from": "base_model", "face_loss_weight": 2.0},
}


class Killed(BaseException):
    """Nobody catches it on the way."""


def config_of(name: str) -> LoraConfig | DreamBoothConfig:
    return METHODS[name.split()[0]].model_validate({**PLAIN, **OPTIONS[name]})


@pytest.fixture(scope="module")
def captioned(dataset: Dataset) -> Dataset:
    """With captions that can be put into another order, and a face in every photo."""
    number = len(dataset.repeats)
    return replace(
        dataset,
        prompts=tuple(f"sks woman, in place {place}, smiling" for place in range(number)),
        face_coverage=torch.stack([box_coverage((0.2, 0.1, 0.7, 0.6), 8)] * number),
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(name: str, captioned: Dataset, tmp_path: Path) -> None:
    """Losses, weights and training state, after two kills at random steps, each of which may lose some."""
    config = config_of(name)
    expected: dict[int, float] = {}
    whole = last(
        train(config, captioned, CHECKPOINTS, out_dir=tmp_path / "whole", device="cpu", on_step=expected.__setitem__)
    )
    losses: dict[int, float] = {}
    kills = random.Random(zlib.crc32(name.encode())).sample(range(1, STEPS), 2)

    def step_then_die(at: int | None, step: int, loss: float) -> None:
        losses[step] = loss
        if step == at:
            raise Killed

    for kill_at in (*sorted(kills), None):
        with suppress(Killed):
            last(
                train(
                    config,
                    captioned,
                    CHECKPOINTS,
                    latest_checkpoint(tmp_path / "killed"),
                    out_dir=tmp_path / "killed",
                    device="cpu",
                    on_step=lambda step, loss, at=kill_at: step_then_die(at, step, loss),
                )
            )
    resumed = latest_checkpoint(tmp_path / "killed")
    assert resumed is not None
    assert resumed.step == STEPS
    assert losses == expected
    assert_same(weights(resumed), weights(whole))
    state = "training_state.safetensors"
    assert (resumed.dir / state).read_bytes() == (whole.dir / state).read_bytes()


def test_every_option_is_among_them() -> None:
    """A field that a training knows by is killed with it, or is one of those whose tests kill it elsewhere."""
    elsewhere = {
        *("adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm"),
        *("lr_num_cycles", "lr_power", "prior_loss_weight", "method", "rank", "lora_alpha"),
        *("gradient_checkpointing", "mixed_precision", "use_8bit_adam", "allow_tf32"),
        *("fused_adam", "channels_last", "compile"),
    }
    killed = {field for options in OPTIONS.values() for field in options} | PLAIN.keys()
    fields = LoraConfig.model_fields.keys() | DreamBoothConfig.model_fields.keys()
    assert fields - killed == elsewhere
