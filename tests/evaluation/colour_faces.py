"""An encoder whose faces are colours, and photos for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.face import Face


class ColourEncoder:
    """A face is a picture that is not black; its embedding is the mean colour. Two faces where the corner is white."""

    name = "mean colour"
    stranger_similarity = 0.0

    def find_faces(self, images: Sequence[Image.Image]) -> list[list[Face]]:
        """One or two faces, none in black."""
        return [self._faces(np.asarray(image, dtype=np.float32)) for image in images]

    def _faces(self, pixels: np.ndarray) -> list[Face]:
        colour = pixels.mean(axis=(0, 1))
        if not colour.any():
            return []
        height, width = pixels.shape[:2]
        face = Face((0.0, 0.0, float(width), float(height)), 1.0, colour / np.linalg.norm(colour))
        small = Face((0.0, 0.0, 1.0, 1.0), 1.0, -face.embedding)
        return [face, small] if pixels[0, 0].min() == 255 else [face]


def colour_photos(folder: Path, *colours: tuple[int, int, int]) -> list[Path]:
    """One picture of 8x8 px a colour, `0.png` and on."""
    paths = []
    for i, colour in enumerate(colours):
        paths.append(folder / f"{i}.png")
        Image.new("RGB", (8, 8), colour).save(paths[-1])
    return paths
