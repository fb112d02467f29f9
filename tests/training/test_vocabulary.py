"""A tokenizer fits its text encoder, or is refused: in each layout of its files, by size, special tokens and words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.architecture import STABLE_DIFFUSION_15_TEXT, TextEncoderConfig
from training.errors import UserError
from training.vocabulary import check_vocabulary, read_vocabulary

TINY_TEXT = TextEncoderConfig(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2)


def split_files(folder: Path) -> None:
    """From `tokenizer.json` to `vocab.json` and `merges.txt`, the layout of Stable Diffusion 1.5's own folder."""
    whole = folder / "tokenizer.json"
    model = json.loads(whole.read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]) + "\n")
    whole.unlink()


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def check(folder: Path, text_encoder: TextEncoderConfig = TINY_TEXT) -> None:
    check_vocabulary(read_vocabulary(folder), text_encoder, "the tokenizer")


@pytest.fixture
def tokenizer(tiny_base: str, tmp_path: Path) -> Path:
    """A copy of CLIP's own."""
    return shutil.copytree(Path(tiny_base) / "tokenizer", tmp_path / "tokenizer")


@pytest.mark.parametrize("layout", ["whole", "split"])
def test_clips_own_tokenizer_fits(layout: str, tokenizer: Path) -> None:
    """In both layouts, and to a text encoder whose config has the old ids 0 and 2, as Stable Diffusion 1.5's has."""
    if layout == "split":
        split_files(tokenizer)
    check(tokenizer)
    check(tokenizer, STABLE_DIFFUSION_15_TEXT)


def test_both_layouts_read_text_alike(tokenizer: Path) -> None:
    """And as the tokenizer that will be loaded from them."""
    from transformers import CLIPTokenizer

    text = "a photo of a smiling woman in the forest"
    loaded = CLIPTokenizer.from_pretrained(str(tokenizer))
    whole = read_vocabulary(tokenizer)
    split_files(tokenizer)
    split = read_vocabulary(tokenizer)
    assert whole.ids == split.ids == loaded.get_vocab()
    assert list(whole.encode(text)) == list(split.encode(text)) == loaded(text, add_special_tokens=False).input_ids
    assert whole.special_tokens == {name: getattr(loaded, name) for name in whole.special_tokens}


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def split_without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        split_files(folder)
        (folder / name).unlink()

    return change


def with_config(name: str, value: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer_config.json", lambda config: config.update({name: value}))


def with_model(**fields: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer.json", lambda content: content["model"].update(fields))


def with_added(token: str, number: int) -> Callable[[Path], None]:
    def add(content: dict[str, Any]) -> None:
        content["added_tokens"].append(content["added_tokens"][0] | {"id": number, "content": token})

    return lambda folder: edit(folder / "tokenizer.json", add)


def wrong_merges(folder: Path) -> None:
    split_files(folder)
    (folder / "merges.txt").write_text("qqq zzz\n")


def break_json(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def shift_ids(folder: Path) -> None:
    """The ids of another release, in which the special tokens come first."""
    edit(
        folder / "tokenizer.json",
        lambda content: content.update(
            added_tokens=[],
            model=content["model"] | {"vocab": {k: (v + 2) % 49408 for k, v in content["model"]["vocab"].items()}},
        ),
    )


MISFITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "its file is missing": (remove("tokenizer.json"), r"need tokenizer\.json, or vocab\.json and merges\.txt, got nei"),
    "no merges": (split_without("merges.txt"), r"got only vocab\.json"),
    "no vocabulary": (split_without("vocab.json"), r"got only merges\.txt"),
    "no config": (remove("tokenizer_config.json"), r"tokenizer_config\.json is missing"),
    "no length": (with_config("model_max_length", None), "model_max_length: Input should be a valid integer"),
    "too long": (with_config("model_max_length", 512), "model_max_length must be 3 to its 77 positions, got 512"),
    "a few tokens": (with_model(vocab={"a</w>": 0}, merges=[]), r"need the 49,408 tokens .* got"),
    "an empty vocabulary": (with_model(vocab={}, merges=[]), r"need the 49,408 tokens"),
    "merges of another vocabulary": (with_model(merges=[["qqq", "zzz"]]), r"tokenizer\.json is broken"),
    "merges of another vocabulary, split": (wrong_merges, "do not belong together"),
    "no vocabulary in the file": (with_model(vocab=None), r"tokenizer\.json is broken"),
    "one token more than there are rows": (with_added("<ada>", 49408), r"got 49,409 up to id 49,408"),
    "a token of one's own that has no row": (with_config("additional_special_tokens", ["<ada>"]), "got 49,409"),
    "a start that is no token": (with_config("bos_token", None), "tokenizer_config.json: bos_token: .* got None"),
    "another start": (with_config("bos_token", "a</w>"), "bos_token must have id 49406, got 320"),
    "an unknown end": (with_config("eos_token", "</s>"), r"does not know its own eos_token </s>"),
    "shifted ids": (shift_ids, "must have id"),
    "no JSON": (break_json, "must be a JSON object"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_tokenizer_that_does_not_fit_is_refused(name: str, tokenizer: Path) -> None:
    """With what was needed and what was found."""
    change, message = MISFITS[name]
    change(tokenizer)
    with pytest.raises(UserError, match=message):
        check(tokenizer)


def test_distinct_words_must_be_read_as_distinct(tokenizer: Path) -> None:
    """A vocabulary of the right size whose letters are gone reads nothing, or the unknown token for everything."""

    def scramble(content: dict[str, Any]) -> None:
        content["model"]["vocab"] = {f"token-{number}": number for number in range(49406)}
        content["model"]["merges"] = []

    edit(tokenizer / "tokenizer.json", scramble)
    with pytest.raises(UserError, match="reads nothing in the word 'a'"):
        check(tokenizer)


def test_embeddings_may_be_padded(tokenizer: Path) -> None:
    """Rows without a token, to the next multiple of 128, harm nobody."""
    check(tokenizer, TINY_TEXT.model_copy(update={"vocab_size": 49408 + 64}))
    with pytest.raises(UserError, match="does not fit the text encoder"):
        check(tokenizer, TINY_TEXT.model_copy(update={"vocab_size": 49408 + 1000}))
