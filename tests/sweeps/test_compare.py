"""Laws of models from elsewhere on the command line: scored as trials are, refused by name, written whole. A minute."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluation.face_encoders import load_face_encoder
from evaluation.references import embed_references
from evaluation.scores import ImageScore, Score
from sweeps.compare import _ranked, _rule
from sweeps.config import SweepConfig
from sweeps.execution.scoring import make_pictures, score_pictures
from sweeps.execution.task import Scoring
from sweeps.export.layouts import kohya_layout
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import ScoredCheckpoint
from sweeps.outputs import check_output, whole_output
from tests.sweeps.command import Command, Outcome
from training.checkpoint import Checkpoint, load_pipeline, save_checkpoint
from training.config import DreamBoothConfig, LoraConfig
from training.elsewhere import model_names, open_model
from training.errors import UserError
from training.layout import LORA_FILE
from training.methods import copy_for_training
from training.pictures import find_photos

PROMPTS = ["sks woman in a garden", "a drawing of sks woman"]


@pytest.fixture(scope="module")
def sweep(tiny_sweep: Callable[..., SweepConfig], tiny_mapping: dict[str, Any]) -> SweepConfig:
    evaluation = {**tiny_mapping["evaluation"], "prompts": PROMPTS, "seed": 5}
    return tiny_sweep(evaluation=evaluation)


def trained(folder: Path, config: LoraConfig | DreamBoothConfig, base_model: str) -> Checkpoint:
    """A checkpoint as training writes it, moved away from the base model without training."""
    modules = copy_for_training(config, base_model, torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return save_checkpoint(folder, config, modules, 4, base_model, {})


@pytest.fixture(scope="module")
def run(sweep: SweepConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run folder that knows its reference photos."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    folder.dataset_dir.mkdir(parents=True)
    encoder = load_face_encoder(sweep.evaluation.face.encoder, "cpu")
    embed_references(find_photos(sweep.subject.photos), encoder).save(folder.reference_file)
    return folder


@pytest.fixture(scope="module")
def checkpoint(run: RunFolder, tiny_base: str) -> Checkpoint:
    config = LoraConfig(rank=3, lora_alpha=5, learning_rate=1e-3, train_text_encoder=True, seed=1)
    return trained(run.trial_dir("lora"), config, tiny_base)


@pytest.fixture(scope="module")
def trial_score(run: RunFolder, sweep: SweepConfig, checkpoint: Checkpoint) -> ScoredCheckpoint:
    """What a trial of the sweep gets for this checkpoint."""
    make_pictures(Scoring.of(sweep), run, "lora", checkpoint, "cpu")
    return score_pictures(Scoring.of(sweep), run, "lora", checkpoint, "cpu")


@pytest.fixture
def options(sweep: SweepConfig, tiny_base: str, tiny_clip: str, tmp_path: Path) -> list[object]:
    """Those by which a model is asked for what the sweep's trials are."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n\n".join(PROMPTS))
    evaluation = sweep.evaluation
    judged = ["--photos", sweep.subject.photos, "--prompts", prompts, "--face", evaluation.face.encoder]
    sampled = ["--seed", 5, "--images-per-prompt", 2, "--num-inference-steps", 2]
    return ["--base-model", tiny_base, *judged, "--clip", tiny_clip, *sampled]


def exported(kind: str, checkpoint: Checkpoint, folder: Path) -> list[object]:
    if kind == "lora":
        shutil.copy(checkpoint.dir / LORA_FILE, folder / "ada.safetensors")
    elif kind == "kohya":
        pipeline = load_pipeline(checkpoint, checkpoint.base_model, device="cpu", dtype=torch.float32)
        save_file(kohya_layout(pipeline), folder / "ada.safetensors")
    else:
        return ["--checkpoint", checkpoint.dir]
    return ["--lora", folder / "ada.safetensors"]


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


@pytest.mark.parametrize("kind", ["lora", "kohya", "checkpoint"])
def test_an_exported_lora_has_its_trial_s_score_and_pictures(
    dreamsweep: Command,
    run: RunFolder,
    checkpoint: Checkpoint,
    trial_score: ScoredCheckpoint,
    options: list[object],
    tmp_path: Path,
    kind: str,
) -> None:
    """In either spelling, and as the trial's own folder: every bit, where the settings are the sweep's."""
    out = tmp_path / "pictures"
    outcome = dreamsweep("score", *exported(kind, checkpoint, tmp_path), *options, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    said = json.loads(outcome.out)
    assert said["face_similarity"] == trial_score.face_similarity
    assert said["prompt_alignment"] == trial_score.prompt_alignment
    assert said["kind"] == "lora"
    there = run.images_dir("lora", 4)
    assert len(said["images"]) == len(list(there.iterdir())) == 4
    for image in said["images"]:
        assert np.array_equal(pixels(out / image["file"]), pixels(there / image["file"]))


def test_a_score_says_whose_it_is(dreamsweep: Command, checkpoint: Checkpoint, options: list[object]) -> None:
    """The contract's keys and further ones; without --out no picture is kept."""
    outcome = dreamsweep("score", "--lora", checkpoint.dir / LORA_FILE, *options, "--json")
    said = json.loads(outcome.out)
    assert {"face_similarity", "prompt_alignment", "num_images", "num_faces", "face_encoder", "images"} <= said.keys()
    assert (said["model"], said["ranks"], said["alphas"]) == (f"checkpoint-4/{Path(LORA_FILE).stem}", [3], [5.0])
    assert said["prompts"] == PROMPTS
    assert said["images_dir"] is None
    other = json.loads(dreamsweep("score", *options, "--rare-token", "sks woman", "--json").out)
    assert other["prompt_alignment"] != json.loads(dreamsweep("score", *options, "--json").out)["prompt_alignment"]
    text = dreamsweep("score", *options)
    assert text.code == 0, text.err
    assert "face similarity" in text.out


@pytest.fixture(scope="module")
def full(run: RunFolder, tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole fine-tune as a diffusers folder."""
    config = DreamBoothConfig(learning_rate=1e-6)
    checkpoint = trained(tmp_path_factory.mktemp("full"), config, tiny_base)
    folder = tmp_path_factory.mktemp("models") / "ada-full"
    load_pipeline(checkpoint, tiny_base, device="cpu", dtype=torch.float32).save_pretrained(str(folder))
    return folder


def test_models_stand_in_one_table_with_the_base_model(
    dreamsweep: Command, checkpoint: Checkpoint, full: Path, options: list[object], tmp_path: Path
) -> None:
    """Best first; each has the score that it has alone; the sheet has a column a model and a row a prompt."""
    out = tmp_path / "comparison"
    lora = shutil.copy(checkpoint.dir / LORA_FILE, tmp_path / "ada [1].safetensors")
    outcome = dreamsweep("compare", lora, full, *options, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    said = json.loads(outcome.out)
    rows = {row["name"]: row for row in said["models"]}
    assert rows.keys() == {"ada [1]", "ada-full", "base model"}
    assert {row["kind"] for row in rows.values()} == {"lora", "checkpoint", "base"}
    order = [(not row["follows_prompts"], -row["face_similarity"]) for row in said["models"]]
    assert [each[0] for each in order] == sorted(each[0] for each in order)
    assert [each for each in order if not each[0]] == sorted(each for each in order if not each[0])
    for arguments, name in ((["--lora", lora], "ada [1]"), (["--checkpoint", full], "ada-full"), ([], "base model")):
        alone = json.loads(dreamsweep("score", *arguments, *options, "--json").out)
        assert alone["images"] == rows[name]["images"]
        assert alone["face_similarity"] == rows[name]["face_similarity"]
    leader, *others = said["models"]
    assert leader["lead"] is None
    for row in others:
        assert row["lead"] == pytest.approx(leader["face_similarity"] - row["face_similarity"])
        assert row["lead_verdict"] == "unknown", "four pictures tell no difference"
    with Image.open(said["sheet"]) as sheet:
        assert sheet.width > 3 * 256
        assert sheet.height > 2 * 256
    index = json.loads((out / "comparison.json").read_text())
    assert index["models"] == said["models"]
    assert sorted(index["files"]) == sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*.png") if path.is_file()
    )
    again = dreamsweep("compare", lora, *options, "--out", out)
    assert again.code == 0, again.err
    assert "ada [1]" in again.out
    assert "LoRA of rank 3" in again.out
    assert f"sheet     {out}/sheet.png" in again.out
    assert len([path for path in out.iterdir() if path.is_dir()]) == 2, "the earlier comparison is gone"


def made_score(faces: list[float], alignment: float) -> Score:
    images = tuple(
        ImageScore(file=f"{i:03d}-0.png", face_similarity=face, prompt_alignment=alignment, num_faces=1)
        for i, face in enumerate(faces)
    )
    mean = sum(faces) / len(faces)
    return Score(
        face_similarity=mean,
        prompt_alignment=alignment,
        num_images=len(images),
        num_faces=len(images),
        face_encoder="e",
        images=images,
    )


def test_the_champion_s_rule_orders_the_table_and_prompts_are_the_unit() -> None:
    """A likeness that has lost its prompts stands last; a difference is told over prompts, or called a tie."""
    steady = [0.5 + 0.01 * (i % 3) for i in range(12)]
    base = made_score([0.1] * 12, 0.30)
    scored = [
        ("base model", None, base, "0"),
        ("lost", None, made_score([0.9] * 12, 0.20), "1"),
        ("good", None, made_score(steady, 0.29), "2"),
        ("as good", None, made_score([face + (0.05 if i % 2 else -0.06) for i, face in enumerate(steady)], 0.30), "3"),
    ]
    rows = _ranked(scored, _rule(base))
    assert [row.name for row in rows] == ["good", "as good", "base model", "lost"]
    leads = {row.name: row.lead for row in rows}
    assert leads["good"] is None
    assert [row.follows_prompts for row in rows] == [True, True, True, False]
    assert leads["as good"] is not None
    assert leads["as good"].verdict == "tie"
    assert leads["base model"] is not None
    assert leads["base model"].verdict == "higher"
    assert leads["base model"].interval is not None
    assert leads["base model"].interval.sources == ("noise", "prompts")


def test_a_model_is_rendered_beside_its_base_model(
    dreamsweep: Command, checkpoint: Checkpoint, tiny_base: str, tiny_controlnet: str, photos: Path, tmp_path: Path
) -> None:
    """The same outlines and noise, other weights; the folder can be written again."""
    out = tmp_path / "renders"
    reference = ["--reference", photos / "photo_1.png", "--prompt", "sks woman", "--controlnet", tiny_controlnet]
    sampled = ["--resolution", 64, "--num-inference-steps", 2, "--out", out]
    lora = ["--lora", checkpoint.dir, "--base-model", tiny_base]
    for _ in range(2):
        outcome = dreamsweep("render", *lora, *reference, *sampled)
        assert outcome.code == 0, outcome.err
    assert outcome.out == f"sheet     {out}/sheet.png\n"
    assert not np.array_equal(pixels(out / "base" / "photo_1.png"), pixels(out / "model" / "photo_1.png"))


def refuse(outcome: Outcome, named: list[str]) -> None:
    assert outcome.code == 2, outcome
    assert 1 <= len(outcome.err.strip().splitlines()) <= 2, outcome.err
    assert [name for name in named if name not in outcome.err] == [], outcome.err


def test_what_cannot_be_scored_is_refused_before_anything_is_made(
    dreamsweep: Command, checkpoint: Checkpoint, options: list[object], tmp_path: Path
) -> None:
    """Exit 2 and the name of what is wrong; the folder to write stays as it was."""
    sound, out = checkpoint.dir, tmp_path / "out"
    other = tmp_path / "sdxl\x1b[31m.safetensors"
    save_file({"lora_te2_text_model_x.lora_down.weight": torch.ones(2, 2)}, other)
    (tmp_path / "a.pt").write_bytes(b"\x80")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    long = tmp_path / "long.txt"
    long.write_text("sks woman " * 80)
    cases: list[tuple[list[object], list[str]]] = [
        (["compare", sound, other, *options, "--out", out], ["sdxl\\x1b[31m", "Stable Diffusion XL", "lora_te2_"]),
        (["compare", tmp_path / "a.pt", *options, "--out", out], ["a.pt", "pickle"]),
        (["compare", tmp_path / "nowhere", *options, "--out", out], ["nowhere"]),
        (["compare", sound, *options, "--out", tmp_path / "taken"], ["mine.txt", "taken"]),
        (["compare", sound, *options, "--prompts", long, "--out", out], ["prompts: line 1"]),
        (["compare", sound, *options, "--width", 13, "--out", out], ["--width", "13", "8"]),
        (["compare", sound, *options, "--scheduler", "euler", "--out", out], ["--scheduler", "euler"]),
        (["score", tmp_path, "--lora", sound, *options], ["IMAGES and --lora"]),
        (["score", "--checkpoint", sound, "--lora", sound, *options], ["--lora and --checkpoint"]),
        (["score", "--photos", tmp_path], ["IMAGES", "--lora FILE", "--base-model"]),
        (["score", tmp_path, "--photos", tmp_path, "--seed", 1], ["--seed"]),
        (["score", "--lora", sound / LORA_FILE, "--photos", tmp_path, "--prompts", long], ["--base-model", LORA_FILE]),
        (["score", "--lora", sound, "--base-model", "b", "--photos", tmp_path], ["--prompts"]),
        (["render", tmp_path, "--prompt", "x"], ["--prompt"]),
        (["render", "--lora", sound, "--base-model", "b"], ["--prompt"]),
        (["render", "--lora", sound, "--base-model", "b", "--prompt", "x"], ["--reference"]),
        (["render", "--lora", sound, "--base-model", "b", "--top", 2], ["--top"]),
    ]
    for arguments, named in cases:
        refuse(dreamsweep(*arguments), named)
        assert not out.exists()
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine"


def test_a_lora_that_overflows_is_named(
    dreamsweep: Command, tiny_base: str, options: list[object], tmp_path: Path
) -> None:
    """Its pictures would be black and look like a result; what the others made is not kept as if it were all."""
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
    tensors = {
        f"{stem}.lora_down.weight": torch.full((2, 32), 3e38),
        f"{stem}.lora_up.weight": torch.full((32, 2), 3e38),
    }
    save_file(tensors, tmp_path / "wild.safetensors")
    refuse(
        dreamsweep("compare", tmp_path / "wild.safetensors", *options, "--out", tmp_path / "out"),
        ["wild.safetensors", "not finite"],
    )
    assert not (tmp_path / "out").exists()


def test_a_lora_that_nobody_calls_is_remarked_on(
    dreamsweep: Command, checkpoint: Checkpoint, options: list[object], tmp_path: Path
) -> None:
    """Its own words for its subject stand in the file."""
    pipeline = load_pipeline(checkpoint, checkpoint.base_model, device="cpu", dtype=torch.float32)
    for phrase, is_remarked in (("ohwx man", True), ("SKS woman", False)):
        metadata = {"modelspec.trigger_phrase": phrase}
        save_file(kohya_layout(pipeline), tmp_path / "ada.safetensors", metadata=metadata)
        outcome = dreamsweep("score", "--lora", tmp_path / "ada.safetensors", *options, "--json")
        assert outcome.code == 0, outcome.err
        assert (f"ada says that '{phrase}' calls it" in outcome.err) == is_remarked


def test_names_tell_models_apart(checkpoint: Checkpoint, tiny_base: str, tmp_path: Path) -> None:
    """By the folder where the file's own says nothing, by a number where all are alike."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in (LORA_FILE, "ada.safetensors"):
            shutil.copy(checkpoint.dir / LORA_FILE, tmp_path / folder / name)
    paths = [tmp_path / folder / name for name in (LORA_FILE, "ada.safetensors") for folder in ("a", "b")]
    stem = Path(LORA_FILE).stem
    assert model_names([open_model(path, tiny_base) for path in paths]) == [
        f"a/{stem}",
        f"b/{stem}",
        "ada",
        "ada (2)",
    ]


def test_an_output_folder_replaces_only_its_own(tmp_path: Path) -> None:
    """What it lists; anything else keeps it from being written, and a failure leaves it as it was."""
    out = tmp_path / "out"
    with whole_output(check_output(out, "index.json"), "index.json", {"a": 1}) as part:
        (part / "x.png").write_text("x")
    assert json.loads((out / "index.json").read_text()) == {"a": 1, "files": ["x.png"]}
    assert check_output(out, "index.json") == out
    with pytest.raises(ZeroDivisionError), whole_output(out, "index.json", {}):
        _ = 1 / 0
    assert (out / "x.png").exists()
    for spoilt in ('{"files": 3}', "[]", "no JSON"):
        (out / "index.json").write_text(spoilt)
        with pytest.raises(UserError, match="found"):
            check_output(out, "index.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="need a folder"):
        check_output(tmp_path / "file", "index.json")
