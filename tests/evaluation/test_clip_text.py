"""Laws of how CLIP's texts are counted without CLIP. `pytest tests/evaluation/test_clip_text.py`, some seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.clip_text import is_common_word, num_clip_tokens, reader_of_clip
from evaluation.config import ClipConfig

WORDS = st.sampled_from(
    [
        "sks",
        "Woman",
        "smiling,",
        "It's",
        "I'LL",
        "café",
        "naïve",
        "&amp;",
        "<b>",
        "3.5",
        "...",
        "東京",
        "💖",
        "ohwx",
        "4k",
    ]
)


@settings(deadline=None)  # the first call reads the vocabulary
@given(st.lists(WORDS, max_size=120).map(" ".join) | st.text("abc ', .!?éß0-9", max_size=60))
def test_tokens_are_counted_as_open_clip_counts_them(text: str) -> None:
    """Cleaning, splitting and pairs of bytes: one number for any text."""
    import open_clip

    assert num_clip_tokens(text) == len(open_clip.get_tokenizer("ViT-B-32").encode(text)) + 2


def test_the_default_model_reads_77_tokens() -> None:
    """Begin and end among them, whoever counts."""
    reader = reader_of_clip(ClipConfig())
    assert reader is not None
    assert reader.limit == 77
    assert reader.reads_whole(" ".join(["garden"] * 75))
    assert reader.lost(" ".join(["garden"] * 75 + ["in", "snow"])) == "in snow"


def local_clip(folder: Path, **text_cfg: object) -> ClipConfig:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text_cfg}}))
    return ClipConfig(model=f"local-dir:{folder}", pretrained=None)


def test_a_local_model_has_its_own_context(tmp_path: Path) -> None:
    """As its config says, else CLIP's."""
    for text_cfg, limit in (({"context_length": 40}, 40), ({}, 77)):
        reader = reader_of_clip(local_clip(tmp_path, **text_cfg))
        assert reader is not None
        assert reader.limit == limit


def test_another_tokenizer_is_not_counted_by_clips(tmp_path: Path) -> None:
    """None: it must be loaded to be known."""
    assert reader_of_clip(local_clip(tmp_path, hf_tokenizer_name="owner/name")) is None
    assert reader_of_clip(ClipConfig(model="ViT-B-16-SigLIP", pretrained="webli")) is None
    assert reader_of_clip(ClipConfig(model="hf-hub:owner/name", pretrained=None)) is None
    assert reader_of_clip(ClipConfig(model="no-such-model", pretrained="x")) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_broken_config_is_named(tmp_path: Path, content: str) -> None:
    """By its file."""
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"evaluation\.clip\.model: .*open_clip_config\.json"):
        reader_of_clip(ClipConfig(model=f"local-dir:{tmp_path}", pretrained=None))


def test_clip_knows_ordinary_words_and_not_rare_tokens() -> None:
    """By how early a word was learnt as a whole."""
    assert all(map(is_common_word, ("woman", "john", "beautiful", "Smiling")))
    assert not any(map(is_common_word, ("sks", "ohwx", "zkz", "olis", "xjqv")))
