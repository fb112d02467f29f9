"""What CLIP reads of a text and which words it knows, from open_clip's small files, without loading torch."""

from __future__ import annotations

import gzip
import html
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ftfy

from evaluation.config import HF_HUB, LOCAL_DIR, ClipConfig
from training.errors import UserError
from training.reading import TextReader, clip_bpe

DEFAULT_CONTEXT_LENGTH = 77
VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
NUM_MERGES = 49152 - 256 - 2
COMMON_BELOW = 45_000
"""Tokens are numbered as they were learnt, the most frequent first. DreamBooth's rare tokens are whole words of the
vocabulary's last tenth (`sks` is 48136), or no whole words at all."""


def reader_of_clip(config: ClipConfig) -> TextReader | None:
    """The reader of a CLIP model that has CLIP's own tokenizer; None where it must be loaded to be known.

    Raises:
        UserError: a `local-dir:` model's config is broken.
    """
    text = _text_config(config)
    if (
        text is None
        or text.get("hf_tokenizer_name")
        or text.get("tokenizer_kwargs")
        or "siglip" in config.model.lower()
    ):
        return None
    limit = int(text.get("context_length", DEFAULT_CONTEXT_LENGTH))
    return TextReader(f"the CLIP model {config.model}", limit, lambda words: num_clip_tokens(words) <= limit)


def num_clip_tokens(text: str) -> int:
    """How many tokens CLIP's own tokenizer makes of the text, begin and end counted."""
    return len(_bpe().encode(_cleaned(text), add_special_tokens=False).ids) + 2


def is_common_word(word: str) -> bool:
    """Has CLIP seen the word often enough to know it, as it does not know a rare token?"""
    tokens = _bpe().encode(_cleaned(word), add_special_tokens=False).ids
    return len(tokens) == 1 and tokens[0] < COMMON_BELOW


def _cleaned(text: str) -> str:
    """As open_clip cleans a text."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def _text_config(config: ClipConfig) -> dict[str, Any] | None:
    if config.model.startswith(HF_HUB):
        return None
    if config.model.startswith(LOCAL_DIR):
        file = Path(config.model.removeprefix(LOCAL_DIR)) / "open_clip_config.json"
    else:
        file = _open_clip_dir() / "model_configs" / f"{config.model.replace('/', '-')}.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        model = content["model_cfg"] if config.model.startswith(LOCAL_DIR) else content
        text = model.get("text_cfg", {})
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"evaluation.clip.model: {file} is no config of an open_clip model: {error}") from error
    return text if isinstance(text, dict) else None


@cache
def _bpe() -> Any:
    """The byte-pair encoding that open_clip comes with."""
    from tokenizers import pre_tokenizers

    text = gzip.decompress((_open_clip_dir() / VOCABULARY_FILE).read_bytes()).decode()
    merges = [(left, right) for left, right in (line.split() for line in text.split("\n")[1 : NUM_MERGES + 1])]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # by code point: CLIP's own order
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    return clip_bpe(
        {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges
    )


def _open_clip_dir() -> Path:
    found = find_spec("open_clip")
    assert found is not None, "open_clip is a dependency"
    assert found.origin is not None, "open_clip is a folder of files"
    return Path(found.origin).parent
