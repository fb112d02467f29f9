"""The judge of likeness for the demo's drawn characters: one small network gives presence, box and embedding at once.

It stands behind the same interface as the encoders of real faces, which see no face in a drawing. Its weights come with
the demo (`examples/demo/family/face_encoder`) and are made by `examples/demo/train_family.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from evaluation.face import Face
from training.errors import UserError
from training.files import sha256_of


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; halves the side where `stride` is 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class DrawnFaceNetwork(nn.Module):
    """Pictures [B, 3, side, side] in [-1, 1] -> presence logits [B], boxes [B, 4] in units of the side, embeddings."""

    def __init__(self, side: int = 64, channels: Sequence[int] = (16, 32, 64, 128), embedding_size: int = 64) -> None:
        super().__init__()
        self.config = {"side": side, "channels": list(channels), "embedding_size": embedding_size}
        self.stem = nn.Conv2d(3, channels[0], 5, 2, 2)
        blocks: list[nn.Module] = []
        for in_channels, out_channels in pairwise(channels):
            blocks += [_ResidualBlock(in_channels, out_channels, 2), _ResidualBlock(out_channels, out_channels, 1)]
        self.blocks = nn.Sequential(*blocks)
        num_features = channels[-1] * (side // 2 ** len(channels)) ** 2
        self.find = nn.Linear(num_features, 5)
        self.embed = nn.Linear(num_features, embedding_size)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Presence logits [B], boxes [B, 4] as x0, y0, x1, y1, unit-norm embeddings [B, embedding_size]."""
        features = self.blocks(functional.relu(self.stem(pictures))).flatten(1)
        found = self.find(features)
        return found[:, 0], found[:, 1:], functional.normalize(self.embed(features), dim=1)


class DrawnFaceEncoder:
    """Finds at most one drawn face in a picture."""

    stranger_similarity = 0.02
    """Of 200 people that the family never saw (`examples/demo/measure.py --sections face`)."""

    def __init__(self, network: DrawnFaceNetwork, name: str, device: torch.device | str | None = None) -> None:
        self.name = name
        self.device = torch.device(device or "cpu")
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.side = int(network.config["side"])  # type: ignore[call-overload]

    @classmethod
    def from_folder(cls, folder: str | Path, device: torch.device | str | None = None) -> DrawnFaceEncoder:
        """Load `config.json` and `model.safetensors`.

        Raises:
            UserError: a file is missing, or the weights do not fit the config.
        """
        folder = Path(folder)
        for file in ("config.json", "model.safetensors"):
            if not (folder / file).is_file():
                raise UserError(
                    f"face encoder {folder}: a folder needs config.json and model.safetensors, {file} is missing"
                )
        network = DrawnFaceNetwork(**json.loads((folder / "config.json").read_text()))
        try:
            network.load_state_dict(load_file(folder / "model.safetensors"))
        except RuntimeError as error:
            raise UserError(f"face encoder {folder}: model.safetensors does not fit config.json: {error}") from error
        return cls(network, f"drawn {sha256_of(folder / 'model.safetensors')[:8]}", device)

    def find_faces(self, images: Sequence[Image.Image]) -> list[list[Face]]:
        """One face or none for each picture; boxes in pixels of the picture given."""
        if not images:
            return []
        pixels = np.stack([np.asarray(self._squared(image), dtype=np.float32) for image in images])
        pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device) / 127.5 - 1
        with torch.inference_mode():
            presence, boxes, embeddings = (output.float().cpu() for output in self.network(pictures))
        return [
            [Face(self._unsquared(box, image), probability, embedding)] if probability >= 0.5 else []
            for image, probability, box, embedding in zip(
                images, presence.sigmoid().tolist(), boxes.tolist(), embeddings.numpy(), strict=True
            )
        ]

    def _squared(self, image: Image.Image) -> Image.Image:
        """The whole picture within the network's square; grey fills what an oblong one leaves."""
        return ImageOps.pad(
            image.convert("RGB"), (self.side, self.side), Image.Resampling.BICUBIC, color=(127, 127, 127)
        )

    @staticmethod
    def _unsquared(box: list[float], image: Image.Image) -> tuple[float, float, float, float]:
        longer = max(image.size)
        left, top = (longer - image.width) / 2, (longer - image.height) / 2
        x0, y0, x1, y1 = (value * longer for value in box)
        return (
            min(max(x0 - left, 0.0), float(image.width)),
            min(max(y0 - top, 0.0), float(image.height)),
            min(max(x1 - left, 0.0), float(image.width)),
            min(max(y1 - top, 0.0), float(image.height)),
        )
