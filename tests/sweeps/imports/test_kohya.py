"""Laws of kohya's runs as sweep files: its defaults, its folders, its arithmetic."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sweeps.config import rare_token
from sweeps.imports.command import import_command
from sweeps.imports.config_file import import_config
from sweeps.imports.flags import DATASET, KOHYA, KOHYA_SCRIPTS, NETWORK, flags_of
from tests.sweeps.command import Command
from tests.sweeps.imports.trials import sweep_of, trial_of
from training.config import LoraConfig
from training.errors import UserError


def toml_of(values: dict[str, Any]) -> str:
    """The settings as TOML; JSON writes texts, numbers and lists alike."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def draw_pictures(folder: Path, number: int, caption: str | None = None, suffix: str = ".txt") -> Path:
    """So many pictures, with a caption each."""
    folder.mkdir(parents=True)
    for at in range(number):
        Image.new("RGB", (64, 64), (at, 0, 0)).save(folder / f"{at}.png")
        if caption is not None:
            (folder / f"{at}{suffix}").write_text(caption)
    return folder


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Kohya's folder of six photos, ten times each."""
    draw_pictures(tmp_path / "img" / "10_ohwx woman", 6)
    return tmp_path / "img"


@pytest.fixture
def reg(tmp_path: Path) -> Path:
    """Kohya's folder of 40 class pictures."""
    draw_pictures(tmp_path / "reg" / "1_woman", 40)
    return tmp_path / "reg"


def network(train: Path, **settings: Any) -> dict[str, Any]:
    """A LoRA run, as much as must be said."""
    return {
        "pretrained_model_name_or_path": "./sd15.safetensors",
        "train_data_dir": str(train),
        "resolution": "512,512",
        "network_module": "networks.lora",
        "seed": 1,
        **settings,
    }


def full(train: Path, **settings: Any) -> dict[str, Any]:
    """A full DreamBooth run, as much as must be said."""
    return {name: value for name, value in network(train, **settings).items() if name != "network_module"}


def text_of(values: dict[str, Any], folder: Path) -> str:
    """The sweep file made of a config file."""
    file = folder / "config.toml"
    file.write_text(toml_of(values))
    return import_config(file).text


def trial(values: dict[str, Any], folder: Path) -> Any:
    """The one trial of the sweep that is made of a config file."""
    return trial_of(text_of(values, folder), folder)


def refusal_of(values: dict[str, Any], folder: Path) -> str:
    """What the import says in place of a sweep."""
    with pytest.raises(UserError) as refusal:
        text_of(values, folder)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_kohyas_defaults_are_filled_in(train: Path, tmp_path: Path) -> None:
    """What the file does not say is what kohya does, written out where it is not what we do."""
    config = trial(network(train), tmp_path)
    assert config == LoraConfig(
        rank=4,
        lora_alpha=1.0,
        learning_rate=2e-6,
        max_train_steps=1600,
        train_batch_size=1,
        seed=1,
        train_text_encoder=True,
        target_modules="attention+ff",
    )


def test_the_full_script_trains_its_text_encoder_too(train: Path, tmp_path: Path) -> None:
    """Without a network it is train_db: all weights, the text encoder's to the end or to the step that is said."""
    config = trial(full(train, learning_rate_te=1e-6), tmp_path)
    assert (config.method, config.train_text_encoder, config.text_encoder_learning_rate) == ("dreambooth", True, 1e-6)
    assert trial(full(train, stop_text_encoder_training=300), tmp_path).stop_text_encoder_training == 300
    assert trial(full(train, stop_text_encoder_training=9999), tmp_path).stop_text_encoder_training is None
    assert not trial(full(train, stop_text_encoder_training=-1), tmp_path).train_text_encoder


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"network_dim": 32, "network_alpha": 16}, {"rank": 32, "lora_alpha": 16.0}),
        ({"network_dim": 8, "network_alpha": 0}, {"lora_alpha": 8.0}),
        ({"unet_lr": 1e-4, "text_encoder_lr": 5e-5}, {"learning_rate": 1e-4, "text_encoder_learning_rate": 5e-5}),
        ({"unet_lr": 1e-4, "text_encoder_lr": [5e-5, 1]}, {"text_encoder_learning_rate": 5e-5}),
        ({"learning_rate": 1e-4}, {"learning_rate": 1e-4, "text_encoder_learning_rate": None}),
        ({"unet_lr": 1e-4, "text_encoder_lr": 0}, {"train_text_encoder": False}),
        ({"network_train_unet_only": True}, {"train_text_encoder": False}),
        ({"optimizer_type": "AdamW8bit"}, {"use_8bit_adam": True, "adam_weight_decay": 0.01}),
        (
            {"optimizer_type": "AdamW", "optimizer_args": ["weight_decay=0.1", "betas=0.9,0.99", "eps=1e-6"]},
            {"adam_weight_decay": 0.1, "adam_beta2": 0.99, "adam_epsilon": 1e-6},
        ),
        (
            {
                "optimizer_type": "Prodigy",
                "learning_rate": 1.0,
                "optimizer_args": ["use_bias_correction=True", "safeguard_warmup=True", "weight_decay=0.01"],
            },
            {"optimizer": "prodigy", "learning_rate": 1.0, "adam_weight_decay": 0.01},
        ),
        (
            {"optimizer_type": "adafactor", "optimizer_args": ["relative_step=False", "scale_parameter=False"]},
            {"optimizer": "adafactor", "adam_weight_decay": 0.0},
        ),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 0.1}, {"lr_scheduler": "cosine", "lr_warmup_steps": 160}),
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 100}, {"lr_warmup_steps": 100}),
        ({"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": 3}, {"lr_num_cycles": 3}),
        ({"max_grad_norm": 0}, {"max_grad_norm": 1e9}),
        ({"min_snr_gamma": 5, "noise_offset": 0.05}, {"snr_gamma": 5.0, "noise_offset": 0.05}),
        ({"shuffle_caption": True, "keep_tokens": 1}, {"shuffle_caption": True, "keep_tokens": 1}),
        ({"caption_dropout_rate": 0.1, "mixed_precision": "bf16"}, {"caption_dropout_rate": 0.1}),
        (
            {"network_dim": 8, "network_alpha": 4, "network_args": ["conv_dim=8", "conv_alpha=4"]},
            {"target_modules": "all"},
        ),
        ({"max_timestep": 1000, "clip_skip": 1, "max_token_length": 75}, {}),
    ],
)
def test_a_setting_becomes_its_key(
    settings: dict[str, Any], expected: dict[str, Any], train: Path, tmp_path: Path
) -> None:
    """Each of kohya's settings, alone, is the key of the sweep file that does the same."""
    config = trial(network(train, **settings), tmp_path)
    assert {name: getattr(config, name) for name in expected} == expected


RUNS = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 256),
        "lora_alpha": st.floats(0.1, 256),
        "learning_rate": st.floats(1e-6, 1e-2),
        "max_train_steps": st.integers(1, 5000),
        "seed": st.integers(0, 2**31),
        "train_batch_size": st.integers(1, 8),
        "gradient_accumulation_steps": st.integers(1, 8),
        "gradient_checkpointing": st.booleans(),
        "mixed_precision": st.sampled_from(["no", "fp16", "bf16"]),
        "use_8bit_adam": st.booleans(),
        "adam_beta1": st.floats(0, 0.99),
        "adam_beta2": st.floats(0, 0.999),
        "adam_weight_decay": st.floats(0, 1),
        "max_grad_norm": st.floats(0.01, 10),
        "train_text_encoder": st.booleans(),
        "snr_gamma": st.none() | st.floats(0.1, 20),
        "noise_offset": st.floats(0, 1),
        "shuffle_caption": st.booleans(),
        "keep_tokens": st.integers(0, 3),
        "caption_dropout_rate": st.floats(0, 1),
    }
).map(lambda fields: LoraConfig(target_modules="attention+ff", **fields))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=RUNS)
def test_a_run_of_ours_comes_back_from_kohyas_file(config: LoraConfig, train: Path, tmp_path: Path) -> None:
    """Our config -> kohya's TOML -> imported: the same config."""
    values = network(
        train,
        network_dim=config.rank,
        network_alpha=config.lora_alpha,
        network_train_unet_only=not config.train_text_encoder,
        optimizer_type="AdamW8bit" if config.use_8bit_adam else "AdamW",
        optimizer_args=[
            f"weight_decay={config.adam_weight_decay}",
            f"betas=({config.adam_beta1}, {config.adam_beta2})",
        ],
        **{
            name: getattr(config, name)
            for name in (
                *("learning_rate", "max_train_steps", "seed", "train_batch_size", "gradient_accumulation_steps"),
                *("gradient_checkpointing", "mixed_precision", "max_grad_norm", "noise_offset", "shuffle_caption"),
                *("keep_tokens", "caption_dropout_rate"),
            )
        },
        **({} if config.snr_gamma is None else {"min_snr_gamma": config.snr_gamma}),
    )
    assert trial(values, tmp_path) == config


# --- folders and arithmetic -------------------------------------------------------------------------------------------


def test_the_folders_name_says_who_and_how_often(train: Path, tmp_path: Path) -> None:
    """10_ohwx woman: six photos shown ten times an epoch, called `ohwx woman`."""
    text = text_of(network(train, max_train_epochs=4, train_batch_size=2), tmp_path)
    sweep = sweep_of(text, tmp_path)
    assert sweep.subject.photos == train / "10_ohwx woman"
    assert (sweep.subject.instance_prompt, rare_token(sweep.subject)) == ("ohwx woman", "ohwx")
    assert (sweep.subject.held_out_photos, sweep.subject.crop) == (0, "center")
    assert sweep.evaluation.prompts == ["ohwx woman"]
    assert trial_of(text, tmp_path).max_train_steps == 120
    assert "max_train_steps 120 = 4 epochs x 30 steps: 6 photos x 10 in batches of 2" in text


@pytest.mark.parametrize(("words", "token"), [("zxqada woman", "zxqada"), ("photo of zxqada", None)])
def test_the_first_word_names_the_person_where_it_is_no_common_one(
    words: str, token: str | None, tmp_path: Path
) -> None:
    """Kohya's folders begin with the token; a sentence does not, and then the file says what is missing."""
    draw_pictures(tmp_path / "img" / f"5_{words}", 5)
    text = text_of(network(tmp_path / "img"), tmp_path)
    assert sweep_of(text, tmp_path).subject.rare_token == token
    assert ("# rare_token: the words" in text) == (token is None)


def test_class_pictures_are_half_of_kohyas_batch(train: Path, reg: Path, tmp_path: Path) -> None:
    """60 photos an epoch take 40 class pictures, some twice; a batch of 4 is 2 and 2, and the loss is half of ours."""
    values = network(train, reg_data_dir=str(reg), train_batch_size=4, max_train_epochs=1, prior_loss_weight=0.5)
    text = text_of(values, tmp_path)
    config = trial_of(text, tmp_path)
    assert (config.with_prior_preservation, config.prior_loss_weight, config.num_class_images) == (True, 0.5, 40)
    assert (config.train_batch_size, config.max_train_steps) == (2, 30)  # 60 photos and 60 of the class
    assert (config.max_grad_norm, config.adam_epsilon) == (2.0, 2e-8)
    sweep = sweep_of(text, tmp_path)
    assert (sweep.subject.class_prompt, sweep.subject.class_images) == ("woman", reg / "1_woman")
    accumulated = network(train, reg_data_dir=str(reg), gradient_accumulation_steps=2)
    assert trial(accumulated, tmp_path).gradient_accumulation_steps == 1


def test_one_picture_a_step_cannot_be_two(train: Path, reg: Path, tmp_path: Path) -> None:
    """A step of one picture is a photo's or a class picture's in kohya; here there is no such step."""
    said = refusal_of(network(train, reg_data_dir=str(reg)), tmp_path)
    assert "reg pictures with train_batch_size 1" in said


def test_more_class_pictures_than_photos_are_not_all_used(train: Path, tmp_path: Path) -> None:
    """80 class pictures and 60 photos: 60 are used."""
    draw_pictures(tmp_path / "many" / "1_woman", 80)
    values = network(train, reg_data_dir=str(tmp_path / "many"), train_batch_size=2)
    assert trial(values, tmp_path).num_class_images == 60


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"train_data_dir": "nowhere"}, "not here"),
        ({"resolution": "512,768"}, "squares"),
        ({"resolution": None}, "resolution must be given"),
        ({"no_such_key": 1}, "no_such_key"),
        ({"network_module": "lycoris.kohya"}, "networks.lora"),
        ({"network_args": ["conv_dim=4", "conv_alpha=1"], "network_dim": 8}, "conv_dim"),
        ({"network_args": ["loraplus_lr_ratio=16"]}, "loraplus_lr_ratio"),
        ({"network_dropout": 0.1}, "network_dropout"),
        ({"optimizer_type": "Lion"}, "optimizer_type Lion"),
        ({"optimizer_type": "Prodigy"}, "use_bias_correction=True, safeguard_warmup=True"),
        ({"optimizer_type": "Adafactor"}, "relative_step=False"),
        ({"optimizer_args": ["amsgrad=True"]}, "amsgrad"),
        ({"v2": True}, "Stable Diffusion 1.5"),
        ({"loss_type": "huber"}, "loss_type 'huber'"),
        ({"max_train_epochs": 2, "enable_bucket": True, "train_batch_size": 2}, "give max_train_steps"),
        ({"lr_warmup_steps": 10}, "lr_warmup_steps 10 with lr_scheduler constant"),
        ({"lr_scheduler": "adafactor"}, "lr_scheduler"),
        ({"shuffle_caption": "yes"}, "shuffle_caption must be true or false"),
        ({"learning_rate": "fast"}, "learning_rate must be a number"),
    ],
)
def test_what_would_not_be_that_run_is_refused(
    settings: dict[str, Any], named: str, train: Path, tmp_path: Path
) -> None:
    """A setting that changes what is trained, and that we do not have, ends the import with its name."""
    values = {name: value for name, value in network(train, **settings).items() if value is not None}
    assert named in refusal_of(values, tmp_path)


OTHERS = {
    **dict.fromkeys(("learning_rate", "unet_lr", "learning_rate_te", "text_encoder_lr"), "0.5"),
    **dict.fromkeys(("caption_dropout_rate", "noise_offset"), "0.5"),
    "lr_scheduler": "linear",
    "mixed_precision": "bf16",
    "optimizer_args": "weight_decay=1",
    "resolution": "768",
}
REFUSED_ALONE = {
    "lr_warmup_steps",
    "train_data_dir",
    "reg_data_dir",
    "network_module",
    "network_args",
    "optimizer_type",
}
"""Settings with a key whose value below is none that we have."""


@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script in KOHYA_SCRIPTS for name in flags_of(KOHYA, script)]
)
def test_every_setting_is_mapped_named_or_refused(script: str, name: str, train: Path) -> None:
    """Set to something, it changes the sweep, stands in it by name, or is refused by name."""
    flag = flags_of(KOHYA, script)[name]
    if name in ("config_file", "dataset_config"):
        return  # read, and not a setting
    words = ["python", f"{script}.py", "--pretrained_model_name_or_path", "m", "--train_data_dir", str(train)]
    words += ["--resolution", "512", *(["--network_module", "networks.lora"] if script == NETWORK else [])]
    value = [] if flag.kind is bool else [OTHERS.get(name, "3" if flag.kind in (int, float) else "other")]
    without = import_command(words).text
    try:
        text = import_command([*words, f"--{name}", *value]).text
    except UserError as error:
        refusal = str(error)
    else:
        assert flag.fate != "refused"
        assert name in text or text != without
        return
    assert name in refusal
    assert flag.fate == "refused" or name in REFUSED_ALONE


# --- captions ---------------------------------------------------------------------------------------------------------


def test_captions_that_kohya_did_not_read_are_refused(tmp_path: Path) -> None:
    """Its default is .caption: .txt files beside the photos had no part in that run, and would have one here."""
    draw_pictures(tmp_path / "img" / "5_ohwx woman", 5, "ohwx woman in a park")
    assert "caption_extension .caption" in refusal_of(network(tmp_path / "img"), tmp_path)
    assert trial(network(tmp_path / "img", caption_extension=".txt"), tmp_path).train_batch_size == 1


def test_captions_of_several_lines_are_refused(tmp_path: Path) -> None:
    """Kohya reads the first line alone."""
    draw_pictures(tmp_path / "img" / "5_ohwx woman", 5, "ohwx woman\nin a park")
    assert "several lines" in refusal_of(network(tmp_path / "img", caption_extension=".txt"), tmp_path)


# --- the dataset config -----------------------------------------------------------------------------------------------

DATASET_CONFIG = """
[general]
shuffle_caption = true
caption_extension = ".txt"

[[datasets]]
resolution = 768
batch_size = 2

[[datasets.subsets]]
image_dir = "photos/ada"
class_tokens = "ohwx woman"
num_repeats = 8
keep_tokens = 1
flip_aug = true
"""


def test_the_dataset_config_goes_first(tmp_path: Path) -> None:
    """A subset's word, then its dataset's, the general one, and last the command's; the paths may be elsewhere."""
    (tmp_path / "data.toml").write_text(DATASET_CONFIG)
    values = {"pretrained_model_name_or_path": "m", "network_module": "networks.lora", "train_batch_size": 7}
    (tmp_path / "config.toml").write_text(toml_of({**values, "keep_tokens": 3, "resolution": "512"}))
    text = import_config(tmp_path / "config.toml", tmp_path / "data.toml").text
    raw, sweep, config = yaml.safe_load(text), sweep_of(text, tmp_path), trial_of(text, tmp_path)
    assert raw["subject"]["photos"] == "photos/ada"
    assert (sweep.subject.resolution, sweep.subject.random_flip) == (768, True)
    assert (config.train_batch_size, config.shuffle_caption, config.keep_tokens) == (2, True, 1)
    (tmp_path / "config.toml").write_text(toml_of({**values, "dataset_config": "/elsewhere/data.toml"}))
    assert import_config(tmp_path / "config.toml").text.count("photos/ada") == 1


@pytest.mark.parametrize("name", [name for name, flag in flags_of(KOHYA, DATASET).items() if flag.fate == "refused"])
def test_what_a_dataset_config_must_not_say(name: str, tmp_path: Path) -> None:
    """A refused setting is refused wherever it stands."""
    flag = flags_of(KOHYA, DATASET)[name]
    value = "true" if flag.kind is bool else "3" if flag.kind in (int, float) else '"other"'
    (tmp_path / "data.toml").write_text(DATASET_CONFIG.replace("num_repeats", f"{name} = {value}\nnum_repeats"))
    (tmp_path / "config.toml").write_text(toml_of({"pretrained_model_name_or_path": "m"}))
    with pytest.raises(UserError, match=name):
        import_config(tmp_path / "config.toml", tmp_path / "data.toml")


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_command_is_its_config_file(train: Path, tmp_path: Path) -> None:
    """The same settings as flags, as a file, and as a file that flags overrule, are one sweep."""
    values = network(train, network_dim=8, learning_rate=1e-4, optimizer_args=["weight_decay=0.1"], output_name="ada")
    text = text_of(values, tmp_path)
    flags = []
    for name, value in values.items():
        flags += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    said = import_command([shlex.join(["accelerate", "launch", "--num_processes=1", "train_network.py", *flags])])
    assert said.text == text
    (tmp_path / "file.toml").write_text(toml_of({**values, "network_dim": 99}))
    overruled = ["python", "sd-scripts/train_network.py", "--config_file", str(tmp_path / "file"), "--network_dim=8"]
    assert import_command(overruled).text == text


def test_the_verb_prints_or_refuses(dreamsweep: Command, train: Path, tmp_path: Path) -> None:
    """import-config prints a sweep and exits with 0, or refuses in one line with 2."""
    file = tmp_path / "config.toml"
    file.write_text(toml_of(network(train)))
    outcome = dreamsweep("import-config", file)
    assert outcome.code == 0, outcome.err
    assert trial_of(outcome.out, tmp_path).max_train_steps == 1600
    file.write_text("a = ")
    outcome = dreamsweep("import-config", file)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "must be TOML" in outcome.err
    assert dreamsweep("import-config", tmp_path / "none.toml").code == 2


def test_what_stands_beside_the_sections_is_taken_over(train: Path, tmp_path: Path) -> None:
    """Clip skip by the same count, and the LoRA that a run went on from."""
    sweep = sweep_of(text_of(network(train, clip_skip=2, network_weights="old.safetensors"), tmp_path), tmp_path)
    assert (sweep.clip_skip, sweep.initial_weights) == (2, tmp_path / "old.safetensors")
    plain = sweep_of(text_of(network(train), tmp_path), tmp_path)
    assert (plain.clip_skip, plain.initial_weights) == (1, None)
