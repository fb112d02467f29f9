"""Texts of a sweep file: whom they name, and how much of them is read.

pytest tests/sweeps/test_prompts.py     some seconds
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from evaluation.config import EvaluationConfig
from sweeps.config import SweepConfig, parse_sweep, trigger_words
from sweeps.plan import check_sweep
from sweeps.prompts import comments_in_texts
from tests.sweeps.command import Command
from tests.sweeps.tiny_sweep import write_sweep
from training.config import SubjectConfig

LONG = " ".join(["garden"] * 80)
ALLOWED = {"evaluation__prompts_without_token": "allow"}
LOST = "'garden garden garden"


def with_texts(mapping: dict[str, Any], **texts: Any) -> SweepConfig:
    """The tiny sweep with texts of `subject__instance_prompt`'s kind replaced."""
    changed = {**mapping, "render": {}}
    for place, text in texts.items():
        section, key = place.split("__")
        changed[section] = {**changed[section], key: text}
    return parse_sweep(changed)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"evaluation__prompts": ["sks woman", "as a queen"]}, r"prompts\[1\]: must name the person .* comma"),
        ({"evaluation__prompts": ["a woman", "a queen"]}, r"prompts\[0\]: must name .* subject\.rare_token"),
        ({"evaluation__prompts": ["sks woman", "SKS  woman"]}, r"prompts\[1\]: must be another than .*prompts\[0\]"),
        ({"evaluation__prompts": ["sks woman", ""]}, r"evaluation\.prompts\[1\]: must be words, got ''"),
        ({"evaluation__prompts": [" \t"]}, r"evaluation\.prompts\[0\]: must be words"),
        ({"evaluation__prompts": ["sks"]}, r"evaluation\.prompts\[0\]: .*nothing is left without the rare token 'sks'"),
        ({"render__prompt": "a portrait, best quality"}, r"render\.prompt: must name the person .* 'sks'"),
        ({"subject__rare_token": "ohwx"}, r"subject\.rare_token: must stand in instance_prompt .* got 'ohwx'"),
        ({"subject__rare_token": " "}, r"subject\.rare_token: must stand in instance_prompt"),
        ({"subject__class_prompt": "a photo of sks woman"}, r"subject\.(rare_token|class_prompt)"),
        (
            {"subject__class_prompt": "a photo of Sks woman", "subject__rare_token": "sks"},
            r"subject\.class_prompt: must be the instance prompt without the rare token",
        ),
        ({"subject__class_prompt": " "}, r"subject\.class_prompt: must be words"),
        ({"subject__instance_prompt": "a photo of zkz woman, qwop"}, r"subject\.rare_token: must be given"),
        ({"subject__instance_prompt": f"sks woman {LONG}"}, rf"subject\.instance_prompt: .* 77 tokens .* {LOST}"),
        ({"subject__class_prompt": LONG}, rf"subject\.class_prompt: .* 77 tokens .* {LOST}"),
        ({"evaluation__prompts": [f"sks {LONG}"]}, rf"evaluation\.prompts\[0\]: .* 77 tokens .* {LOST}"),
        ({"evaluation__negative_prompt": LONG}, rf"evaluation\.negative_prompt: .* 77 tokens .* {LOST}"),
        ({"render__prompt": f"sks {LONG}"}, rf"render\.prompt: .* 77 tokens .* {LOST}"),
        ({"render__negative_prompt": LONG}, rf"render\.negative_prompt: .* 77 tokens .* {LOST}"),
    ],
)
def test_a_text_that_asks_for_something_else_is_refused(
    tiny_mapping: dict[str, Any], texts: dict[str, Any], message: str
) -> None:
    """By place, law and value, before anything starts; reading the file alone refuses none of them."""
    config = with_texts(tiny_mapping, **texts)
    with pytest.raises(ValueError, match=message):
        check_sweep(config)


def test_prompts_about_the_class_are_allowed_when_said_so(tiny_mapping: dict[str, Any]) -> None:
    """And minded; empty ones and copies are not what is allowed."""
    prompts = ["sks woman in a garden", "a woman in a garden"]
    plan = check_sweep(with_texts(tiny_mapping, evaluation__prompts=prompts, **ALLOWED))
    assert [line for line in plan.lines() if line.startswith("mind: ")] == [
        "mind: evaluation.prompts[1] does not name the person; its pictures count in the face similarity all the same"
    ]
    with pytest.raises(ValueError, match="must be words"):
        check_sweep(with_texts(tiny_mapping, evaluation__prompts=["..."], **ALLOWED))


def test_clip_counts_what_is_left_without_the_token(tiny_mapping: dict[str, Any], tmp_path: Path) -> None:
    """Its own limit, though the pipeline's is larger."""
    clip = shutil.copytree(tiny_mapping["evaluation"]["clip"]["model"].removeprefix("local-dir:"), tmp_path / "clip")
    config = clip / "open_clip_config.json"
    config.write_text(config.read_text().replace('"context_length": 77', '"context_length": 10'))
    judge = {"model": f"local-dir:{clip}", "pretrained": None}
    eight = " ".join(["garden"] * 8)
    check_sweep(with_texts(tiny_mapping, evaluation__clip=judge, evaluation__prompts=[f"sks {eight}"]))
    with pytest.raises(ValueError, match=r"evaluation\.prompts\[0\]: the CLIP model .* 10 tokens .* 'snow'"):
        check_sweep(with_texts(tiny_mapping, evaluation__clip=judge, evaluation__prompts=[f"sks {eight} snow"]))


def test_where_the_tokenizer_is_not_here_stable_diffusions_count_warns(tiny_mapping: dict[str, Any]) -> None:
    """A base model of the hub may read more; whether it does is known when it is loaded."""
    config = with_texts(tiny_mapping, evaluation__negative_prompt=LONG)
    plan = check_sweep(config.model_copy(update={"base_model": "owner/never-fetched"}))
    (warning,) = plan.warnings
    assert warning.startswith("evaluation.negative_prompt: Stable Diffusion 1.5's text encoder reads 77 tokens")


def test_check_says_the_token_and_what_clip_reads(tiny_mapping: dict[str, Any]) -> None:
    """For every prompt, as CLIP gets it."""
    lines = check_sweep(
        with_texts(tiny_mapping, evaluation__prompts=["sks woman, smiling", "portrait of (sks) in snow"])
    ).lines()
    assert any(line.split()[:2] == ["token", "sks,"] for line in lines)
    assert [line for line in lines if line.startswith("CLIP")] == [
        "CLIP      reads: woman, smiling",
        "CLIP      reads: portrait of in snow",
    ]


def test_captions_that_do_not_do_what_captions_do_are_named(
    tiny_mapping: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    """Without the token, without words, of no photo, too long: each by its file, and none is refused."""
    folder = shutil.copytree(photos, tmp_path / "photos")
    for name, text in (
        ("photo_0.txt", "a photo of sks woman in a garden"),
        ("photo_1.caption", "a woman in a garden"),
        ("photo_2.txt", " \n"),
        ("photo_3.txt", f"sks woman {LONG}"),
        ("photo_9.txt", "sks woman"),
    ):
        (folder / name).write_text(text)
    warnings = check_sweep(with_texts(tiny_mapping, subject__photos=str(folder))).warnings
    assert [warning.split(": the base")[0] for warning in warnings] == [
        "captions without the rare token 'sks', which teach nothing about it, are those of photo_1.png",
        "captions without words, for which the instance prompt stands, are photo_2.txt",
        "captions of no photo, which are not read, are photo_9.txt",
        "caption of photo_3.png",
    ]


def test_a_text_that_yaml_ends_at_a_comment_is_minded(
    dreamsweep: Command, tiny_mapping: dict[str, Any], tmp_path: Path
) -> None:
    """`person #1 in a forest`; a comment as people write them is none of it."""
    path = write_sweep(tmp_path / "tiny.yaml", tiny_mapping)
    path.write_text(path.read_text().replace("sks woman in a garden", "sks woman #1 in a garden"))
    outcome = dreamsweep("check", path)
    assert outcome.code == 0, outcome.err
    assert "'#1 in a garden' is a comment to YAML" in outcome.out
    for harmless in ("a: b c # d", "a: b #c", "a: 'b c' #d", "a: b c", "#a", "a: b#c d"):
        path.write_text(harmless)
        assert comments_in_texts(path) == []


def test_an_older_run_is_read_whatever_its_prompts(tiny_mapping: dict[str, Any]) -> None:
    """Only what is checked or run is refused; a model whose token is uncertain is called by its instance prompt."""
    config = with_texts(tiny_mapping, evaluation__prompts=["a woman", "a woman", ""])
    assert isinstance(config.evaluation, EvaluationConfig)
    subject = SubjectConfig(photos=Path("photos"), instance_prompt="a photo of john man", class_prompt="a man")
    assert trigger_words(subject) == "a photo of john man"
    assert trigger_words(subject.model_copy(update={"rare_token": "john"})) == "john"
