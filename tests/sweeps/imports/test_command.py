"""Laws of import-command: the sweep's one trial is the run that the command starts, or the command is refused.

pytest tests/sweeps/imports     seconds
"""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sweeps.config import load_sweep
from sweeps.imports.command import import_command
from sweeps.imports.flags import ADVANCED, DIFFUSERS, FULL, LORA, flags_of
from sweeps.space import grid
from tests.sweeps.command import Command
from tests.sweeps.imports.trials import sweep_of, trial_of
from training.config import DreamBoothConfig, LoraConfig
from training.errors import UserError

HOMEWORK = Path(__file__).parents[3] / "examples" / "homework.yaml"
BASE = ["--pretrained_model_name_or_path", "./sd15", "--instance_data_dir", "photos"]
BASE += ["--instance_prompt", "a photo of sks woman"]
STEPS = ["--max_train_steps", "600"]
SCRIPTS = (FULL, LORA, ADVANCED)


def command(script: str, *flags: str) -> list[str]:
    """A command's words."""
    return ["accelerate", "launch", f"examples/{script}.py", *BASE, *STEPS, *flags]


def trial(words: list[str], folder: Path) -> LoraConfig | DreamBoothConfig:
    """The one trial of the sweep that is made of a command."""
    return trial_of(import_command(words).text, folder)


@pytest.fixture
def seven_photos(tmp_path: Path) -> Path:
    """A folder of seven pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


# --- the reference experiment -----------------------------------------------------------------------------------------

FULL_COMMAND = """
accelerate launch train_dreambooth.py \\
  --pretrained_model_name_or_path=epicphotogasm --instance_data_dir=photos --class_data_dir=class_images \\
  --output_dir=full --instance_prompt="a photo of sks woman face" --class_prompt="a photo of woman face " \\
  --with_prior_preservation --prior_loss_weight=1.0 --num_class_images=500 --train_text_encoder --use_8bit_adam \\
  --resolution=512 --train_batch_size=1 --gradient_accumulation_steps=1 --learning_rate=2e-6 \\
  --lr_scheduler="constant" --lr_warmup_steps=0 --max_train_steps=800 --checkpointing_steps=800 \\
  --mixed_precision=no
"""
LORA_COMMAND = """
accelerate launch train_dreambooth_lora.py \\
  --pretrained_model_name_or_path=epicphotogasm --instance_data_dir=photos --output_dir=lora \\
  --instance_prompt="a photo of sks woman face" --resolution=512 --train_batch_size=1 \\
  --gradient_accumulation_steps=1 --checkpointing_steps=100 --learning_rate=1e-4 --report_to="wandb" \\
  --lr_scheduler="constant" --lr_warmup_steps=0 --max_train_steps=500 --rank={rank} --seed="0" \\
  --validation_prompt="A photo of sks woman face in the forest" --validation_epochs=50
"""


@pytest.mark.parametrize("rank", [2, 4, 16, 128, 256])
def test_the_reference_experiment_is_the_homework(rank: int, tmp_path: Path) -> None:
    """The experiment's two commands become, field by field, the trials of examples/homework.yaml."""
    homework = load_sweep(HOMEWORK)
    full, *loras = grid(homework.methods, homework.evaluation.at_steps)
    by_rank = {each.rank: each for each in loras if isinstance(each, LoraConfig)}
    assert trial([FULL_COMMAND], tmp_path) == full
    assert trial([LORA_COMMAND.format(rank=rank)], tmp_path) == by_rank[rank]


def test_the_reference_experiments_subject_and_prompts_come_along(tmp_path: Path) -> None:
    """Words, size and the validation prompt are the run's; all photos train, cut at their centre, as there."""
    sweep = sweep_of(import_command([LORA_COMMAND.format(rank=4)]).text, tmp_path)
    homework = load_sweep(HOMEWORK)
    assert sweep.subject.instance_prompt == homework.subject.instance_prompt
    assert sweep.subject.resolution == homework.subject.resolution
    assert (sweep.subject.held_out_photos, sweep.subject.crop) == (0, "center")
    assert sweep.evaluation.prompts == ["A photo of sks woman face in the forest"]
    assert sweep.evaluation.at_steps == [100, 200, 300, 400, 500]
    assert (sweep.name, sweep.base_model) == ("lora", "epicphotogasm")


# --- there and back ---------------------------------------------------------------------------------------------------

NUMBERS = st.floats(1e-7, 1e-2)
SHARED: dict[str, st.SearchStrategy[Any]] = {
    "learning_rate": NUMBERS.filter(lambda rate: rate > 2e-7),
    "max_train_steps": st.integers(30, 5000),
    "seed": st.integers(0, 2**32 - 1),
    "train_batch_size": st.integers(1, 8),
    "gradient_accumulation_steps": st.integers(1, 8),
    "gradient_checkpointing": st.booleans(),
    "mixed_precision": st.sampled_from(["no", "fp16", "bf16"]),
    "use_8bit_adam": st.booleans(),
    "adam_beta1": st.floats(0, 0.99),
    "adam_beta2": st.floats(0, 0.9999),
    "adam_weight_decay": st.floats(0, 1),
    "adam_epsilon": NUMBERS,
    "max_grad_norm": st.floats(0.01, 10),
    "lr_scheduler": st.sampled_from(
        ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
    ),
    "lr_warmup_steps": st.integers(0, 20),
    "lr_num_cycles": st.integers(1, 5),
    "lr_power": st.floats(0.1, 3),
    "train_text_encoder": st.booleans(),
    "with_prior_preservation": st.booleans(),
    "prior_loss_weight": st.floats(0, 3),
    "num_class_images": st.integers(1, 999),
    "allow_tf32": st.booleans(),
}
OF_LORA: dict[str, st.SearchStrategy[Any]] = {"rank": st.integers(1, 256), "lora_dropout": st.floats(0, 0.9)}
OF_FULL: dict[str, st.SearchStrategy[Any]] = {"snr_gamma": st.none() | st.floats(0.1, 20)}
OF_ADVANCED: dict[str, st.SearchStrategy[Any]] = {
    **OF_LORA,
    "snr_gamma": st.none() | st.floats(0.1, 20),
    "noise_offset": st.floats(0, 1),
    "use_dora": st.booleans(),
    "text_encoder_learning_rate": NUMBERS,
}
RUNS = st.one_of(
    st.tuples(st.just(FULL), st.fixed_dictionaries(SHARED | OF_FULL).map(lambda f: DreamBoothConfig(**f))),
    st.tuples(st.just(LORA), st.fixed_dictionaries(SHARED | OF_LORA).map(lambda f: LoraConfig(**f))),
    st.tuples(st.just(ADVANCED), st.fixed_dictionaries(SHARED | OF_ADVANCED).map(lambda f: LoraConfig(**f))),
)
FLAG_NAMES = {"text_encoder_learning_rate": "text_encoder_lr"}


def as_command(script: str, config: LoraConfig | DreamBoothConfig) -> list[str]:
    """The script's command for a run of ours."""
    words = ["accelerate", "launch", f"{script}.py", *BASE, "--class_prompt", "a photo of a woman"]
    words += ["--class_data_dir", "nowhere"]
    known = flags_of(DIFFUSERS, script)
    for field, value in config.model_dump().items():
        name = FLAG_NAMES.get(field, field)
        if name not in known or value is None or value is False:
            continue
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=RUNS)
@example(run=(LORA, LoraConfig()))
@example(run=(FULL, DreamBoothConfig()))
def test_a_run_of_ours_comes_back_from_its_command(
    run: tuple[str, LoraConfig | DreamBoothConfig], tmp_path: Path
) -> None:
    """Our config -> the script's command -> imported: the same config, whichever fields it sets."""
    script, config = run
    expected = config
    if script == ADVANCED and not config.train_text_encoder:  # a rate of what does not train is no setting there
        expected = config.model_copy(update={"text_encoder_learning_rate": None})
    assert trial(as_command(script, config), tmp_path) == expected


# --- spelling ---------------------------------------------------------------------------------------------------------

FLAGS = [("--learning_rate", "3e-5"), ("--rank", "8"), ("--seed", "7"), ("--lr_scheduler", "cosine")]
FLAGS += [("--validation_prompt", 'a photo of sks woman, it\'s "art"; $5 & more #1'), ("--output_dir", "out/a b")]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_spelling_changes_nothing(data: st.DataObject) -> None:
    """Quotes, `=`, continued lines, a notebook's `!`, and the order of flags do not change the sweep."""
    plain = import_command([*command(LORA), *(word for pair in FLAGS for word in pair)]).text
    spelt = []
    for name, value in data.draw(st.permutations(FLAGS)):
        quoted = shlex.quote(value)
        if data.draw(st.booleans()):
            escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
            quoted = f'"{escaped}"'
        spelt.append(name + data.draw(st.sampled_from(["=", " ", " \\\n  ", "   "])) + quoted)
    begin = data.draw(st.sampled_from(["", "!", "cd diffusers && ", "# a run\n", "pip install x\n!"]))
    between = data.draw(st.sampled_from([" ", " \\\n", " \\\r\n   ", "\n"]))
    end = data.draw(st.sampled_from(["", "\n", " 2>&1 | tee log.txt", "  # done"]))
    text = begin + " ".join(map(shlex.quote, command(LORA))) + between + between.join(spelt) + end
    assert yaml.safe_load(import_command([text]).text) == yaml.safe_load(plain)


@pytest.mark.parametrize(
    "text",
    [
        "export MODEL=./sd15\nexport DIR='photos'\naccelerate launch {script} --pretrained_model_name_or_path=$MODEL "
        '--instance_data_dir="${{DIR}}" {rest}',
        "%env MODEL=./sd15\n!accelerate launch {script} --pretrained_model_name_or_path $MODEL "
        "--instance_data_dir photos {rest}",
        "CUDA_VISIBLE_DEVICES=0 python -m train_dreambooth_lora --pretrained_model_name_or_path ./sd15 "
        "--instance_data_dir photos {rest}",
        "python3 -u /opt/{script} --pretrained ./sd15 --instance_data photos {rest}",
        "accelerate-launch --num-processes=1 --mixed_precision no {script} --pretrained ./sd15 "
        "--instance_data photos {rest}",
    ],
)
def test_every_way_to_start_a_script_is_read(text: str) -> None:
    """Variables that the text sets, modules, plain Python, abbreviations and launchers: all the same run."""
    rest = "--instance_prompt 'a photo of sks woman' --max_train_steps 600"
    said = import_command([text.format(script="train_dreambooth_lora.py", rest=rest)]).text
    assert yaml.safe_load(said) == yaml.safe_load(import_command(command(LORA)).text)


def test_the_launcher_and_the_environment_say_the_precision(tmp_path: Path) -> None:
    """The script's own word goes first, then the launcher's, then the environment's."""
    script = [f"{LORA}.py", *BASE, *STEPS]
    launch = ["ACCELERATE_MIXED_PRECISION=bf16", "accelerate", "launch"]
    assert trial([*launch, *script], tmp_path).mixed_precision == "bf16"
    launch += ["--mixed_precision", "fp16"]
    assert trial([*launch, *script], tmp_path).mixed_precision == "fp16"
    assert trial([*launch, *script, "--mixed_precision", "no"], tmp_path).mixed_precision == "no"


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_epochs_become_steps(seven_photos: Path, tmp_path: Path) -> None:
    """7 photos in batches of 2 are 4 batches, 2 accumulated: 2 steps an epoch, 6 in three, and a comment says so."""
    words = ["python", f"{LORA}.py", *BASE, "--instance_data_dir", str(seven_photos), "--num_train_epochs", "3"]
    said = import_command([*words, "--train_batch_size", "2", "--gradient_accumulation_steps", "2"])
    assert trial_of(said.text, tmp_path).max_train_steps == 6
    assert "max_train_steps 6 = 3 epochs x 2 steps" in said.text
    with_class = [*words, "--with_prior_preservation", "--class_prompt", "a woman", "--class_data_dir", "nowhere"]
    assert trial([*with_class, "--num_class_images", "30", "--train_batch_size", "4"], tmp_path).max_train_steps == 24


def test_epochs_of_photos_that_are_not_here_are_refused() -> None:
    """Without the photos nobody knows how long an epoch is."""
    with pytest.raises(UserError, match=r"max_train_steps counts the photos.*no such folder: nowhere"):
        import_command(["python", f"{LORA}.py", *BASE, "--instance_data_dir", "nowhere"])


def test_processes_and_scaled_rates_are_multiplied_out(tmp_path: Path) -> None:
    """Two processes are a batch of twice the size; scale_lr is a product, shown."""
    words = ["accelerate", "launch", "--num_processes=2", f"{FULL}.py", *BASE, *STEPS, "--scale_lr"]
    said = import_command([*words, "--train_batch_size=3", "--learning_rate=1e-6", "--gradient_accumulation_steps=5"])
    config = trial_of(said.text, tmp_path)
    assert config.train_batch_size == 6
    assert config.learning_rate == pytest.approx(30e-6)
    assert "3e-5 = 1e-6 x 5 accumulated x batch of 3 x 2 processes" in " ".join(said.text.split()).replace("# ", "")


def test_the_advanced_scripts_own_settings(seven_photos: Path, tmp_path: Path) -> None:
    """Its defaults are filled in where they differ from ours, and a fraction of epochs becomes a step."""
    words = [*command(ADVANCED), "--train_text_encoder"]
    config = trial(words, tmp_path)
    assert (config.learning_rate, config.text_encoder_learning_rate) == (1e-4, 5e-6)
    assert config.adam_weight_decay == 1e-4
    prodigy = trial([*words, "--optimizer", "Prodigy", "--learning_rate", "1", "--use_8bit_adam"], tmp_path)
    assert (prodigy.optimizer, prodigy.learning_rate, prodigy.use_8bit_adam) == ("prodigy", 1, False)
    assert prodigy.text_encoder_learning_rate is None
    half = [*words, "--train_text_encoder_frac=0.5", "--instance_data_dir", str(seven_photos), "--train_batch_size=1"]
    said = import_command([*half, "--max_train_steps=70"])
    assert trial_of(said.text, tmp_path).stop_text_encoder_training == 35  # of 10 epochs of 7 steps
    assert "stop_text_encoder_training 35 = 5 of 10 epochs" in said.text


def test_offset_noise_and_warmup_are_what_the_full_script_does(tmp_path: Path) -> None:
    """Its switch adds a tenth; its 500 steps of warm-up count where the schedule heeds them, and only there."""
    config = trial(command(FULL, "--offset_noise"), tmp_path)
    assert (config.noise_offset, config.lr_warmup_steps) == (0.1, 0)
    assert trial(command(FULL, "--lr_scheduler", "cosine"), tmp_path).lr_warmup_steps == 500


def test_class_pictures_that_are_here_are_used(seven_photos: Path, tmp_path: Path) -> None:
    """A folder of class pictures is the run's own where it is here; else they are drawn anew, and that is said."""
    words = command(LORA, "--with_prior_preservation", "--class_prompt", "a photo of a woman", "--class_data_dir")
    assert sweep_of(import_command([*words, str(seven_photos)]).text, tmp_path).subject.class_images == seven_photos
    said = import_command([*words, "nowhere"])
    assert sweep_of(said.text, tmp_path).subject.class_images is None
    assert any("nowhere" in remark for remark in said.remarks)


# --- nothing is dropped in silence ------------------------------------------------------------------------------------

VALUES = {
    int: "3",
    float: "0.5",
    str: "photos",
}
OTHERS = {
    "lr_scheduler": "cosine",
    "mixed_precision": "fp16",
    "optimizer": "prodigy",
    "resolution": "768",
    "class_prompt": "a woman",
    "validation_prompt": "sks woman",
}


@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script in SCRIPTS for name in flags_of(DIFFUSERS, script)]
)
def test_every_flag_is_mapped_named_or_refused(script: str, name: str, seven_photos: Path) -> None:
    """A flag that is set changes the sweep, or stands in it by name, or is refused by name."""
    flag = flags_of(DIFFUSERS, script)[name]
    words = ["python", f"{script}.py", *BASE, "--instance_data_dir", str(seven_photos), "--seed", "0"]
    value = [] if flag.kind is bool else [OTHERS.get(name, VALUES[flag.kind])]
    if name == "instance_data_dir":
        value = [f"{seven_photos}/../photos"]
    without = import_command([*words, "--output_dir", "x"]).text
    try:
        text = import_command([*words, "--output_dir", "x", f"--{name}", *value]).text
    except UserError as error:
        refusal = str(error)
    else:
        assert flag.fate != "refused"
        assert name in text or text != without
        return
    assert name in refusal
    assert flag.fate == "refused" or name in ("with_prior_preservation", "optimizer"), "alone it is no lawful run"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--no_such_flag", "3"], "no_such_flag"),
        (["--rnak", "3"], "did you mean 'rank'?"),
        (["--rank", "many"], "rank must be a whole number, got 'many'"),
        (["--rank"], "expected one argument"),
        (["--tokenizer_name", "other"], "the tokenizer is the base model's"),
        (["--lr", "1e-4"], "ambiguous option"),
        (["--rank", "0"], "methods.lora.rank"),
        (["stray"], "'stray'"),
        (["--with_prior_preservation"], "class_data_dir must be given"),
        (["--lr_scheduler", "piecewise_constant"], "methods.lora.lr_scheduler"),
        (["--train_text_encoder=true"], "ignored explicit argument"),
    ],
)
def test_what_would_not_be_that_run_is_refused(flags: list[str], named: str) -> None:
    """Unknown flags, wrong values and what we do not have end the import with their names."""
    with pytest.raises(UserError) as refusal:
        import_command(command(LORA, *flags))
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_the_scripts_parser_refuses_hides_no_other_reason() -> None:
    """An ambiguous flag, one without its value and an unknown one are named together, and nothing that was given."""
    with pytest.raises(UserError) as refusal:
        import_command(command(LORA, "--lr", "1", "--no_such", "2", "--seed"))
    said = str(refusal.value)
    assert all(name in said for name in ("ambiguous option: --lr", "--no_such", "--seed: expected one argument"))
    assert "must be given" not in said


def test_all_reasons_are_given_at_once() -> None:
    """Two mistakes need one look, not two."""
    with pytest.raises(UserError, match=r"no_such.*tokenizer_name"):
        import_command(command(LORA, "--no_such", "1", "--tokenizer_name", "x"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("accelerate launch train_dreambooth_lora_sdxl.py --rank 4", "train_dreambooth_lora_sdxl.py"),
        ("make coffee", "make coffee"),
        ("", "must start"),
        ("python train_dreambooth.py --instance_prompt 'a photo", "a quote must be closed"),
        ("python train_dreambooth.py --instance_data_dir $PHOTOS", "$PHOTOS must be set"),
        ("python train_dreambooth.py --seed $(date +%s)", "a command within the command"),
        ("python train_dreambooth.py; python train_dreambooth_lora.py", "one command at a time"),
        ("accelerate launch --use_deepspeed train_dreambooth.py", "use_deepspeed"),
        ("accelerate launch --config_file a.yaml train_dreambooth.py", "config_file"),
    ],
)
def test_texts_that_start_no_known_script_are_refused(text: str, named: str) -> None:
    """The refusal names what was found in place of a script, or what cannot be read."""
    with pytest.raises(UserError) as refusal:
        import_command([text])
    assert named in str(refusal.value)


# --- what is printed --------------------------------------------------------------------------------------------------


def test_what_is_commented_out_is_a_search_around_the_run(tmp_path: Path) -> None:
    """Each suggestion, in place of the line above it, is a sweep that loads and that holds the run."""
    lines = import_command(command(LORA)).text.splitlines()
    run = trial_of("\n".join(lines), tmp_path)
    suggested = [at for at, line in enumerate(lines) if "{choices:" in line]
    assert len(suggested) == 3
    for at in suggested:
        opened = [*lines[: at - 1], lines[at].replace("# ", "", 1), *lines[at + 1 :]]
        sweep = sweep_of("\n".join(opened), tmp_path)
        trials = list(grid(sweep.methods, sweep.evaluation.at_steps))
        assert len(trials) == 3
        assert run in trials


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1).filter(
        lambda t: not t.startswith("-")
    ),
    folder=st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1).filter(
        lambda t: not t.startswith("-")
    ),
)
@example(prompt="no", folder="1e5")
@example(prompt="sks: {a} # b", folder="~/p: q")
def test_texts_come_through_yaml_as_they_are(prompt: str, folder: str, tmp_path: Path) -> None:
    """Prompts and paths are what was given, whatever YAML would make of them unquoted."""
    words = ["python", f"{LORA}.py", *STEPS, "--pretrained_model_name_or_path", "m", "--output_dir", folder]
    words += [f"--instance_prompt={prompt}", f"--instance_data_dir={folder}"]
    text = import_command(words).text
    raw = yaml.safe_load(text)
    assert raw["subject"]["instance_prompt"] == prompt
    assert raw["subject"]["photos"] == folder


def test_the_verb_prints_a_sweep_file(dreamsweep: Command, tmp_path: Path) -> None:
    """One argument, several words, or standard input: the same file on standard output, remarks beside it."""
    words = command(LORA)
    outcome = dreamsweep("import-command", *words)
    assert outcome.code == 0, outcome.err
    assert trial_of(outcome.out, tmp_path).max_train_steps == 600
    assert "seed" in outcome.err
    assert dreamsweep("import-command", shlex.join(words)).out == outcome.out


def test_the_verb_reads_standard_input(dreamsweep: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is what a pipe brings."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(shlex.join(command(LORA))))
    outcome = dreamsweep("import-command", "-")
    assert outcome.code == 0, outcome.err
    assert outcome.out == import_command(command(LORA)).text


def test_the_verb_refuses_with_2(dreamsweep: Command) -> None:
    """A command that cannot be that run exits with 2, one line, and prints no file."""
    outcome = dreamsweep("import-command", *command(LORA, "--dataset_name", "x"))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
