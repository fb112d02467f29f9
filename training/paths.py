"""Paths in a config file, resolved by the field that declares them.

A file's reader validates with `context=relative_to(folder)`; every path of the config then comes out absolute, taken
from that folder. Without a context (a config built in a program) paths stay as they are. Ground: it knows nothing else
of the project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def relative_to(folder: Path) -> dict[str, Any]:
    """The validation context in which relative paths are taken from `folder`."""
    return {"folder": folder}


def resolve(path: str | Path, info: ValidationInfo) -> Path:
    """`path` made absolute, `~` included; as it is where validation has no folder to take it from.

    Raises:
        ValueError: no file system can hold such a path: a name too long, a NUL, the home of nobody.
    """
    folder = (info.context or {}).get("folder")
    if folder is None:
        return Path(path)
    try:
        resolved: Path = (folder / Path(path).expanduser()).resolve()
        resolved.exists()  # the system's own opinion
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"must be a path, got {str(path)[:60]!r}: {str(error).partition(': ')[0]}") from None
    return resolved


def _resolve_path(path: Path, info: ValidationInfo) -> Path:
    return resolve(path, info)


def _resolve_if_path(text: str, info: ValidationInfo) -> str:
    looks = text.startswith((".", "/", "~")) or text.endswith(WEIGHT_SUFFIXES) or text.count("/") > 1
    path = resolve(text, info)
    return str(path) if looks or path.exists() else text


ConfigPath = Annotated[Path, AfterValidator(_resolve_path)]
"""A file or folder."""
NameOrPath = Annotated[str, AfterValidator(_resolve_if_path)]
"""A name (`vggface2`, `owner/model`), which stays, or what looks like a path or is one, which becomes absolute."""
