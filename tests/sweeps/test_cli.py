"""Laws of the command line, called in this process: exit codes, messages, and the contract of `show --json`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from sweeps.config import load_sweep
from sweeps.space import Choices
from tests.sweeps.command import Command, Outcome
from tests.sweeps.fake_run import build_run

DEMO = Path(__file__).parents[2] / "examples" / "demo"


@pytest.fixture
def sweep(tmp_path: Path, tiny_base: str, tiny_clip: str, photos: Path) -> dict[str, Any]:
    """A sweep that passes its check, as plain values; its photos may be spoilt by the test."""
    shutil.copytree(photos, tmp_path / "photos")
    return {
        "name": "ada",
        "base_model": tiny_base,
        "subject": {"photos": "photos", "instance_prompt": "a photo of sks woman", "resolution": 64},
        "methods": {"lora": {"rank": {"choices": [2, 4]}, "learning_rate": 1e-4, "max_train_steps": 8}},
        "search": {"sampler": "grid"},
        "evaluation": {
            "prompts": ["sks woman in a garden"],
            "at_steps": [4, 8],
            "face": {"encoder": "dlib"},
            "clip": {"model": tiny_clip, "pretrained": None},
        },
    }


def write(sweep: dict[str, Any], folder: Path) -> Path:
    path = folder / "ada.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def test_a_sound_sweep_passes_its_check(dreamsweep: Command, sweep: dict[str, Any], tmp_path: Path) -> None:
    """The sweep that the cases below spoil is sound, and `check` says how large it is."""
    outcome = dreamsweep("check", write(sweep, tmp_path))
    assert outcome.code == 0, outcome.err
    assert "trials    2" in outcome.out
    assert "16 training steps" in outcome.out


# What is set where, and what the message must name: the place and the value or law.
MALFORMED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown section": ({"evalution": {}}, ["evalution", "evaluation"]),
    "unknown setting": ({"methods.lora.rnk": 4}, ["methods.lora.rnk", "rank"]),
    "unknown method": ({"methods.lokr": {"rank": 4}}, ["methods.lokr", "lora"]),
    "rank of nothing": ({"methods.lora.rank": 0}, ["methods.lora.rank", "0"]),
    "one bad choice": ({"methods.lora.rank": {"choices": [4, 0]}}, ["methods.lora.rank", "0"]),
    "text for a number": ({"methods.lora.learning_rate": "fast"}, ["methods.lora.learning_rate", "fast"]),
    "logarithm of zero": (
        {"methods.lora.learning_rate": {"low": 0, "high": 1e-3, "log": True}, "search.sampler": "random"},
        ["methods.lora.learning_rate"],
    ),
    "empty range": (
        {"methods.lora.learning_rate": {"low": 1e-3, "high": 1e-4}, "search.sampler": "random"},
        ["methods.lora.learning_rate", "0.001"],
    ),
    "a whole number beyond any float": (
        {"methods.lora.rank": {"low": 1, "high": 10**400}, "search.sampler": "random"},
        ["methods.lora.rank", "finite"],
    ),
    "a path that is too long": ({"subject.photos": "x" * 9000}, ["subject.photos", "must be a path"]),
    "grid over a range": ({"methods.lora.learning_rate": {"low": 1e-5, "high": 1e-4}}, ["learning_rate", "grid"]),
    "name that escapes": ({"name": "../../escape"}, ["name", "../../escape"]),
    "no scoring point": ({"evaluation.at_steps": []}, ["evaluation.at_steps"]),
    "unreachable scoring point": ({"evaluation.at_steps": [4, 900]}, ["evaluation.at_steps", "900"]),
    "prior without a class": (
        {"methods.lora.with_prior_preservation": True},
        ["with_prior_preservation", "class_prompt"],
    ),
    "unknown sampler": ({"search.sampler": "bayes"}, ["search.sampler", "bayes"]),
    "one and a half GPUs": ({"resources.gpus_per_trial": 1.5}, ["resources.gpus_per_trial", "1.5"]),
    "pickled base model": ({"base_model": "model.ckpt"}, ["base_model", "model.ckpt", "safetensors"]),
    "absent base model": ({"base_model": "./nowhere"}, ["base_model", "nowhere"]),
    "absent photos": ({"subject.photos": "nowhere"}, ["photos", "nowhere"]),
    "absent face encoder": ({"evaluation.face.encoder": "./weights.safetensors"}, ["weights.safetensors"]),
    "unknown CLIP model": ({"evaluation.clip": {"model": "ViT-Z", "pretrained": "openai"}}, ["ViT-Z"]),
    "CLIP without weights": ({"evaluation.clip": {"model": "ViT-B-32", "pretrained": None}}, ["ViT-B-32"]),
    "absent reference": ({"render.references": ["mona.jpg"]}, ["mona.jpg"]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_sweep_is_refused_in_words(
    dreamsweep: Command, sweep: dict[str, Any], tmp_path: Path, case: str
) -> None:
    """Exit 2, one or two lines that name the place and the value, no traceback, and nothing written."""
    changes, named = MALFORMED[case]
    for place, value in changes.items():
        *sections, key = place.split(".")
        section = sweep
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    outcome = dreamsweep("run", write(sweep, tmp_path), "--out", tmp_path / "runs")
    assert_refused(outcome, named)
    assert not (tmp_path / "runs").exists()


TEXTS = {
    "no YAML": ("name: [ada\n", ["ada.yaml", "line"]),
    "no mapping": ("- name\n- ada\n", ["ada.yaml", "mapping"]),
    "a key twice": ("name: ada\nname: bob\n", ["ada.yaml", "name", "line 2"]),
    "an empty file": ("", ["ada.yaml"]),
    "a tag": ("name: !!timestamp x\n", ["ada.yaml", "tag timestamp", "line 1"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_file_that_is_no_sweep_is_refused_in_words(dreamsweep: Command, tmp_path: Path, case: str) -> None:
    """The message names the file and what is wrong with it."""
    text, named = TEXTS[case]
    path = tmp_path / "ada.yaml"
    path.write_text(text)
    assert_refused(dreamsweep("check", path), named)


def _break(folder: Path) -> None:
    photo = folder / "photo_0.jpg"
    photo.write_bytes(photo.read_bytes()[:400])


def _repeat(folder: Path) -> None:
    with Image.open(folder / "photo_1.png") as image:
        image.save(folder / "again.png")


def _thin_out(folder: Path) -> None:
    for photo in sorted(folder.iterdir())[2:]:
        photo.unlink()


def _pretend(folder: Path) -> None:
    (folder / "letter.jpg").write_text("Dear Ada")


def _shrink(folder: Path) -> None:
    Image.new("RGB", (3, 3)).save(folder / "dot.png")


def _blow_up(folder: Path) -> None:
    Image.new("1", (12_000, 12_000)).save(folder / "poster.png")


SPOILT_PHOTOS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "a broken photo": (_break, ["photo_0.jpg"]),
    "two copies of a photo": (_repeat, ["photo_1.png", "again.png"]),
    "too few photos": (_thin_out, ["photos", "2"]),
    "a letter called jpg": (_pretend, ["letter.jpg"]),
    "a tiny photo": (_shrink, ["dot.png", "3x3"]),
    "an enormous photo": (_blow_up, ["poster.png"]),
    "no photo at all": (lambda folder: [path.unlink() for path in folder.iterdir()] and None, ["photos"]),
}


@pytest.mark.parametrize("case", SPOILT_PHOTOS)
def test_a_bad_photo_is_refused_by_name(dreamsweep: Command, sweep: dict[str, Any], tmp_path: Path, case: str) -> None:
    """Exit 2 before anything starts; the message names the file."""
    spoil, named = SPOILT_PHOTOS[case]
    spoil(tmp_path / "photos")
    assert_refused(dreamsweep("run", write(sweep, tmp_path), "--out", tmp_path / "runs"), named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["show", "nowhere"], ["nowhere"]),
        (["report", "nowhere"], ["nowhere"]),
        (["export", "nowhere", "dest"], ["nowhere"]),
        (["render", "nowhere"], ["nowhere"]),
        (["score", "nowhere", "--photos", "nowhere", "--face", "dlib"], ["nowhere"]),
        (["check", "nowhere.yaml"], ["nowhere.yaml"]),
        (["check", "nowhere.yaml", "--set", "rank"], ["nowhere.yaml"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_is_not_there_is_named(
    dreamsweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: list[str]
) -> None:
    """Every verb refuses a path that does not exist, by its name."""
    monkeypatch.chdir(tmp_path)
    assert_refused(dreamsweep(*arguments), named)


def assert_refused(outcome: Outcome, named: list[str]) -> None:
    assert outcome.code == 2, outcome
    assert 1 <= len(outcome.err.strip().splitlines()) <= 2, outcome.err
    assert "Traceback" not in outcome.err
    assert [name for name in named if name not in outcome.err] == [], outcome.err


CONTRACT = {
    "trial",
    "method",
    "rank",
    "learning_rate",
    "step",
    "seed",
    "status",
    "face_similarity",
    "prompt_alignment",
    "num_images",
    "num_faces",
    "checkpoint",
}


def test_show_prints_the_contract(dreamsweep: Command, tmp_path: Path) -> None:
    """`show --json` is a list, best first, an object per scored checkpoint, the base model with nulls."""
    run = build_run(tmp_path / "ada", num_trials=4)
    outcome = dreamsweep("show", run, "--json")
    assert outcome.code == 0
    rows = json.loads(outcome.out)
    assert all(row.keys() >= CONTRACT for row in rows)
    assert len(rows) == 4 * 3 + 1
    (base,) = [row for row in rows if row["method"] == "base"]
    assert (base["step"], base["rank"], base["learning_rate"], base["checkpoint"]) == (0, None, None, None)
    assert all((run / row["checkpoint"]).is_relative_to(run) for row in rows if row["checkpoint"])
    assert {row["method"] for row in rows if row["rank"] is None} == {"base", "dreambooth"}


def test_show_names_the_champion_with_its_rule(dreamsweep: Command, tmp_path: Path) -> None:
    """Wherever a champion is named, the rule stands beside it."""
    outcome = dreamsweep("show", build_run(tmp_path / "ada", num_trials=4), "--top", 3)
    assert outcome.code == 0
    assert "champion: " in outcome.out
    assert "rule: the highest face similarity among checkpoints whose prompt alignment" in outcome.out


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["homework", "quick", "large", "demo/sweep", "demo/homework"])
def test_the_examples_pass_their_check(dreamsweep: Command, name: str) -> None:
    """A sweep file that people copy is sound as it stands."""
    outcome = dreamsweep("check", EXAMPLES / f"{name}.yaml")
    assert outcome.code == 0, outcome.err
    assert "trials" in outcome.out


def test_the_reference_experiment_is_field_by_field() -> None:
    """`examples/homework.yaml` asks for the two trainings of the original, and for the ranks beside."""
    methods = load_sweep(EXAMPLES / "homework.yaml").methods
    assert methods["lora"] == {
        "rank": Choices(choices=[2, 4, 16, 128, 256]),
        "learning_rate": 1e-4,
        "max_train_steps": 500,
        "train_batch_size": 1,
    }
    assert methods["dreambooth"] == {
        "learning_rate": 2e-6,
        "max_train_steps": 800,
        "train_batch_size": 1,
        "train_text_encoder": True,
        "with_prior_preservation": True,
        "prior_loss_weight": 1.0,
        "num_class_images": 500,
        "use_8bit_adam": True,
    }


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({}, 0, ""),
        ({"status": "failed", "fault": "machine", "reason": "RuntimeError: no kernel"}, 1, "RuntimeError: no kernel"),
        ({"status": "failed", "fault": "trial", "reason": "ran away"}, 0, ""),
    ],
    ids=["whole", "lost to a machine", "failed by its settings"],
)
def test_a_run_that_lost_trials_has_not_done_its_work(
    change: dict[str, str], code: int, said: str, dreamsweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 0 means that all the sweep file asks for is there; what the settings themselves made fail is an answer."""
    run = build_run(tmp_path / "ada", num_trials=4)
    entry = next(file for file in sorted(run.glob("trials/*/trial.json")) if file.parent.name != "base")
    entry.write_text(json.dumps({**json.loads(entry.read_text()), **change}))
    monkeypatch.setattr("sweeps.execution.run.run_sweep", lambda *_, **__: run)
    ended = dreamsweep("run", run / "sweep.yaml")
    assert ended.code == code
    assert said in ended.err


def test_renders_that_are_missing_are_no_success(
    dreamsweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The late stage may fail and leave the scores as good as they are; the run says so and ends with 1."""
    run = build_run(tmp_path / "ada", num_trials=4, with_renders=False)
    reference = tmp_path / "mona.png"
    Image.new("RGB", (64, 64)).save(reference)
    settings = yaml.safe_load((run / "sweep.yaml").read_text())
    (run / "sweep.yaml").write_text(yaml.safe_dump({**settings, "render": {"references": [str(reference)]}}))
    monkeypatch.setattr("sweeps.execution.run.run_sweep", lambda *_, **__: run)
    ended = dreamsweep("run", run / "sweep.yaml")
    assert ended.code == 1
    assert "dreamsweep render" in ended.err


def test_a_failure_of_the_program_keeps_its_traceback(
    dreamsweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `ValueError` out of a library is not the user's mistake: exit 1, one line, and the whole of it in a file."""

    def broken(*_: object, **__: object) -> Path:
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr("sweeps.execution.run.run_sweep", broken)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    ended = dreamsweep("run", build_run(tmp_path / "ada", num_trials=1) / "sweep.yaml")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    (kept,) = tmp_path.glob("dreamsweep-*.traceback.txt")
    assert str(kept) in ended.err
    assert "Traceback" in kept.read_text()
    assert "operands" in kept.read_text()


NAMES = [
    "ada [final].png",
    "ada [b].png",
    "[2].png",
    "[bold red]x.png",
    "long " * 40 + "1.png",
    "long " * 40 + "2.png",
]


def test_scored_files_are_shown_by_their_whole_names(dreamsweep: Command, photos: Path, tmp_path: Path) -> None:
    """Brackets are no markup, and a long name is not cut to another's; what has no shape is escaped."""
    images = tmp_path / "images"
    images.mkdir()
    for name in [*NAMES, "line\nend.png", "esc\x1b[31m.png", "caf\udce9.png"]:
        shutil.copy(photos / "photo_1.png", images / name)
    (images / "notes [1].pdf").write_bytes(b"%PDF")
    face = DEMO / "family" / "face_encoder"
    outcome = dreamsweep("score", images, "--photos", DEMO / "photos", "--face", face)
    assert outcome.code == 0, outcome.err
    for name in [*NAMES, r"line\nend.png", r"esc\x1b[31m.png", r"caf\xe9.png"]:
        assert f" {name} " in outcome.out
    assert "notes [1].pdf" in outcome.err
    said = json.loads(dreamsweep("score", images, "--photos", DEMO / "photos", "--face", face, "--json").out)
    assert {image["file"] for image in said["images"]} == {*NAMES, "line\nend.png", "esc\x1b[31m.png", r"caf\xe9.png"}
    assert said["passed_over"] == ["notes [1].pdf"]


def test_a_name_in_a_refusal_is_on_one_line(dreamsweep: Command, tmp_path: Path) -> None:
    """Whatever bytes it has."""
    for name in ("a\nb [x].png", "caf\udce9.png"):
        folder = tmp_path / name.replace(".png", "")
        folder.mkdir()
        (folder / name).write_bytes(b"words")
        outcome = dreamsweep("score", folder, "--photos", DEMO / "photos", "--face", DEMO / "family" / "face_encoder")
        assert outcome.code == 2
        assert len(outcome.err.splitlines()) == 1
        assert r"a\nb [x].png" in outcome.err or r"caf\xe9.png" in outcome.err


def test_check_names_what_is_passed_over_and_finds_faces_when_asked(
    dreamsweep: Command, sweep: dict[str, Any], tmp_path: Path
) -> None:
    """A subfolder that is not kohya's, an animation; with --faces the photos without a face."""
    photos = tmp_path / "photos"
    (photos / "crops").mkdir()
    shutil.copy(photos / "photo_1.png", photos / "crops" / "c.png")
    frames = [Image.effect_noise((90, 90), spread).convert("RGB") for spread in (40, 90)]
    frames[0].save(photos / "film.gif", save_all=True, append_images=frames[1:])
    sweep["evaluation"]["face"] = {"encoder": str(DEMO / "family" / "face_encoder")}
    outcome = dreamsweep("check", write(sweep, tmp_path))
    assert outcome.code == 0, outcome.err
    assert "crops/ (1 picture)" in outcome.err
    assert "of which the first counts: film.gif" in outcome.err
    assert "check --faces" in outcome.out
    sweep["evaluation"]["face"]["references"] = str(DEMO / "photos")
    outcome = dreamsweep("check", write(sweep, tmp_path), "--faces")
    assert outcome.code == 0, outcome.err
    assert "photos without a face, cut around their middle instead: " in outcome.err
    assert "film.gif" in outcome.err.splitlines()[-1]


def test_check_names_photos_that_teach_little(dreamsweep: Command, sweep: dict[str, Any], tmp_path: Path) -> None:
    """Near duplicates by both names, on standard error, and the sweep passes all the same."""
    folder = tmp_path / "photos"
    image = Image.open(folder / "photo_1.png").convert("RGB")
    image.crop((1, 1, *image.size)).resize(image.size).point(lambda level: level * 0.9).save(
        folder / "photo_1 again.png"
    )
    outcome = dreamsweep("check", write(sweep, tmp_path))
    assert outcome.code == 0, outcome.err
    assert "show nearly the same" in outcome.err
    assert "photo_1 again.png and photo_1.png" in outcome.err


def test_a_table_of_thousands_is_cut_and_says_so(
    dreamsweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it was given a length; the zero line stays, JSON has every row."""
    run_dir = build_run(tmp_path, num_trials=8, num_failed=3, images_per_prompt=1, size=8)
    whole = dreamsweep("show", run_dir).out
    assert "best of" not in whole
    monkeypatch.setattr("sweeps.cli.MAX_ROWS", 2)
    cut = dreamsweep("show", run_dir).out
    rows = json.loads(dreamsweep("show", run_dir, "--json").out)
    assert f"the 2 best of {len(rows)}; --top N shows N, --json all" in cut
    assert sum("dreambooth" in line or "lora" in line for line in cut.partition("the 2 best")[0].splitlines()) == 2
    assert " base " in cut
    assert "and 1 more failed" in cut
    longer = dreamsweep("show", run_dir, "--top", 5).out
    assert sum("finished" in line or "stopped" in line for line in longer.splitlines()) == 5
