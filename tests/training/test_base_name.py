"""A base model's options are part of its name, and of everything that knows it by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training import stable_diffusion
from training.base_model import check_base_model, configs_of
from training.base_name import BaseName, parse_base_name
from training.errors import UserError
from training.flops import flops_of
from training.passes import Pass
from training.stable_diffusion import base_model_fingerprint, base_pipeline, load_base_model
from training.tokenizer import reader_of_base_model

CPU = torch.device("cpu")
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="?\n"), min_size=1)


@given(
    st.builds(
        BaseName,
        WORDS,
        revision=st.none() | st.from_regex(r"[\w.\-/]+", fullmatch=True),
        variant=st.none() | st.from_regex(r"[A-Za-z0-9_]+", fullmatch=True),
        clip_skip=st.integers(1, 12),
    )
)
def test_a_name_says_all_of_it(name: BaseName) -> None:
    """And without options it is the name that it always was."""
    assert parse_base_name(str(name)) == name
    assert (str(name) == name.name) == (name == BaseName(name.name))


@pytest.mark.parametrize("text", ["a/b", "./what?.safetensors", "a?clip_skip=x", "a?b=c", "models/v1?", "C:\\a?x/y"])
def test_other_question_marks_are_the_names_own(text: str) -> None:
    """A file may be called so."""
    assert parse_base_name(text) == BaseName(text)


def embeddings(pipeline: StableDiffusionPipeline) -> Tensor:
    words, _ = pipeline.encode_prompt("a photo of sks woman", CPU, 1, False)
    return words


def as_diffusers_skips(pipeline: StableDiffusionPipeline, clip_skip: int) -> Tensor:
    """What `encode_prompt(clip_skip=...)` says: an earlier layer's output through the last norm.

    Written down here because diffusers 0.42 looks for the norm where transformers 5 has it no more.
    """
    text_encoder = pipeline.text_encoder
    ids = pipeline.tokenizer("a photo of sks woman", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        states = text_encoder(ids, output_hidden_states=True).hidden_states
        return text_encoder.final_layer_norm(states[-(clip_skip + 1)])


def test_a_skipped_layer_is_diffusers_clip_skip(tiny_base: str) -> None:
    """The number less one, to the bit; from a folder that is saved again it is read so by anybody."""
    skipping = str(BaseName(tiny_base, clip_skip=2))
    plain = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None, dtype=torch.float32)
    expected = as_diffusers_skips(plain, 1)
    assert torch.equal(as_diffusers_skips(plain, 0), embeddings(plain))
    assert torch.equal(embeddings(load_base_model(skipping)), expected)
    assert torch.equal(embeddings(base_pipeline(skipping, CPU, torch.float32)), expected)
    assert not torch.equal(embeddings(load_base_model(tiny_base)), expected)


def test_saved_with_a_layer_less_it_is_read_so_by_anybody(tiny_base: str, tmp_path: Path) -> None:
    """Its config says how many layers it has."""
    pipeline = base_pipeline(str(BaseName(tiny_base, clip_skip=2)), CPU, torch.float32)
    pipeline.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, dtype=torch.float32)
    assert torch.equal(embeddings(again), embeddings(pipeline))
    assert again.text_encoder.config.num_hidden_layers == len(again.text_encoder.encoder.layers)


def test_options_make_another_model(tiny_base: str) -> None:
    """Of what scores mean, and of what is computed; its tokenizer is the same."""
    skipping = str(BaseName(tiny_base, clip_skip=2))
    assert base_model_fingerprint(skipping) != base_model_fingerprint(tiny_base)
    costs = [flops_of([Pass("text_encoder")], name) for name in (tiny_base, skipping)]
    assert costs[1][Pass("text_encoder")] < costs[0][Pass("text_encoder")]
    readers = [reader_of_base_model(name) for name in (tiny_base, skipping)]
    assert readers[0].limit == readers[1].limit
    whole, less = (configs_of(name) for name in (tiny_base, skipping))
    assert less.text_encoder.num_hidden_layers == whole.text_encoder.num_hidden_layers - 1


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({"clip_skip": 3}, "clip_skip: .* has a text encoder of 2 layers, got 3"),
        ({"revision": "main"}, "revision is a hub id's, got main"),
        ({"variant": "fp16"}, "variant is a hub id's, got fp16"),
    ],
)
def test_what_a_local_model_cannot_be_is_refused(options: dict[str, Any], law: str, tiny_base: str) -> None:
    """Before it is loaded."""
    with pytest.raises(UserError, match=law):
        check_base_model(str(BaseName(tiny_base, **options)))


def test_the_hub_is_asked_for_what_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Revision and variant as they are given; without a variant fp16 is the second try, and only then."""
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append({"name": name, **{key: options[key] for key in ("revision", "variant")}})
        if options["variant"] is None:
            raise ValueError("no necessary `safetensors` weights")
        return str(tmp_path)

    monkeypatch.setattr(stable_diffusion.StableDiffusionPipeline, "download", download)
    stable_diffusion._local_folder.__wrapped__("owner/model?revision=v1.2&variant=ema")
    assert asked == [{"name": "owner/model", "revision": "v1.2", "variant": "ema"}]
    asked.clear()
    stable_diffusion._local_folder.__wrapped__("owner/model?revision=v1.2&clip_skip=2")
    assert [each["variant"] for each in asked] == [None, "fp16"]
    assert {each["revision"] for each in asked} == {"v1.2"}
