"""Defaults are diffusers', or the difference is written down."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from training.config import (
    DIFFERENCES_FROM_DIFFUSERS,
    DreamBoothConfig,
    LoraConfig,
    MethodConfig,
    SubjectConfig,
    scoring_steps,
)

REQUIRED = object()

UPSTREAM = {
    "with_prior_preservation": False,
    "prior_loss_weight": 1.0,
    "num_class_images": 100,
    "class_prompt": None,
    "class_images": None,  # class_data_dir there
    "instance_prompt": REQUIRED,
    "seed": None,
    "resolution": 512,
    "center_crop": False,
    "train_text_encoder": False,
    "train_batch_size": 4,
    "max_train_steps": None,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 500,
    "lr_num_cycles": 1,
    "lr_power": 1.0,
    "use_8bit_adam": False,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "allow_tf32": False,
    "mixed_precision": "no",  # None there: whatever accelerate's own config says, "no" without one
}
"""Defaults that the parsers of `train_dreambooth.py` and `train_dreambooth_lora.py` (diffusers 58eb52c) share, of the
flags that we have too."""

UPSTREAM_LORA = UPSTREAM | {
    "learning_rate": 5e-4,
    "rank": 4,
    "lora_dropout": 0.0,
    "image_interpolation_mode": "lanczos",
}
UPSTREAM_DREAMBOOTH = UPSTREAM | {"learning_rate": 5e-6, "snr_gamma": None, "image_interpolation_mode": "bilinear"}

OURS_ALONE = {
    *("method", "photos", "rare_token", "crop", "random_flip", "lora_alpha", "text_encoder_learning_rate"),
    *("fused_adam", "channels_last", "compile", "held_out_photos"),
    *("noise_offset", "caption_dropout_rate", "shuffle_caption", "keep_tokens", "face_loss_weight"),
    *("stop_text_encoder_training", "optimizer", "prior_from"),
    *("lora_alpha_ratio", "target_modules", "target_blocks", "use_rslora", "use_dora", "adapter"),
}
"""Fields without a flag upstream; `lora_alpha` defaults to the rank, which is what upstream's LoRA script fixes."""


def our_defaults(config: type[BaseModel]) -> dict[str, object]:
    fields = SubjectConfig.model_fields | config.model_fields
    return {name: REQUIRED if field.is_required() else field.default for name, field in fields.items()}


@pytest.mark.parametrize(("config", "upstream"), [(LoraConfig, UPSTREAM_LORA), (DreamBoothConfig, UPSTREAM_DREAMBOOTH)])
def test_defaults_are_upstreams_or_a_written_difference(config: type[BaseModel], upstream: dict[str, object]) -> None:
    """The differences are exactly those listed, in both directions."""
    ours = our_defaults(config)
    ours["center_crop"] = True  # every crop is fixed, around the face or the centre
    ours["image_interpolation_mode"] = "lanczos"
    different = {name for name, default in upstream.items() if ours[name] != default}
    only_here = set(ours) - set(upstream) - OURS_ALONE
    listed = set(DIFFERENCES_FROM_DIFFUSERS)
    if config is LoraConfig:
        assert only_here == {"snr_gamma"}
        assert ours["snr_gamma"] is None
        assert different == listed - {"image_interpolation_mode"}
    else:
        assert only_here == set()
        assert different == listed


@pytest.mark.parametrize(
    "bad",
    [
        {"rank": 0},
        {"rnk": 4},
        {"learning_rate": 0},
        {"mixed_precision": "fp8"},
        {"max_train_steps": 0},
        {"lr_scheduler": "step"},
        {"lora_alpha": 0},
        {"method": "dora"},
        {"lr_scheduler": "polynomial", "lr_warmup_steps": 800},
        {"lr_scheduler": "polynomial", "learning_rate": 1e-8},
        {"fused_adam": True, "use_8bit_adam": True},
        {"method": "dreambooth", "channels_last": True, "use_8bit_adam": True},
        {"optimizer": "prodigy", "learning_rate": 5e-4},
        {"optimizer": "prodigy", "learning_rate": 1, "text_encoder_learning_rate": 1e-4},
        {"optimizer": "prodigy", "learning_rate": 1, "use_8bit_adam": True},
        {"optimizer": "adafactor", "fused_adam": True},
        {"lora_alpha": 4, "lora_alpha_ratio": 1},
        {"adapter": "loha", "use_dora": True},
        {"adapter": "lokr", "lora_dropout": 0.1},
        {"adapter": "loha", "use_rslora": True},
        {"face_loss_weight": 0},
        {"caption_dropout_rate": 1.1},
        {"stop_text_encoder_training": 0},
        {"method": "dreambooth", "use_dora": True},
    ],
)
def test_impossible_values_are_refused(bad: dict[str, object]) -> None:
    """By the field's own constraint, before anything is loaded."""
    with pytest.raises(ValidationError):
        TypeAdapter(MethodConfig).validate_python({"method": "lora"} | bad)


def test_prodigys_rate_is_1_by_default() -> None:
    """Everybody else's is the method's."""
    assert LoraConfig(optimizer="prodigy").learning_rate == 1
    assert LoraConfig(optimizer="prodigy", learning_rate=0.5).learning_rate == 0.5
    assert DreamBoothConfig(optimizer="adafactor").learning_rate == 5e-6


def test_any_rank_from_1_up_is_a_rank() -> None:
    """Ranks have no upper limit."""
    assert [LoraConfig(rank=rank).rank for rank in (1, 2, 256, 1000)] == [1, 2, 256, 1000]


def test_scoring_steps_are_sorted_reachable_and_end_with_the_last() -> None:
    """Steps beyond the run fall away and its last step is always one."""
    assert scoring_steps([400, 200, 200, 800], 500) == [200, 400, 500]
    assert scoring_steps([], 5) == [5]
    assert scoring_steps([5], 5) == [5]
    assert scoring_steps([0, -3, 1], 2) == [1, 2]
