"""Laws of what a text encoder reads: the words that are lost, and counts as transformers counts. Some seconds.

pytest tests/training/test_reading.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from training.reading import TextReader
from training.stable_diffusion import load_base_model
from training.tokenizer import reader_of_base_model, reader_of_pipeline

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "family" / "base_model"
BY_WORDS = TextReader("the reader", 3, lambda text: len(text.split()) <= 3)
WORDS = ["sks", "person", "a", "purple", "suit,", "Angry", "It's", "café", "3.5", "...", "東京", "💖", "xjqv"]


@pytest.mark.parametrize(
    ("text", "lost"),
    [("", ""), ("a", ""), ("a b c", ""), ("a b c d", "d"), ("a  b\nc d  e", "d e"), ("a " * 99, " ".join(["a"] * 96))],
)
def test_the_lost_words_are_those_after_the_last_that_fits(text: str, lost: str) -> None:
    """None where the text fits to its end."""
    assert BY_WORDS.lost(text) == lost
    assert (BY_WORDS.refusal(text) is None) == (not lost)


def test_the_refusal_names_reader_limit_and_words() -> None:
    """All that it takes to shorten the text."""
    assert BY_WORDS.refusal("a b c d e") == "the reader reads 3 tokens and would not read 'd e'"


@pytest.fixture(scope="module")
def by_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's pipeline with its tokenizer as `vocab.json` and `merges.txt`, as Stable Diffusion 1.5 has it."""
    folder = tmp_path_factory.mktemp("pipeline")
    for part in ("text_encoder/config.json", "tokenizer/tokenizer_config.json"):
        (folder / part).parent.mkdir()
        shutil.copy(DEMO / part, folder / part)
    model = json.loads((DEMO / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(merges) + "\n")
    return folder


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.sampled_from(WORDS), max_size=40))
def test_what_fits_is_what_transformers_does_not_cut(by_vocabulary: Path, words: list[str]) -> None:
    """For both spellings of a tokenizer's files."""
    text = " ".join(words)
    for folder in (DEMO, by_vocabulary):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        reader = reader_of_base_model(str(folder))
        assert reader is not None
        assert reader.limit == 32
        assert reader.reads_whole(text) == (len(tokenizer(text, verbose=False)["input_ids"]) <= 32)


def test_a_loaded_pipeline_reads_as_its_files_say(tiny_base: str) -> None:
    """Whoever counts, the limit and the lost words are the same."""
    text = " ".join(["garden"] * 75 + ["in", "snow"])
    loaded, files = reader_of_pipeline(load_base_model(tiny_base)), reader_of_base_model(tiny_base)
    assert files is not None
    assert (loaded.limit, loaded.lost(text)) == (files.limit, files.lost(text)) == (77, "in snow")


def test_a_single_file_reads_as_the_folder_beside_it(by_vocabulary: Path, tmp_path: Path) -> None:
    """Without that folder the file alone does not tell."""
    (tmp_path / "model.safetensors").touch()
    assert reader_of_base_model(str(tmp_path / "model.safetensors")) is None
    shutil.copytree(by_vocabulary, tmp_path / "model")
    reader = reader_of_base_model(str(tmp_path / "model.safetensors"))
    assert reader is not None
    assert reader.limit == 32


def test_what_only_the_whole_tokenizer_counts_is_left_to_it(by_vocabulary: Path, tmp_path: Path) -> None:
    """A hub id that was never fetched, no tokenizer, or words that somebody added to it."""
    assert reader_of_base_model("owner/never-fetched") is None
    assert reader_of_base_model(str(tmp_path)) is None
    folder = shutil.copytree(by_vocabulary, tmp_path / "with-words")
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<ada>": 2004}))
    assert reader_of_base_model(str(folder)) is None


@pytest.mark.parametrize(("file", "content"), [("vocab.json", "{"), ("vocab.json", "[]"), ("merges.txt", "no such")])
def test_a_broken_tokenizer_is_named(by_vocabulary: Path, tmp_path: Path, file: str, content: str) -> None:
    """By its file, as a mistake in the base model."""
    folder = shutil.copytree(by_vocabulary, tmp_path / "broken")
    (folder / "tokenizer" / file).write_text(content)
    with pytest.raises(ValueError, match=r"base_model: .*vocab\.json"):
        reader_of_base_model(str(folder))
