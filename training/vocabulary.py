"""Does a tokenizer fit its text encoder? Told from the tokenizer's files, without torch or transformers.

A tokenizer whose files are missing loads all the same, with a vocabulary of three tokens that makes every word the
unknown one; a text encoder then reads the same nonsense for every prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE

from training.architecture import TextEncoderConfig
from training.errors import UserError
from training.weights import read_json

END_OF_WORD = "</w>"
SPECIAL_TOKENS = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
"""CLIPTokenizer's own, where the files name no others."""
OLD_IDS = {"bos_token": 0, "eos_token": 2}
"""What the text encoder's config says in models of before 2023, Stable Diffusion 1.5 among them; they meant nothing."""
MAX_UNUSED_ROWS = 127
"""Embeddings are sometimes padded to a multiple of 128 rows."""
WORDS = ("a", "photo", "of", "man", "woman", "person", "smiling", "in", "the", "forest", "red", "hat")

MERGES: TypeAdapter[list[str | tuple[str, str]]] = TypeAdapter(list[str | tuple[str, str]])
"""As `tokenizer.json` holds them: pairs, in older files two tokens with a space between."""


class _Token(BaseModel):
    model_config = ConfigDict(strict=True)
    content: str


class _AddedToken(_Token):
    """In `tokenizer_config.json`, where other mappings are no tokens."""

    kind: Literal["AddedToken"] = Field(alias="__type")


class _SpecialTokensMap(BaseModel):
    """`special_tokens_map.json`; a token that it does not name is CLIPTokenizer's own."""

    model_config = ConfigDict(strict=True)
    bos_token: str | _Token = SPECIAL_TOKENS["bos_token"]
    eos_token: str | _Token = SPECIAL_TOKENS["eos_token"]
    pad_token: str | _Token = SPECIAL_TOKENS["pad_token"]
    unk_token: str | _Token | None = None


class _TokenizerConfig(BaseModel):
    """`tokenizer_config.json`."""

    model_config = ConfigDict(strict=True)
    model_max_length: int
    bos_token: str | _AddedToken = SPECIAL_TOKENS["bos_token"]
    eos_token: str | _AddedToken = SPECIAL_TOKENS["eos_token"]
    pad_token: str | _AddedToken = SPECIAL_TOKENS["pad_token"]
    unk_token: str | _AddedToken | None = None
    additional_special_tokens: list[str | _AddedToken] | None = None
    extra_special_tokens: list[str | _AddedToken] | dict[str, str | _AddedToken] | None = None
    added_tokens_decoder: dict[int, _Token] = {}
    fast_tokenizer_files: list[str] = Field(default=[], max_length=0)
    chat_template: str | None = None

    def extra_tokens(self) -> list[str]:
        """Tokens of the user's own, by either of the names that they have had."""
        extra = self.extra_special_tokens or self.additional_special_tokens or []
        return [_text(token) for token in (extra.values() if isinstance(extra, dict) else extra)]


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer knows."""

    ids: Mapping[str, int]
    """Token -> id, added tokens among them."""
    special_tokens: Mapping[str, str]
    """`bos_token`, `eos_token`, `pad_token` -> the token."""
    max_length: int
    """Tokens of a prompt, start and end among them."""
    encode: Callable[[str], Sequence[int]]
    """Text -> ids, without start and end."""


def read_vocabulary(folder: Path) -> Vocabulary:
    """The CLIP tokenizer in a `tokenizer/` folder: `tokenizer.json`, else `vocab.json` and `merges.txt`.

    Raises:
        UserError: files are missing or broken.
    """
    config_file = folder / "tokenizer_config.json"
    if not config_file.is_file():
        raise UserError(f"{config_file} is missing: it tells how many tokens a prompt may have")
    config = _read_config(config_file)
    vocab, merges, added = _vocab_and_merges(folder)
    added |= _added_tokens(folder, config)
    known = vocab | added
    for token in config.extra_tokens():  # what is not known yet is put behind the others
        known.setdefault(token, max(known.values(), default=-1) + 1)
    try:
        model = BPE(vocab=vocab, merges=merges, end_of_word_suffix=END_OF_WORD)
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"{folder}: vocabulary and merges do not belong together: {error}") from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return Vocabulary(
        known, _special_tokens(folder, config), config.model_max_length, lambda text: tokenizer.encode(text).ids
    )


def check_vocabulary(vocabulary: Vocabulary, text_encoder: TextEncoderConfig, place: str) -> None:
    """Refuse a tokenizer whose tokens are not those of the text encoder's embeddings.

    Args:
        vocabulary: the tokenizer's.
        text_encoder: the text encoder's config.
        place: the tokenizer in messages.

    Raises:
        UserError: sizes, special tokens or the length of prompts disagree, or distinct words have one id.
    """
    rows, ids = text_encoder.vocab_size, set(vocabulary.ids.values())
    size = len(ids)
    if not rows - MAX_UNUSED_ROWS <= size <= rows or max(ids) >= rows or min(ids) < 0:
        highest = f" up to id {max(ids):,}" if ids else ""
        raise UserError(
            f"{place} does not fit the text encoder: need the {rows:,} tokens of its embeddings, got {size:,}{highest}"
        )
    for name, token in vocabulary.special_tokens.items():
        if token not in vocabulary.ids:
            raise UserError(f"{place} does not know its own {name} {token}")
    for name, claimed in (("bos_token", text_encoder.bos_token_id), ("eos_token", text_encoder.eos_token_id)):
        ours = vocabulary.ids[vocabulary.special_tokens[name]]
        claims = claimed if isinstance(claimed, tuple) else (claimed,)
        if claimed is not None and claimed != OLD_IDS[name] and ours not in claims:
            raise UserError(f"{place} does not fit the text encoder: {name} must have id {claimed}, got {ours}")
    if not 2 < vocabulary.max_length <= text_encoder.max_position_embeddings:
        raise UserError(
            f"{place} does not fit the text encoder: model_max_length must be 3 to its "
            f"{text_encoder.max_position_embeddings} positions, got {vocabulary.max_length}"
        )
    _check_words(vocabulary, place)


def _check_words(vocabulary: Vocabulary, place: str) -> None:
    seen: dict[tuple[int, ...], str] = {}
    for word in WORDS:
        ids = tuple(vocabulary.encode(word))
        if not ids:
            raise UserError(f"{place} reads nothing in the word {word!r}")
        if ids in seen:
            raise UserError(f"{place} reads the words {seen[ids]!r} and {word!r} as the same")
        seen[ids] = word


def _vocab_and_merges(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    whole = folder / "tokenizer.json"
    if whole.is_file():
        content = read_json(whole)
        try:
            Tokenizer.from_file(str(whole))
        except Exception as error:  # tokenizers raises nothing narrower
            raise UserError(f"{whole} is broken: {error}") from None
        try:
            model = TypeAdapter(dict[str, Any]).validate_python(content.get("model"))
            vocab = _ids(model.get("vocab"))
            merges = [_pair(merge) for merge in MERGES.validate_python(model.get("merges"))]
            added = {
                str(token["content"]): int(token["id"])
                for token in TypeAdapter(list[dict[str, Any]]).validate_python(content.get("added_tokens"))
            }
        except (ValidationError, KeyError, TypeError, ValueError):
            raise UserError(f"{whole} must hold a BPE model with vocab and merges, and its added_tokens") from None
        return vocab, merges, added
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    there = [file for file in (vocab_file, merges_file) if file.is_file()]
    if len(there) < 2:
        got = f"only {there[0].name}" if there else "neither"
        raise UserError(f"{folder} is incomplete: need tokenizer.json, or vocab.json and merges.txt, got {got}")
    try:
        vocab = _ids(read_json(vocab_file))
    except ValidationError:
        raise UserError(f"{vocab_file} must map tokens to whole numbers") from None
    try:
        lines = merges_file.read_text(encoding="utf-8").split("\n")
        return vocab, [_pair(line) for line in lines if line.strip() and not line.startswith("#version")], {}
    except (OSError, ValueError):
        raise UserError(f"{merges_file} must hold two tokens a line") from None


def _ids(vocab: object) -> dict[str, int]:
    return TypeAdapter(dict[str, int]).validate_python(vocab, strict=True)


def _pair(merge: str | tuple[str, str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _read_config(file: Path) -> _TokenizerConfig:
    read_json(file)  # for its sentence on what is no JSON
    try:
        return _TokenizerConfig.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise UserError(f"{file}: {first['loc'][0]}: {first['msg']}{got}") from None


def _added_tokens(folder: Path, config: _TokenizerConfig) -> dict[str, int]:
    """Tokens that were added to the vocabulary, as older tokenizers saved them."""
    if "added_tokens_decoder" in config.model_fields_set:
        return {token.content: number for number, token in config.added_tokens_decoder.items()}
    file = folder / "added_tokens.json"
    try:
        return _ids(read_json(file)) if file.is_file() else {}
    except ValidationError:
        raise UserError(f"{file} must map tokens to whole numbers") from None


def _special_tokens(folder: Path, config: _TokenizerConfig) -> dict[str, str]:
    tokens = {name: _text(getattr(config, name)) for name in SPECIAL_TOKENS}
    file = folder / "special_tokens_map.json"
    if (
        "added_tokens_decoder" not in config.model_fields_set and file.is_file()
    ):  # transformers reads it in that case alone
        try:
            named = _SpecialTokensMap.model_validate(read_json(file))
        except ValidationError:
            raise UserError(f"{file} must map names of special tokens to tokens") from None
        tokens |= {name: _text(getattr(named, name)) for name in named.model_fields_set & SPECIAL_TOKENS.keys()}
    return tokens


def _text(token: str | _Token) -> str:
    return token if isinstance(token, str) else token.content
