"""Safetensors files seen by their headers: which tensors they hold, and whether they are whole. Needs no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from training.errors import UserError

LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, in little-endian bytes."""
MAX_HEADER_BYTES = 100_000_000
"""The library takes no longer one."""
NAMES_SHOWN = 5
BYTES_SHOWN = 512
"""Enough of a file's beginning to tell what it is in truth."""

FOREIGN_BEGINNINGS = {
    b"version https://git-lfs": "a git-lfs pointer, not the weights themselves; run `git lfs pull` where it was cloned",
    b"PK\x03\x04": "a pickle by PyTorch under another name; it must be converted, not renamed",
    b"\x80": "a pickle by PyTorch under another name; it must be converted, not renamed",
    b"GGUF": "a GGUF file under another name",
    b"<": "a web page, not weights: the download got a page in place of the file",
    b"{": "JSON or text, not weights: the download got a message in place of the file",
}


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor."""

    dtype: str
    """As safetensors writes it: F32, F16, BF16, ..."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """The weights of one model, of one file or of several."""

    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    variant: str | None = None
    """What diffusers and transformers call it: `fp16` in `model.fp16.safetensors`; None for the plain name."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What a single file says of itself."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


class _Entry(BaseModel):
    dtype: str
    shape: tuple[NonNegativeInt, ...]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


class _Header(BaseModel):
    """All but `__metadata__`, which is text for people."""

    tensors: dict[str, _Entry] = Field(default_factory=dict)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UserError: it cannot be read, is no JSON, or something else than an object.
    """
    try:
        return TypeAdapter(dict[str, Any]).validate_json(_content(file))
    except ValidationError as error:
        detail = error.errors()[0]["msg"].removeprefix("Input should be")
        raise UserError(f"{file} must be a JSON object: {detail.strip()}") from None


def read_weights(file: Path) -> Weights:
    """One safetensors file's tensors, when it is whole.

    Raises:
        UserError: it is absent, a folder, something else under that name, cut short, or its header is damaged.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder, not a file")
    if file.with_name(f"{file.name}.aria2").exists():
        raise UserError(f"{file} is still being downloaded: {file.name}.aria2 lies beside it")
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            beginning = stream.read(BYTES_SHOWN)
            header_bytes = int.from_bytes(beginning[:LENGTH_BYTES], "little")
            _check_beginning(file, size, beginning, header_bytes)
            stream.seek(LENGTH_BYTES)
            header = stream.read(header_bytes)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    entries = _entries(file, header)
    needed = LENGTH_BYTES + header_bytes + max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if size < needed:
        raise UserError(f"{file} is cut short: {size:,} of {needed:,} bytes are there; copy or download it again")
    tensors = {name: Tensor(entry.dtype, entry.shape) for name, entry in entries.items()}
    return Weights((file,), tensors, metadata=_metadata_by_library(file))


def folder_weights(folder: Path, stem: str) -> Weights:
    """The weights of one model's folder, as they will be loaded: the plain ones, else a variant's (`fp16`, `non_ema`).

    Args:
        folder: `unet/`, `vae/` or `text_encoder/`.
        stem: `diffusion_pytorch_model` in a folder of diffusers, `model` in one of transformers.

    Raises:
        UserError: there are none, a file or shard is missing or not whole, or several variants leave the choice open.
    """
    variant = _variant(folder, stem)
    middle = "" if variant is None else f".{variant}"
    file, index = folder / f"{stem}{middle}.safetensors", folder / f"{stem}.safetensors.index{middle}.json"
    if _is_there(file):
        if index.exists():  # diffusers would read the index, transformers the file
            raise UserError(f"{folder} holds both {file.name} and {index.name}; leave one there")
        return Weights((file,), read_weights(file).tensors, variant)
    shards = [folder / name for name in _shard_names(index)]
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if not _is_there(shard):
            raise UserError(f"{shard} is missing: {index.name} names it")
        tensors |= read_weights(shard).tensors
    return Weights(tuple(shards), tensors, variant)


def _variant(folder: Path, stem: str) -> str | None:
    name = re.compile(rf"{re.escape(stem)}(\.(?P<file>[\w-]+?))?\.safetensors(\.index(\.(?P<index>[\w-]+))?\.json)?$")
    matches = [match for match in map(name.match, _names(folder)) if match and not _is_variant_shard(match["file"])]
    variants = {match["file"] or match["index"] for match in matches}
    if None in variants:
        return None
    if "fp16" in variants:
        return "fp16"
    if len(variants) > 1:
        raise UserError(
            f"{folder} holds the variants {', '.join(sorted(variants))} and no plain weights; leave one there"
        )
    if variants:
        return variants.pop()
    if any(name.endswith((".bin", ".ckpt", ".pt", ".pth")) for name in _names(folder)):
        raise UserError(
            f"{folder} holds its weights as pickles (.bin); load it once with diffusers where you "
            "trust it and save it again with save_pretrained(..., safe_serialization=True)"
        )
    there = _names(folder)
    got = ", ".join(there[:NAMES_SHOWN]) if there else "an empty folder"
    raise UserError(f"{folder} has no weights: need {stem}.safetensors, got {got}")


def _is_variant_shard(variant: str | None) -> bool:
    """`model.fp16-00001-of-00002.safetensors`: its index names the variant."""
    return variant is not None and re.search(r"-\d{5}-of-\d{5}$", variant) is not None


def _is_there(file: Path) -> bool:
    if file.is_symlink() and not file.exists():
        raise UserError(f"{file} is a link to a file that is not there: {file.readlink()}")
    return file.is_file() or file.is_dir()  # a folder of that name gets a sentence of its own


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    try:
        names = set(TypeAdapter(dict[str, str]).validate_python(weight_map).values())
    except ValidationError:
        names = set()
    if not names or any("/" in name or name in (".", "..") for name in names):
        raise UserError(f"{index} must have a weight_map of tensor to file name")
    return sorted(names)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _check_beginning(file: Path, size: int, beginning: bytes, header_bytes: int) -> None:
    if not size:
        raise UserError(f"{file} is empty")
    if beginning[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{" and header_bytes <= MAX_HEADER_BYTES:
        if size < LENGTH_BYTES + header_bytes:
            raise UserError(
                f"{file} is cut short within its header: {size:,} bytes are there; copy or download it again"
            )
        return
    for start, what in FOREIGN_BEGINNINGS.items():
        if beginning.lstrip().startswith(start):
            raise UserError(f"{file} is {what}")
    if not any(beginning):
        raise UserError(f"{file} holds zeros: a download that was never finished")
    raise UserError(f"{file} is no safetensors file: its header is damaged or something else has its name")


def _entries(file: Path, header: bytes) -> dict[str, _Entry]:
    try:
        raw = TypeAdapter(dict[str, Any]).validate_json(header)
        raw.pop("__metadata__", None)
        entries = _Header.model_validate({"tensors": raw}).tensors
    except ValidationError:
        raise UserError(f"{file} has a damaged header; copy or download it again") from None
    if not entries:
        raise UserError(f"{file} holds no tensors")
    return entries


def _metadata_by_library(file: Path) -> dict[str, str]:
    """With the loader's own word on sizes, offsets and types."""
    try:
        with safe_open(str(file), framework="numpy") as stored:
            return dict(stored.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is not a whole safetensors file: {error}") from None


def count(shapes: Iterable[tuple[int, ...]]) -> int:
    """Numbers in tensors of these shapes."""
    return sum(map(math.prod, shapes))
