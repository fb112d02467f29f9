"""Weights of facenet-pytorch's InceptionResnetV1: where its own files lie, and what makes a file such weights.

To know a name or to look at a safetensors file takes no torch; reading weights and fetching them does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub.constants import HF_HUB_OFFLINE
from safetensors import SafetensorError, safe_open

from training.errors import UserError

if TYPE_CHECKING:
    import torch

PRETRAINED_FILES = {
    "vggface2": ("20180402-114759-vggface2.pt", 112),
    "casia-webface": ("20180408-102900-casia-webface.pt", 116),
}
"""facenet-pytorch's weights: file name and size in MB."""
NUM_FEATURES = 1792
"""What the last layer makes an embedding of."""


def pretrained_path(pretrained: str) -> Path:
    """Where facenet-pytorch has its weights file, or will have it; it is not asked, for it would load torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", f"{cache}/torch")
    return Path(home).expanduser() / "checkpoints" / PRETRAINED_FILES[pretrained][0]


def pretrained_file(pretrained: str) -> Path:
    """facenet-pytorch's weights file, downloaded by facenet-pytorch itself if it is not there yet.

    Raises:
        UserError: it is neither there nor to be downloaded; says what goes where.
    """
    from urllib.error import URLError

    from facenet_pytorch import InceptionResnetV1

    name, megabytes = PRETRAINED_FILES[pretrained]
    path = pretrained_path(pretrained)
    reason = "offline by HF_HUB_OFFLINE"
    if not path.is_file() and not HF_HUB_OFFLINE:
        try:
            InceptionResnetV1(pretrained=pretrained)
        except (URLError, OSError) as error:
            reason = str(error)
    if not path.is_file():
        raise UserError(
            f"face encoder {pretrained}: no {name} (about {megabytes} MB) in {path.parent}, no download ({reason}); "
            "put the file from facenet-pytorch's releases there, or give a path to weights, or use dlib"
        )
    return path


def check_weights(path: Path) -> None:
    """Refuse a file that holds no InceptionResnetV1 of whatever head width; of a safetensors file, by its header alone.

    Raises:
        UserError: it is broken or holds something else; names the file.
    """
    head_width(_shapes_in_header(path) if path.suffix == ".safetensors" else shapes_of(read_state_dict(path)), path)


def head_width(shapes: Mapping[str, Sequence[int]], path: Path) -> int:
    """Length of the embeddings that weights of these shapes make.

    Raises:
        UserError: they are not InceptionResnetV1's; names the file.
    """
    head = shapes.get("last_linear.weight", ())
    if len(head) != 2 or head[1] != NUM_FEATURES:
        raise UserError(
            f"face encoder: need weights of InceptionResnetV1 (last_linear [d, {NUM_FEATURES}]), {path} has none"
        )
    return int(head[0])


def shapes_of(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Sequence[int]]:
    """Tensor names to shapes."""
    return {name: tensor.shape for name, tensor in state_dict.items()}


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors or .pt file by name, on the CPU; a .pt file is read as weights only and runs no code.

    Raises:
        UserError: it is broken or holds something else; names the file.
    """
    from pickle import UnpicklingError

    import torch
    from safetensors.torch import load_file

    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, EOFError, LookupError) as error:
        raise UserError(_unreadable(path, error)) from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"face encoder: need a state dict (names to tensors), {path} holds something else")
    return weights


def _shapes_in_header(path: Path) -> dict[str, Sequence[int]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 -- it is no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return f"face encoder: {path} is not a readable file of weights; fetch it anew ({error!s:.200})"
