"""What a rerun does with each key of the sweep file, as docs/reruns.md says it.

pytest tests/sweeps/test_reruns.py     a few seconds, no models
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
from PIL import Image
from pydantic import BaseModel

from sweeps.config import SweepConfig, parse_sweep, rare_token
from sweeps.ledger.identity import evaluation_key, photos_key

TABLE = Path(__file__).parents[2] / "docs" / "reruns.md"
ROW = re.compile(r"^\| `(?P<key>[a-z0-9_.]+)` \| (?P<kind>honoured|refused|free) \|", re.MULTILINE)
ANOTHER: dict[str, Any] = {
    "subject.instance_prompt": "a picture of sks woman",
    "subject.class_prompt": "a picture of a woman",
    "subject.rare_token": "sks woman",
    "subject.resolution": 256,
    "subject.crop": "center",
    "subject.random_flip": True,
    "subject.held_out_photos": 2,
    "evaluation.prompts": ["sks woman on a bicycle"],
    "evaluation.negative_prompt": "blurry",
    "evaluation.images_per_prompt": 3,
    "evaluation.seed": 5,
    "evaluation.at_steps": [10, 20],
    "evaluation.scheduler": "ddim",
    "evaluation.num_inference_steps": 9,
    "evaluation.guidance_scale": 2.0,
    "evaluation.width": 64,
    "evaluation.height": 64,
    "evaluation.batch_size": 1,
    "evaluation.prompts_without_token": "allow",
    "evaluation.screening.images_per_prompt": 2,
    "evaluation.screening.keep": 0.5,
    "evaluation.second_opinion.face.encoder": "casia-webface",
    "evaluation.second_opinion.face.references": "elsewhere",
    "evaluation.second_opinion.clip.model": "ViT-L-14",
    "evaluation.second_opinion.clip.pretrained": "openai",
}
"""Another value for each key whose refusal rests on a hash of the file's own settings."""
BY_CONTENT = {
    "base_model",
    "initial_weights",
    "revision",
    "variant",
    "clip_skip",
    "subject.photos",
    "subject.class_images",
    "evaluation.face.encoder",
    "evaluation.face.references",
    "evaluation.clip.model",
    "evaluation.clip.pretrained",
}
"""Refused by what they name, not by their text: held by tests of the rooms that claim it."""


def kinds() -> dict[str, str]:
    return {match["key"]: match["kind"] for match in ROW.finditer(TABLE.read_text(encoding="utf-8"))}


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that a sweep file may have, sections opened; `methods` is a space, and one key."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield prefix + name
        else:
            yield from keys_of(section, f"{prefix}{name}.")


def section_of(annotation: Any) -> type[BaseModel] | None:
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def test_every_key_of_the_sweep_file_is_in_the_table() -> None:
    """A new key needs a thought about reruns, and a line."""
    assert sorted(kinds()) == sorted(keys_of(SweepConfig))


@pytest.fixture
def mapping(tmp_path: Path) -> dict[str, Any]:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(5):
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(photos / f"{i}.png")
    return {
        "name": "ada",
        "base_model": "owner/model",
        "subject": {
            "photos": str(photos),
            "instance_prompt": "a photo of sks woman",
            "class_prompt": "a photo of a woman",
        },
        "methods": {"lora": {"max_train_steps": 30}},
        "evaluation": {
            "prompts": ["sks woman in a garden"],
            "at_steps": [30],
            "screening": {"images_per_prompt": 1},
            "second_opinion": {"face": {}, "clip": {}},
        },
    }


def identity(mapping: dict[str, Any]) -> tuple[str, str, str]:
    config = parse_sweep(mapping)
    subject = config.subject.model_copy(update={"rare_token": None})
    references = config.evaluation.face.references
    return photos_key(subject, references), rare_token(config.subject), evaluation_key(config.evaluation)


@pytest.mark.parametrize("key", sorted(set(keys_of(SweepConfig)) - BY_CONTENT))
def test_what_is_refused_is_part_of_the_run_s_identity(key: str, mapping: dict[str, Any]) -> None:
    """And nothing else of the two sections is: what is honoured or free must not orphan a run."""
    *sections, name = key.split(".")
    if not sections or sections[0] not in ("subject", "evaluation"):
        assert key not in ANOTHER
        return
    assert key in ANOTHER, "give another value for it"
    before = identity(mapping)
    reduce(dict.__getitem__, sections, mapping)[name] = ANOTHER[key]
    assert (identity(mapping) != before) == (kinds()[key] == "refused")
