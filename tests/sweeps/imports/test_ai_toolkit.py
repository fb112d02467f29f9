"""Laws of ai-toolkit's config files as sweep files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from sweeps.imports.config_file import import_config
from tests.sweeps.imports.trials import sweep_of, trial_of
from training.config import LoraConfig
from training.errors import UserError


def job(**changes: Any) -> dict[str, Any]:
    """A LoRA job on Stable Diffusion 1.5; `changes` are settings by dotted names."""
    process: dict[str, Any] = {
        "type": "sd_trainer",
        "training_folder": "output",
        "device": "cuda:0",
        "trigger_word": "ohwx woman",
        "network": {
            "type": "lora",
            "linear": 16,
            "linear_alpha": 16,
            "network_kwargs": {"only_if_contains": ["attentions"]},
        },
        "save": {"dtype": "float16", "save_every": 250, "max_step_saves_to_keep": 4},
        "datasets": [{"folder_path": "/data/ada", "caption_ext": "txt", "resolution": [512], "buckets": False}],
        "train": {"batch_size": 1, "steps": 1000, "lr": 1e-4, "optimizer": "adamw8bit", "dtype": "bf16"},
        "model": {"name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5"},
        "sample": {"prompts": ["[trigger] at the beach", "a horse"], "sampler": "ddpm"},
    }
    for name, value in changes.items():
        *sections, last = name.split("__")
        place = process
        for section in sections:
            place = place[section] if section != "datasets" else place["datasets"][0]
        place[last] = value
    return {"job": "extension", "config": {"name": "ada_v1", "process": [process]}, "meta": {"version": "1.0"}}


def text_of(values: dict[str, Any], folder: Path) -> str:
    """The sweep file made of a config file."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(values))
    return import_config(file).text


def test_a_job_is_one_trial(tmp_path: Path) -> None:
    """Its rank, rate and steps are the trial's; AdamW's epsilon is ai-toolkit's own."""
    text = text_of(job(), tmp_path)
    assert trial_of(text, tmp_path) == LoraConfig(
        rank=16,
        lora_alpha=16.0,
        learning_rate=1e-4,
        max_train_steps=1000,
        train_batch_size=1,
        use_8bit_adam=True,
        adam_epsilon=1e-6,
        gradient_checkpointing=True,
        mixed_precision="bf16",
        target_modules="attention+ff",
    )
    sweep = sweep_of(text, tmp_path)
    assert (sweep.name, sweep.subject.instance_prompt) == ("ada_v1", "ohwx woman")
    assert sweep.evaluation.prompts == ["ohwx woman at the beach"]
    assert sweep.evaluation.at_steps == [250, 500, 750, 1000]
    assert "a horse" in text
    for name in ("training_folder", "device", "save.dtype", "save.max_step_saves_to_keep"):
        assert name in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train__gradient_accumulation": 4}, {"gradient_accumulation_steps": 4}),
        ({"train__lr_scheduler": "cosine"}, {"lr_scheduler": "cosine"}),
        ({"train__lr_scheduler": "constant_with_warmup"}, {"lr_warmup_steps": 1000}),
        ({"train__min_snr_gamma": 5.0, "train__noise_offset": 0.1}, {"snr_gamma": 5.0, "noise_offset": 0.1}),
        ({"datasets__caption_dropout_rate": 0.05}, {"caption_dropout_rate": 0.05}),
        ({"training_seed": 7}, {"seed": 7}),
        ({"network__linear_alpha": 8}, {"lora_alpha": 8.0}),
    ],
)
def test_a_setting_becomes_its_key(changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    """Each of ai-toolkit's settings, alone, is the key of the sweep file that does the same."""
    config = trial_of(text_of(job(**changes), tmp_path), tmp_path)
    assert {name: getattr(config, name) for name in expected} == expected


def test_without_a_network_all_weights_train(tmp_path: Path) -> None:
    """No network section is a full fine-tune."""
    values = job(network=None)
    assert trial_of(text_of(values, tmp_path), tmp_path).method == "dreambooth"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"network__network_kwargs": {}}, "it adapts time embeddings and the first and last layer too"),
        ({"network__conv": 16, "network__network_kwargs": {}}, "or with conv, it adapts time embeddings"),
        ({"network__type": "lokr"}, "network.type"),
        ({"network__dropout": 0.1}, "network.dropout"),
        ({"model__is_xl": True}, "model.is_xl"),
        ({"model__arch": "flux"}, "model.arch"),
        ({"train__noise_scheduler": "flowmatch"}, "train.noise_scheduler"),
        ({"train__ema_config": {"use_ema": True}}, "use_ema"),
        ({"train__optimizer": "lion"}, "train.optimizer lion"),
        ({"train__lr_scheduler": "linear"}, "train.lr_scheduler"),
        ({"train__gradient_accumulation_steps": 4}, "train.gradient_accumulation_steps"),
        ({"datasets__resolution": [512, 768]}, "datasets.resolution"),
        ({"datasets__is_reg": True}, "is_reg"),
        ({"trigger_word": None}, "nothing names the person"),
        ({"train__made_up": 3}, "train.made_up"),
        ({"type": "slider"}, "slider"),
    ],
)
def test_what_would_not_be_that_run_is_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    """A setting that changes what is trained, and that we do not have, ends the import with its name."""
    with pytest.raises(UserError) as refusal:
        text_of(job(**changes), tmp_path)
    assert named in str(refusal.value)


def test_captions_without_the_trigger_word_are_refused(tmp_path: Path) -> None:
    """ai-toolkit puts it before them; here a caption is read as it is."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "a.txt").write_text("in a park")
    with pytest.raises(UserError, match="captions without 'ohwx woman'"):
        text_of(job(datasets__folder_path=str(folder)), tmp_path)
    (folder / "a.txt").write_text("ohwx woman in a park")
    assert trial_of(text_of(job(datasets__folder_path=str(folder)), tmp_path), tmp_path).rank == 16


def test_a_file_of_nobody_is_refused(tmp_path: Path) -> None:
    """What is none of the three formats is named by its keys."""
    (tmp_path / "x.yaml").write_text("a: 1\nb: 2\n")
    with pytest.raises(UserError, match="got keys a, b"):
        import_config(tmp_path / "x.yaml")
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(UserError, match="must hold settings by their names"):
        import_config(tmp_path / "x.json")
