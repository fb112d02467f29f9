"""How much the base model's text encoder reads: from small files without torch, or from a loaded pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.base_name import parse_base_name
from training.errors import UserError
from training.reading import TextReader, clip_bpe

NAME = "the base model's text encoder"
BEGIN_AND_END = 2
SPECIAL_TOKENS = frozenset({"<|startoftext|>", "<|endoftext|>"})
MERGES_HEADER = "#version"


def reader_of_base_model(base_model: str) -> TextReader | None:
    """The reader of a base model whose tokenizer is on this machine; None where it has to be loaded to be known.

    Args:
        base_model: a folder, a `.safetensors` file with its folder of configs beside it, or a hub id, whose tokenizer
            the hub's cache may hold.

    Raises:
        UserError: a file of the tokenizer is broken.
    """
    tokenizer_file = _file(base_model, "tokenizer/tokenizer.json") or _file(base_model, "tokenizer/vocab.json")
    config_file = _file(base_model, "tokenizer/tokenizer_config.json")
    if tokenizer_file is None or config_file is None:
        return None
    bpe, config = _bpe_of(tokenizer_file), _read_json(config_file)
    limit = _limit(config.get("model_max_length"), _positions(_file(base_model, "text_encoder/config.json")))
    if bpe is None or limit is None or _adds_words(tokenizer_file, config):
        return None

    def reads_whole(text: str) -> bool:
        return len(bpe.encode(text, add_special_tokens=False).ids) + BEGIN_AND_END <= limit

    return TextReader(NAME, limit, reads_whole)


def reader_of_pipeline(pipeline: Any) -> TextReader:
    """The reader of a pipeline that is loaded: its own tokenizer counts."""
    tokenizer = pipeline.tokenizer
    limit: int = min(tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings)

    def reads_whole(text: str) -> bool:
        return len(tokenizer(text, verbose=False)["input_ids"]) <= limit

    return TextReader(NAME, limit, reads_whole)


def _file(base_model: str, name: str) -> Path | None:
    """A small file of the base model's pipeline, if it is on this machine."""
    named = parse_base_name(base_model)
    path = Path(named.name)
    folder = path.with_suffix("") if path.suffix == ".safetensors" else path
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if path.exists() or path.is_absolute() or named.name.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(named.name, name, revision=named.revision)
    return Path(cached) if isinstance(cached, str) else None


def _bpe_of(tokenizer_file: Path) -> Any:
    """From `tokenizer.json`, or from `vocab.json` and the `merges.txt` beside it; None where it is no CLIP's."""
    if tokenizer_file.name == "tokenizer.json":
        model = _read_json(tokenizer_file).get("model", {})
        vocabulary, lines = model.get("vocab"), model.get("merges")
    else:
        merges_file = tokenizer_file.with_name("merges.txt")
        vocabulary = _read_json(tokenizer_file)
        lines = merges_file.read_text(encoding="utf-8").split("\n") if merges_file.is_file() else None
    if not isinstance(vocabulary, dict) or not isinstance(lines, list) or "<|endoftext|>" not in vocabulary:
        return None
    pairs = [tuple(line.split(" ")) if isinstance(line, str) else tuple(line) for line in lines]
    merges = [pair for pair in pairs if len(pair) == 2 and not pair[0].startswith(MERGES_HEADER)]
    if any(part not in vocabulary for pair in merges for part in (*pair, "".join(pair))):
        raise UserError(f"base_model: {tokenizer_file} has merges of tokens that its vocabulary does not have")
    return clip_bpe(vocabulary, merges)


def _adds_words(tokenizer_file: Path, config: dict[str, Any]) -> bool:
    """Has somebody put words of their own into the tokenizer? Then only the whole of it counts rightly."""
    added = {entry.get("content") for entry in config.get("added_tokens_decoder", {}).values()}
    return bool(added - SPECIAL_TOKENS) or tokenizer_file.with_name("added_tokens.json").is_file()


def _limit(model_max_length: object, positions: object) -> int | None:
    """What both tokenizer and text encoder take; tokenizers without a length of their own say 1e30."""
    return min((int(n) for n in (model_max_length, positions) if isinstance(n, int | float)), default=None)


def _positions(config_file: Path | None) -> object:
    return None if config_file is None else _read_json(config_file).get("max_position_embeddings")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"base_model: {file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"base_model: {file} must hold a JSON object")
    return content
