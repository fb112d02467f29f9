"""The sweep file: what is refused, with law, value and place; what is read, and how.

pytest tests/sweeps/test_config.py     a second or two, no models
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from sweeps.config import (
    MAX_FILE_BYTES,
    SweepConfig,
    _apply_override,
    _QuotingDumper,
    _StrictLoader,
    class_images_needed,
    load_sweep,
    parse_sweep,
    resolved_yaml,
)
from sweeps.space import Choices, Range

SWEEP = """
name: ada
base_model: owner/model
subject:
  photos: photos/ada
  instance_prompt: a photo of sks woman
  class_prompt: a photo of a woman
methods:
  lora:
    rank: {choices: [2, 16, 128]}
    learning_rate: {low: 3e-5, high: 1e-3, log: true}
    max_train_steps: 800
  dreambooth:
    learning_rate: {choices: [1e-6, 5e-6]}
    max_train_steps: 1000
    with_prior_preservation: true
search: {sampler: tpe, num_trials: 24, seed: 0, early_stopping: asha}
evaluation:
  prompts: [sks woman as a queen in a garden, sks woman in a computer game]
  at_steps: [200, 400, 800]
  face: {encoder: vggface2}
render: {references: [controls/mona_lisa.jpg]}
resources: {gpus_per_trial: 1}
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "ada.yaml"
    path.write_text(SWEEP)
    return path


@pytest.mark.parametrize(
    ("override", "place", "law", "value"),
    [
        ("methods.lora.rank=0", "methods.lora.rank", "greater than or equal to 1", "0"),
        ("methods.lora.rank={choices: [4, 0]}", "methods.lora.rank.choices", "greater than or equal to 1", "0"),
        ("methods.lora.rank={choices: []}", "methods.lora.rank.choices", "at least 1", "[]"),
        ("methods.lora.rank={choices: [2, 2]}", "methods.lora.rank", "differ", "[2, 2]"),
        ("methods.lora.rank={choices: 5}", "methods.lora.rank.choices", "a list", "5"),
        ("methods.lora.rank=[2, 4]", "methods.lora.rank", "{choices: [2, 4]}", "[2, 4]"),
        ("methods.lora.rank=true", "methods.lora.rank", "must be a number", "True"),
        ("methods.lora.rank=sixteen", "methods.lora.rank", "valid integer", "'sixteen'"),
        ("methods.lora.rank={low: 1, high: 8, step: 1.5}", "methods.lora.rank.step", "whole number", "1.5"),
        ("methods.lora.rank={low: 8, high: 1}", "methods.lora.rank", "low <= high", "8"),
        ("methods.lora.rank={low: 2}", "methods.lora.rank.high", "must be given", ""),
        ("methods.lora.learning_rate={low: 0, high: 1e-3}", "methods.lora.learning_rate.low", "greater than 0", "0"),
        ("methods.lora.learning_rate={low: 1e-4, high: 2}", "methods.lora.learning_rate.high", "less than", "2"),
        ("methods.lora.learning_rate=.nan", "methods.lora.learning_rate", "less than or equal to 1", "nan"),
        (
            "methods.lora.lora_dropout={low: 0, high: 0.5, log: true}",
            "methods.lora.lora_dropout",
            "low > 0 must hold on a log scale",
            "0",
        ),
        (
            "methods.lora.lr_scheduler={low: 1, high: 2}",
            "methods.lora.lr_scheduler",
            "needs a field that is a number",
            "1..2",
        ),
        ("methods.lora.rnk=4", "methods.lora.rnk", "did you mean 'rank'", "'rnk'"),
        ("methods.lora.rank={choice: [1]}", "methods.lora.rank.choice", "did you mean 'choices'", "'choice'"),
        ("methods.lora.rank={low: 1, hihg: 2, high: 3}", "methods.lora.rank.hihg", "did you mean 'high'", "'hihg'"),
        ("methods.lora.method=lora", "methods.lora.method", "unknown key", "'method'"),
        ("methods.lorra.rank=4", "methods.lorra", "did you mean 'lora'", "'lorra'"),
        ("methods={}", "methods", "needs lora, dreambooth or both", "{}"),
        ("evaluation.at_step=[1]", "evaluation.at_step", "did you mean 'at_steps'", "'at_step'"),
        ("evaluation.at_steps=[0, 5]", "evaluation.at_steps", "1 or more", "[0, 5]"),
        ("evaluation.at_steps=[5, 5]", "evaluation.at_steps", "different", "[5, 5]"),
        ("evaluation.at_steps=[200, 1200]", "evaluation.at_steps", "reached by a trial", "1200"),
        ("evaluation.prompts=[]", "evaluation.prompts", "at least 1", "[]"),
        ("evaluation.face.encodr=dlib", "evaluation.face.encodr", "did you mean 'encoder'", "'encodr'"),
        ("render.detectr=canny", "render.detectr", "did you mean 'detector'", "'detectr'"),
        ("search.sampler=gird", "search.sampler", "'tpe', 'nsga2', 'random' or 'grid'", "'gird'"),
        ("search.sampler=grid", "methods.lora.learning_rate", "a grid needs choices, or a range with a step", "low"),
        ("search.num_trials=0", "search.num_trials", "greater than or equal to 1", "0"),
        ("name=../../escape", "name", "letters, digits", "'../../escape'"),
        ("name=..", "name", "letters, digits", "'..'"),
        ("name=" + "a" * 65, "name", "1 to 64", "aaa"),
        ("base_model=", "base_model", "must be given", ""),
        ("subject.photos=3", "subject.photos", "a path", "3"),
        ("subject=3", "subject", "a mapping", "3"),
        ("subject.class_prompt=null", "methods.dreambooth.with_prior_preservation", "needs subject.class_prompt", ""),
        ("resources.gpus_per_trial=1.5", "resources.gpus_per_trial", "a part of one GPU, or whole GPUs", "1.5"),
        ("resources.gpus_per_trial={lora: 2.5}", "resources.gpus_per_trial.lora", "whole GPUs", "2.5"),
        ("resources.gpus_per_trial={lara: 2}", "resources.gpus_per_trial.lara", "did you mean 'lora'", "'lara'"),
        ("resources.gpus_per_trial={lora: two}", "resources.gpus_per_trial.lora", "must be a number", "'two'"),
        ("resources.gpus_per_trial=many", "resources.gpus_per_trial", "a number for each method", "'many'"),
        ("resources.cpus_per_trial=0", "resources.cpus_per_trial", "more than 0", "0"),
        ("resources.cpus_per_trial=.inf", "resources.cpus_per_trial", "must be a number", "inf"),
        ("resources.workers_per_trial=1.5", "resources.workers_per_trial", "a whole number", "1.5"),
        ("resources.workers_per_trial=2", "resources.workers_per_trial", "must be 1 with gpus_per_trial 1", "2"),
        ("resources={gpus_per_trial: 0, workers_per_trial: 3}", "methods.lora.train_batch_size", "3 workers", "4"),
        ("resources.gpus_per_trial={dreambooth: 3}", "methods.dreambooth.train_batch_size", "3 workers", "4"),
        ("champion.rule=best", "champion.rule", "'face_similarity'", "'best'"),
        ("nmae=ada", "nmae", "did you mean 'name'", "'nmae'"),
    ],
)
def test_a_mistake_is_refused_with_place_law_and_value(
    sweep_file: Path, override: str, place: str, law: str, value: str
) -> None:
    """One line: the file, the dotted place, the law and the value that broke it."""
    with pytest.raises(ValueError, match=r"ada\.yaml") as refused:
        load_sweep(sweep_file, [override])
    message = str(refused.value)
    assert message.startswith(f"ada.yaml:{place}: ")
    assert law in message
    assert value in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("name: [", "must be YAML"),
        ("name: a\nname: b", "'name' stands twice in line 2"),
        ("a: &x 1\nb: *x", "aliases are not read"),
        ("a: &x [*x]", "aliases are not read"),
        ("[" * 40, "nested deeper than"),
        ("- a\n- b", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: !!python/object/apply:os.system [true]", "must be YAML"),
        ("a: !!timestamp 2020-99-99", "must be YAML"),
        ("a: \x00", "must be YAML"),
        ("? [a, b]\n: c", "must be YAML"),
        ("x" * (MAX_FILE_BYTES + 1), f"at most {MAX_FILE_BYTES} bytes"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused_in_one_line(tmp_path: Path, text: str, law: str) -> None:
    """Broken, hostile and enormous YAML is a message, never a traceback or a run program."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml") as refused:
        load_sweep(path)
    assert law in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file, a folder and bytes that are no text are refused by name."""
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.yaml", ".", "binary.yaml"):
        with pytest.raises(ValueError, match=str(tmp_path)):
            load_sweep(tmp_path / name)


@pytest.mark.parametrize("override", ["name", "=3", "a..b=1", "name.first=ada", "evaluation.prompts.0=x", "name=["])
def test_a_broken_override_is_refused(sweep_file: Path, override: str) -> None:
    """`--set` names itself when it cannot be applied."""
    with pytest.raises(ValueError, match="--set"):
        load_sweep(sweep_file, [override])


def test_an_override_is_yaml_and_comes_before_validation(sweep_file: Path) -> None:
    """`--set a.b=v` replaces or adds a value, whatever its type, before anything is judged."""
    config = load_sweep(sweep_file, ["methods.lora.rank={choices: [1, 4]}", "resources.cpus_per_trial=2", "name=eve"])
    assert config.methods["lora"]["rank"] == Choices(choices=(1, 4))
    assert config.resources.cpus_per_trial == 2
    assert config.name == "eve"


def test_scientific_notation_is_a_number(sweep_file: Path) -> None:
    """`1e-6` is a number in a list too, where PyYAML alone would leave text."""
    config = load_sweep(sweep_file)
    assert config.methods["dreambooth"]["learning_rate"] == Choices(choices=(1e-6, 5e-6))
    assert config.methods["lora"]["learning_rate"] == Range(low=3e-5, high=1e-3, log=True)


def test_paths_are_taken_from_the_files_folder_and_names_stay(sweep_file: Path) -> None:
    """A relative path is relative to the sweep file; a hub id or an encoder's name is left alone."""
    folder = sweep_file.parent
    (folder / "weights").mkdir()
    (folder / "clip.pt").touch()
    config = load_sweep(sweep_file, ["evaluation.face.encoder=weights", "evaluation.clip.pretrained=clip.pt"])
    assert config.subject.photos == folder / "photos/ada"
    assert config.base_model == "owner/model"
    assert config.evaluation.face.encoder == str(folder / "weights")
    assert config.evaluation.clip.pretrained == str(folder / "clip.pt")
    assert config.render is not None
    assert config.render.references == [folder / "controls/mona_lisa.jpg"]
    assert config.render.controlnet == "lllyasviel/sd-controlnet-canny"
    local = load_sweep(sweep_file, ["base_model=./m.safetensors", "evaluation.clip.model='local-dir:../clip'"])
    assert local.base_model == str(folder / "m.safetensors")
    assert local.evaluation.clip.model == f"local-dir:{folder.parent / 'clip'}"


def test_the_resolved_file_reads_back_as_the_same_sweep(sweep_file: Path, tmp_path: Path) -> None:
    """What a run folder's sweep.yaml says is the sweep, with the versions it ran with."""
    config = load_sweep(sweep_file, ["evaluation.clip.pretrained=null", "evaluation.clip.model='local-dir:clip'"])
    resolved = tmp_path / "elsewhere" / "sweep.yaml"
    resolved.parent.mkdir()
    resolved.write_text(resolved_yaml(config))
    assert load_sweep(resolved) == config
    assert "ray" in yaml.safe_load(resolved.read_text())["versions"]


def test_an_empty_section_is_its_defaults(sweep_file: Path) -> None:
    """`lora:` with nothing below it is a LoRA with all defaults, `render:` no renders."""
    config = load_sweep(sweep_file, ["methods.lora=", "render=", "search="])
    assert config.methods["lora"] == {}
    assert config.render is None
    assert config.search.sampler == "tpe"


def test_a_sweep_is_frozen() -> None:
    """A config that was validated stays what was validated."""
    config = parse_sweep(yaml.safe_load(SWEEP.replace("1e-3", "1.0e-3").replace("3e-5", "3.0e-5")))
    assert isinstance(config, SweepConfig)
    with pytest.raises(ValueError, match="frozen"):
        config.name = "eve"


def test_class_images_are_made_for_the_trial_that_wants_most(sweep_file: Path) -> None:
    """One set serves all trials; without prior preservation anywhere there is none."""
    assert class_images_needed(load_sweep(sweep_file)) == 100
    more = "methods.dreambooth.num_class_images={choices: [50, 200]}"
    assert class_images_needed(load_sweep(sweep_file, [more])) == 200
    assert class_images_needed(load_sweep(sweep_file, ["methods.dreambooth.with_prior_preservation=false"])) == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("2026-11-25", "2026-11-25"),
        ("1e-4", 1e-4),
        ("1_000", 1000),
        ("010", 10),
        ("0o17", 15),
        ("true", True),
        ("", None),
        ("0x1f", 31),
        (".5", 0.5),
    ],
)
def test_a_word_is_a_word_in_the_file_and_on_the_command_line(text: str, value: object) -> None:
    """YAML 1.1 reads `no` as false, `12:30` as 750, `010` as 8 and a date as no text; here all mean what they say."""
    read = yaml.load(f"a: {text}\nb: [{text}]" if text else "a:\nb: [null]", Loader=_StrictLoader)  # noqa: S506
    assert read == {"a": value, "b": [value]}
    raw: dict[str, Any] = {}
    _apply_override(raw, f"c={text}")
    assert raw == {"c": value}


def test_mixed_precision_no_is_the_field_s_own_word(tmp_path: Path) -> None:
    """As a value, as a choice and by --set; `yes` and `on` still switch a switch on."""
    file = tmp_path / "ada.yaml"
    file.write_text(SWEEP.replace("max_train_steps: 800", "mixed_precision: no\n    with_prior_preservation: no"))
    lora = load_sweep(file).methods["lora"]
    assert (lora["mixed_precision"], lora["with_prior_preservation"]) == ("no", False)
    choices = load_sweep(file, ["methods.lora.mixed_precision={choices: [no, bf16]}"]).methods["lora"]
    assert choices["mixed_precision"] == Choices(choices=("no", "bf16"))
    assert load_sweep(file, ["methods.lora.train_text_encoder=on"]).methods["lora"]["train_text_encoder"] is True


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1))
@example("1e5")
@example("0o17")
@example("no")
@example("1_000")
@example("2026-11-25")
def test_any_text_comes_back_from_the_resolved_file(text: str) -> None:
    """What one YAML would read as a number and another as a word is quoted."""
    dumped = yaml.dump({"a": text}, Dumper=_QuotingDumper, allow_unicode=True)
    assert yaml.load(dumped, Loader=_StrictLoader) == {"a": text}  # noqa: S506
    assert yaml.safe_load(dumped) == {"a": text}, "nor does another reader's YAML read it otherwise"


def test_faces_weigh_only_where_they_are_looked_for(tmp_path: Path) -> None:
    """A weight of the face needs a crop around it; 1 is none."""
    subject = {"photos": "photos", "instance_prompt": "a photo of sks woman", "crop": "center"}
    raw = {
        "name": "ada",
        "base_model": "owner/model",
        "subject": subject,
        "methods": {"lora": {"face_loss_weight": {"choices": [1, 3]}}},
        "evaluation": {"prompts": ["sks woman"], "at_steps": [10]},
    }
    with pytest.raises(ValueError, match=r"methods\.lora\.face_loss_weight: needs subject\.crop: face"):
        SweepConfig.model_validate(raw)
    SweepConfig.model_validate({**raw, "methods": {"lora": {"face_loss_weight": 1}}})
    SweepConfig.model_validate({**raw, "subject": {**subject, "crop": "face"}})


def test_class_images_are_needed_only_by_those_who_hold_on_to_them() -> None:
    """The base model as teacher needs none; where both are open, the pictures are drawn."""

    def needed(**space: object) -> int:
        raw = {
            "name": "ada",
            "base_model": "owner/model",
            "subject": {"photos": "p", "instance_prompt": "a photo of sks woman", "class_prompt": "a photo of a woman"},
            "methods": {"lora": {"with_prior_preservation": True, "num_class_images": 30, **space}},
            "evaluation": {"prompts": ["sks woman"], "at_steps": [10]},
        }
        return class_images_needed(SweepConfig.model_validate(raw))

    assert needed() == 30
    assert needed(prior_from="base_model") == 0
    assert needed(prior_from={"choices": ["base_model", "class_images"]}) == 30
    assert needed(with_prior_preservation=False) == 0


def test_what_is_said_of_the_base_model_is_part_of_its_name() -> None:
    """By which everything that loads it knows it."""
    raw = {
        "name": "ada",
        "base_model": "owner/model",
        "subject": {"photos": "p", "instance_prompt": "a photo of sks woman"},
        "methods": {"lora": {}},
        "evaluation": {"prompts": ["sks woman"], "at_steps": [10]},
    }
    assert SweepConfig.model_validate(raw).base == "owner/model"
    full = SweepConfig.model_validate({**raw, "revision": "v1/2", "variant": "fp16", "clip_skip": 2})
    assert full.base == "owner/model?revision=v1%2F2&variant=fp16&clip_skip=2"
    for wrong in ({"revision": "a b"}, {"variant": "fp16?x"}, {"clip_skip": 0}, {"clip_skip": 13}):
        with pytest.raises(ValidationError):
            SweepConfig.model_validate({**raw, **wrong})
