"""A config file may hold anything: what comes out is a sweep file or a refusal, never a crash."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sweeps.imports.command import import_command
from sweeps.imports.config_file import import_config, kohya_config_run
from sweeps.imports.flags import DIFFUSERS, DIFFUSERS_SCRIPTS, KOHYA, KOHYA_SCRIPTS, flags_of
from sweeps.imports.run import Notes
from sweeps.imports.write import imported
from tests.sweeps.imports.test_ai_toolkit import job
from tests.sweeps.imports.test_onetrainer import lora
from tests.sweeps.imports.trials import trial_of
from training.errors import UserError

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**6),
    st.floats(),
    st.sampled_from(["", "x", "1e-4", "-1", "\x00", "a\nb: c", "512,512", "True"]),
    st.lists(st.integers(0, 3) | st.just("x"), max_size=3),
    st.dictionaries(st.sampled_from(["a", "path", "prompt"]), st.integers(0, 3), max_size=2),
)


@pytest.fixture
def photos_dir(tmp_path: Path) -> Path:
    """Five photos in a folder that kohya would read."""
    folder = tmp_path / "img" / "2_ohwx woman"
    folder.mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("ohwx woman")
    return folder


def places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where something stands in nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from places(inner, (*place, key))


def with_something_else(values: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """The file with anything in one place, or in a place that it did not have."""
    broken = copy.deepcopy(values)
    *sections, last = data.draw(st.sampled_from(sorted(places(values), key=str)))
    inner: Any = broken
    for section in sections:
        inner = inner[section]
    inner[last] = data.draw(ANYTHING)
    return broken


@contextmanager
def one_line_of_refusal() -> Iterator[None]:
    """What the command line would make exit 2 of."""
    try:
        yield
    except UserError as error:
        refusal = str(error)
    else:
        return
    assert "\n" not in refusal


def or_refused(file: Path) -> None:
    """Import it: one line of refusal is as good."""
    with one_line_of_refusal():
        trial_of(import_config(file).text, file.parent)


FIXTURES = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@FIXTURES
@given(data=st.data())
def test_onetrainers_file_may_hold_anything(data: st.DataObject, photos_dir: Path, tmp_path: Path) -> None:
    """Of any value in any place comes a sweep of one trial or a refusal."""
    concept = {"path": str(photos_dir), "balancing": 2.0, "type": "STANDARD", "enabled": True, "seed": 3}
    concept |= {"text": {"prompt_source": "sample", "tag_delimiter": ","}, "image": {"enable_random_flip": True}}
    values = lora(concept, epochs=3, batch_size=1, optimizer={"optimizer": "ADAMW", "eps": 1e-8}, lora_rank=4)
    values |= {"train_dtype": "FLOAT_16", "learning_rate_scheduler": "COSINE", "learning_rate_warmup_steps": 1}
    values |= {"loss_weight_fn": "MIN_SNR_GAMMA", "samples": [{"prompt": "ohwx woman"}], "clip_grad_norm": 1.0}
    (tmp_path / "config.json").write_text(json.dumps(with_something_else(values, data)))
    or_refused(tmp_path / "config.json")


@FIXTURES
@given(data=st.data())
def test_ai_toolkits_file_may_hold_anything(data: st.DataObject, photos_dir: Path, tmp_path: Path) -> None:
    """Of any value in any place comes a sweep of one trial or a refusal."""
    values = job(datasets__folder_path=str(photos_dir), training_seed=3, train__lr_scheduler="constant_with_warmup")
    (tmp_path / "config.json").write_text(json.dumps(with_something_else(values, data)))
    or_refused(tmp_path / "config.json")


@FIXTURES
@given(data=st.data())
def test_kohyas_files_may_hold_anything(data: st.DataObject, photos_dir: Path, tmp_path: Path) -> None:
    """Of any value in any place of the file, or of its dataset config, comes a sweep of one trial or a refusal."""
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": "m",
        "train_data_dir": str(photos_dir.parent),
        "resolution": "512",
        "network_module": "networks.lora",
        "network_dim": 8,
        "network_alpha": 4,
        "network_args": ["conv_dim=8"],
        "unet_lr": 1e-4,
        "text_encoder_lr": [5e-5],
        "optimizer_type": "AdamW",
        "optimizer_args": ["eps=1e-8"],
        "max_train_epochs": 3,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 0.1,
        "caption_extension": ".txt",
        "sample_prompts": "x.txt",
        "save_every_n_steps": 3,
        "noise_offset": 0.1,
        "min_snr_gamma": 5,
        "keep_tokens": 1,
        "output_name": "ada",
        "seed": 1,
    }
    dataset: dict[str, Any] = {
        "general": {"caption_extension": ".txt"},
        "datasets": [{"resolution": 512, "subsets": [{"image_dir": str(photos_dir), "class_tokens": "ohwx woman"}]}],
    }
    of_dataset = data.draw(st.booleans())
    (tmp_path / "data.json").write_text(json.dumps(with_something_else(dataset, data) if of_dataset else dataset))
    given_file = dict(values) if of_dataset else with_something_else(values, data)
    notes = Notes()
    second = tmp_path / "data.json" if of_dataset else None
    with one_line_of_refusal():
        run = kohya_config_run(given_file, tmp_path / "config.toml", second, notes)
        notes.refuse("config.toml")
        trial_of(imported(run).text, tmp_path)


VALUES = [
    "",
    "0",
    "-1",
    "3",
    "1e400",
    "nan",
    "x",
    "1e-4",
    "prodigy",
    "cosine",
    "999999999999999",
    "0.5",
    "\u00b2",
    "--",
]


@FIXTURES
@given(data=st.data())
def test_a_command_may_say_anything(data: st.DataObject, photos_dir: Path, tmp_path: Path) -> None:
    """Of any flags with any values comes a sweep of one trial or a refusal."""
    script = data.draw(st.sampled_from([*DIFFUSERS_SCRIPTS, *KOHYA_SCRIPTS]))
    flags = flags_of(DIFFUSERS if script in DIFFUSERS_SCRIPTS else KOHYA, script)
    given_at_least = {
        "pretrained_model_name_or_path": "m",
        "instance_data_dir": str(photos_dir),
        "instance_prompt": "a photo of sks woman",
        "train_data_dir": str(photos_dir.parent),
        "resolution": "512",
        "network_module": "networks.lora",
        "caption_extension": ".txt",
    }
    words = ["accelerate", "launch", *data.draw(st.sampled_from([[], ["--num_processes", "0"]])), f"{script}.py"]
    words += [word for name, value in given_at_least.items() if name in flags for word in (f"--{name}", value)]
    lawful = [name for name, flag in flags.items() if flag.fate != "refused"]
    for name in data.draw(st.lists(st.sampled_from(lawful), max_size=6)):
        words += [f"--{name}"] if flags[name].kind is bool else [f"--{name}", data.draw(st.sampled_from(VALUES))]
    with one_line_of_refusal():
        trial_of(import_command(words).text, tmp_path)


@pytest.mark.parametrize("text", ["a: *a", "a: &a {b: *a}\nconfig: {process: [*a]}", "[" * 5000, "\x00", "", "- a"])
def test_yaml_of_no_use_is_refused(text: str, tmp_path: Path) -> None:
    """Aliases to nothing or to themselves, endless nesting, no text, no mapping."""
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError):
        import_config(tmp_path / "config.yaml")
