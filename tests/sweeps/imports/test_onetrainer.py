"""Laws of OneTrainer's config files as sweep files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sweeps.imports.config_file import import_config
from tests.sweeps.imports.recorded import ONETRAINER_SETTINGS
from tests.sweeps.imports.trials import sweep_of, trial_of
from training.config import LoraConfig
from training.errors import UserError


@pytest.fixture
def concept(tmp_path: Path) -> dict[str, Any]:
    """A concept of five photos with one caption each, ten times an epoch."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text("photo of ohwx woman")
    return {"name": "ada", "path": str(folder), "balancing": 10.0, "image": {"enable_crop_jitter": False}}


def lora(concept: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """OneTrainer's preset for SD 1.5 LoRAs, in short, with the concept in it."""
    return {
        "training_method": "LORA",
        "model_type": "STABLE_DIFFUSION_15",
        "base_model_name": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "learning_rate": 3e-4,
        "layer_filter_preset": "attn-mlp",
        "layer_filter": "attentions",
        "output_model_destination": "models/ada lora.safetensors",
        "resolution": "512",
        "unet": {"weight_dtype": "FLOAT_16"},
        "vae": {"weight_dtype": "FLOAT_32"},
        "text_encoder": {"weight_dtype": "FLOAT_16", "train": False},
        "concepts": [concept],
        **settings,
    }


def text_of(values: dict[str, Any], folder: Path) -> str:
    """The sweep file made of a config file."""
    file = folder / "config.json"
    file.write_text(json.dumps(values))
    return import_config(file).text


def trial(values: dict[str, Any], folder: Path) -> Any:
    """Its one trial."""
    return trial_of(text_of(values, folder), folder)


def test_onetrainers_defaults_are_filled_in(concept: dict[str, Any], tmp_path: Path) -> None:
    """Rank 16 of alpha 1, 100 epochs of five photos ten times, 200 steps of warm-up before a constant rate, fp16."""
    text = text_of(lora(concept), tmp_path)
    assert trial_of(text, tmp_path) == LoraConfig(
        rank=16,
        lora_alpha=1.0,
        learning_rate=3e-4,
        max_train_steps=5000,
        train_batch_size=1,
        lr_scheduler="constant_with_warmup",
        lr_warmup_steps=200,
        mixed_precision="fp16",
        gradient_checkpointing=True,
        target_modules="attention+ff",
    )
    assert "max_train_steps 5000 = 100 epochs x 5 photos x 10 repeats" in text
    sweep = sweep_of(text, tmp_path)
    assert (sweep.name, sweep.subject.instance_prompt) == ("ada-lora", "photo of ohwx woman")
    assert str(sweep.subject.photos) == concept["path"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"text_encoder": {"train": True}}, {"train_text_encoder": True, "stop_text_encoder_training": 1500}),
        (
            {"text_encoder": {"train": True, "learning_rate": 1e-5, "stop_training_after_unit": "NEVER"}},
            {"text_encoder_learning_rate": 1e-5, "stop_text_encoder_training": None},
        ),
        ({"lora_rank": 32, "lora_alpha": 32.0, "lora_decompose": True}, {"rank": 32, "use_dora": True}),
        ({"layer_filter": "attn"}, {"target_modules": "attention"}),
        ({"epochs": 10, "batch_size": 5, "gradient_accumulation_steps": 2}, {"max_train_steps": 50}),
        ({"learning_rate_scheduler": "COSINE", "learning_rate_warmup_steps": 0.1}, {"lr_warmup_steps": 500}),
        (
            {
                "learning_rate_scheduler": "COSINE_WITH_HARD_RESTARTS",
                "learning_rate_cycles": 2.0,
                "learning_rate_warmup_steps": 0,
            },
            {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 2, "lr_warmup_steps": 0},
        ),
        ({"optimizer": {"optimizer": "ADAMW_8BIT", "weight_decay": 0.1}}, {"adam_weight_decay": 0.1}),
        ({"loss_weight_fn": "MIN_SNR_GAMMA", "offset_noise_weight": 0.1}, {"snr_gamma": 5.0, "noise_offset": 0.1}),
        ({"train_dtype": "BFLOAT_16", "unet": {"gradient_checkpointing": False}}, {"gradient_checkpointing": False}),
    ],
)
def test_a_setting_becomes_its_key(
    settings: dict[str, Any], expected: dict[str, Any], concept: dict[str, Any], tmp_path: Path
) -> None:
    """Each of OneTrainer's settings, alone, is the key of the sweep file that does the same."""
    config = trial(lora(concept, **settings), tmp_path)
    assert {name: getattr(config, name) for name in expected} == expected


def test_all_weights_train_in_a_fine_tune(concept: dict[str, Any], tmp_path: Path) -> None:
    """FINE_TUNE is the full method, where the weights that train are float32."""
    values = {**lora(concept), "training_method": "FINE_TUNE", "unet": {"train": True}, "layer_filter": ""}
    assert trial(values, tmp_path).method == "dreambooth"
    with pytest.raises(UserError, match=r"unet\.weight_dtype"):
        trial({**values, "unet": {"weight_dtype": "BFLOAT_16"}}, tmp_path)


def test_the_concepts_file_is_found_beside_the_config(concept: dict[str, Any], tmp_path: Path) -> None:
    """OneTrainer names it from its own folder; here it may lie beside the config file."""
    values = lora(concept, concept_file_name="training_concepts/ada.json")
    del values["concepts"]
    (tmp_path / "ada.json").write_text(json.dumps([concept]))
    assert trial(values, tmp_path).max_train_steps == 5000
    (tmp_path / "ada.json").unlink()
    with pytest.raises(UserError, match="it says where the photos are"):
        text_of(values, tmp_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"training_method": "EMBEDDING"}, "EMBEDDING"),
        ({"model_type": "STABLE_DIFFUSION_XL_10_BASE"}, "model_type"),
        ({"layer_filter": "", "layer_filter_preset": "full"}, "layer_filter"),
        ({"layer_filter": "attn", "text_encoder": {"train": True}}, "layer_filter attn"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"ema": "GPU"}, "ema"),
        ({"masked_training": True}, "masked_training"),
        ({"mae_strength": 0.5}, "mae_strength"),
        ({"learning_rate_scheduler": "REX"}, "REX"),
        ({"optimizer": {"optimizer": "LION"}}, "LION"),
        ({"optimizer": {"optimizer": "PRODIGY", "decouple": True}}, "use_bias_correction"),
        ({"resolution": "512,768"}, "resolution"),
        ({"batch_size": 4}, "batch_size 4"),
        ({"made_up": 3}, "made_up"),
        ({"concepts": []}, "concepts to train must be one"),
    ],
)
def test_what_would_not_be_that_run_is_refused(
    settings: dict[str, Any], named: str, concept: dict[str, Any], tmp_path: Path
) -> None:
    """A setting that changes what is trained, and that we do not have, ends the import with its name."""
    with pytest.raises(UserError) as refusal:
        text_of(lora(concept, **settings), tmp_path)
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ONETRAINER_SETTINGS.split())
def test_no_setting_is_dropped_in_silence(name: str, concept: dict[str, Any], tmp_path: Path) -> None:
    """Set to what OneTrainer would not have by itself, it changes the file, stands in it by name, or is refused."""
    if name == "concepts":
        return  # the photos, above
    values = lora(concept)
    without = text_of(values, tmp_path)
    odd: Any = [{"prompt": "ohwx woman"}] if name == "samples" else 0.37 if name == "learning_rate" else "FLOAT_9"
    try:
        text = text_of({**values, name: odd}, tmp_path)
    except UserError as error:
        text = str(error)
        assert name in text or name == "optimizer"
    assert name in text or text != without


def test_secrets_are_not_repeated(concept: dict[str, Any], tmp_path: Path) -> None:
    """Tokens in a config file get into no sweep file."""
    text = text_of(lora(concept, secrets={"huggingface_token": "hf_abc"}), tmp_path)
    assert "hf_abc" not in text
    assert "secrets" in text


def test_layers_that_are_skipped_are_counted_as_clip_skip_counts(concept: dict[str, Any], tmp_path: Path) -> None:
    """OneTrainer counts from 0."""
    sweep = sweep_of(text_of(lora(concept, text_encoder_layer_skip=1), tmp_path), tmp_path)
    assert sweep.clip_skip == 2
